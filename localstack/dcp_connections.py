"""The event loop of a server in the tests' own process, which ends with every connection closed."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["ServerLoop"]

#: Turns of the loop within which every transport that is cut has closed its socket.
_TURNS = 100


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

    # private, and the same since Python 3.4: every connection of either side begins here, TLS included
    def _make_socket_transport(self, *arguments: Any, **options: Any) -> Any:
        transport = super()._make_socket_transport(*arguments, **options)  # type: ignore[misc]
        self._made = [*filter(_is_open, self._made), transport]
        return transport

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


def _is_open(transport: Any) -> bool:
    """Whether its socket is; a transport that ``is_closing`` may wait for a peer for ever."""
    return transport._sock is not None
