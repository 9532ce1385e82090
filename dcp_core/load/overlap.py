"""Targets that share memory, such as tied weights under two names.

Stock torch loads one item after another, and the last one stays. Items that are received at the same time
must not write to the same memory, then, and those that do come one round after the other. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Region", "rounds"]

#: Items with touching memory, up to which each two are compared; more take a round each.
_COMPARED = 256


class Region(NamedTuple):
    """Where one item is written.

    Attributes:
        space: what the addresses are of.
        start, stop: addresses of the first byte, and behind the last one.
        sizes, strides: of the tensor; strides in bytes.
    """

    space: str
    start: int
    stop: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


def rounds(regions: Sequence[Region | None]) -> list[int]:
    """The round, from 0 on, of each item, given in the order in which they are to take effect."""
    found = [0] * len(regions)
    for group in _touching(regions):
        members = sorted(group)
        for position, member in enumerate(members):
            if len(members) > _COMPARED:
                found[member] = position
                continue
            earlier = (
                found[other] for other in members[:position] if _overlap(regions[other], regions[member])
            )
            found[member] = 1 + max(earlier, default=-1)
    return found


def _touching(regions: Sequence[Region | None]) -> list[list[int]]:
    """Groups, of two items or more, whose spans of addresses are connected."""
    spans = sorted(
        ((region.space, region.start, region.stop), number)
        for number, region in enumerate(regions)
        if region is not None and region.start < region.stop
    )
    groups: list[list[int]] = []
    space, end = "", -1
    for (where, start, stop), number in spans:
        if where == space and start < end:
            groups[-1].append(number)
            end = max(end, stop)
        else:
            groups.append([number])
            space, end = where, stop
    return [group for group in groups if len(group) > 1]


def _overlap(one: Region | None, other: Region | None) -> bool:
    """Whether two items may share a byte. Exact for slices of one larger array, as fused weights have."""
    assert one is not None
    assert other is not None
    if one.stop <= other.start or other.stop <= one.start:
        return False
    if one.strides != other.strides:
        return True
    origin = min(one.start, other.start)
    first, second = _coordinates(one, origin), _coordinates(other, origin)
    if first is None or second is None:
        return True
    return all(
        a < b + size_b and b < a + size_a
        for a, size_a, b, size_b in zip(first, one.sizes, second, other.sizes, strict=True)
    )


def _coordinates(region: Region, origin: int) -> list[int] | None:
    """The region's first index in an array that begins at ``origin`` with the region's strides; ``None`` if
    it is no box of such an array."""
    left, found = region.start - origin, []
    room = None
    for size, stride in zip(region.sizes, region.strides, strict=True):
        if stride <= 0 or (room is not None and room % stride):
            return None
        index, left = divmod(left, stride)
        if room is not None and (index + size) * stride > room:
            return None
        found.append(index)
        room = stride
    return found if left == 0 else None
