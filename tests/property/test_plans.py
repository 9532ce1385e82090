"""Properties of the pure planning: every needed byte once, in bounds, in place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcp_core.format.checksum import BLOCK_SIZE, crc32c, pack, unpack
from dcp_core.load.plan import (
    Box,
    Placement,
    boxes_of,
    coalesce,
    cut_flat,
    cut_region,
    flat_range,
    strides_of,
)
from dcp_core.runtime.tensor_memory import tensor_bytes
from dcp_core.save.frame import Frame
from dcp_core.save.parts import ObjectCutter, PartDraft, Sum, block_checksums
from dcp_core.save.plan import part_size_for
from dcp_core.save.stage import Ring, row_blocks
from dcp_core.seam.store import Body, Limits

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


@given(boxes(), st.integers(0, 9**4), st.integers(0, 9**4))
def test_boxes_of_a_range_follow_one_another(case: Case, one: int, other: int) -> None:
    """Boxes hold the elements of a range, each once, in C order, and are few."""
    sizes, _ = case
    count = math.prod(sizes)
    start, stop = sorted((one % (count + 1), other % (count + 1)))
    array = torch.arange(count).view(sizes)
    found = list(boxes_of(sizes, start, stop))
    pieces = [array[tuple(slice(o, o + n) for o, n in zip(*box, strict=True))].reshape(-1) for box in found]
    assert torch.equal(torch.cat([torch.arange(0), *pieces]), torch.arange(start, stop))
    assert len(found) <= max(1, 2 * len(sizes) - 1)


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
        # the last placement begins before the request is full, or overlaps one that does
        full = sum(step.stop - step.start for step in request.steps[:-1])
        assert full < size
    needed = {("a", b) for p in wanted if p.name == "a" for b in range(p.start, p.stop)}
    # a gap lies between two placements
    assert len(asked["a"]) - len(needed) <= gap * max(0, sum(p.name == "a" for p in wanted) - 1)


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 2000), st.integers(0, 3))
def test_no_request_too_many(count: int, length: int, size: int, gap: int) -> None:
    """Bytes that lie together take as many requests as their size says, whatever the pieces' size."""
    pieces = [Placement("a", n * (length + gap), n * (length + gap) + length, n) for n in range(count)]
    requests = coalesce(pieces, size, gap)
    assert len(requests) <= -(-count * length // size)
    placed = [sum(p.stop - p.start for s in r.steps for p in s.placements) for r in requests]
    assert all(one < size + length for one in placed)
    if length <= size:
        # what one has too much the next one has less, so that the last one is not left with the difference
        assert all(sum(placed[:k]) < k * size + length for k in range(1, len(placed) + 1))


@given(st.integers(1, 4 << 30), st.integers(1, 64), st.integers(1 << 20, 128 << 20))
def test_parts_come_out_in_whole_rounds(total: int, concurrency: int, wanted: int) -> None:
    size = part_size_for(total, wanted, LIMITS, concurrency)
    rounds = -(-total // size) / concurrency
    smallest = 16 << 20
    if size > max(smallest, LIMITS.min_part_size):
        assert rounds <= max(1, round(total / (wanted * concurrency)))
    assert size <= max(smallest, LIMITS.min_part_size, 3 * wanted // 2 + (1 << 16))


LIMITS = Limits(5 << 20, 5 << 30, 10_000, 5 << 40, 5 << 30)


@given(st.integers(0, 6 << 40), st.integers(1, 6 << 30))
def test_part_sizes(total: int, wanted: int) -> None:
    size = part_size_for(total, wanted, LIMITS)
    assert LIMITS.min_part_size <= size <= LIMITS.max_part_size
    assert size >= min(wanted, 16 << 20)
    assert size * LIMITS.max_parts >= min(total, LIMITS.max_object_size)


def test_objects_of_five_tebibytes() -> None:
    size = part_size_for(5 << 40, 32 << 20, LIMITS)
    assert size * LIMITS.max_parts >= 5 << 40
    assert -(-(5 << 40) // size) <= LIMITS.max_parts // 2


def _pattern(number: int, size: int) -> bytes:
    return bytes((number * 7 + index) % 256 for index in range(size))


def _tensor(number: int, size: int, kind: str) -> tuple[torch.Tensor, bytes]:
    """A tensor of ``size`` bytes and its bytes."""
    data = torch.tensor(list(_pattern(number, size)), dtype=torch.uint8)
    if kind == "strided":
        return torch.stack([data, data], 1)[:, 0], bytes(data.numpy())
    return data, bytes(data.numpy())


def _frame(number: int, header: int, size: int, tail: int, kind: str) -> tuple[Frame, bytes]:
    tensor, data = _tensor(number, size, kind)
    index: Any = SimpleNamespace(fqn=str(number))
    payload = tensor_bytes(tensor) if kind == "dense" else tensor
    frame = Frame(index, b"h" * header, payload, size, b"t" * tail, plain=True)
    return frame, b"h" * header + data + b"t" * tail


frames = st.lists(
    st.tuples(
        st.integers(0, 30), st.integers(0, 6000), st.integers(0, 30), st.sampled_from(["dense", "strided"])
    ),
    max_size=8,
)


def _sealed(parts: Iterator[PartDraft]) -> tuple[list[bytes], list[Sum]]:
    """Parts as a worker treats them: checked, sent, and their staging memory given back."""
    data, sums = [], []
    for number, part in enumerate(parts, 1):
        crc, found = part.seal()
        data.append(b"".join(bytes(segment.view) for segment in part.segments))
        assert part.number == number
        assert part.size == len(data[-1])
        assert crc == crc32c(data[-1])
        sums += found
        part.release()
    return data, sums


@settings(max_examples=100)
@given(frames, st.integers(1, 2500), st.integers(5000, 40_000), st.sampled_from([0, 100, 1 << 20]))
def test_cut_parts(
    shapes: list[tuple[int, int, int, str]], part_size: int, capacity: int, gathered: int
) -> None:
    shapes = [shape for shape in shapes if shape[0] + shape[1] + shape[2] <= capacity]
    made = [_frame(n, *shape) for n, shape in enumerate(shapes)]
    # a ring with room for one part and a little: parts are given back before the next one is made
    ring = Ring(1 << 10, 2 * part_size // (1 << 10) + 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcp_core.save.parts.GATHERED", gathered)
        cutter = ObjectCutter(iter([frame for frame, _ in made]), part_size, capacity, ring)
        parts, sums = _sealed(cutter.parts())
    data = b"".join(parts)
    count = len(cutter.entries)
    assert data == b"".join(expected for _, expected in made[:count])
    assert len(data) <= capacity
    assert all(len(part) == part_size for part in parts[:-1])
    assert (cutter.leftover is not None) == (count < len(shapes))
    checksums = block_checksums(sums)
    for number, entry in enumerate(cutter.entries):
        start = entry.offset + entry.payload_offset
        payload = data[start : start + entry.payload_size]
        assert data[entry.offset : entry.offset + entry.size] == made[number][1]
        assert checksums.get(number, b"") == pack(crc32c(payload) for _ in range(bool(payload)))
    assert ring.idle


@pytest.mark.parametrize("kind", ["dense", "strided"])
def test_block_checksums_over_block_and_part_borders(kind: str) -> None:
    size = 9 * BLOCK_SIZE // 4
    frame, expected = _frame(1, 4, size, 4, kind)
    cutter = ObjectCutter(iter([frame]), 300_000, 1 << 30, Ring(1 << 18, 8))
    parts, sums = _sealed(cutter.parts())
    assert b"".join(parts) == expected
    payload = expected[4:-4]
    blocks = [payload[start : start + BLOCK_SIZE] for start in range(0, size, BLOCK_SIZE)]
    assert unpack(block_checksums(sums)[0]) == tuple(crc32c(block) for block in blocks)


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(-5, 400), st.integers(0, 2))
def test_bodies_read_and_seek_like_files(buffers: list[bytes], offset: int, whence: int) -> None:
    whole = b"".join(buffers)
    body = Body(buffers, crc32c(whole))
    assert body.tobytes() == whole
    file = body.open()
    assert b"".join(iter(file.read, b"")) == whole
    assert file.tell() == file.size == body.size == len(whole)
    position = file.seek(offset if whence != 1 else -offset, whence)
    assert 0 <= position == file.tell() <= len(whole)
    assert b"".join(iter(file.read, b"")) == whole[position:]
    # another attempt reads from the start
    assert b"".join(iter(body.open().read, b"")) == whole


@given(boxes(), st.integers(1, 300))
def test_row_blocks_follow_one_another(case: Case, size: int) -> None:
    sizes, box = case
    whole = torch.arange(math.prod(sizes), dtype=torch.int16).view(sizes)
    view = whole[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.lengths, strict=True))]
    blocks = list(row_blocks(view, size))
    assert torch.equal(torch.cat([block.reshape(-1) for block in blocks]), view.reshape(-1))
    assert all(block.nbytes <= max(size, 2) for block in blocks)
