"""A clock that tests drive."""

from __future__ import annotations

import threading

__all__ = ["DrivenClock"]


class DrivenClock:
    """Time passes only where somebody waits, and by as much.

    Args:
        chance: where between low and high every random number is.
    """

    def __init__(self, *, chance: float = 1.0) -> None:
        self.time = 1000.0
        self.chance = chance
        #: Every wait, in seconds.
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    def wait(self, event: threading.Event, seconds: float) -> None:
        self.waits.append(seconds)
        self.time += seconds

    def uniform(self, low: float, high: float) -> float:
        return low + self.chance * (high - low)
