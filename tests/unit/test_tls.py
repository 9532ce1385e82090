"""Answers over TLS: every byte whichever way it comes, and few calls of the kernel."""

from __future__ import annotations

import fcntl
import http.client
import socket
import ssl
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import trustme

from dcp_core import tls
from dcp_core.testing import pattern

MIB = 1 << 20
RECORD = 16 << 10


@dataclass
class Server:
    """A TLS server; its connections are served by :meth:`serve`'s function, a thread each."""

    authority: trustme.CA
    listener: socket.socket
    context: ssl.SSLContext

    def serve(self, work: Any) -> threading.Thread:
        def run() -> None:
            plain, _ = self.listener.accept()
            with self.context.wrap_socket(plain, server_side=True) as connection:
                work(connection)

        thread = threading.Thread(target=run)
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


@pytest.mark.parametrize("ahead", [False, True])
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
    thread.join()


@pytest.mark.parametrize("sent", [0, 50, RECORD, MIB])
def test_an_answer_cut_short(server: Server, sent: int) -> None:
    def work(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * MIB) + pattern(sent))

    thread = server.serve(work)
    with server.client(ahead=True) as connection:
        answer = tls.TlsAnswer(begun(connection), connection)
        assert received(answer, 2 * MIB, 100_003) == pattern(sent)
    thread.join()


def test_a_server_that_stops_sending(server: Server) -> None:
    stop = threading.Event()

    def work(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MIB + bytes(100_000))
        stop.wait(10)

    thread = server.serve(work)
    with server.client(ahead=True) as connection:
        connection.settimeout(0.3)
        answer = tls.TlsAnswer(begun(connection), connection)
        with pytest.raises(TimeoutError):
            received(answer, MIB, MIB)
    stop.set()
    thread.join()


def waiting(connection: socket.socket) -> int:
    """Bytes in the kernel (``FIONREAD``, tcp(7))."""
    return int(struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))[0])


def taken_by_one_record(server: Server, *, ahead: bool) -> int:
    """Bytes that leave the kernel when one record of many is read."""
    done = threading.Event()

    def work(connection: ssl.SSLSocket) -> None:
        connection.sendall(bytes(4 * RECORD))
        done.wait(10)

    thread = server.serve(work)
    with server.client(ahead=ahead) as connection:
        deadline = time.monotonic() + 10
        while (before := waiting(connection)) < 4 * RECORD and time.monotonic() < deadline:
            time.sleep(0.01)
        assert connection.recv(RECORD) == bytes(RECORD)
        taken = before - waiting(connection)
        done.set()
    thread.join()
    return taken


@pytest.mark.skipif(sys.version_info[:2] not in tls._KNOWN, reason="this Python is not known")
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
