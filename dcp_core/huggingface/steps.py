"""Files cut into the parts of their uploads, and the parts given to ranks. Pure.

Every part but a file's last has the same size, which is all that stores agree on. So borders of parts fall
where they like, inside of a row and across the chunks of several ranks. A part goes to the rank that has the
most of it, and where several have as much, to the one with the least to do; the others send it what it lacks.

::

    file ── cut_file ──> steps, one a part ── for_rank ──> a rank's steps: to upload, or to send something for

All ranks take their steps in the same order, that of files and parts. Each step is then at some time the
first of all that its ranks have before them, and no rank waits for another in a circle.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from dcp_core.huggingface.layout import Chunk, ExportFile, PlacedTensor
from dcp_core.load.plan import Box, boxes_of

__all__ = ["Region", "Source", "Step", "cut_file", "exchanging", "for_rank"]


class Source(NamedTuple):
    """Elements of a region that one rank has: ``lengths`` of its ``item``-th planned tensor, from ``inside``
    on, which go to ``at`` in the region."""

    rank: int
    item: int
    inside: tuple[int, ...]
    at: tuple[int, ...]
    lengths: tuple[int, ...]


class Region(NamedTuple):
    """Adjacent bytes of a part: an array of ``lengths``, from byte ``start`` of the part on."""

    start: int
    itemsize: int
    lengths: tuple[int, ...]
    sources: tuple[Source, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.lengths) * self.itemsize


class Step(NamedTuple):
    """One part: ``size`` bytes, of which ``head`` are the first, uploaded by the rank ``owner`` as part
    ``number``, from 1, of the file number ``file``, from 0."""

    file: int
    number: int
    size: int
    owner: int
    head: bytes
    regions: tuple[Region, ...]

    def senders(self) -> list[int]:
        """The other ranks that have something of it."""
        return sorted({source.rank for region in self.regions for source in region.sources} - {self.owner})

    def bytes_of(self, rank: int) -> int:
        """Bytes of it that a rank has."""
        return sum(size for _, size in self.pieces_of(rank))

    def pieces_of(self, rank: int) -> Iterator[tuple[tuple[Region, Source], int]]:
        """What a rank has of it, in the order of the bytes, with the size of each."""
        for region in self.regions:
            for source in region.sources:
                if source.rank == rank:
                    yield (region, source), math.prod(source.lengths) * region.itemsize


def cut_file(number: int, file: ExportFile, part_size: int, load: Counter[int]) -> Iterator[Step]:
    """The steps of a file; ``load`` counts the bytes that each rank uploads, and goes on counting."""
    first = 0
    for part, start in enumerate(range(0, file.size, part_size), 1):
        stop = min(file.size, start + part_size)
        regions: list[Region] = []
        while first < len(file.tensors) and _end(file.tensors[first]) <= start:
            first += 1
        for position in range(first, len(file.tensors)):
            if file.tensors[position].start >= stop:
                break
            regions += _regions(file.tensors[position], start, stop)
        owner = _owner(regions, load)
        load[owner] += stop - start
        yield Step(number, part, stop - start, owner, file.header[start:stop], tuple(regions))


def _end(tensor: PlacedTensor) -> int:
    return tensor.start + tensor.spec.size


def _regions(tensor: PlacedTensor, start: int, stop: int) -> Iterator[Region]:
    """The regions of a tensor in bytes ``[start, stop)`` of its file; borders never split an element."""
    shape, itemsize = tensor.spec.shape, tensor.spec.dtype.itemsize
    first = (max(start, tensor.start) - tensor.start) // itemsize
    end = (min(stop, _end(tensor)) - tensor.start) // itemsize
    position = tensor.start + first * itemsize - start
    for box in boxes_of(shape, first, end):
        region = Region(position, itemsize, box.lengths, tuple(_sources(box, tensor.chunks)))
        yield region
        position += region.size


def _sources(box: Box, chunks: Sequence[Chunk]) -> Iterator[Source]:
    for chunk in _near(box, chunks):
        begin = tuple(map(max, box.offsets, chunk.offsets))
        ends = zip(box.offsets, box.lengths, chunk.offsets, chunk.lengths, strict=True)
        end = tuple(min(a + b, c + d) for a, b, c, d in ends)
        if all(one < other for one, other in zip(begin, end, strict=True)):
            yield Source(
                chunk.rank,
                chunk.item,
                _minus(begin, chunk.offsets),
                _minus(begin, box.offsets),
                _minus(end, begin),
            )


def _near(box: Box, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
    """The chunks, sorted by their offsets, that can meet ``box`` along the first dimension."""
    if not box.offsets or len(chunks) < 8:
        return chunks
    longest = max(chunk.lengths[0] for chunk in chunks)
    low = bisect_left(chunks, box.offsets[0] - longest + 1, key=lambda chunk: chunk.offsets[0])
    high = bisect_left(chunks, box.offsets[0] + box.lengths[0], key=lambda chunk: chunk.offsets[0])
    return chunks[low:high]


def _minus(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(one, other, strict=True))


def _owner(regions: Iterable[Region], load: Counter[int]) -> int:
    has: Counter[int] = Counter()
    for region in regions:
        for source in region.sources:
            has[source.rank] += math.prod(source.lengths) * region.itemsize
    # a header alone, or tensors without elements
    if not has:
        return 0
    most = max(has.values())
    return min((rank for rank in has if has[rank] == most), key=lambda rank: (load[rank], rank))


def for_rank(steps: Iterable[Step], rank: int) -> Iterator[Step]:
    """The steps that a rank takes part in, as far as they concern it."""
    for step in steps:
        if step.owner == rank:
            yield step
            continue
        regions = tuple(region for region in step.regions if any(s.rank == rank for s in region.sources))
        if regions:
            yield step._replace(head=b"", regions=regions)


def exchanging(steps: Iterable[Step]) -> list[int]:
    """The ranks that send or receive anything."""
    found: set[int] = set()
    for step in steps:
        senders = step.senders()
        if senders:
            found.update(senders, (step.owner,))
    return sorted(found)
