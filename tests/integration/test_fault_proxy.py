"""The fault proxy does what it says: what arrives at the server, and what the client gets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from dcp_connections import ServerLoop
from dcp_fault_proxy import Fault, FaultProxy

BODY = bytes(range(256)) * 1024
PATH = "/bucket/key"


@dataclass
class Arrived:
    """One whole request, as the server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """Responds to a PUT with 200 the first time and with 412 then, and to others with :data:`BODY`."""

    port: int
    arrived: list[Arrived] = field(default_factory=list)

    def status(self, request: Arrived) -> int:
        again = sum(one.method == "PUT" and one.path == request.path for one in self.arrived) > 1
        return 412 if request.method == "PUT" and again else 200


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                # the connection broke on the way
                self.close_connection = True
                return
            request = Arrived(self.command, self.path, dict(self.headers), body)
            with lock:
                server.arrived.append(request)
                status = server.status(request)
            content = b"" if self.command == "PUT" else BODY
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", '"version"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = respond

        def log_message(self, *details: Any) -> None:
            pass

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server(0)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(found)) as running:
        running.daemon_threads = True
        found.port = running.server_address[1]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        running.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(f"http://127.0.0.1:{server.port}") as running:
        yield running


@dataclass
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(proxy: FaultProxy, method: str = "GET", path: str = PATH, body: bytes | None = None) -> Response:
    """One request on a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)) as client:
        client.request(method, path, body)
        found = client.getresponse()
        return Response(found.status, found.headers, found.read())


def put(proxy: FaultProxy, path: str = PATH) -> Response:
    return ask(proxy, "PUT", path, BODY)


@contextlib.contextmanager
def asking(work: Callable[[], object]) -> Iterator[list[object]]:
    """Ask on a thread; the list has what came of it once the block has ended."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except (OSError, http.client.HTTPException) as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield outcome
    finally:
        thread.join()


def statuses(proxy: FaultProxy, count: int) -> list[int]:
    return [ask(proxy).status for _ in range(count)]


def test_requests_pass_unchanged(server: Server, proxy: FaultProxy) -> None:
    path = "/bucket/a%2Fb%20c+d?x=1&y=%E2%82%AC"
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.port)) as client:
        client.request("POST", path, BODY, {"Host": "elsewhere", "X-Odd": "a, b", "Accept-Encoding": "gzip"})
        response = client.getresponse()
        assert (response.status, response.headers["ETag"], response.read()) == (200, '"version"', BODY)
        client.request("HEAD", PATH)
        response = client.getresponse()
        assert (response.headers["Content-Length"], response.read()) == (str(len(BODY)), b"")
    arrived = server.arrived[0]
    assert (arrived.method, arrived.path, arrived.body) == ("POST", path, BODY)
    assert arrived.headers == {
        "Host": "elsewhere",
        "X-Odd": "a, b",
        "Accept-Encoding": "gzip",
        "Content-Length": str(len(BODY)),
    }
    seen = proxy.requests[0]
    assert (seen.status, seen.bytes_in, seen.bytes_out, seen.fault) == (200, len(BODY), len(BODY), None)


def test_which_requests_are_broken(server: Server, proxy: FaultProxy) -> None:
    proxy.add(Fault("error", operation="GetObject", path="key$", query="x=1", skip=1, times=2))
    paths = [PATH, f"{PATH}?x=1", f"{PATH}?x=1", "/bucket/other?x=1", f"{PATH}?x=1", f"{PATH}?x=1"]
    assert [ask(proxy, path=path).status for path in paths] == [200, 200, 503, 200, 503, 200]
    assert ask(proxy, "HEAD", f"{PATH}?x=1").status == 200
    assert [seen.fault for seen in proxy.requests].count("error") == 2
    assert len(server.arrived) == 5
    proxy.clear()
    assert proxy.requests == []
    assert ask(proxy, path=f"{PATH}?x=1").status == 200


def test_a_fault_that_spreads_breaks_everything_after_its_first(server: Server, proxy: FaultProxy) -> None:
    proxy.add(Fault("error", method="PUT", status=403, code="AccessDenied", spreads=True))
    assert statuses(proxy, 2) == [200, 200]
    assert put(proxy).status == 403
    refused = ask(proxy)
    assert refused.status == 403
    assert b"<Code>AccessDenied</Code>" in refused.body
    assert [one.method for one in server.arrived] == ["GET", "GET"]


def test_a_fault_for_a_time(server: Server, proxy: FaultProxy) -> None:
    fault = Fault("error", method="GET", lasts=0.5)
    proxy.add(fault)
    time.sleep(0.6)
    # the time begins with the first request
    assert statuses(proxy, 1) == [503]
    assert ask(proxy, "HEAD").status == 200
    ends_at = time.monotonic() + 10
    while ask(proxy).status == 503 and time.monotonic() < ends_at:
        time.sleep(0.05)
    assert fault.began is not None
    assert time.monotonic() - fault.began >= 0.5
    assert statuses(proxy, 2) == [200, 200]


@pytest.mark.parametrize(("done", "arrived"), [(False, 0), (True, 1)])
def test_pages_in_the_stores_place(server: Server, proxy: FaultProxy, done: bool, arrived: int) -> None:
    proxy.add(Fault("page", status=502, done=done))
    response = put(proxy)
    assert (response.status, response.headers["Content-Type"]) == (502, "text/html")
    assert b"<h1>502 Bad Gateway</h1>" in response.body
    assert len(server.arrived) == arrived


def test_refused_connections(server: Server, proxy: FaultProxy) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.port)) as other:
        other.request("GET", PATH)
        assert other.getresponse().read() == BODY
        proxy.add(Fault("refuse"))
        with pytest.raises(ConnectionResetError):
            ask(proxy)
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                ask(proxy)
        # the connections that there are end too
        assert other.sock is not None
        with pytest.raises(ConnectionResetError):
            other.sock.recv(1)
    port = proxy.port
    proxy.clear()
    assert statuses(proxy, 1) == [200]
    assert proxy.port == port
    assert len(server.arrived) == 2


def test_refused_connections_for_a_time(server: Server, proxy: FaultProxy) -> None:
    proxy.add(Fault("refuse", seconds=0.5))
    started = time.monotonic()
    with pytest.raises(ConnectionResetError):
        ask(proxy)
    while time.monotonic() - started < 20:
        try:
            assert ask(proxy).status == 200
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    assert time.monotonic() - started >= 0.5
    assert len(server.arrived) == 1


@pytest.mark.parametrize(
    ("kind", "arrived"),
    [
        ("reset_request", 0),
        ("lose_response", 1),
        ("reset_response", 1),
        ("truncate_response", 1),
        ("postpone", 0),
    ],
)
def test_connections_that_break(server: Server, proxy: FaultProxy, kind: Any, arrived: int) -> None:
    proxy.add(Fault(kind, after=100_000))
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        ask(proxy, "POST", body=BODY)
    assert len(server.arrived) == arrived
    # one that has no body is broken as well
    proxy.add(Fault(kind))
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(proxy, "PUT")
    assert len(server.arrived) == 2 * arrived
    assert ask(proxy).body == BODY


def test_a_request_without_a_body_that_is_reset_does_not_arrive(server: Server, proxy: FaultProxy) -> None:
    proxy.add(Fault("reset_request"))
    with pytest.raises(ConnectionResetError):
        ask(proxy)
    assert server.arrived == []


def test_a_truncated_response_ends_in_good_order(server: Server, proxy: FaultProxy) -> None:
    """No error of the connection tells the client that something is missing."""
    proxy.add(Fault("truncate_response", after=100_000))
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(proxy)
    assert caught.value.partial == BODY[:100_000]
    proxy.add(Fault("reset_response", after=100_000))
    with pytest.raises(ConnectionResetError):
        ask(proxy)


def test_a_shortened_response_looks_whole(server: Server, proxy: FaultProxy) -> None:
    proxy.add(Fault("shorten_response", after=100_000))
    response = ask(proxy)
    assert (response.status, response.headers["ETag"]) == (200, '"version"')
    assert response.body == BODY[:100_000]


def test_headers_taken_away(server: Server, proxy: FaultProxy) -> None:
    proxy.add(Fault("strip_response", without=("etag", "X-None")))
    response = ask(proxy)
    assert "ETag" not in response.headers
    assert response.body == BODY
    assert ask(proxy).headers["ETag"] == '"version"'


def damaged_at(data: bytes) -> list[int]:
    return [at for at, (one, other) in enumerate(zip(data, BODY, strict=True)) if one != other]


def test_one_byte_of_a_response(server: Server, proxy: FaultProxy) -> None:
    # the last one, where there is none at the place
    for after, at in [(0, 0), (100_000, 100_000), (1 << 30, len(BODY) - 1)]:
        proxy.add(Fault("flip_response", after=after))
        assert damaged_at(ask(proxy).body) == [at]
    assert ask(proxy).body == BODY


def test_one_byte_of_a_request(server: Server, proxy: FaultProxy) -> None:
    for after, at in [(0, 0), (100_000, 100_000), (1 << 30, len(BODY) - 1)]:
        proxy.add(Fault("flip_request", after=after))
        assert put(proxy, f"{PATH}{after}").status == 200
        assert damaged_at(server.arrived[-1].body) == [at]
    assert put(proxy).status == 200
    assert server.arrived[-1].body == BODY


@pytest.mark.parametrize("kind", ["delay", "late", "stall", "stall_request"])
def test_slow_requests_arrive_whole(server: Server, proxy: FaultProxy, kind: Any) -> None:
    proxy.add(Fault(kind, after=100_000, seconds=1.0))
    started = time.monotonic()
    with asking(lambda: ask(proxy, "POST", body=BODY)) as outcome:
        time.sleep(0.5)
        # done already, where only the response is slow
        assert len(server.arrived) == (kind in ("late", "stall"))
        assert outcome == []
    assert time.monotonic() - started >= 1.0
    (response,) = outcome
    assert isinstance(response, Response)
    assert response.body == BODY
    assert [one.body for one in server.arrived] == [BODY]


@pytest.mark.parametrize("kind", ["twice", "twice_together"])
def test_a_request_delivered_twice(server: Server, proxy: FaultProxy, kind: Any) -> None:
    proxy.add(Fault(kind, method="PUT"))
    status = put(proxy).status
    assert [one.body for one in server.arrived] == [BODY, BODY]
    # two at once may be responded to in any order
    assert status == 412 or kind == "twice_together"


def test_a_request_delivered_again_later(server: Server, proxy: FaultProxy) -> None:
    proxy.add(Fault("again", method="PUT"))
    assert put(proxy).status == 200
    assert len(server.arrived) == 1
    proxy.clear()
    assert proxy.deliver() == [412]
    assert server.arrived[0].body == server.arrived[1].body == BODY
    assert server.arrived[0].headers == server.arrived[1].headers
    assert proxy.deliver() == []


def test_a_request_that_arrives_after_its_connection_broke(server: Server, proxy: FaultProxy) -> None:
    proxy.add(Fault("postpone", method="PUT"))
    with pytest.raises(ConnectionResetError):
        put(proxy)
    assert server.arrived == []
    assert proxy.deliver() == [200]
    assert [one.body for one in server.arrived] == [BODY]


def test_a_request_overtaken_by_the_next_for_its_key(server: Server, proxy: FaultProxy) -> None:
    proxy.add(Fault("overtake", method="PUT"))
    with pytest.raises(ConnectionResetError):
        put(proxy, f"{PATH}?first")
    assert put(proxy, "/bucket/another").status == 200
    assert [one.path for one in server.arrived] == ["/bucket/another"]
    assert put(proxy, f"{PATH}?second").status == 200
    assert [one.path for one in server.arrived[1:]] == [f"{PATH}?second", f"{PATH}?first"]
    assert proxy.deliver() == []
    # without another, it comes when it is asked for
    proxy.add(Fault("overtake", method="PUT"))
    with pytest.raises(ConnectionResetError):
        put(proxy, "/bucket/third")
    assert proxy.deliver() == [200]


@pytest.mark.parametrize("drop", [False, True])
def test_a_request_that_is_held(server: Server, proxy: FaultProxy, drop: bool) -> None:
    proxy.add(Fault("hold", method="PUT"))
    assert not proxy.wait_held(0.1)
    with asking(lambda: put(proxy)) as outcome:
        assert proxy.wait_held(20)
        assert statuses(proxy, 1) == [200]
        assert [one.method for one in server.arrived] == ["GET"]
        assert proxy.release(drop=drop) == [0 if drop else 200]
    assert isinstance(outcome[0], ConnectionResetError if drop else Response)
    assert [one.method for one in server.arrived] == (["GET"] if drop else ["GET", "PUT"])
    assert not proxy.wait_held(0.0)


def test_a_client_that_is_gone_when_its_request_is_released(server: Server, proxy: FaultProxy) -> None:
    proxy.add(Fault("hold", method="PUT"))
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(f"PUT {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n".encode())
        client.sendall(BODY)
        assert proxy.wait_held(20)
    assert server.arrived == []
    assert proxy.release() == [200]
    assert [one.body for one in server.arrived] == [BODY]


def test_what_clients_gave_up_is_waited_for(server: Server, proxy: FaultProxy) -> None:
    assert proxy.settle(0.0)
    proxy.add(Fault("delay", method="PUT", seconds=1.0))
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(f"PUT {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n".encode())
        client.sendall(BODY)
        client.shutdown(socket.SHUT_WR)
        while not proxy.requests:
            time.sleep(0.01)
    assert not proxy.settle(0.0)
    assert proxy.settle()
    assert proxy.requests[0].fault == "delay"


def test_connections_that_a_peer_does_not_read_are_cut() -> None:
    """What is closed, but not sent yet, would stay open after the end of its loop."""
    size = 64 << 20

    class Responding(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(bytes(size))
            transport.close()

    async def serve() -> socket.socket:
        listening = await asyncio.get_running_loop().create_server(Responding, "127.0.0.1", 0)
        client = socket.create_connection(listening.sockets[0].getsockname())
        # the response has begun
        assert await asyncio.to_thread(client.recv, 1)
        listening.close()
        return client

    loop = ServerLoop()
    with loop.run_until_complete(serve()) as client:
        loop.run_until_complete(loop.abort_connections())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        client.settimeout(20)
        received = 1
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(1 << 20):
                received += len(data)
    assert received < size


def test_a_connection_that_is_accepted_as_the_server_closes_is_closed_too() -> None:
    """asyncio makes half of a transport for it, and leaves that, and its socket, to the garbage collector."""

    async def accept_late() -> None:
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        ours, theirs = socket.socketpair()
        listening.close()
        with theirs:
            with pytest.raises(ConnectionAbortedError):
                loop._make_socket_transport(ours, asyncio.Protocol(), server=listening)  # type: ignore[attr-defined]
            assert ours.fileno() == -1

    loop = ServerLoop()
    loop.run_until_complete(accept_late())
    loop.close()
    gc.collect()
