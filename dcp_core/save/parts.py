"""Frames cut into the parts of one object. Pure: no I/O, no copy of elements.

A piece is a stretch of bytes that lies in one buffer, one part and, for elements, one checksum block.
Each is read once for its checksum; blocks and parts combine theirs from their pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from dcp_core.errors import CheckpointIncompleteError, UnsupportedError
from dcp_core.format.checksum import BLOCK_SIZE, combine, pack
from dcp_core.format.stored import Payload, StorageInfo, storage_info
from dcp_core.save.frame import Frame

__all__ = ["Entry", "ObjectCutter", "PartDraft", "Piece", "block_checksums"]

#: Marks header and tail bytes. A tail is joined with the header that follows it; elements are never joined.
_NO_BLOCK = (-1, -1)


@dataclass(frozen=True)
class Piece:
    """Bytes of one part; ``block`` is (entry number, block number) for elements."""

    view: memoryview
    block: tuple[int, int]


@dataclass
class PartDraft:
    """A part before its upload; ``number`` counts from 1."""

    number: int
    pieces: list[Piece] = field(default_factory=list)
    size: int = 0

    def add(self, view: memoryview, block: tuple[int, int]) -> None:
        self.pieces.append(Piece(view, block))
        self.size += view.nbytes


class Entry(NamedTuple):
    """Where a frame lies in its object."""

    frame: Frame
    offset: int


class ObjectCutter:
    """Cuts frames into parts of ``part_size`` bytes; stops at the frame that no longer fits the object.

    Args:
        frames: what to cut, made lazily.
        part_size: bytes of every part but the last.
        capacity: most bytes of one object.
    """

    def __init__(self, frames: Iterator[Frame], part_size: int, capacity: int) -> None:
        self.entries: list[Entry] = []
        self.leftover: Frame | None = None
        self._frames = frames
        self._part_size = part_size
        self._capacity = capacity
        self._small = bytearray()
        self._part = PartDraft(1)
        self._size = 0

    def parts(self) -> Iterator[PartDraft]:
        """The parts in order. Run it to its end before asking for results."""
        for frame in self._frames:
            if self._size + frame.size > self._capacity:
                if not self.entries:
                    raise UnsupportedError(
                        f"{frame.index.fqn!r} takes {frame.size} bytes; one object holds {self._capacity}: "
                        "raise part_size"
                    )
                self.leftover = frame
                break
            yield from self._cut(frame)
        yield from self._flush_small()
        if self._part.size:
            yield self._part

    def _cut(self, frame: Frame) -> Iterator[PartDraft]:
        number = len(self.entries)
        self.entries.append(Entry(frame, self._size))
        self._size += frame.size
        self._small += frame.header
        yield from self._cut_payload(frame, number)
        self._small += frame.tail

    def _cut_payload(self, frame: Frame, number: int) -> Iterator[PartDraft]:
        position = 0
        for buffer in frame.payload:
            yield from self._flush_small()
            view = buffer
            while view.nbytes:
                block = position // BLOCK_SIZE
                piece = view[: (block + 1) * BLOCK_SIZE - position]
                yield from self._add(piece, (number, block))
                position += piece.nbytes
                view = view[piece.nbytes :]
        if position != frame.payload_size:
            raise CheckpointIncompleteError(
                f"{frame.index.fqn!r} gave {position} bytes, not {frame.payload_size}; was it resized in use?"
            )

    def _flush_small(self) -> Iterator[PartDraft]:
        if self._small:
            small, self._small = memoryview(bytes(self._small)), bytearray()
            yield from self._add(small, _NO_BLOCK)

    def _add(self, view: memoryview, block: tuple[int, int]) -> Iterator[PartDraft]:
        while view.nbytes:
            room = self._part_size - self._part.size
            self._part.add(view[:room], block)
            view = view[room:]
            if self._part.size == self._part_size:
                full, self._part = self._part, PartDraft(self._part.number + 1)
                yield full

    def storage_infos(self, name: str, checksums: dict[int, bytes]) -> list[StorageInfo]:
        """Where each entry lies, with the packed block checksums by entry number."""
        infos = []
        for number, (frame, offset) in enumerate(self.entries):
            recorded = checksums.get(number, b"")
            payload = Payload(len(frame.header), frame.payload_size, frame.plain, recorded)
            infos.append(storage_info(name, offset, frame.size, payload))
        return infos


def block_checksums(pieces: Iterable[tuple[tuple[int, int], int, int]]) -> dict[int, bytes]:
    """Packed block checksums by entry number, from ``(block, crc32c, length)`` of pieces in order."""
    by_block: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for block, crc, length in pieces:
        if block != _NO_BLOCK:
            by_block.setdefault(block, []).append((crc, length))
    by_entry: dict[int, list[int]] = {}
    for (entry, _), found in by_block.items():
        by_entry.setdefault(entry, []).append(combine(found))
    return {entry: pack(crcs) for entry, crcs in by_entry.items()}
