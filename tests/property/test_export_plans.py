"""Exports of any model, sharded in any way, cut into parts of any size: what ranks make of their steps
together are files with the model in them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import scenarios
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from dcp_core.huggingface.layout import ExportFile, rank_files, whole_files
from dcp_core.huggingface.rows import RankTensors, place, scatter
from dcp_core.huggingface.steps import Step, cut_file, exchanging, for_rank

DTYPES = [torch.float32, torch.bfloat16, torch.uint8, torch.float64, torch.bool]


class Planner:
    """Knows the chunks of one rank, by the place of their items in the plan."""

    def __init__(self, chunks: dict[tuple[str, torch.Size], torch.Tensor]) -> None:
        self.chunks = chunks

    def resolve_data(self, item: WriteItem) -> torch.Tensor:
        assert item.index.offset is not None
        return self.chunks[item.index.fqn, item.index.offset]


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], list[SavePlan], list[Planner]]:
    """Whole tensors, each cut along some of its dimensions, and the chunks given to ranks in any way."""
    ranks = draw(st.integers(1, 4))
    full: dict[str, torch.Tensor] = {}
    items: list[list[WriteItem]] = [[] for _ in range(ranks)]
    chunks: list[dict[Any, torch.Tensor]] = [{} for _ in range(ranks)]
    for number in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(DTYPES))
        shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
        name = f"t{number}"
        full[name] = scenarios.noise(number, shape, dtype)
        borders = [
            sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) if size else [0, 0]
            for size in shape
        ]
        for box in itertools.product(*(itertools.pairwise(each) for each in borders)):
            offsets, sizes = torch.Size(a for a, _ in box), torch.Size(b - a for a, b in box)
            rank = draw(st.integers(0, ranks - 1))
            data = TensorWriteData(
                ChunkStorageMetadata(offsets, sizes), TensorProperties(dtype=dtype), torch.Size(shape)
            )
            items[rank].append(WriteItem(MetadataIndex(name, offsets), WriteItemType.SHARD, tensor_data=data))
            piece = full[name][tuple(slice(a, b) for a, b in box)]
            # some lie in order in their memory, and some do not
            chunks[rank][name, offsets] = piece.clone() if draw(st.booleans()) else piece
    return full, [SavePlan(each) for each in items], [Planner(each) for each in chunks]


def steps_of(files: list[ExportFile], part_size: int) -> list[Step]:
    load: Counter[int] = Counter()
    return [step for number, file in enumerate(files) for step in cut_file(number, file, part_size, load)]


def made(
    files: list[ExportFile], steps: list[Step], plans: list[SavePlan], planners: list[Planner]
) -> list[bytes]:
    """The files, from what ranks make of their steps, in the order of all steps."""
    own = [list(for_rank(steps, rank)) for rank in range(len(plans))]
    tensors = [
        RankTensors(plan.items, planner, own[rank], rank)  # type: ignore[arg-type]
        for rank, (plan, planner) in enumerate(zip(plans, planners, strict=True))
    ]
    left = [iter(each) for each in own]
    found = [b""] * len(files)
    for step in steps:
        messages = {rank: tensors[rank].packed(next(left[rank])) for rank in step.senders()}
        mine = next(left[step.owner])
        assert mine == step
        part = torch.zeros(step.size, dtype=torch.uint8)
        part[: len(step.head)] = torch.frombuffer(bytearray(step.head), dtype=torch.uint8) if step.head else 0
        for region in step.regions:
            view = tensors[step.owner].in_place(region)
            if view is not None:
                part[region.start : region.start + region.size] = torch.frombuffer(view, dtype=torch.uint8)
                continue
            for source in region.sources:
                if source.rank == step.owner:
                    place(part, region, source, tensors[step.owner].piece(source))
        for rank, message in messages.items():
            assert message.numel() == step.bytes_of(rank)
            scatter(part, step, rank, message)
        for rank in (step.owner, *messages):
            tensors[rank].done(step)
        found[step.file] += scenarios.bits(part)
    assert all(next(each, None) is None for each in left)
    assert not any(each._tensors for each in tensors)
    return found


@given(models(), st.sampled_from([8, 16, 64, 256, 1 << 20]), st.integers(1, 3))
def test_whole_files_hold_the_model(model: Any, part_size: int, count: int) -> None:
    full, plans, planners = model
    numbers = {name: 1 + n % count for n, name in enumerate(full)}
    files = whole_files(plans, numbers)
    steps = steps_of(files, part_size)
    for file, raw in zip(files, made(files, steps, plans, planners), strict=True):
        names = [tensor.spec.name for tensor in file.tensors]
        scenarios.assert_same(safetensors.torch.load(raw), {name: full[name] for name in names})
        assert len(raw) == file.size


@given(models(), st.sampled_from([8, 64, 1 << 20]))
def test_files_of_ranks_hold_what_each_has(model: Any, part_size: int) -> None:
    _, plans, planners = model
    # a file has one tensor of a name
    plans = [SavePlan(list({item.index.fqn: item for item in plan.items}.values())) for plan in plans]
    files = rank_files(plans, None)
    steps = steps_of(files, part_size)
    assert exchanging(steps) == []
    by_name = dict(zip((file.name for file in files), made(files, steps, plans, planners), strict=True))
    for rank, (plan, planner) in enumerate(zip(plans, planners, strict=True)):
        if plan.items:
            raw = by_name[f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"]
            expected = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            scenarios.assert_same(safetensors.torch.load(raw), expected)


@given(models(), st.sampled_from([8, 64, 256]))
def test_a_part_goes_to_a_rank_that_has_the_most_of_it(model: Any, part_size: int) -> None:
    _, plans, _ = model
    for step in steps_of(whole_files(plans, None), part_size):
        most = max(step.bytes_of(rank) for rank in range(len(plans)))
        assert step.bytes_of(step.owner) == most
        assert sum(step.bytes_of(rank) for rank in range(len(plans))) + len(step.head) == step.size


def test_rows_in_order_are_not_handed_over() -> None:
    """Each rank uploads its own rows, but for the parts that lie across the border of two."""
    items = []
    for rank in range(4):
        data = TensorWriteData(
            ChunkStorageMetadata(torch.Size((256 * rank, 0)), torch.Size((256, 64))),
            TensorProperties(dtype=torch.float32),
            torch.Size((1024, 64)),
        )
        index = MetadataIndex("w", torch.Size((256 * rank, 0)))
        items.append(SavePlan([WriteItem(index, WriteItemType.SHARD, tensor_data=data)]))
    steps = steps_of(whole_files(items, None), 4096)
    assert sum(bool(step.senders()) for step in steps) == 3
    load = Counter(step.owner for step in steps)
    assert max(load.values()) - min(load.values()) <= 1
