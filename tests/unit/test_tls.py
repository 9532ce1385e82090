"""Answers over TLS: every byte whichever way it comes, and few calls of the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import http.client
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
import urllib3
from urllib3.util.ssl_ import create_urllib3_context

from dcp_core import tls
from dcp_core.store import ObjectInfo
from dcp_core.store_http import HttpRangeReader, tuned_pools
from dcp_core.testing import pattern, read_all

MIB = 1 << 20
RECORD = 16 << 10
#: Whether connections may read ahead; what they receive is the same.
AHEAD = [False] if tls._openssl() is None else [False, True]


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

    def client(self, *, ahead: bool) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.configure_trust(context)
        if ahead:
            assert tls.read_ahead(context)
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


def received(answer: tls.TlsAnswer, size: int, step: int) -> bytes:
    """What ``readinto`` brings in calls of ``step`` bytes, until it brings nothing."""
    kept, buffer = bytearray(), memoryview(bytearray(step))
    while len(kept) < size:
        count = answer.readinto(buffer[: min(step, size - len(kept))])
        if count == 0:
            break
        kept += buffer[:count]
    return bytes(kept)


@pytest.mark.parametrize("ahead", AHEAD)
@pytest.mark.parametrize("size", [1, 5000, RECORD, RECORD + 1, 3 * MIB + 7])
@pytest.mark.parametrize("step", [1 << 12, RECORD, 100_003, 4 * MIB])
def test_two_answers_through_one_connection(server: Server, size: int, step: int, ahead: bool) -> None:
    data = pattern(size)

    def work(connection: ssl.SSLSocket) -> None:
        for _ in range(2):
            connection.recv(1)
            # the head and the first bytes in one record, as servers send them
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + data[:100])
            connection.sendall(data[100:])

    thread = server.serve(work)
    with server.client(ahead=ahead) as connection:
        for _ in range(2):
            connection.sendall(b"?")
            response = begun(connection)
            assert received(tls.TlsAnswer(response, connection), size, step) == data
            assert response.isclosed(), "http.client would not take the connection for another request"
    joined(thread)


@pytest.mark.parametrize("sent", [0, 50, RECORD, MIB])
def test_an_answer_cut_short(server: Server, sent: int) -> None:
    def work(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * MIB) + pattern(sent))

    thread = server.serve(work)
    with server.client(ahead=AHEAD[-1]) as connection:
        answer = tls.TlsAnswer(begun(connection), connection)
        assert received(answer, 2 * MIB, 100_003) == pattern(sent)
    joined(thread)


def test_a_server_that_stops_sending(server: Server) -> None:
    stop = threading.Event()

    def work(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MIB + bytes(100_000))
        stop.wait(10)

    thread = server.serve(work)
    with server.client(ahead=AHEAD[-1]) as connection:
        connection.settimeout(0.3)
        answer = tls.TlsAnswer(begun(connection), connection)
        with pytest.raises(TimeoutError):
            received(answer, MIB, MIB)
    stop.set()
    joined(thread)


def waiting(connection: socket.socket) -> int:
    """Bytes in the kernel (``FIONREAD``, tcp(7))."""
    return int(struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))[0])


def waited_for(connection: socket.socket, least: int) -> int:
    """Bytes in the kernel, once they are ``least``."""
    deadline = time.monotonic() + 10
    while (found := waiting(connection)) < least:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def taken_by_one_record(server: Server, *, ahead: bool) -> int:
    """Bytes that leave the kernel when one record of many is read."""
    done = threading.Event()

    def work(connection: ssl.SSLSocket) -> None:
        connection.sendall(bytes(4 * RECORD))
        done.wait(10)

    thread = server.serve(work)
    with server.client(ahead=ahead) as connection:
        before = waited_for(connection, 4 * RECORD)
        assert connection.recv(RECORD) == bytes(RECORD)
        taken = before - waiting(connection)
        done.set()
    joined(thread)
    return taken


@pytest.mark.skipif(AHEAD == [False], reason="this Python or its OpenSSL is not known")
def test_the_kernel_is_asked_for_more_than_a_record(server: Server) -> None:
    """The pointer is the right one: OpenSSL does what it was asked to."""
    assert taken_by_one_record(server, ahead=False) < 2 * RECORD
    assert taken_by_one_record(server, ahead=True) > 2 * RECORD


@pytest.mark.parametrize(
    "setting", [("_KNOWN", ()), ("ssl.OPENSSL_VERSION", "LibreSSL 3.0"), ("ssl._ssl.__file__", "/not/there")]
)
def test_left_alone_where_it_is_not_known(monkeypatch: pytest.MonkeyPatch, setting: tuple[str, Any]) -> None:
    name, value = setting
    monkeypatch.setattr(f"dcp_core.tls.{name}", value)
    tls._openssl.cache_clear()
    try:
        assert not tls.read_ahead(ssl.create_default_context())
    finally:
        tls._openssl.cache_clear()


def test_contexts_of_other_makers_are_left_alone() -> None:
    assert not tls.read_ahead(None)
    assert not tls.read_ahead(object())


@pytest.mark.skipif(AHEAD == [False], reason="this Python or its OpenSSL is not known")
@pytest.mark.parametrize("given", [False, True], ids=["a context of urllib3's", "a given context"])
def test_connections_of_the_backends(server: Server, given: bool) -> None:
    """They read ahead, and past the file objects; the server sends slowly, and twice on one connection."""
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
        tune(manager)
        for _ in range(2):
            answer = manager.request("GET", f"https://{host}:{port}/", preload_content=False)
            reader = HttpRangeReader(
                ObjectInfo("key", len(data), "1"),
                answer,
                len(data),
                operation="GetObject",
                bucket="bucket",
                mapped=contextlib.nullcontext,
            )
            assert isinstance(reader._source, tls.TlsAnswer)
            assert ahead_of(answer.connection.sock.context)
            assert read_all(reader, len(data)) == data
            reader.close()
    joined(thread)


def tune(manager: urllib3.PoolManager) -> None:
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = tuned_pools(pools, 5.0, create_urllib3_context)


def ahead_of(context: ssl.SSLContext) -> bool:
    """Whether OpenSSL says that it reads ahead (``SSL_CTX_get_read_ahead``)."""
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    return bool(tls._openssl().SSL_CTX_ctrl(pointer, 40, 0, None))


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
        tune(manager)
        url = f"https://{name}:{server.listener.getsockname()[1]}/"
        if trusted and name == "127.0.0.1":
            assert manager.request("GET", url).status == 204
        else:
            with pytest.raises(urllib3.exceptions.SSLError, match="certificate"):
                manager.request("GET", url)
    joined(thread)
