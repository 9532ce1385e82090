"""Threads that do one thing to many tasks, and the caller's own thread among them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from dcp_core.runtime.caller_modes import CallerModes
from dcp_core.transfer.stop import Stop

__all__ = ["work_on"]

logger = logging.getLogger("dcp_core")

_T = TypeVar("_T")
_R = TypeVar("_R")


def work_on(tasks: Iterable[_T], work: Callable[[_T], _R], workers: int, stop: Stop) -> list[_R]:
    """Do ``work`` on every task with ``workers`` threads; results come in the tasks' order.

    The calling thread is one of them: where no other can be started (at the end of an interpreter, or at the
    system's limit of threads), it does everything. It also does where its modes cannot be those of another
    (:attr:`CallerModes.portable`). The others work under its modes and its context variables.

    A worker takes a task only when it is free, under a lock, so tasks may be made lazily and at most
    ``workers`` of them exist at a time. Whatever stops the work is raised here once all workers have ended.
    """
    crew = _Crew(tasks, work, stop)
    modes = CallerModes.of_this_thread()
    try:
        if modes.portable:
            crew.start(workers - 1, modes)
        crew.work()
        crew.join()
    # an interrupt, at any moment: nothing may run on behind the caller's back
    except BaseException as interrupt:
        stop.set(interrupt)
        crew.join()
        raise
    if stop.reason is not None:
        raise stop.reason
    return crew.results()


class _Crew(Generic[_T, _R]):
    def __init__(self, tasks: Iterable[_T], work: Callable[[_T], _R], stop: Stop) -> None:
        self._tasks: Iterator[tuple[int, _T]] = iter(enumerate(tasks))
        self._work = work
        self._stop = stop
        self._lock = threading.Lock()
        self._results: dict[int, _R] = {}
        self._threads: list[threading.Thread] = []

    def start(self, count: int, modes: CallerModes) -> None:
        for number in range(count):
            thread = threading.Thread(target=modes.bind(self.work), name=f"dcp-cloud-{number}", daemon=True)
            # before it starts: an interrupt may come in between
            self._threads.append(thread)
            try:
                thread.start()
            except RuntimeError as error:
                logger.debug("goes on with %d threads: %s", number + 1, error)
                self._threads.pop()
                return

    def work(self) -> None:
        try:
            while self._stop.reason is None and (found := self._next()) is not None:
                number, task = found
                self._results[number] = self._work(task)
                del task, found
        # whatever happens in a worker belongs to the caller, who raises it
        except Exception as error:  # noqa: BLE001
            self._stop.set(error)
        except BaseException as error:
            self._stop.set(error)
            if threading.current_thread() not in self._threads:
                raise

    def _next(self) -> tuple[int, _T] | None:
        with self._lock:
            return next(self._tasks, None)

    def join(self) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def results(self) -> list[_R]:
        return [self._results[number] for number in sorted(self._results)]
