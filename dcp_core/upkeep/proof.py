"""One task of a verification carried out: bytes read once, in order, and held against what is known of them.

::

    prove(task)
    ├── frame of this library, a tensor     header and tail as torch.save writes them, CRC32C of each block
    ├── frame of this library, otherwise    CRC32C of each block: they cover all of it
    └── frame of another writer             the zip file's structure, and its CRC32s where it has them

What looks damaged is read a second time, for the damage may have happened on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from dcp_core.config import MIB
from dcp_core.errors import ObjectNotFoundError
from dcp_core.format.archive import Archive, ArchiveDamageError, directory_start, read_directory
from dcp_core.format.frames import FrameTemplate
from dcp_core.format.stored import Payload
from dcp_core.seam.location import Location
from dcp_core.seam.store import ReadableStore
from dcp_core.transfer import Transfer
from dcp_core.upkeep.frame_checks import (
    DamageError,
    Span,
    check_around,
    check_foreign,
    check_span,
    spans,
    template_of,
)
from dcp_core.upkeep.inventory import Defect, StoredFrame, Task
from dcp_core.upkeep.stream import ObjectStream

__all__ = ["Proof", "Prover"]

#: Frames of other writers up to this size are held whole; of larger ones the directory is read before.
_HELD = 4 * MIB
#: The last bytes of a frame: more than the directory of any one tensor takes.
_TAIL = 64 * 1024
#: Shapes of which the frames of another release of torch are remembered.
_REMEMBERED = 4096


@dataclass
class Proof:
    """What one task found.

    Attributes:
        defects: what is not as it was saved.
        checked: bytes that a checksum, or their being known in advance, proved right.
        parsed: bytes of frames without checksums: only their structure could be checked.
        parsed_items: those frames.
        opaque: bytes of frames of which nothing is known but their size.
        opaque_items: those frames.
        read_twice: places that looked damaged, but not when they were read again.
    """

    defects: list[Defect] = field(default_factory=list)
    checked: int = 0
    parsed: int = 0
    parsed_items: int = 0
    opaque: int = 0
    opaque_items: int = 0
    read_twice: int = 0


class Prover:
    """Carries out tasks on the objects below ``location``. Thread-safe.

    Args:
        progress: called with each number of bytes that have been dealt with, from several threads.
    """

    def __init__(
        self, store: ReadableStore, location: Location, transfer: Transfer, progress: Callable[[int], None]
    ) -> None:
        self._store = store
        self._location = location
        self._transfer = transfer
        self._progress = progress
        #: What another release of torch writes around such tensors, once seen and found whole.
        self._other: dict[tuple[torch.dtype | None, tuple[int, ...]], FrameTemplate] = {}

    def prove(self, task: Task) -> Proof:
        """Read the bytes of ``task`` and check them.

        Raises:
            ConflictError: the object changed meanwhile.
            CloudCheckpointError: it could not be read.
        """
        proof = Proof()
        with self._stream(task.name, task.stop) as stream:
            reading = _Reading(stream, self._progress)
            for frame in task.frames:
                try:
                    if frame.payload is None:
                        self._prove_foreign(task, frame, reading, proof)
                    else:
                        self._prove_own(task, frame, frame.payload, reading, proof)
                except ObjectNotFoundError:
                    problem = "the object does not exist"
                    damage = DamageError("missing", frame.start, frame.stop, problem)
                    proof.defects.append(_defect(task, frame, damage))
        return proof

    def _stream(self, name: str, stop: int) -> ObjectStream:
        return ObjectStream(self._store, self._location.key(name), stop, self._transfer)

    def _prove_own(
        self, task: Task, frame: StoredFrame, payload: Payload, reading: _Reading, proof: Proof
    ) -> None:
        around = self._other.get((frame.dtype, frame.shape)) or template_of(frame, payload)
        for span in spans(frame, payload, around):
            if span.start < task.start or span.stop > task.stop:
                continue
            damage = self._twice(task, proof, reading, _SpanCheck(span))
            if damage is not None and damage.kind == "frame":
                damage = self._of_another_release(task, frame, payload, damage)
            if damage is None:
                proof.checked += span.stop - span.start
            else:
                proof.defects.append(_defect(task, frame, damage))
        if not payload.plain and payload.size < frame.stop - frame.start and task.start == frame.start:
            self._prove_around(task, frame, payload, proof)

    def _prove_around(self, task: Task, frame: StoredFrame, payload: Payload, proof: Proof) -> None:
        """What is around a payload of which this release of torch does not know what it would write there."""
        damage = DamageError("frame", frame.start, frame.stop, "it is not as torch.save writes it")
        if self._of_another_release(task, frame, payload, damage) is not None:
            proof.defects.append(_defect(task, frame, damage))

    def _twice(
        self, task: Task, proof: Proof, reading: _Reading, check: Callable[[_Reading], None]
    ) -> DamageError | None:
        """Check, and if that fails, once more on other bytes than those that came before."""
        try:
            check(reading)
        except DamageError:
            with self._stream(task.name, task.stop) as stream:
                try:
                    check(_Reading(stream, _uncounted))
                except DamageError as damage:
                    return damage
            proof.read_twice += 1
        return None

    def _of_another_release(
        self, task: Task, frame: StoredFrame, payload: Payload, damage: DamageError
    ) -> DamageError | None:
        """``damage``, unless another release of torch writes such frames."""
        after = payload.offset + payload.size
        head = memoryview(bytearray(payload.offset))
        tail = memoryview(bytearray(frame.stop - frame.start - after))
        with self._stream(task.name, frame.stop) as stream:
            stream.read(frame.start, head)
            stream.read(frame.start + after, tail)
        try:
            check_around(frame, payload, head, tail)
        except ArchiveDamageError:
            return damage
        if payload.plain and len(self._other) < _REMEMBERED:
            self._other[frame.dtype, frame.shape] = FrameTemplate(bytes(head), payload.size, bytes(tail))
        return None

    def _prove_foreign(self, task: Task, frame: StoredFrame, reading: _Reading, proof: Proof) -> None:
        size = frame.stop - frame.start
        if frame.transformed:
            proof.opaque += size
            proof.opaque_items += 1
            self._progress(size)
            return
        check = _ForeignCheck(frame, self._stream, task)
        damage = self._twice(task, proof, reading, check)
        if damage is not None:
            proof.defects.append(_defect(task, frame, damage))
        elif check.proved:
            proof.checked += size
        else:
            proof.parsed += size
            proof.parsed_items += 1


class _Reading:
    """A stream with one buffer, and the account of what came."""

    def __init__(self, stream: ObjectStream, progress: Callable[[int], None]) -> None:
        self._stream = stream
        self._progress = progress
        self._buffer = memoryview(bytearray())

    def read(self, start: int, stop: int) -> memoryview:
        """Bytes of the object, valid until the next call."""
        size = stop - start
        if size > len(self._buffer):
            self._buffer = memoryview(bytearray(1 << (size - 1).bit_length()))
        view = self._buffer[:size]
        self._stream.read(start, view)
        self._progress(size)
        return view


def _uncounted(size: int) -> None:
    """Progress of what was counted before."""


@dataclass(frozen=True)
class _SpanCheck:
    span: Span

    def __call__(self, reading: _Reading) -> None:
        check_span(reading.read(self.span.start, self.span.stop), self.span)


@dataclass
class _ForeignCheck:
    """The check of one frame of another writer; afterwards ``proved`` says whether CRC32s spoke for it."""

    frame: StoredFrame
    open: Callable[[str, int], ObjectStream]
    task: Task
    proved: bool = False

    def __call__(self, reading: _Reading) -> None:
        frame = self.frame
        try:
            if frame.stop - frame.start <= _HELD:
                whole = reading.read(frame.start, frame.stop)
                archive = read_directory(whole, len(whole))
                self.proved = check_foreign(frame, archive, _Held(whole), whole) > 0
            else:
                source = _Streamed(reading, frame)
                self.proved = check_foreign(frame, self._directory(), source, None) > 0
        except ArchiveDamageError as error:
            raise DamageError("frame", frame.start, frame.stop, str(error)) from error

    def _directory(self) -> Archive:
        """The directory of a large frame: a request of its own, and two where it is long."""
        frame, size = self.frame, self.frame.stop - self.frame.start
        with self.open(self.task.name, frame.stop) as stream:
            tail = memoryview(bytearray(_TAIL))
            stream.read(frame.stop - len(tail), tail)
            start = directory_start(tail, size)
            if start < size - len(tail):
                tail = memoryview(bytearray(size - start))
                stream.read(frame.start + start, tail)
        return read_directory(tail, size)


class _Held:
    """A frame that is in memory."""

    def __init__(self, whole: memoryview) -> None:
        self._left = whole

    def take(self, count: int) -> memoryview:
        if count > len(self._left):
            raise ArchiveDamageError("it is cut short")
        view, self._left = self._left[:count], self._left[count:]
        return view

    def skip(self, count: int) -> None:
        self.take(count)


class _Streamed:
    """A frame that is read piece by piece."""

    def __init__(self, reading: _Reading, frame: StoredFrame) -> None:
        self._reading = reading
        self._position, self._stop = frame.start, frame.stop

    def take(self, count: int) -> memoryview:
        start, self._position = self._position, self._position + count
        if self._position > self._stop:
            raise ArchiveDamageError("it is cut short")
        return self._reading.read(start, self._position)

    def skip(self, count: int) -> None:
        self._position += count


def _defect(task: Task, frame: StoredFrame, damage: DamageError) -> Defect:
    return Defect(damage.kind, task.name, frame.item, damage.start, damage.stop, damage.problem)
