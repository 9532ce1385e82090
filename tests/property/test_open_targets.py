"""Which targets of a load are open at a time, and which may be written at the same time."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from support import saves_in_memory
from torch.distributed.checkpoint.planner import ReadItem

from dcp_core import CheckpointIncompleteError, LoadOptions
from dcp_core.load.fetch import RankReader
from dcp_core.load.open_targets import OpenTargets
from dcp_core.load.overlap import Region, rounds
from dcp_core.load.source import Catalog
from dcp_core.seam.location import Location
from dcp_core.testing import MemoryStore
from dcp_core.transfer import Transfer

_buckets = itertools.count(1)


def make_store() -> MemoryStore:
    name = f"open-targets-{next(_buckets)}"
    MemoryStore.create_bucket(name)
    return MemoryStore(name)


class BufferPlanner(dcp.DefaultLoadPlanner):
    """Gives each item a buffer of its own, and takes it back when it is complete."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.order: list[tuple[str, str]] = []
        self._open: dict[Any, torch.Tensor] = {}
        self._lock = threading.Lock()

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        assert self._lock.acquire(blocking=False), "two methods of the planner at once"
        try:
            buffer = torch.zeros(read_item.lengths)
            assert read_item.dest_index not in self._open
            self._open[read_item.dest_index] = buffer
            self.most = max(self.most, len(self._open))
            self.order.append(("resolve", read_item.dest_index.fqn))
            return buffer
        finally:
            self._lock.release()

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        assert self._open.pop(read_item.dest_index).data_ptr() == tensor.data_ptr()
        super().lookup_tensor(read_item.dest_index).copy_(tensor)
        self.order.append(("commit", read_item.dest_index.fqn))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([1, 50, 5_000, 60_000, 400_000]), min_size=1, max_size=25),
    st.integers(1, 4),
    st.sampled_from([4_000, 300_000, 1 << 27]),
)
def test_two_for_each_connection_and_one_are_open(sizes: list[int], concurrency: int, request: int) -> None:
    store = make_store()
    state = {f"{number:02}": torch.arange(size) + float(number) for number, size in enumerate(sizes)}
    dcp.save(state, storage_writer=saves_in_memory.writer(store), no_dist=True)
    target = {name: torch.zeros(len(tensor)) for name, tensor in state.items()}
    planner = BufferPlanner()
    reader = saves_in_memory.reader(store, concurrency=concurrency, max_request_size=request)
    dcp.load(target, storage_reader=reader, planner=planner, no_dist=True)
    assert all(torch.equal(target[name], state[name]) for name in state)
    assert planner.most <= 2 * concurrency + 1
    if concurrency == 1:
        # by turns, as with stock torch
        assert [what for what, _ in planner.order] == ["resolve", "commit"] * len(sizes)
    assert sorted(name for what, name in planner.order if what == "commit") == sorted(state)


def test_a_load_that_leaves_something_out_does_not_end_well() -> None:
    store = make_store()
    saves_in_memory.save(store, 1)
    planner = dcp.DefaultLoadPlanner()
    metadata = saves_in_memory.reader(store).read_metadata()
    planner.set_up_planner({"weight": torch.zeros(1000), "step": None}, metadata, True)
    plan = planner.create_local_plan()
    options = LoadOptions()
    rank_reader = RankReader(store, Location.parse(saves_in_memory.URL), options, Transfer(options, None))
    items = rank_reader.items(plan, Catalog(metadata))
    targets = OpenTargets(planner)
    requests = rank_reader.requests(items, targets)
    assert requests
    with pytest.raises(CheckpointIncompleteError, match="2 items were planned to be read and were not"):
        targets.require_all()


@st.composite
def regions(draw: st.DrawFn) -> list[Region | None]:
    """Views of one storage, of numbers of bytes; some items are no tensors."""
    found: list[Region | None] = []
    for _ in range(draw(st.integers(0, 12))):
        if draw(st.integers(0, 9)) == 0:
            found.append(None)
            continue
        sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
        strides = tuple(draw(st.sampled_from([1, 2, 4, 8, 20, 40])) for _ in sizes)
        start = draw(st.integers(0, 60))
        last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        found.append(Region(draw(st.sampled_from("ab")), start, start + last + 1, sizes, strides))
    return found


def _bytes(region: Region) -> set[tuple[str, int]]:
    places = itertools.product(*map(range, region.sizes))
    return {
        (
            region.space,
            region.start + sum(i * stride for i, stride in zip(place, region.strides, strict=True)),
        )
        for place in places
    }


@settings(max_examples=500)
@given(regions())
def test_what_overlaps_is_written_in_order(items: list[Region | None]) -> None:
    found = rounds(items)
    assert len(found) == len(items)
    places = [set() if region is None else _bytes(region) for region in items]
    for (one, first), (other, second) in itertools.combinations(enumerate(places), 2):
        if first & second:
            assert found[one] < found[other], "the later one would not stay"
    assert all(number == 0 for number, region in zip(found, items, strict=True) if region is None)


def _region(tensor: torch.Tensor) -> Region:
    size = tensor.element_size()
    strides = tuple(stride * size for stride in tensor.stride())
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, strides, strict=True))
    start = tensor.data_ptr()
    return Region("cpu", start, start + last + size, tuple(tensor.shape), strides)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
def test_slices_side_by_side_are_written_together(rows: int, columns: int, down: int, across: int) -> None:
    """As those of fused weights, which lie between one another in memory."""
    fused = torch.zeros(rows * down, columns * across)
    tiles = [
        fused[rows * i : rows * (i + 1), columns * j : columns * (j + 1)]
        for i, j in itertools.product(range(down), range(across))
    ]
    assert rounds([_region(tile) for tile in tiles]) == [0] * len(tiles)
    # the whole comes after all of its parts
    assert rounds([*(_region(tile) for tile in tiles), _region(fused)])[-1] == 1


@given(regions())
def test_other_devices_have_other_addresses(items: list[Region | None]) -> None:
    """Each on a device of its own: all at once."""
    apart = [
        None if region is None else region._replace(space=str(number)) for number, region in enumerate(items)
    ]
    assert rounds(apart) == [0] * len(items)


def test_thousands_of_names_for_one_tensor() -> None:
    """One after another, and without comparing each with each."""
    region = _region(torch.zeros(4, 4))
    compared = 0

    class Counting(Region):
        __slots__ = ()

        @property
        def strides(self) -> tuple[int, ...]:  # type: ignore[override]
            nonlocal compared
            compared += 1
            return region.strides

    assert rounds([Counting(*region)] * 5000) == list(range(5000))
    assert compared < 20_000
    assert rounds([region] * 200) == list(range(200))
