"""Whether chunks make up a tensor. Pure, exact, and no slower than sorting them.

Along one dimension, as most tensors are cut, sorted chunks have to follow one another. Along several, chunks
that have the tensor's number of elements tile it exactly if their corners cancel out: the indicator function
of a box, differentiated once along each dimension, is a signed sum of its corners, and functions of compact
support are equal where those derivatives are. Inner corners of a grid vanish dimension by dimension, so that
there are not 2**d of them for each chunk.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

__all__ = ["GAP", "chunk_fault"]

GAP = "leave a gap"
_OVERLAP = "overlap"
_OUTSIDE = "reach outside of it"
#: Dimensions along which a tensor may be cut: each may double the corners. Device meshes have fewer.
_MOST_CUTS = 8
#: Comparisons a chunk where chunks lie scattered in several dimensions.
_COMPARED = 256

_Interval = tuple[int, int]
_Box = tuple[_Interval, ...]


def chunk_fault(size: Sequence[int], chunks: Sequence[ChunkStorageMetadata]) -> str | None:
    """What is wrong with the chunks of a tensor of ``size``, or ``None``.

    :data:`GAP` is right where one rank saved its part of a tensor alone; everything else is always wrong.
    """
    dims, count = len(size), len(chunks)
    if any(len(chunk.offsets) != dims or len(chunk.sizes) != dims for chunk in chunks):
        return "have other dimensions"
    if dims == 0:
        return None if count else GAP
    # by dimension
    offsets = list(zip(*[chunk.offsets for chunk in chunks], strict=True)) or [()] * dims
    sizes = list(zip(*[chunk.sizes for chunk in chunks], strict=True)) or [()] * dims
    cut = [dim for dim in range(dims) if set(sizes[dim]) != {size[dim]} or any(offsets[dim])]
    for dim in cut:
        if any(at + length > size[dim] for at, length in zip(offsets[dim], sizes[dim], strict=True)):
            return _OUTSIDE
    if 0 in size:
        return None
    if not cut:
        return _OVERLAP if count > 1 else None
    boxes = [[(at, at + length) for at, length in zip(offsets[dim], sizes[dim], strict=True)] for dim in cut]
    filled = [box for box in zip(*boxes, strict=True) if all(start < stop for start, stop in box)]
    return _fault(tuple((0, size[dim]) for dim in cut), filled)


def _fault(whole: _Box, boxes: Sequence[_Box]) -> str | None:
    """The fault of boxes that are not empty and lie in ``whole``."""
    if len(whole) == 1:
        return _fault_along(whole[0], sorted(box[0] for box in boxes))
    wanted, found = _volume(whole), sum(map(_volume, boxes))
    if found > wanted:
        return _OVERLAP
    if len(whole) > _MOST_CUTS:
        return f"are cut along more than {_MOST_CUTS} dimensions"
    if found == wanted:
        return None if _corners_cancel(whole, boxes) else _OVERLAP
    return _scattered_fault(boxes) or GAP


def _volume(box: _Box) -> int:
    return math.prod(stop - start for start, stop in box)


def _fault_along(whole: _Interval, intervals: Iterable[_Interval]) -> str | None:
    end, gap = whole[0], False
    for start, stop in intervals:
        if start < end:
            return _OVERLAP
        gap = gap or start > end
        end = stop
    return GAP if gap or end != whole[1] else None


def _corners_cancel(whole: _Box, boxes: Sequence[_Box]) -> bool:
    terms: Counter[tuple[int | _Interval, ...]] = Counter(boxes)
    terms[whole] -= 1
    for dim in range(len(whole)):
        corners: Counter[tuple[int | _Interval, ...]] = Counter()
        for term, sign in terms.items():
            before, interval, after = term[:dim], term[dim], term[dim + 1 :]
            assert isinstance(interval, tuple)
            corners[(*before, interval[0], *after)] += sign
            corners[(*before, interval[1], *after)] -= sign
        terms = Counter({term: sign for term, sign in corners.items() if sign})
    return not terms


def _scattered_fault(boxes: Sequence[_Box]) -> str | None:
    """The fault of boxes that fill a tensor in part: those of one rank, a few."""
    sweep = max(range(len(boxes[0])), key=lambda dim: len({box[dim] for box in boxes})) if boxes else 0
    active: list[_Box] = []
    compared = 0
    for box in sorted(boxes, key=lambda box: box[sweep]):
        active = [other for other in active if other[sweep][1] > box[sweep][0]]
        compared += len(active)
        if compared > _COMPARED * len(boxes):
            return "lie scattered too irregularly to be checked"
        if any(_meet(box, other) for other in active):
            return _OVERLAP
        active.append(box)
    return None


def _meet(one: _Box, other: _Box) -> bool:
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))
