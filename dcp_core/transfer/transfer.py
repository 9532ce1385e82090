"""The limits of one save or load, from its start to its end.

::

    Transfer.watched(peers)          deadline and other ranks are watched while this lasts
    Transfer.run(tasks, work)        workers pull tasks: only what is worked on is in memory
      └─ Transfer.attempt(call)      gate → try → back off and try again → the error, with the rank
    Transfer.cleanup(call)           after a failure
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from dcp_core.config import TransferOptions
from dcp_core.errors import CloudCheckpointError, DeadlineExceededError, ThrottledError, TransientError
from dcp_core.transfer.clock import SYSTEM_CLOCK, Clock
from dcp_core.transfer.outage import Outage
from dcp_core.transfer.peers import Peers
from dcp_core.transfer.retry import Retries
from dcp_core.transfer.stop import Stop
from dcp_core.transfer.throttle import Gate
from dcp_core.transfer.watch import alarm
from dcp_core.transfer.workers import work_on

__all__ = ["CLEANUP_SECONDS", "Transfer"]

logger = logging.getLogger("dcp_core")

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Seconds between two looks at whether the log has something to say.
_LOOK = 5.0
#: Seconds for tidying up after a failure: whoever waits for the error should not wait much longer.
CLEANUP_SECONDS = 10.0


class Transfer:
    """Runs all requests of one save or load of one rank. One object for the whole of it.

    Args:
        options: its limits; ``deadline`` counts from here.
        rank: put into errors and the log; ``None`` while it is not known.
        clock: for tests.
    """

    def __init__(self, options: TransferOptions, rank: int | None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.rank = rank
        self._options = options
        self._clock = clock
        self._gate = Gate(options.concurrency)
        self._outage = Outage()
        self._stop = Stop()
        self._ends_at = None if options.deadline is None else clock.now() + options.deadline
        self._too_late = (
            f"the deadline of {options.deadline} s passed; raise deadline= or look for the slow store or rank"
        )

    @contextmanager
    def watched(self, peers: Peers | None = None) -> Iterator[None]:
        """While this lasts, the deadline and the failure of another rank end requests that are in flight."""
        left = None if self._ends_at is None else self._ends_at - self._clock.now()
        with alarm(left, self._expire), self._together_with(peers):
            yield

    @contextmanager
    def _together_with(self, peers: Peers | None) -> Iterator[None]:
        if peers is None:
            yield
            return
        self._stop.listeners.append(peers.tell)
        try:
            with peers.heard(self._stop.set):
                yield
        except BaseException as error:
            peers.tell(error)
            raise
        finally:
            self._stop.listeners.remove(peers.tell)
            peers.end()

    def run(self, tasks: Iterable[_T], work: Callable[[_T], _R], workers: int) -> list[_R]:
        """Do ``work`` on every task with ``workers`` threads; results come in the tasks' order.

        See :func:`~dcp_core.transfer.workers.work_on`. The first error stops the rest, ends their requests,
        and is raised here, in the calling thread, after all workers have ended.
        """
        try:
            return work_on(tasks, work, workers, self._stop)
        except CloudCheckpointError as error:
            raise self._at_rank(error)  # noqa: B904  # the same error, with the rank

    def attempt(self, call: Callable[[], _R], position: Callable[[], object] | None = None) -> _R:
        """Call an idempotent request until it succeeds, fails for good, or its time runs out.

        Args:
            call: one attempt, which may go on where the one before it stopped.
            position: how far it has come; when that changes, its time starts again.
        """
        retries = Retries(self._options, self._clock.uniform)
        reached = None if position is None else position()
        while True:
            with self._gate.enter(self.check):
                try:
                    result = self._try(call)
                except TransientError as error:
                    if position is not None and position() != reached:
                        reached = position()
                        retries.progressed()
                        self._outage.over(self._clock.now(), rank=self.rank)
                    self._back_off(error, retries)
                else:
                    self._gate.succeeded()
                    self._outage.over(self._clock.now(), rank=self.rank)
                    return result

    def _try(self, call: Callable[[], _R]) -> _R:
        try:
            with self._stop.in_flight(self.check):
                return call()
        except CloudCheckpointError as error:
            # what a request that was cut runs into is not what happened
            self._stop.check(error)
            raise self._at_rank(error)  # noqa: B904  # the same error, with the rank
        except Exception:
            self._stop.check()
            raise

    def _back_off(self, error: TransientError, retries: Retries) -> None:
        """Wait before the next attempt, or raise ``error`` if it is final."""
        if self._stop.reason is not None:
            raise error
        now = self._clock.now()
        if isinstance(error, ThrottledError):
            self._gate.throttled(now)
        pause = retries.failed(now, error)
        if pause is None:
            raise retries.final(now, error)
        logger.info("tried again in %.1f s: %s", pause, error)
        self._wait(pause, error, retries)

    def _wait(self, seconds: float, error: TransientError, retries: Retries) -> None:
        """Wait after ``error``, and say from time to time that nothing succeeds."""
        now = self._clock.now()
        until = now + seconds
        while now < until:
            self._clock.wait(self._stop.event, max(0.0, min(until - now, self._left(now), _LOOK)))
            self.check(error)
            now = self._clock.now()
            left = min(retries.left(now), self._left(now))
            self._outage.failed(now, error, rank=self.rank, left=left)

    def _left(self, now: float) -> float:
        return float("inf") if self._ends_at is None else self._ends_at - now

    def check(self, error: CloudCheckpointError | None = None) -> None:
        """Raise if the transfer is to end: its deadline has passed, or something has stopped it.

        To be called every now and then by whatever takes long.

        Args:
            error: what the request that asks has last failed with.
        """
        if self._ends_at is not None and self._clock.now() >= self._ends_at:
            self._expire()
        self._stop.check(error)

    def _expire(self) -> None:
        self._stop.set(DeadlineExceededError(self._too_late, rank=self.rank))

    def cleanup(self, call: Callable[[], _R], seconds: float = CLEANUP_SECONDS) -> _R:
        """Call an idempotent request after this transfer has failed or its deadline has passed.

        Tried again for ``seconds`` at most, whatever stopped the transfer, under the limits of the user that
        are narrower.
        """
        rest = Transfer(replace(self._options, deadline=seconds), self.rank, clock=self._clock)
        rest._too_late = f"this could not be done within {seconds:.0f} s"
        with rest.watched():
            return rest.attempt(call)

    def _at_rank(self, error: CloudCheckpointError) -> CloudCheckpointError:
        return error if self.rank is None else error.at_rank(self.rank)
