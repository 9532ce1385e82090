"""Frames cut into the parts of one object.

::

    frame ── header, tail, small payloads ──> gathered in staging blocks ┐
          ── large payload, where it lies ──> views of its own memory    ├──> segments ──> parts
          ── large payload, elsewhere     ──> staged block by block      ┘

A segment is a stretch of bytes that lies in one buffer and one part. Every byte of an item's payload has a
checksum block of :data:`~dcp_core.format.checksum.BLOCK_SIZE`; parts have a checksum too, and the borders of
the two fall where they like. Checks are computed from the segments' pieces later, by whoever sends the part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from dcp_core.config import KIB
from dcp_core.errors import CheckpointIncompleteError, UnsupportedError
from dcp_core.format.checksum import BLOCK_SIZE, combine, crc32c, pack
from dcp_core.format.stored import Payload, StorageInfo, storage_info
from dcp_core.save.frame import Frame
from dcp_core.save.stage import Block, Ring, Staging, row_blocks

__all__ = ["Check", "Entry", "ObjectCutter", "PartDraft", "Segment", "Sum", "block_checksums"]

#: Payloads up to this size are gathered: sending one alone costs more CPU time than copying it.
GATHERED = 128 * KIB

# Flat tuples: one is made for every small item, and the collector stops looking at tuples of numbers.
#: ``(entry number, block number, start, stop)``: bytes of a segment that belong to a checksum block.
Check = tuple[int, int, int, int]
#: ``(entry number, block number, crc32c, length)`` of one piece of a checksum block.
Sum = tuple[int, int, int, int]


class Segment(NamedTuple):
    """Bytes in one buffer; ``checks`` says which of them are payload, and ``tiled`` that all of them are."""

    view: memoryview
    checks: list[Check]
    tiled: bool

    def sums(self) -> tuple[int, list[Sum]]:
        """The CRC32C of the segment and of its pieces; from one pass where the pieces are all of it."""
        view = self.view
        sums = [
            (entry, block, crc32c(view[start:stop]), stop - start)
            for entry, block, start, stop in self.checks
        ]
        whole = combine((crc, length) for _, _, crc, length in sums) if self.tiled else crc32c(view)
        return whole, sums


@dataclass
class PartDraft:
    """A part before its upload; ``number`` counts from 1."""

    number: int
    ring: Ring
    segments: list[Segment] = field(default_factory=list)
    size: int = 0
    fences: list[torch.Event] = field(default_factory=list)
    _held: list[Block] = field(default_factory=list)

    def add(self, view: memoryview, checks: list[Check], block: Block | None, *, tiled: bool = False) -> None:
        """Append a segment; ``block`` is the staging block it lies in."""
        self.segments.append(Segment(view, checks, tiled))
        self.size += view.nbytes
        if block is not None and (not self._held or self._held[-1] is not block):
            self.ring.hold(block)
            self._held.append(block)

    def seal(self) -> tuple[int, list[Sum]]:
        """The CRC32C of the part and the sums of its blocks' pieces, from one pass over its bytes."""
        for fence in self.fences:
            fence.synchronize()
        sums: list[Sum] = []
        wholes: list[tuple[int, int]] = []
        for segment in self.segments:
            whole, found = segment.sums()
            wholes.append((whole, segment.view.nbytes))
            sums += found
        return combine(wholes), sums

    def release(self) -> None:
        """Give the staging blocks back; the part is not used afterwards."""
        self.segments.clear()
        while self._held:
            self.ring.release(self._held.pop())


@dataclass(slots=True)
class Entry:
    """An item in its object: where its frame lies, and where the payload lies in it."""

    index: MetadataIndex
    offset: int
    size: int
    payload_offset: int
    payload_size: int
    plain: bool
    transforms: Sequence[str]


class ObjectCutter:
    """Cuts frames into parts of ``part_size`` bytes; stops at the frame that no longer fits the object.

    Args:
        frames: what to cut, made lazily.
        part_size: bytes of every part but the last.
        capacity: most bytes of one object.
        ring: staging memory, with room for two parts at least.
    """

    def __init__(self, frames: Iterator[Frame], part_size: int, capacity: int, ring: Ring) -> None:
        self.entries: list[Entry] = []
        self.leftover: Frame | None = None
        self._frames = frames
        self._part_size = part_size
        self._capacity = capacity
        self._ring = ring
        self._staging = Staging(ring)
        self._part = PartDraft(1, ring)
        self._size = 0
        # the stretch of the staging block that is being gathered
        self._gathered_from = 0
        self._checks: list[Check] = []

    def parts(self) -> Iterator[PartDraft]:
        """The parts in order. Run it to its end before asking for results."""
        for frame in self._frames:
            size = frame.size
            if self._size + size > self._capacity:
                if not self.entries:
                    raise UnsupportedError(
                        f"{frame.index.fqn!r} takes {size} bytes; one object holds {self._capacity}: "
                        "raise part_size"
                    )
                self.leftover = frame
                break
            number = len(self.entries)
            self.entries.append(
                Entry(
                    *(frame.index, self._size, size, len(frame.header), frame.payload_size, frame.plain),
                    frame.transforms,
                )
            )
            self._size += size
            yield from self._cut(frame, number)
        self._end_gathering()
        self._staging.close()
        if self._part.size:
            yield self._full_part()

    def _cut(self, frame: Frame, number: int) -> Iterator[PartDraft]:
        payload = frame.payload
        if payload.nbytes != frame.payload_size:
            raise CheckpointIncompleteError(
                f"{frame.index.fqn!r} has {payload.nbytes} bytes, not {frame.payload_size}: resized in use?"
            )
        if self._gather_whole(frame, number):
            return
        yield from self._gather(frame.header)
        if isinstance(payload, torch.Tensor):
            yield from self._stage(payload, number)
        elif payload.nbytes <= GATHERED:
            yield from self._gather(payload, number)
        else:
            self._end_gathering()
            yield from self._add_payload(payload, number, 0, None)
        yield from self._gather(frame.tail)

    def _gather_whole(self, frame: Frame, number: int) -> bool:
        """Gather a small frame that fits where gathering stands, which is the case for nearly all of them."""
        staging, payload, size = self._staging, frame.payload, frame.size
        start = staging.fill
        open_bytes = start - self._gathered_from
        if (
            isinstance(payload, torch.Tensor)
            or payload.nbytes > GATHERED
            or size > min(staging.room, self._part_size - self._part.size - open_bytes)
        ):
            return False
        if staging.block is None:
            return size == 0
        view = staging.block.view
        begin = start + len(frame.header)
        end = begin + payload.nbytes
        view[start:begin] = frame.header
        view[begin:end] = payload
        view[end : start + size] = frame.tail
        staging.fill = start + size
        if payload.nbytes:
            self._checks.append((number, 0, begin - self._gathered_from, end - self._gathered_from))
        return True

    def _gather(self, data: bytes | memoryview, number: int | None = None) -> Iterator[PartDraft]:
        """Copy bytes behind those gathered before; ``number`` says whose payload they are."""
        staging, position, size = self._staging, 0, len(data)
        while position < size:
            open_bytes = staging.fill - self._gathered_from
            count = min(size - position, staging.room, self._part_size - self._part.size - open_bytes)
            if count == 0:
                self._end_gathering()
                if self._part.size == self._part_size:
                    yield self._full_part()
                if staging.room == 0:
                    staging.renew()
                    self._gathered_from = 0
                continue
            start, staging.fill = staging.fill, staging.fill + count
            assert staging.block is not None
            staging.block.view[start : staging.fill] = data[position : position + count]
            if number is not None:
                begin = start - self._gathered_from
                self._checks.append((number, 0, begin, begin + count))
            position += count

    def _end_gathering(self) -> None:
        """Make a segment of what was gathered."""
        staging = self._staging
        if staging.block is not None and staging.fill > self._gathered_from:
            view = staging.block.view[self._gathered_from : staging.fill]
            self._part.add(view, self._checks, staging.block)
            self._checks = []
        self._gathered_from = staging.fill

    def _stage(self, tensor: torch.Tensor, number: int) -> Iterator[PartDraft]:
        """Copy elements that are on a device or not contiguous, a quarter of a block at a time."""
        if tensor.nbytes == 0:
            return
        staging, position = self._staging, 0
        if not staging.knows(tensor.device):
            self._end_gathering()
            staging.meet(tensor.device)
        staging.keep(tensor)
        open_bytes = staging.fill - self._gathered_from
        if tensor.nbytes <= min(GATHERED, staging.room, self._part_size - self._part.size - open_bytes):
            begin = open_bytes
            staging.copy_bytes(tensor)
            self._checks.append((number, 0, begin, begin + tensor.nbytes))
            return
        self._end_gathering()
        for rows in row_blocks(tensor, self._ring.block_size // 4):
            staging.align()
            if staging.room < rows.nbytes:
                staging.renew()
            view = staging.copy(rows)
            self._gathered_from = staging.fill
            yield from self._add_payload(view, number, position, staging.block)
            position += view.nbytes

    def _add_payload(
        self, view: memoryview, number: int, position: int, block: Block | None
    ) -> Iterator[PartDraft]:
        """Add payload bytes that begin ``position`` bytes into their item."""
        while view.nbytes:
            if self._part.size == self._part_size:
                yield self._full_part()
            piece = view[: self._part_size - self._part.size]
            self._part.add(piece, _block_checks(number, position, piece.nbytes), block, tiled=True)
            position += piece.nbytes
            view = view[piece.nbytes :]

    def _full_part(self) -> PartDraft:
        full, self._part = self._part, PartDraft(self._part.number + 1, self._ring)
        full.fences = self._staging.fences()
        return full

    def storage_infos(self, name: str, checksums: dict[int, bytes]) -> list[StorageInfo]:
        """Where each entry lies, with the packed block checksums by entry number."""
        return [
            storage_info(
                name,
                entry.offset,
                entry.size,
                Payload(entry.payload_offset, entry.payload_size, entry.plain, checksums.get(number, b"")),
                entry.transforms,
            )
            for number, entry in enumerate(self.entries)
        ]


def _block_checks(number: int, position: int, size: int) -> list[Check]:
    """The checks of ``size`` payload bytes of entry ``number`` that begin ``position`` bytes into it."""
    checks, start = [], 0
    while start < size:
        block = (position + start) // BLOCK_SIZE
        stop = min(size, (block + 1) * BLOCK_SIZE - position)
        checks.append((number, block, start, stop))
        start = stop
    return checks


def block_checksums(sums: Iterable[Sum]) -> dict[int, bytes]:
    """Packed block checksums by entry number, from sums in the order of the bytes."""
    by_entry: dict[int, list[int]] = {}
    last: tuple[int, int] | None = None
    size = 0
    for entry, block, crc, length in sums:
        crcs = by_entry.setdefault(entry, [])
        if last == (entry, block):
            crcs[-1] = combine(((crcs[-1], size), (crc, length)))
            size += length
        else:
            crcs.append(crc)
            last, size = (entry, block), length
    return {entry: pack(crcs) for entry, crcs in by_entry.items()}
