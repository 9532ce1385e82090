"""Raw sockets in the place of servers, for what no real server does, and bodies that count."""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

from dcp_core.seam.body import Body, BodyReader

__all__ = ["CountingBody", "Listener", "responding", "not_reading"]


class CountingBody(Body):
    """Counts how often and how much of it is read, by all who open it."""

    reads = 0
    sent = 0

    def open(self) -> BodyReader:
        return _CountingReader(self)


class _CountingReader(BodyReader):
    def __init__(self, body: CountingBody) -> None:
        super().__init__(body.buffers, body.size)
        self._body = body

    def read(self, size: int | None = -1) -> bytes | memoryview:
        view = super().read(size)
        self._body.reads += 1
        self._body.sent += len(view)
        return view


class Listener:
    """Counts connections and passes bytes on to a server; with ``tls`` it speaks TLS to its clients."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.accepted = 0
        self._tls = tls
        self._upstream = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            self._open.append(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        # a client that does not trust the certificate ends here
        with contextlib.suppress(OSError):
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
                self._open.append(client)
            server = socket.create_connection(("127.0.0.1", self._upstream))
            self._open.append(server)
            self._start(self._pump, server, client)
            self._pump(client, server)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End all connections; nothing of them is left for a later test."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        # a thread may start another until it has ended
        for thread in self._threads:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            thread.join()
        for one in (self._socket, *self._open):
            one.close()


def responding(response: bytes) -> tuple[int, socket.socket]:
    """A server that gives every connection the same response."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.recv(1 << 16)
                client.sendall(response)

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1], server


@contextlib.contextmanager
def not_reading(seconds: float = math.inf, response: bytes = b"") -> Iterator[int]:
    """The port of a server that reads nothing for so many seconds of each connection.

    Then it reads until the body has ended that the request's ``Content-Length`` announces, and responds.
    """
    ended = threading.Event()

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if not ended.wait(None if seconds == math.inf else seconds):
                _receive(client)
                client.sendall(response)

    def accept() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(client,), daemon=True))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threads = [threading.Thread(target=accept, daemon=True)]
        threads[0].start()
        yield server.getsockname()[1]
        ended.set()
        server.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def _receive(client: socket.socket) -> None:
    """Read one whole request."""
    with client.makefile("rb") as stream:
        left = 0
        while (line := stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            left = int(value) if name.lower() == b"content-length" else left
        while left and (data := stream.read(min(left, 1 << 20))):
            left -= len(data)
