"""The limits and the workers of one save or load.

::

    Transfer.run(tasks, work)        workers pull tasks: only what is worked on is in memory
      └─ Transfer.attempt(call)      gate → try → back off and try again → the error, with the rank
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from dcp_core.config import TransferOptions
from dcp_core.errors import CloudCheckpointError, DeadlineExceededError, ThrottledError, TransientError
from dcp_core.transfer.gate import Gate

__all__ = ["Transfer"]

logger = logging.getLogger("dcp_core")

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Seconds before the second attempt; doubles up to the cap, each with full jitter.
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 20.0


class Transfer:
    """Runs requests of one save or load under its options."""

    def __init__(self, options: TransferOptions, rank: int | None) -> None:
        self.rank = rank
        self._options = options
        self._gate = Gate(options.concurrency)
        self._stop = threading.Event()
        self._ends_at = None if options.deadline is None else time.monotonic() + options.deadline

    def run(self, tasks: Iterable[_T], work: Callable[[_T], _R], workers: int) -> list[_R]:
        """Do ``work`` on every task with ``workers`` threads; results come in the tasks' order.

        A worker takes a task only when it is free, under a lock, so tasks may be made lazily and at most
        ``workers`` of them exist at a time. The first error stops the rest and is raised here, in the
        calling thread, after all workers have ended.
        """
        queue = _Queue(tasks)
        results: dict[int, _R] = {}
        errors: list[BaseException] = []

        def worker() -> None:
            try:
                while not self._stop.is_set() and (found := queue.next()) is not None:
                    number, task = found
                    results[number] = work(task)
                    del task, found
            # whatever happens in a worker belongs to the caller, who raises it
            except BaseException as error:  # noqa: BLE001
                errors.append(error)
                self._stop.set()

        threads = [
            threading.Thread(target=worker, name=f"dcp-cloud-{n}", daemon=True) for n in range(workers)
        ]
        self._join(threads)
        if errors:
            raise self._at_rank(errors[0])
        return [results[number] for number in sorted(results)]

    def _join(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            # an interrupt in the calling thread: let nothing run on behind its back
            self._stop.set()
            for thread in threads:
                thread.join()
            raise

    def attempt(self, call: Callable[[], _R]) -> _R:
        """Call an idempotent request until it succeeds, fails for good, or attempts or time run out."""
        attempt = 1
        while True:
            self.check_deadline()
            try:
                with self._gate.enter():
                    result = call()
            except TransientError as error:
                if isinstance(error, ThrottledError):
                    self._gate.throttled()
                if attempt >= self._options.attempts or self._stop.is_set():
                    raise self._at_rank(error)  # noqa: B904  # the same error, with the rank
                logger.info("attempt %d of %d failed: %s", attempt, self._options.attempts, error)
                self.pause(attempt)
                attempt += 1
            except CloudCheckpointError as error:
                raise self._at_rank(error)  # noqa: B904
            else:
                self._gate.succeeded()
                return result

    def pause(self, attempt: int) -> None:
        """Wait before the attempt after ``attempt``, less when the transfer is being stopped."""
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1))
        seconds = random.uniform(longest / 4, longest)
        if self._ends_at is not None:
            seconds = min(seconds, max(0.0, self._ends_at - time.monotonic()))
        self._stop.wait(seconds)

    def check_deadline(self) -> None:
        """Raise once the deadline of the whole operation has passed."""
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            raise DeadlineExceededError(
                f"the deadline of {self._options.deadline} s passed; "
                "raise deadline= or look for the slow store or rank",
                rank=self.rank,
            )

    def _at_rank(self, error: BaseException) -> BaseException:
        if self.rank is None or not isinstance(error, CloudCheckpointError):
            return error
        return error.at_rank(self.rank)


class _Queue(Generic[_T]):
    """Hands out numbered tasks to one worker at a time."""

    def __init__(self, tasks: Iterable[_T]) -> None:
        self._tasks: Iterator[tuple[int, _T]] = iter(enumerate(tasks))
        self._lock = threading.Lock()

    def next(self) -> tuple[int, _T] | None:
        with self._lock:
            return next(self._tasks, None)
