"""Which checkpoint each thread works on, and which save or load it has under way.

torch gives a writer and a reader no handle of a save or load: it calls one method after another on an object
that the user may share between threads. All calls of one save or load come from one thread, though: the
executor of ``async_save`` calls ``dcp.save`` as a whole, ``reset`` included
(``torch/distributed/checkpoint/_async_thread_executor.py``). So what belongs to a save or load is kept by
thread.

Both kinds are pickled without what other threads have, and survive a fork.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Generic, TypeVar

__all__ = ["Current", "UnderWay"]

_T = TypeVar("_T")


class Current(Generic[_T]):
    """A value that each thread may set for itself; one that did not has what was set last, by whichever
    thread."""

    def __init__(self, first: _T) -> None:
        self._last = first
        self._own = threading.local()

    def get(self) -> _T:
        own: _T = getattr(self._own, "value", self._last)
        return own

    def set(self, value: _T) -> None:
        self._own.value = self._last = value

    def __reduce__(self) -> tuple[Any, ...]:
        return Current, (self.get(),)


class UnderWay(Generic[_T]):
    """What each thread has begun and not ended.

    A thread that never began anything goes on with what another one began, as long as there is only one such
    thing: whoever calls the methods of a writer or reader one by one may do it from several threads.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._own = threading.local()
        self._lock = threading.Lock()
        #: All of it, as long as its threads live.
        self._begun: weakref.WeakSet[Any] = weakref.WeakSet()

    def begin(self, work: _T) -> None:
        """Note what this thread begins, in place of what it had."""
        self.end()
        with self._lock:
            self._begun.add(work)
        self._own.work = work

    def end(self, work: _T | None = None) -> None:
        """Note that ``work``, or what this thread began, is over, and that this thread has nothing under
        way."""
        over = self.mine() if work is None else work
        if over is not None:
            with self._lock:
                self._begun.discard(over)
        self._own.work = None

    def mine(self) -> _T | None:
        """What this thread itself has begun."""
        self._of_this_process()
        found: _T | None = getattr(self._own, "work", None)
        return found

    def get(self) -> _T | None:
        """What this thread goes on with; ``None`` if that is nothing, or not certain."""
        self._of_this_process()
        if hasattr(self._own, "work"):
            return self.mine()
        with self._lock:
            begun = list(self._begun)
        return begun[0] if len(begun) == 1 else None

    def _of_this_process(self) -> None:
        # a forked child has a copy of what its parent has under way, and must leave it to the parent
        if self._process != os.getpid():
            self._forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return UnderWay, ()
