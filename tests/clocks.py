"""A clock that tests drive."""

from __future__ import annotations

import threading

__all__ = ["DrivenClock"]


class DrivenClock:
    """Time passes only where somebody waits, and by as much; chance always draws the longest pause."""

    def __init__(self, now: float = 1000.0) -> None:
        self.time = now
        #: Every wait, in seconds.
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    def wait(self, event: threading.Event, seconds: float) -> None:
        self.waits.append(seconds)
        self.time += seconds

    def uniform(self, low: float, high: float) -> float:
        return high
