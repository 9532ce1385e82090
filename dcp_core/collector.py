"""Python's cyclic garbage collector, spared the objects that it would visit in vain.

A process that has imported torch holds some 400,000 objects, and every collection of the oldest generation
visits them all: 0.2 to 0.3 CPU seconds. A save or a load of many tensors makes objects by the thousand,
torch's planning above all, and with them sets off one such collection after another.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SettledObjects", "collector_paused"]

# reentrant: a collection may come at any allocation, and end a SettledObjects that was dropped
_lock = threading.RLock()
_pauses = 0
_was_enabled = False
_settled = 0
_frozen = False


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause automatic collection in this process, for a short stretch of pure computation.

    Nests, and may be entered by several threads: the last one to leave restores what the first one found.
    """
    global _pauses, _was_enabled  # noqa: PLW0603  # the collector is the process's, and so is this
    with _lock:
        if _pauses == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if _pauses == 0 and _was_enabled:
                gc.enable()


class SettledObjects:
    """While one of these exists, collections pass over the objects that were there when the first was made.

    The collector goes on for all newer ones, unlike under :func:`collector_paused`, so this may last for as
    long as a save or a load: no more is kept from it than what becomes garbage of what was there. Young
    garbage is collected first. Nothing is done where the collector is off or ``gc.freeze`` is in use already.

    Ends with :meth:`end`, or when the object is dropped.
    """

    def __init__(self) -> None:
        self._finalizer = weakref.finalize(self, _thaw)
        self._finalizer.atexit = False
        _freeze()

    def end(self) -> None:
        """Let collections visit all objects again; later calls do nothing."""
        self._finalizer()


def _freeze() -> None:
    global _settled, _frozen  # noqa: PLW0603
    if gc.isenabled():
        gc.collect(1)
    with _lock:
        if _settled == 0 and gc.isenabled() and gc.get_freeze_count() == 0:
            gc.freeze()
            _frozen = True
        _settled += 1


def _thaw() -> None:
    global _settled, _frozen  # noqa: PLW0603
    with _lock:
        _settled -= 1
        if _settled == 0 and _frozen:
            gc.unfreeze()
            _frozen = False
