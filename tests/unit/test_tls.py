"""Responses over TLS: every byte, whichever way it comes."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
import urllib3

from dcp_core.seam.store import ObjectInfo
from dcp_core.testing import pattern, read_all
from dcp_core.transport.pools import tune_pools
from dcp_core.transport.range_reader import Urllib3RangeReader
from dcp_core.transport.tls import TlsResponse

MIB = 1 << 20
RECORD = 16 << 10


@dataclass
class Server:
    """A TLS server with a certificate for 127.0.0.1."""

    authority: trustme.CA
    listener: socket.socket
    context: ssl.SSLContext

    def serve(self, work: Any, *, refused: bool = False) -> threading.Thread:
        """Serve one connection; with ``refused``, its client may find the certificate wanting."""

        def run() -> None:
            plain, _ = self.listener.accept()
            with (
                contextlib.suppress(ssl.SSLError) if refused else contextlib.nullcontext(),
                self.context.wrap_socket(plain, server_side=True) as connection,
            ):
                work(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def client(self) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.configure_trust(context)
        plain = socket.create_connection(self.listener.getsockname())
        plain.settimeout(10)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Server(authority, listener, context)


def joined(thread: threading.Thread) -> None:
    thread.join(10)
    assert not thread.is_alive()


def begun(connection: socket.socket) -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(connection, method="GET")
    response.begin()
    return response


def received(response: TlsResponse, size: int, step: int) -> bytes:
    """What ``readinto`` brings in calls of ``step`` bytes, until it brings nothing."""
    kept, buffer = bytearray(), memoryview(bytearray(step))
    while len(kept) < size:
        count = response.readinto(buffer[: min(step, size - len(kept))])
        if count == 0:
            break
        kept += buffer[:count]
    return bytes(kept)


@pytest.mark.parametrize("size", [1, 5000, RECORD, RECORD + 1, 3 * MIB + 7])
@pytest.mark.parametrize("step", [1 << 12, RECORD, 100_003, 4 * MIB])
def test_two_responses_through_one_connection(server: Server, size: int, step: int) -> None:
    data = pattern(size)

    def work(connection: ssl.SSLSocket) -> None:
        for _ in range(2):
            connection.recv(1)
            # the head and the first bytes in one record, as servers send them
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + data[:100])
            connection.sendall(data[100:])

    thread = server.serve(work)
    with server.client() as connection:
        for _ in range(2):
            connection.sendall(b"?")
            response = begun(connection)
            assert received(TlsResponse(response, connection), size, step) == data
            assert response.isclosed(), "http.client would not take the connection for another request"
    joined(thread)


@pytest.mark.parametrize("sent", [0, 50, RECORD, MIB])
def test_a_response_cut_short(server: Server, sent: int) -> None:
    def work(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * MIB) + pattern(sent))

    thread = server.serve(work)
    with server.client() as connection:
        response = TlsResponse(begun(connection), connection)
        assert received(response, 2 * MIB, 100_003) == pattern(sent)
    joined(thread)


def test_a_server_that_stops_sending(server: Server) -> None:
    stop = threading.Event()

    def work(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MIB + bytes(100_000))
        stop.wait(10)

    thread = server.serve(work)
    with server.client() as connection:
        connection.settimeout(0.3)
        response = TlsResponse(begun(connection), connection)
        with pytest.raises(TimeoutError):
            received(response, MIB, MIB)
    stop.set()
    joined(thread)


@pytest.mark.parametrize("given", [False, True], ids=["a context of urllib3's", "a given context"])
def test_connections_of_the_backends(server: Server, given: bool) -> None:
    """They read past the file objects; the server sends slowly, and twice on one connection."""
    data = pattern(3 * MIB + 7)

    def work(connection: ssl.SSLSocket) -> None:
        for _ in range(2):
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data))
            for start in range(0, len(data), 100_000):
                connection.sendall(data[start : start + 100_000])
                time.sleep(0.002)

    options: dict[str, Any] = {}
    if given:
        options["ssl_context"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        server.authority.configure_trust(options["ssl_context"])
    else:
        with server.authority.cert_pem.tempfile() as path:
            options["ca_cert_data"] = Path(path).read_text()
    thread = server.serve(work, refused=True)
    host, port = server.listener.getsockname()
    with urllib3.PoolManager(**options) as manager:
        tune_pools(manager, 5.0)
        for _ in range(2):
            response = manager.request("GET", f"https://{host}:{port}/", preload_content=False)
            reader = Urllib3RangeReader(
                ObjectInfo("key", len(data), "1"),
                response,
                len(data),
                operation="GetObject",
                bucket="bucket",
                translated=contextlib.nullcontext,
            )
            assert isinstance(reader._source, TlsResponse)
            assert read_all(reader, len(data)) == data
            reader.close()
    joined(thread)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_certificates_are_verified(server: Server, trusted: bool, name: str) -> None:
    """The certificate is for 127.0.0.1."""
    authority = server.authority if trusted else trustme.CA()

    def work(connection: ssl.SSLSocket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 204 \r\n\r\n")

    thread = server.serve(work, refused=True)
    with authority.cert_pem.tempfile() as path:
        manager = urllib3.PoolManager(ca_certs=path, retries=False)
        tune_pools(manager, 5.0)
        url = f"https://{name}:{server.listener.getsockname()[1]}/"
        if trusted and name == "127.0.0.1":
            assert manager.request("GET", url).status == 204
        else:
            with pytest.raises(urllib3.exceptions.SSLError, match="certificate"):
                manager.request("GET", url)
    joined(thread)
