"""Python's cyclic garbage collector, spared the objects that it would visit in vain.

A process that has imported torch holds some 400,000 objects, and every collection of the oldest generation
visits them all: 0.2 to 0.3 CPU seconds. A save or a load of many tensors makes objects by the thousand,
torch's planning above all, and with them sets off one such collection after another.
"""

from __future__ import annotations

import gc
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["FrozenHeap", "gc_paused"]

_lock = threading.Lock()
_pauses = 0
_was_enabled = False

#: Seconds for what comes between the methods of a writer or reader, which is torch's planning.
_PLANNING = 60.0
#: Objects that Python itself may have frozen (3.12 does), and far fewer than a program would.
_FEW = 10_000

_numbers = itertools.count()
#: Those that are in effect.
_settled: set[int] = set()
_frozen = False


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause automatic collection in this process, for a short stretch of pure computation.

    Nests, and may be entered by several threads: the last one to leave restores what the first one found.
    """
    global _pauses, _was_enabled  # noqa: PLW0603  # the collector is the process's, and so is this
    counted = False
    # an interrupt may come at any moment
    try:
        with _lock:
            if _pauses == 0:
                _was_enabled = gc.isenabled()
            _pauses += 1
            counted = True
            gc.disable()
        yield
    finally:
        with _lock:
            # none are left in a child that was forked in between
            _pauses = max(0, _pauses - counted)
            if _pauses == 0 and _was_enabled:
                gc.enable()


class FrozenHeap:
    """From its making to its end, collections pass over the objects that were there when the first was made.

    The collector goes on for all newer ones, unlike under :func:`gc_paused`, so this may last for as
    long as a save or a load: no more is kept from it than what becomes garbage of what was there. Young
    garbage is collected first. Nothing is done where the collector is off or ``gc.freeze`` is in use already;
    objects that somebody freezes meanwhile are released at the end with the others.

    Ends with :meth:`end` or the context, or after a minute outside of the context: torch plans between our
    methods, and when that fails none of them is called any more. A thread looks after that, and no callback
    of the collector: an interrupt that Python delivers in such a callback is lost.
    """

    def __init__(self) -> None:
        global _frozen  # noqa: PLW0603
        self._number = next(_numbers)
        self._planned = threading.Event()
        if gc.isenabled():
            gc.collect(1)
        # first, for an interrupt may come in between
        self._watch()
        with _lock:
            if not _settled and gc.isenabled() and gc.get_freeze_count() < _FEW:
                gc.freeze()
                _frozen = True
            _settled.add(self._number)

    def _watch(self) -> None:
        thread = threading.Thread(target=self._end_if_late, name="dcp-cloud-planning", daemon=True)
        # where no thread can be started, it ends with the save or load alone
        with suppress(RuntimeError):
            thread.start()

    def _end_if_late(self) -> None:
        if not self._planned.wait(_PLANNING):
            self.end()

    def __enter__(self) -> None:
        self._planned.set()

    def __exit__(self, *details: object) -> None:
        self.end()

    def end(self) -> None:
        """Let collections visit all objects again, unless another one is in effect; may be called again."""
        self._planned.set()
        with _lock:
            _settled.discard(self._number)
            _thaw()


def _thaw() -> None:
    global _frozen  # noqa: PLW0603
    if _frozen and not _settled:
        _frozen = False
        gc.unfreeze()


def _after_fork() -> None:
    """In a forked child: what other threads of the parent had begun, or held the lock for, ends here."""
    global _lock, _pauses  # noqa: PLW0603
    _lock = threading.Lock()
    if _pauses and _was_enabled:
        gc.enable()
    _pauses = 0
    _settled.clear()
    _thaw()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
