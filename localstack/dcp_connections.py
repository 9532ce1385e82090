"""Connections of servers in the tests' own process: a loop that ends with all of them closed, and resets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

__all__ = ["ServerLoop", "bound", "end_connection"]

#: Turns of the loop within which every transport that is cut has closed its socket.
_TURNS = 100
#: Closing a connection with this sends a reset.
_RESET = struct.pack("ii", 1, 0)


class ServerLoop(asyncio.SelectorEventLoop):
    """Knows the connections it made, to cut them.

    What aiohttp closes stays open for as long as a peer does not read what is still to be sent; a loop that
    is stopped then leaves sockets to the garbage collector, which warns in the middle of some later test.
    The loop's own list of transports is weak: one that nothing else refers to is gone from it, its socket
    still open.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: list[Any] = []

    # private, and the same since Python 3.4: every connection of either side begins in one of these
    def _make_socket_transport(self, sock: socket.socket, *arguments: Any, **options: Any) -> Any:
        _refuse_late(sock, options.get("server"))
        transport = super()._make_socket_transport(sock, *arguments, **options)  # type: ignore[misc]
        self._note(transport)
        return transport

    def _make_ssl_transport(self, rawsock: socket.socket, *arguments: Any, **options: Any) -> Any:
        _refuse_late(rawsock, options.get("server"))
        made = super()._make_ssl_transport(rawsock, *arguments, **options)  # type: ignore[misc]
        # the transport below, which has the socket
        self._note(self._transports[rawsock.fileno()])  # type: ignore[attr-defined]
        return made

    def _note(self, transport: Any) -> None:
        self._made = [*filter(_is_open, self._made), transport]

    async def abort_connections(self) -> None:
        """Cut every connection and wait until its socket is closed.

        Raises:
            RuntimeError: some connections stay open.
        """
        for _ in range(_TURNS):
            self._made = list(filter(_is_open, self._made))
            if not self._made:
                return
            for transport in self._made:
                transport.abort()
            # they are closed by callbacks
            await asyncio.sleep(0)
        raise RuntimeError(f"{len(self._made)} connections stay open")


def _refuse_late(sock: socket.socket, server: Any) -> None:
    """End a connection that was accepted in the moment in which its server was closed.

    asyncio fails an assertion then, and leaves a transport that is half made to the garbage collector.
    """
    if server is not None and server._sockets is None:
        sock.close()
        raise ConnectionAbortedError("the server has closed")


def _is_open(transport: Any) -> bool:
    """Whether its socket is; a transport that ``is_closing`` may wait for a peer for ever."""
    return transport._sock is not None


def bound(port: int) -> socket.socket:
    """A socket at a loopback port that others of this process may have too, as long as one listens."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", port))
    return found


def end_connection(transport: Any, *, in_order: bool = False) -> None:
    """End a connection with a reset, unless ``in_order``; the client may have gone first."""
    if transport is None:
        return
    if in_order:
        transport.close()
        return
    with contextlib.suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
