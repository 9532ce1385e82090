"""What shows how a client uses connections and bodies, whatever its cloud."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

from dcp_core.store import Body


class CountingBody(Body):
    """Counts how often and how much of it is read."""

    reads = 0
    sent = 0

    def read(self, size: int | None = -1) -> bytes | memoryview:
        view = super().read(size)
        self.reads += 1
        self.sent += len(view)
        return view


class Listener:
    """Counts connections and passes bytes on to a server; with ``tls`` it speaks TLS to its clients."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.accepted = 0
        self._tls = tls
        self._upstream = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # a client that does not trust the certificate ends here
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            held.enter_context(client)
            if self._tls is not None:
                client = held.enter_context(self._tls.wrap_socket(client, server_side=True))
            server = held.enter_context(socket.create_connection(("127.0.0.1", self._upstream)))
            back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
            back.start()
            self._pump(client, server)
            back.join()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def answering(answer: bytes) -> tuple[int, socket.socket]:
    """A server that gives every connection the same answer."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.recv(1 << 16)
                client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1], server
