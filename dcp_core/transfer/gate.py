"""How many requests may be in flight, by what the store says.

Additive increase, multiplicative decrease: a throttled request halves the limit, at most once in
``HOLD`` seconds so that one burst of 503s counts once; as many successes as the limit raise it by one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Gate"]

HOLD = 1.0


class Gate:
    """A semaphore whose limit follows the store between 1 and ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = most
        self._busy = 0
        self._successes = 0
        self._halved_at = float("-inf")
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """Requests allowed at present."""
        return self._limit

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold one of the places."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy < self._limit)
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify()

    def succeeded(self) -> None:
        """Note a request that was not throttled."""
        if self._limit == self._most:
            return
        with self._changed:
            self._successes += 1
            if self._successes >= self._limit < self._most:
                self._limit += 1
                self._successes = 0
                self._changed.notify()

    def throttled(self) -> None:
        """Note a request that the store refused for its rate."""
        with self._changed:
            now = time.monotonic()
            if now - self._halved_at >= HOLD:
                self._halved_at = now
                self._limit = max(1, self._limit // 2)
                self._successes = 0
