"""The end of a server that runs on an event loop of the tests' own process."""

from __future__ import annotations

import asyncio

__all__ = ["abort_connections"]


async def abort_connections() -> None:
    """Cut every connection of the running loop.

    What aiohttp closes stays open for as long as a peer does not read what is still to be sent; a loop that
    is stopped then leaves sockets to the garbage collector, which warns in the middle of some later test.
    """
    # private, and the same since Python 3.7: the only list of them that there is
    transports = getattr(asyncio.get_running_loop(), "_transports", {})
    for transport in list(transports.values()):
        transport.abort()
    # they are closed by callbacks
    await asyncio.sleep(0)
