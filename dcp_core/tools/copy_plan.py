"""An object cut into the pieces that it is copied in. Pure.

Pieces are the parts of an upload. Blocks with a checksum cross their borders, so what is read for a piece
reaches to the ends of the blocks that it touches, a MiB at most on each side: each piece is verified by
itself, in whichever process copies it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dcp_core.upkeep.frame_checks import Span, spans, template_of
from dcp_core.upkeep.inventory import StoredFrame

__all__ = ["Piece", "cut", "is_known", "known_spans", "shares"]


class Piece(NamedTuple):
    """Bytes ``[start, stop)`` of an object, part ``number`` of its upload, from 1.

    ``[first, last)`` is what has to be read to hold all of ``spans`` against what is known of them.
    """

    number: int
    start: int
    stop: int
    first: int
    last: int
    spans: tuple[Span, ...]


def known_spans(frames: Iterable[StoredFrame]) -> list[Span]:
    """What is known of an object's bytes, in order: blocks by their checksums, and what torch writes around
    dense tensors, as far as it was this release."""
    found: list[Span] = []
    for frame in frames:
        if frame.payload is not None:
            found += spans(frame, frame.payload, template_of(frame, frame.payload))
    return found


def is_known(frames: Iterable[StoredFrame]) -> bool:
    """Whether every item of an object has checksums."""
    return all(
        frame.payload is not None and (frame.payload.checksums or not frame.payload.size) for frame in frames
    )


def cut(size: int, part_size: int, known: list[Span]) -> Iterator[Piece]:
    """The pieces of an object of ``size`` bytes; of an empty one, a single empty piece."""
    starts, stops = [block.start for block in known], [block.stop for block in known]
    for number, start in enumerate(range(0, max(size, 1), part_size), 1):
        stop = min(size, start + part_size)
        touched = known[bisect_left(stops, start + 1) : bisect_left(starts, stop)]
        first = min([start, *(block.start for block in touched[:1])])
        last = max([stop, *(block.stop for block in touched[-1:])])
        yield Piece(number, start, stop, first, last, tuple(touched))


def shares(sizes: dict[str, int], count: int) -> list[list[str]]:
    """Names in ``count`` shares of about as many bytes; the same in every process."""
    loads = [0] * count
    found: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        found[least].append(name)
        loads[least] += sizes[name]
    return [sorted(names) for names in found]
