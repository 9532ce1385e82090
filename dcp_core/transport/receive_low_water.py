"""The low-water mark of a socket (``SO_RCVLOWAT``, socket(7)) while a large response comes through it.

The kernel then wakes a thread for 256 KiB rather than for every few segments. That saves a quarter of a
load's CPU time on a fast link, and more on a slow one, where each wake-up would bring less.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

__all__ = ["ReceiveLowWater"]

#: Bytes that are worth waking up for.
_MARK = 256 << 10
#: Bytes of a response that are received without it: by then the kernel has opened the connection's
#: receive window. Set earlier, the mark would keep it small for a while.
_FIRST = 1 << 20
#: Bytes that may lie in the buffers of http.client and TLS, and no longer in the socket.
_BUFFERED = 128 << 10


class ReceiveLowWater:
    """The mark of the connection that a response of ``expected`` bytes comes through.

    Only on Linux, whose ``poll`` heeds it. A connection that brings less than the mark within the time limit
    of its socket counts as stalled.
    """

    def __init__(self, connection: socket.socket | None, expected: int) -> None:
        self._connection = connection if sys.platform == "linux" else None
        self._from = expected - _FIRST
        self._raised = False

    def before(self, wanted: int, left: int) -> None:
        """Prepare a call that waits for ``wanted`` bytes while ``left`` bytes of the response are to come.

        The mark is never more than what is certain to come after them: a call would wait for the rest until
        its time limit.
        """
        if self._connection is None:
            return
        safe = left <= self._from and left - wanted >= _MARK + _BUFFERED
        if safe and not self._raised:
            self._set(_MARK)
            self._raised = True
        elif not safe:
            self.lower()

    def lower(self) -> None:
        """Back to what the connection's next response needs."""
        if self._raised:
            self._set(1)
            self._raised = False

    def _set(self, size: int) -> None:
        assert self._connection is not None
        # a connection that was closed meanwhile fails where it is read
        with suppress(OSError):
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
