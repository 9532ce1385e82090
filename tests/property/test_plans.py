"""Properties of the pure planning: every needed byte once, in bounds, in place."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcp_core.format.checksum import BLOCK_SIZE, combine, crc32c, pack, unpack
from dcp_core.load.plan import Box, Placement, coalesce, cut_flat, cut_region, flat_range, strides_of
from dcp_core.save.frame import Frame
from dcp_core.save.parts import ObjectCutter, block_checksums
from dcp_core.save.plan import part_size_for
from dcp_core.save.stage import row_blocks
from dcp_core.store import Body, Limits

Case = tuple[tuple[int, ...], Box]


@st.composite
def boxes(draw: st.DrawFn) -> Case:
    sizes = tuple(draw(st.lists(st.integers(1, 9), min_size=0, max_size=4)))
    offsets = tuple(draw(st.integers(0, size - 1)) for size in sizes)
    lengths = tuple(draw(st.integers(1, size - offset)) for size, offset in zip(sizes, offsets, strict=True))
    return sizes, Box(offsets, lengths)


@given(boxes(), st.sampled_from([1, 2, 8]), st.integers(1, 4000), st.integers(0, 300))
def test_cut_regions_tile_the_box(case: Case, itemsize: int, size: int, gap: int) -> None:
    sizes, box = case
    chunk = torch.arange(math.prod(sizes)).view(sizes)
    target = torch.full(box.lengths, -1)
    for part, start, stop in cut_region(sizes, box, itemsize, size, gap):
        # what a load does: the span's elements, seen through the chunk's strides
        piece = chunk.reshape(-1)[start:stop].as_strided(part.lengths, strides_of(sizes))
        where = tuple(
            slice(offset - origin, offset - origin + length)
            for offset, origin, length in zip(part.offsets, box.offsets, part.lengths, strict=True)
        )
        assert (target[where] == -1).all()
        target[where] = piece
        rows = next((length for length in part.lengths if length > 1), 1)
        assert (stop - start) * itemsize <= max(size, itemsize) or rows == 1
    wanted = chunk[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.lengths, strict=True))]
    assert torch.equal(target, wanted)


@given(boxes())
def test_flat_ranges(case: Case) -> None:
    sizes, box = case
    chunk = torch.arange(math.prod(sizes)).view(sizes)
    wanted = chunk[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.lengths, strict=True))].reshape(-1)
    found = flat_range(sizes, box)
    adjacent = torch.equal(wanted, torch.arange(int(wanted[0]), int(wanted[0]) + wanted.numel()))
    assert (found is not None) == adjacent
    if found is not None:
        assert found == (int(wanted[0]), int(wanted[-1]) + 1)


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 900), st.sampled_from([1, 8, 64]))
def test_cut_flat_tiles_at_blocks(start: int, length: int, size: int, block: int) -> None:
    cuts = list(cut_flat(start, start + length, size, block))
    position = start
    for begin, end in cuts:
        assert begin == position
        assert 0 < end - begin <= max(size, block)
        assert end % block == 0 or end == start + length
        position = end
    assert position == start + length


placements = st.lists(
    st.builds(
        lambda name, start, length, item: Placement(name, start, start + length, item),
        st.sampled_from("ab"),
        st.integers(0, 600),
        st.integers(1, 120),
        st.integers(0, 5),
    ),
    max_size=30,
)


@given(placements, st.integers(1, 300), st.integers(0, 50))
def test_coalesced_requests(wanted: list[Placement], size: int, gap: int) -> None:
    requests = coalesce(wanted, size, gap)
    assert sorted(p for r in requests for s in r.steps for p in s.placements) == sorted(wanted)
    asked: dict[str, set[int]] = {"a": set(), "b": set()}
    for request in requests:
        span = set(range(request.start, request.stop))
        assert not span & asked[request.name], "a byte is asked for twice"
        asked[request.name] |= span
        position = request.start
        for step in request.steps:
            assert 0 <= step.start - position <= gap
            assert all(step.start <= p.start and p.stop <= step.stop for p in step.placements)
            assert step.start == min(p.start for p in step.placements)
            assert step.stop == max(p.stop for p in step.placements)
            position = step.stop
        assert position == request.stop
        # only a stretch of overlaps, which is received once for all, may exceed the size
        assert request.stop - request.start <= size or any(
            len(step.placements) > 1 or step.stop - step.start > size for step in request.steps
        )
    needed = {("a", b) for p in wanted if p.name == "a" for b in range(p.start, p.stop)}
    assert len(asked["a"]) - len(needed) <= gap * sum(len(r.steps) for r in requests)


LIMITS = Limits(5 << 20, 5 << 30, 10_000, 5 << 40, 5 << 30)


@given(st.integers(0, 6 << 40), st.integers(1, 6 << 30))
def test_part_sizes(total: int, wanted: int) -> None:
    size = part_size_for(total, wanted, LIMITS)
    assert LIMITS.min_part_size <= size <= LIMITS.max_part_size
    assert size >= min(wanted, LIMITS.max_part_size)
    assert size * LIMITS.max_parts >= min(total, LIMITS.max_object_size)


def test_objects_of_five_tebibytes() -> None:
    size = part_size_for(5 << 40, 32 << 20, LIMITS)
    assert size * LIMITS.max_parts >= 5 << 40
    assert -(-(5 << 40) // size) <= LIMITS.max_parts // 2


def _pattern(number: int, size: int) -> bytes:
    return bytes((number * 7 + index) % 256 for index in range(size))


def _frame(number: int, header: int, payload: list[int], tail: int) -> Frame:
    data = [_pattern(number, size) for size in payload]
    index: Any = SimpleNamespace(fqn=str(number))
    views = iter([memoryview(piece) for piece in data])
    return Frame(index, b"h" * header, views, sum(payload), b"t" * tail, plain=True)


frames = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.integers(0, 3000), max_size=3), st.integers(0, 30)), max_size=8
)


@settings(max_examples=60)
@given(frames, st.integers(1, 2500), st.integers(5000, 40_000))
def test_cut_parts(shapes: list[tuple[int, list[int], int]], part_size: int, capacity: int) -> None:
    shapes = [shape for shape in shapes if shape[0] + sum(shape[1]) + shape[2] <= capacity]
    expected = [
        b"h" * head
        + b"".join(bytes((n * 7 + i) % 256 for i in range(size)) for size in payload)
        + b"t" * tail
        for n, (head, payload, tail) in enumerate(shapes)
    ]
    made = iter([_frame(n, *shape) for n, shape in enumerate(shapes)])
    cutter = ObjectCutter(made, part_size, capacity)
    parts = list(cutter.parts())
    data = b"".join(bytes(piece.view) for part in parts for piece in part.pieces)
    count = len(cutter.entries)
    assert data == b"".join(expected[:count])
    assert len(data) <= capacity
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert all(part.size == part_size for part in parts[:-1])
    assert (cutter.leftover is not None) == (count < len(shapes))
    sums = block_checksums(
        (piece.block, crc32c(piece.view), piece.view.nbytes) for part in parts for piece in part.pieces
    )
    for number, entry in enumerate(cutter.entries):
        start = entry.offset + len(entry.frame.header)
        payload = data[start : start + entry.frame.payload_size]
        assert data[entry.offset : entry.offset + entry.frame.size] == expected[number]
        assert sums.get(number, b"") == pack(crc32c(payload) for _ in range(bool(payload)))


def test_block_checksums_over_block_and_part_borders() -> None:
    payload = bytes(range(256)) * (9 * BLOCK_SIZE // 1024)  # 2.25 blocks
    index: Any = SimpleNamespace(fqn="x")
    frame = Frame(index, b"head", iter([memoryview(payload)]), len(payload), b"tail", plain=True)
    cutter = ObjectCutter(iter([frame]), 300_000, 1 << 30)
    pieces = [
        (piece.block, crc32c(piece.view), piece.view.nbytes)
        for part in cutter.parts()
        for piece in part.pieces
    ]
    blocks = [payload[start : start + BLOCK_SIZE] for start in range(0, len(payload), BLOCK_SIZE)]
    assert unpack(block_checksums(pieces)[0]) == tuple(crc32c(block) for block in blocks)
    assert combine((crc, size) for _, crc, size in pieces) == crc32c(b"head" + payload + b"tail")


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(-5, 400), st.integers(0, 2))
def test_bodies_read_and_seek_like_files(buffers: list[bytes], offset: int, whence: int) -> None:
    whole = b"".join(buffers)
    body = Body(buffers, crc32c(whole))
    assert body.tobytes() == whole
    assert b"".join(iter(body.read, b"")) == whole
    assert body.tell() == body.size == len(whole)
    position = body.seek(offset if whence != 1 else -offset, whence)
    assert 0 <= position <= len(whole)
    assert b"".join(iter(body.read, b"")) == whole[position:]
    assert b"".join(iter(body.fresh().read, b"")) == whole


@given(boxes(), st.integers(1, 300))
def test_row_blocks_follow_one_another(case: Case, size: int) -> None:
    sizes, box = case
    whole = torch.arange(math.prod(sizes), dtype=torch.int16).view(sizes)
    view = whole[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.lengths, strict=True))]
    blocks = list(row_blocks(view, size))
    assert torch.equal(torch.cat([block.reshape(-1) for block in blocks]), view.reshape(-1))
    assert all(block.nbytes <= max(size, 2) for block in blocks)
