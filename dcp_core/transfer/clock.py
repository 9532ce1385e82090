"""Time and chance, which tests replace."""

from __future__ import annotations

import random
import threading
import time
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock"]


class Clock(Protocol):
    """What back-off and deadlines need to know of the world."""

    def now(self) -> float:
        """Seconds since some moment."""

    def wait(self, event: threading.Event, seconds: float) -> None:
        """Wait until ``event`` is set, for ``seconds`` at most."""

    def uniform(self, low: float, high: float) -> float:
        """A random number between the two."""


class _SystemClock:
    # Not the random module's functions: the training may have seeded those, alike on all ranks, which would
    # then all come back at the same moments. And what is drawn here would be missing there.
    _random = random.SystemRandom()

    def now(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> None:
        event.wait(seconds)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


SYSTEM_CLOCK: Clock = _SystemClock()
