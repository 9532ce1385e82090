"""Which bytes to ask for. Pure: no I/O, no tensors. Ranges: inclusive start, exclusive stop.

::

    region of a stored chunk ── cut_flat / cut_region ──> placements ── coalesce ──> requests
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = [
    "Box",
    "Placement",
    "Request",
    "Step",
    "boxes_of",
    "coalesce",
    "cut_flat",
    "cut_region",
    "flat_range",
    "request_size_for",
]

#: Requests below this size cost more in round trips than they win in parallelism.
_SMALLEST_REQUEST = 4 << 20
#: Placements up to this size are received together: one alone costs more CPU time than copying it.
GATHERED = 128 << 10
#: Bytes that are received together at most, so that they are still in the cache when they are placed.
_GATHERED_STEP = 1 << 20


class Box(NamedTuple):
    """A hyper-rectangle of a stored chunk: first index and extent in each dimension."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]


class Placement(NamedTuple):
    """Bytes ``[start, stop)`` of the object ``name`` for the read item number ``item``.

    ``box`` says which elements of the stored chunk they hold, from its first to its last one with
    whatever lies between; ``None`` says that they are adjacent elements of the item, in C order, from its
    element number ``first`` on. Items that are not placed by element have ``first == -1``.
    """

    name: str
    start: int
    stop: int
    item: int
    first: int = 0
    box: Box | None = None


@dataclass(slots=True)
class Step:
    """Bytes of one request that are received at once.

    They belong to one placement, or to several that overlap or are so small that they are received
    together, with the gaps between them.
    """

    start: int
    stop: int
    placements: list[Placement]

    def takes(self, placement: Placement, gap: int) -> bool:
        """Whether ``placement``, which begins behind this step, is to be received with it."""
        return (
            placement.stop - placement.start <= GATHERED
            and placement.start - self.stop <= gap
            and placement.stop - self.start <= _GATHERED_STEP
            # the first being small, all are, or they overlap and are as good as small
            and self.placements[0].stop - self.start <= GATHERED
        )


@dataclass(slots=True)
class Request:
    """One range request; bytes between its steps are read and dropped."""

    name: str
    start: int
    stop: int
    steps: list[Step] = field(default_factory=list)


def strides_of(sizes: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a C-contiguous array."""
    strides = [1] * len(sizes)
    for dim in range(len(sizes) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * sizes[dim + 1]
    return tuple(strides)


def flat_range(sizes: tuple[int, ...], box: Box) -> tuple[int, int] | None:
    """Elements ``[first, last + 1)`` of a C-contiguous chunk if ``box`` is exactly those, else ``None``."""
    if box.lengths == sizes:
        return 0, math.prod(sizes)
    start, stop = _span(strides_of(sizes), box)
    return (start, stop) if stop - start == math.prod(box.lengths) else None


def _span(strides: Sequence[int], box: Box) -> tuple[int, int]:
    start = sum(offset * stride for offset, stride in zip(box.offsets, strides, strict=True))
    last = sum((length - 1) * stride for length, stride in zip(box.lengths, strides, strict=True))
    return start, start + last + 1


def boxes_of(sizes: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Boxes that hold elements ``[start, stop)`` of a C-contiguous array of ``sizes``, in that order."""
    if start >= stop:
        return
    if not sizes:
        yield Box((), ())
        return
    row = math.prod(sizes[1:])
    first, begin = divmod(start, row)
    last, end = divmod(stop, row)
    if first == last:
        yield from _in_row(sizes, first, begin, end)
        return
    if begin:
        yield from _in_row(sizes, first, begin, row)
        first += 1
    if first < last:
        yield Box((first, *(0 for _ in sizes[1:])), (last - first, *sizes[1:]))
    yield from _in_row(sizes, last, 0, end)


def _in_row(sizes: tuple[int, ...], row: int, start: int, stop: int) -> Iterator[Box]:
    for box in boxes_of(sizes[1:], start, stop):
        yield Box((row, *box.offsets), (1, *box.lengths))


def cut_flat(start: int, stop: int, size: int, block: int) -> Iterator[tuple[int, int]]:
    """Cut payload bytes ``[start, stop)`` into ranges of about ``size``, at multiples of ``block``.

    Cuts at block borders let each range verify all blocks but those that ``start`` and ``stop`` split.
    """
    step = max(block, size // block * block)
    while start < stop:
        end = min(stop, (start // step + 1) * step)
        yield start, end
        start = end


def cut_region(
    sizes: Sequence[int], box: Box, itemsize: int, size: int, gap: int
) -> Iterator[tuple[Box, int, int]]:
    """Cut a box of a C-contiguous chunk into boxes of which each spans about ``size`` bytes at most.

    Rows that lie further apart than ``gap`` bytes become boxes of their own. Yields the box and its span
    in elements. Cuts fall on multiples that do not depend on where the box begins, so that two overlapping
    boxes are cut alike.
    """
    strides = strides_of(sizes)
    start, stop = _span(strides, box)
    dim = next((d for d, length in enumerate(box.lengths) if length > 1), None)
    if dim is None:
        yield box, start, stop
        return
    row = Box(box.offsets, (*box.lengths[:dim], 1, *box.lengths[dim + 1 :]))
    row_start, row_stop = _span(strides, row)
    row_bytes, stride_bytes = (row_stop - row_start) * itemsize, strides[dim] * itemsize
    apart = stride_bytes - row_bytes > gap
    if not apart and (stop - start) * itemsize <= size:
        yield box, start, stop
        return
    rows = 1 if apart or row_bytes > size else max(1, size // stride_bytes)
    first, end = box.offsets[dim], box.offsets[dim] + box.lengths[dim]
    while first < end:
        until = min(end, (first // rows + 1) * rows)
        part = Box(
            (*box.offsets[:dim], first, *box.offsets[dim + 1 :]),
            (*box.lengths[:dim], until - first, *box.lengths[dim + 1 :]),
        )
        if until - first == 1:
            yield from cut_region(sizes, part, itemsize, size, gap)
        else:
            yield part, *_span(strides, part)
        first = until


def request_size_for(total: int, largest: int, concurrency: int) -> int:
    """Request size that keeps ``concurrency`` connections busy with ``total`` bytes up to their end.

    Three rounds of requests leave the last ones a third of their time apart at most.
    """
    return min(largest, max(_SMALLEST_REQUEST, -(-total // (3 * concurrency))))


def coalesce(placements: Iterable[Placement], size: int, gap: int) -> list[Request]:
    """Group placements into requests of ``size`` bytes, reading through up to ``gap`` unneeded ones.

    Every byte is asked for once, whatever number of placements it serves, and none outside the placements
    but those gaps. Placements must not be empty.

    Requests end where the bytes placed so far reach a multiple of ``size``, not where each has had its own:
    they differ from ``size`` by one placement at most, and there is none too many, which all connections
    but one would wait for.
    """
    requests: list[Request] = []
    request: Request | None = None
    placed = border = 0
    for placement in sorted(placements, key=_place):
        name, start, stop = placement.name, placement.start, placement.stop
        if request is not None and request.name == name:
            step = request.steps[-1]
            fits = placed < border and start - request.stop <= gap
            if start < step.stop or (fits and step.takes(placement, gap)):
                step.placements.append(placement)
                placed += max(0, stop - max(start, step.stop))
                step.stop = request.stop = max(step.stop, stop)
                continue
            if fits:
                request.steps.append(Step(start, stop, [placement]))
                request.stop = stop
                placed += stop - start
                continue
        border = (placed // size + 1) * size
        request = Request(name, start, stop, [Step(start, stop, [placement])])
        placed += stop - start
        requests.append(request)
    return requests


def _place(placement: Placement) -> tuple[str, int, int]:
    return placement.name, placement.start, placement.stop
