"""Whether to try a request again, and when: a matter of time.

A request is tried again until ``retry_timeout`` seconds have passed since its first failure without any
progress in between. How many attempts fit into that time says nothing: six can be over within five seconds,
and stores are known to ask for patience for minutes (S3 says ``503 SlowDown`` while it splits a prefix).

Pauses follow "full jitter": a random time between nothing and a bound that doubles from attempt to attempt.
Thousands of ranks that were refused together then do not come back together.
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

from collections.abc import Callable

from dcp_core.config import TransferOptions
from dcp_core.errors import TransientError

__all__ = ["FIRST_PAUSE", "LONGEST_PAUSE", "Retries"]

#: Bounds of the pause after the first failure and after the tenth, in seconds.
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 20.0


class Retries:
    """The failures of one request since it last made progress.

    Args:
        options: ``retry_timeout`` and ``attempts``.
        uniform: a random number between two.
    """

    def __init__(self, options: TransferOptions, uniform: Callable[[float, float], float]) -> None:
        self._timeout = options.retry_timeout
        self._attempts = options.max_attempts
        self._uniform = uniform
        self._first: float | None = None
        self._count = 0

    def left(self, now: float) -> float:
        """Seconds for which the request is still tried again."""
        return self._timeout if self._first is None else max(0.0, self._first + self._timeout - now)

    def failed(self, now: float, error: TransientError) -> float | None:
        """Seconds to wait before the next attempt; ``None`` where ``error`` is final.

        The wait after which the time is up is cut short, for one last attempt.
        """
        self._first = now if self._first is None else self._first
        self._count += 1
        if not self.left(now) or (self._attempts is not None and self._count >= self._attempts):
            return None
        pause = self._uniform(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._count - 1, 30)))
        if error.retry_after is not None:
            # not before the store's own time, and not all at that moment
            pause += error.retry_after
        return min(pause, self.left(now))

    def progressed(self) -> None:
        """Start over: what was failing has got further."""
        self._first = None
        self._count = 0

    def final(self, now: float, error: TransientError) -> TransientError:
        """``error``, saying how long it was tried."""
        if self._count > 1 and self._first is not None:
            error.message += f" (final: {self._count} attempts failed within {now - self._first:.1f} s; "
            bound = "max_attempts" if self.left(now) else "retry_timeout"
            error.message += f"see {bound}=)"
        return error
