"""What a commit record says must be there, cut into tasks. Pure: no I/O, no tensors.

::

    Metadata ── inventory ──> frames by object ── tasks ──> ranges of one object, read in one pass each
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from dcp_core.config import MIB
from dcp_core.format.checksum import BLOCK_SIZE
from dcp_core.format.stored import Payload, payload_of

__all__ = [
    "Defect",
    "Inventory",
    "StoredFrame",
    "Task",
    "Unaccounted",
    "combined",
    "inventory",
    "sizes_against",
    "tasks",
]

#: Bytes that one task reads, about.
TASK_SIZE = 64 * MIB

Kind = Literal["record", "missing", "cut", "extra", "checksum", "frame"]


@dataclass(frozen=True, slots=True)
class Defect:
    """One thing that is not as it was saved.

    Attributes:
        kind: ``record``: the commit record contradicts itself. ``missing``: the object does not exist.
            ``cut``: it ends too early. ``extra``: it has bytes that belong to nothing. ``checksum``: bytes
            are not those that were saved. ``frame``: what surrounds an item's bytes is damaged.
        object: name of the object, below the checkpoint's URL.
        item: name of the item in the state dict, with the offset of the chunk; ``None`` for whole objects.
        start, stop: bytes of the object.
        problem: what is wrong.
    """

    kind: Kind
    object: str
    item: str | None
    start: int
    stop: int
    problem: str


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """Where one item is stored, and what is known of it.

    Attributes:
        item: name in the state dict, with the offset of the chunk.
        start, stop: bytes of the object that hold the frame.
        payload: what this library recorded of the bytes; ``None`` for frames of other writers.
        dtype, shape: of a tensor's chunk; ``None`` and empty for other items.
        transformed: whether the writer transformed the frame's bytes, by compression for example.
    """

    item: str
    start: int
    stop: int
    payload: Payload | None
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    transformed: bool


@dataclass
class Inventory:
    """Frames by object, in the order of their bytes, and what is wrong with the record itself."""

    frames: dict[str, list[StoredFrame]] = field(default_factory=dict)
    defects: list[Defect] = field(default_factory=list)
    items: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """Bytes ``[start, stop)`` of one object, with the frames that lie there, whole or in part."""

    name: str
    start: int
    stop: int
    frames: tuple[StoredFrame, ...]


@dataclass(frozen=True, slots=True)
class Unaccounted:
    """Bytes of an object of another writer that belong to no item: no one reads them."""

    object: str
    start: int
    stop: int


def inventory(record: str, metadata: Metadata) -> Inventory:
    """Everything that the commit record named ``record`` refers to."""
    found = Inventory()
    known: set[MetadataIndex] = set()
    for index, dtype, shape in _expected(metadata):
        found.items += 1
        known.add(index)
        item = _item_name(index)
        info = metadata.storage_data.get(index)
        if info is None:
            problem = "the commit record does not say where it is stored"
            found.defects.append(Defect("record", record, item, 0, 0, problem))
            continue
        payload, transformed = payload_of(info), bool(getattr(info, "transform_descriptors", None))
        frame = StoredFrame(item, info.offset, info.offset + info.length, payload, dtype, shape, transformed)
        found.frames.setdefault(info.relative_path, []).append(frame)
        contradiction = _contradiction(frame)
        if contradiction:
            found.defects.append(Defect("record", record, item, 0, 0, contradiction))
    for index in metadata.storage_data.keys() - known:
        problem = "the commit record says where it is stored, but not what it is"
        found.defects.append(Defect("record", record, _item_name(index), 0, 0, problem))
    for name, frames in found.frames.items():
        frames.sort(key=lambda frame: (frame.start, frame.stop))
        found.defects += _overlaps(record, name, frames)
    return found


def combined(parts: Iterable[Inventory]) -> Inventory:
    """What several records refer to."""
    found = Inventory()
    for part in parts:
        found.items += part.items
        found.defects += part.defects
        for name, frames in part.frames.items():
            found.frames.setdefault(name, []).extend(frames)
    for frames in found.frames.values():
        frames.sort(key=lambda frame: frame.start)
    return found


def _expected(metadata: Metadata) -> Iterator[tuple[MetadataIndex, torch.dtype | None, tuple[int, ...]]]:
    """Every chunk and object that the state dict has."""
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            yield MetadataIndex(name), None, ()
            continue
        for chunk in entry.chunks:
            yield MetadataIndex(name, chunk.offsets), entry.properties.dtype, tuple(chunk.sizes)


def _item_name(index: MetadataIndex) -> str:
    return index.fqn if index.offset is None else f"{index.fqn} at {list(index.offset)}"


def _contradiction(frame: StoredFrame) -> str | None:
    payload = frame.payload
    if payload is None:
        return None
    if payload.size and not payload.checksums:
        return "the commit record lacks some of its checksums"
    if payload.plain and frame.dtype is None:
        return "the commit record says that it is an object and a tensor"
    if payload.plain and frame.dtype is not None:
        size = math.prod(frame.shape) * frame.dtype.itemsize
        if payload.size != size:
            return f"the commit record gives {payload.size} bytes to elements that take {size}"
    return None


def _overlaps(record: str, name: str, frames: list[StoredFrame]) -> Iterator[Defect]:
    reached, owner = 0, ""
    for frame in frames:
        if frame.start < reached:
            problem = f"the commit record stores it over {owner}, in {name}"
            yield Defect("record", record, frame.item, frame.start, frame.stop, problem)
        if frame.stop > reached:
            reached, owner = frame.stop, frame.item


def sizes_against(
    found: Inventory, sizes: dict[str, int]
) -> tuple[list[Defect], list[Unaccounted], dict[str, list[StoredFrame]]]:
    """Hold the sizes of the objects against the record.

    Returns:
        What is missing, cut or too long; bytes of other writers that no item needs; the frames that are
        there.
    """
    defects: list[Defect] = []
    spare: list[Unaccounted] = []
    readable: dict[str, list[StoredFrame]] = {}
    for name, frames in found.frames.items():
        size = sizes.get(name)
        if size is None:
            problem = "the object does not exist"
            defects += (Defect("missing", name, one.item, one.start, one.stop, problem) for one in frames)
            continue
        readable[name] = [frame for frame in frames if frame.stop <= size]
        problem = f"the object ends at byte {size}"
        defects += (
            Defect("cut", name, one.item, one.start, one.stop, problem) for one in frames if one.stop > size
        )
        for start, stop in _gaps(frames, size):
            if all(frame.payload is not None for frame in frames):
                problem = "the object has bytes that belong to no item"
                defects.append(Defect("extra", name, None, start, stop, problem))
            else:
                spare.append(Unaccounted(name, start, stop))
    return defects, spare, readable


def _gaps(frames: Iterable[StoredFrame], size: int) -> Iterator[tuple[int, int]]:
    reached = 0
    for frame in frames:
        if frame.start > reached:
            yield reached, min(frame.start, size)
        reached = max(reached, frame.stop)
    if size > reached:
        yield reached, size


def tasks(frames_by_object: dict[str, list[StoredFrame]], size: int = TASK_SIZE) -> Iterator[Task]:
    """Cut the frames of each object into ranges of about ``size`` bytes.

    Frames of this library are cut at the borders of their checksum blocks where they are larger; those of
    other writers stay whole.
    """
    for name, frames in frames_by_object.items():
        held: list[StoredFrame] = []
        for frame in frames:
            if held and frame.stop - held[0].start > size:
                yield Task(name, held[0].start, held[-1].stop, tuple(held))
                held = []
            if frame.payload is not None and frame.stop - frame.start > size:
                yield from (Task(name, start, stop, (frame,)) for start, stop in _cuts(frame, size))
            elif frame.stop > frame.start:
                held.append(frame)
        if held:
            yield Task(name, held[0].start, held[-1].stop, tuple(held))


def _cuts(frame: StoredFrame, size: int) -> Iterator[tuple[int, int]]:
    assert frame.payload is not None
    first = frame.start + frame.payload.offset
    end = first + frame.payload.size
    step = max(1, size // BLOCK_SIZE) * BLOCK_SIZE
    borders = [frame.start, *range(first + step, end, step), frame.stop]
    yield from itertools.pairwise(borders)
