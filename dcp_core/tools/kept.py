"""Which objects are at the target of a copy already, and need not be sent again.

An object every item of which has checksums is read where it is to be and held against them.
Any other is compared with the source, byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dcp_core.errors import ConflictError, ObjectNotFoundError
from dcp_core.tools.copy_plan import is_known
from dcp_core.tools.places import Opened, Target
from dcp_core.tools.sending import read_pinned
from dcp_core.upkeep.inventory import StoredFrame, Task, tasks
from dcp_core.upkeep.proof import Prover
from dcp_core.upkeep.stream import ObjectStream

__all__ = ["kept_names"]

#: Bytes that are compared at a time, by one thread.
_PIECE = 8 << 20


class _Same(NamedTuple):
    """Bytes of an object that are to be the same at both places."""

    name: str
    start: int
    stop: int


def kept_names(
    source: Opened,
    target: Target,
    sizes: Mapping[str, int],
    frames: Mapping[str, list[StoredFrame]],
    *,
    quick: bool,
) -> set[str]:
    """Those of the objects ``sizes``, which are there in this size, that are equal.

    Args:
        quick: take all of them for equal, for no other save gives their names.
    """
    unread = set(sizes) if quick else set()
    known = {name for name in sizes if name not in unread and is_known(frames[name])}
    todo: list[Task | _Same] = list(tasks({name: frames[name] for name in known}))
    todo += (one for name in sizes if name not in unread | known for one in _pieces(name, sizes[name]))
    workers = max(1, min(target.options.concurrency, len(todo)))
    results = target.transfer.run(todo, _Check(source, target), workers)
    damaged = {task.name for task, same in zip(todo, results, strict=True) if not same}
    return set(sizes) - damaged


def _pieces(name: str, size: int) -> Iterator[_Same]:
    for start in range(0, size, _PIECE):
        yield _Same(name, start, min(size, start + _PIECE))


class _Check:
    """Whether the bytes of a task are at the target what they are at the source."""

    def __init__(self, source: Opened, target: Target) -> None:
        self._source = source
        self._target = target
        self._prover = Prover(target.store, target.location, target.transfer, _uncounted)

    def __call__(self, task: Task | _Same) -> bool:
        try:
            return self._is_proved(task) if isinstance(task, Task) else self._is_same(task)
        except (ConflictError, ObjectNotFoundError):
            # someone is at it
            return False

    def _is_proved(self, task: Task) -> bool:
        proof = self._prover.prove(task)
        return not proof.defects and not proof.opaque and not proof.parsed

    def _is_same(self, task: _Same) -> bool:
        size = task.stop - task.start
        ours, theirs = memoryview(bytearray(size)), memoryview(bytearray(size))
        read_pinned(self._source, task.name, task.start, ours, None)
        target = self._target
        key = target.location.key(task.name)
        with ObjectStream(target.store, key, task.stop, target.transfer) as stream:
            stream.read(task.start, theirs)
        return ours == theirs


def _uncounted(size: int) -> None:
    """What is only looked at is not what a copy counts."""
