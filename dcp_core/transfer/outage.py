"""The progress log of a transfer whose requests fail."""

from __future__ import annotations

import logging
import threading

from dcp_core.errors import CloudCheckpointError, ThrottledError

__all__ = ["Outage"]

logger = logging.getLogger("dcp_core")

#: Seconds between two warnings, and before the first.
_INTERVAL = 10.0


class Outage:
    """Says from time to time that nothing succeeds, and when something does again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None
        self._warned_at: float | None = None

    def failed(self, now: float, error: CloudCheckpointError, *, rank: int | None, left: float) -> None:
        """Note a failed request that is tried again for ``left`` seconds."""
        with self._lock:
            if self._since is None:
                self._since = now
            last = self._since if self._warned_at is None else self._warned_at
            if now - last < _INTERVAL:
                return
            self._warned_at = now
            since = self._since
        logger.warning(
            "%s%s for %.0f s; will keep trying for another %.0f s: %s",
            _prefix(rank),
            "the store has refused every request"
            if isinstance(error, ThrottledError)
            else "every request has failed",
            now - since,
            left,
            error,
        )

    def over(self, now: float, *, rank: int | None) -> None:
        """Note that a request succeeded, or got further."""
        if self._since is None:
            return
        with self._lock:
            since, warned, self._since, self._warned_at = self._since, self._warned_at, None, None
        if since is not None and warned is not None:
            logger.warning("%sthe store works again after %.0f s", _prefix(rank), now - since)


def _prefix(rank: int | None) -> str:
    return "" if rank is None else f"rank {rank}: "
