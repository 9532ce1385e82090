"""The end of a transfer before its time: by an error, an interrupt, the deadline, or another rank."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dcp_core.errors import CloudCheckpointError
from dcp_core.transport.in_flight import InFlight

__all__ = ["Stop"]


class Stop:
    """Says why all of a transfer's work ends, and ends the requests that are in flight.

    The first reason counts. What the others run into because of it is no reason of its own.
    """

    def __init__(self) -> None:
        self.reason: BaseException | None = None
        self.event = threading.Event()
        #: Told the reason, by the thread that found it.
        self.listeners: list[Callable[[BaseException], None]] = []
        self._lock = threading.Lock()
        self._requests: set[InFlight] = set()

    def set(self, reason: BaseException) -> None:
        """End everything, because of ``reason``, unless it is ending already."""
        with self._lock:
            if self.reason is not None:
                if _says_more(reason, self.reason):
                    self.reason = reason
                return
            self.reason = reason
            requests = list(self._requests)
        self.event.set()
        for request in requests:
            request.cut()
        for listener in self.listeners:
            listener(reason)

    def check(self, error: CloudCheckpointError | None = None) -> None:
        """Raise the reason, if there is one, for the request that failed with ``error``."""
        reason = self.reason
        if reason is None:
            return
        if not isinstance(reason, CloudCheckpointError):
            raise CloudCheckpointError(f"stopped because of {type(reason).__name__}: {reason}") from reason
        # a copy, for several threads may raise it
        found = copy.copy(reason)
        if error is not None and found.key is None:
            found.bucket, found.key = error.bucket, error.key
            found.message = f"{found.message}; the last error was: {error.message}"
        raise found from error

    @contextmanager
    def in_flight(self, check: Callable[[], None]) -> Iterator[None]:
        """One request of this thread, which ends with everything else."""
        with InFlight(check) as request:
            with self._lock:
                self._requests.add(request)
            try:
                check()
                yield
            finally:
                with self._lock:
                    self._requests.discard(request)


def _says_more(error: BaseException, reason: BaseException) -> bool:
    """Whether ``error`` is ``reason`` as a request met it, with the object that it was about."""
    return (
        isinstance(reason, CloudCheckpointError)
        and isinstance(error, CloudCheckpointError)
        and type(error) is type(reason)
        and reason.key is None
        and error.key is not None
    )
