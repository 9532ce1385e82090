"""How many requests may be in flight, by what the store says.

Additive increase, multiplicative decrease: a throttled request halves the limit, at most once in
``HOLD`` seconds so that one burst of 503s counts once; as many successes as the limit raise it by one.

A request that is to be tried again keeps its place while it waits. So the limit also bounds how many of a
rank's requests ask a store that refuses them all: in the end one, after each of its pauses.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Gate"]

HOLD = 1.0
#: Seconds between two looks at whether waiting still makes sense.
_LOOK = 0.5


class Gate:
    """A semaphore whose limit follows the store between 1 and ``most``; first come, first served."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = most
        self._busy = 0
        self._successes = 0
        self._halved_at = float("-inf")
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    @property
    def limit(self) -> int:
        """Requests allowed at present."""
        return self._limit

    @contextmanager
    def enter(self, check: Callable[[], None]) -> Iterator[None]:
        """Hold one of the places; what ``check`` raises ends the wait for it."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                while self._queue[0] is not ticket or self._busy >= self._limit:
                    self._changed.wait(_LOOK)
                    check()
                self._busy += 1
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def succeeded(self) -> None:
        """Note a request that was not throttled."""
        if self._limit == self._most:
            return
        with self._changed:
            self._successes += 1
            if self._successes >= self._limit < self._most:
                self._limit += 1
                self._successes = 0
                self._changed.notify_all()

    def throttled(self, now: float) -> None:
        """Note a request that the store refused for its rate."""
        with self._changed:
            if now - self._halved_at >= HOLD:
                self._halved_at = now
                self._limit = max(1, self._limit // 2)
                self._successes = 0
