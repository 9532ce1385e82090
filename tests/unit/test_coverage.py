"""A load asks for every element that it should, or fails: it does not end well with a tensor as it was."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.saves_in_memory import failure, reader
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

from dcp_core.errors import CheckpointCorruptError, CloudCheckpointError
from dcp_core.load.coverage import require_covered
from dcp_core.testing import MemoryStore, body_of

ROWS, COLUMNS, SHARDS = 12, 5, 3


def chunk(first: int, rows: int) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size([first, 0]), torch.Size([rows, COLUMNS]))


def record(*chunks: ChunkStorageMetadata) -> Metadata:
    """Of ``weight``, which has these chunks, of ``bias``, which is whole, and of an object."""
    properties = TensorProperties(dtype=torch.float32)
    entries: dict[str, Any] = {
        "weight": TensorStorageMetadata(properties, torch.Size([ROWS, COLUMNS]), list(chunks)),
        "bias": TensorStorageMetadata(properties, torch.Size([ROWS, COLUMNS]), [chunk(0, ROWS)]),
        "step": BytesStorageMetadata(),
    }
    return Metadata(entries, storage_data={MetadataIndex(name): None for name in entries})


WHOLE = record(*(chunk(first, ROWS // SHARDS) for first in range(0, ROWS, ROWS // SHARDS)))


def state() -> dict[str, Any]:
    return {"weight": torch.zeros(ROWS, COLUMNS), "bias": torch.zeros(ROWS, COLUMNS), "step": 0}


def require(planner: DefaultLoadPlanner, metadata: Metadata, wanted: dict[str, Any] | None = None) -> None:
    """Plan as torch does, and look at the plan."""
    planner.set_up_planner(state() if wanted is None else wanted, metadata, True)
    plan = planner.finish_plan(planner.create_global_plan([planner.create_local_plan()])[0])
    require_covered(plan, planner, metadata)


def test_a_whole_record_is_covered() -> None:
    """Also where only some of it is wanted, or a scalar, or nothing at all."""
    require(DefaultLoadPlanner(), WHOLE)
    require(DefaultLoadPlanner(), WHOLE, {"bias": torch.zeros(ROWS, COLUMNS)})
    require(DefaultLoadPlanner(), WHOLE, {})
    scalar = Metadata(
        {
            "scalar": TensorStorageMetadata(
                TensorProperties(dtype=torch.float32),
                torch.Size([]),
                [ChunkStorageMetadata(torch.Size([]), torch.Size([]))],
            )
        }
    )
    require(DefaultLoadPlanner(), scalar, {"scalar": torch.zeros(())})


@pytest.mark.parametrize("missing", range(SHARDS))
def test_a_checkpoint_without_the_shard_of_a_rank(missing: int) -> None:
    chunks = [chunk(first, 4) for number, first in enumerate(range(0, ROWS, 4)) if number != missing]
    with pytest.raises(CheckpointCorruptError, match="leads to 40 of the 60 elements of 'weight'"):
        require(DefaultLoadPlanner(), record(*chunks))
    # what does not want it does not miss it
    require(DefaultLoadPlanner(), record(*chunks), {"bias": torch.zeros(ROWS, COLUMNS)})


def stock_checkpoint(folder: Path) -> MemoryStore:
    """A checkpoint of stock torch, whose record nothing seals."""
    dcp.save(wanted_of_stock(1.0), storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    MemoryStore.create_bucket("bucket")
    store = MemoryStore("bucket")
    for path in folder.iterdir():
        store.put(f"run/{path.name}", body_of(path.read_bytes()))
    return store


def wanted_of_stock(value: float) -> dict[str, Any]:
    return {"weight": torch.full((8, 4), value), "bias": torch.full((3,), value)}


def test_a_flipped_bit_in_a_chunk(tmp_path: Path) -> None:
    """Of any place or size: the load fails, or what it loads is right."""
    store = stock_checkpoint(tmp_path)
    intact = pickle.loads((tmp_path / ".metadata").read_bytes())
    refused = 0
    for field, dimension, bit in itertools.product(("offsets", "sizes"), range(2), range(12)):
        metadata = pickle.loads(pickle.dumps(intact))
        (found,) = metadata.state_dict_metadata["weight"].chunks
        place = list(getattr(found, field))
        place[dimension] ^= 1 << bit
        metadata.state_dict_metadata["weight"].chunks = [replace(found, **{field: torch.Size(place)})]
        store.put("run/.metadata", body_of(pickle.dumps(metadata)))
        refused += refused_or_right(store)
    assert refused == 48
    store.put("run/.metadata", body_of(pickle.dumps(intact)))
    assert not refused_or_right(store)


def refused_or_right(store: MemoryStore) -> bool:
    found = wanted_of_stock(0.0)
    try:
        dcp.load(found, storage_reader=reader(store), no_dist=True)
    except dcp.CheckpointException as caught:
        ((error, _),) = caught.failures.values()
        assert isinstance(error, CloudCheckpointError), error
        return True
    assert all(torch.equal(tensor, wanted_of_stock(1.0)[name]) for name, tensor in found.items())
    return False


class Leaves(DefaultLoadPlanner):
    """Leaves out items by the name and the number of their chunk."""

    def __init__(self, name: str, first_row: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.left_out = name, first_row

    def create_local_plan(self) -> LoadPlan:
        plan = super().create_local_plan()
        return replace(plan, items=[item for item in plan.items if not self._leaves(item)])

    def _leaves(self, item: Any) -> bool:
        name, first_row = self.left_out
        return bool(item.dest_index.fqn == name and first_row in (None, item.dest_offsets[0]))


def plan_without(name: str) -> tuple[LoadPlan, DefaultLoadPlanner]:
    planner = DefaultLoadPlanner()
    planner.set_up_planner(state(), WHOLE, True)
    plan = planner.create_local_plan()
    return replace(plan, items=[item for item in plan.items if item.dest_index.fqn != name]), planner


def test_an_object_that_is_not_planned() -> None:
    with pytest.raises(CheckpointCorruptError, match="'step' is in the commit record and not in the plan"):
        require_covered(*plan_without("step"), WHOLE)
    with pytest.raises(CheckpointCorruptError, match="leads to 0 of the 60 elements of 'bias'"):
        require_covered(*plan_without("bias"), WHOLE)


def test_allow_partial_load_leaves_out_whole_tensors_only() -> None:
    """Those that the record does not have at all."""
    more = {**state(), "not saved": torch.zeros(3)}
    require(DefaultLoadPlanner(allow_partial_load=True), WHOLE, more)
    with pytest.raises(CheckpointCorruptError, match="leads to 40 of the 60"):
        require(DefaultLoadPlanner(allow_partial_load=True), record(chunk(0, 4), chunk(4, 4)), more)


@pytest.mark.parametrize("name", ["bias", "step"])
def test_planners_of_the_users_own_may_load_less(name: str) -> None:
    require(Leaves(name), WHOLE)


def test_planners_of_the_users_own_load_whole_what_they_load() -> None:
    """Unless it is saved in another size: then they know what they do."""
    with pytest.raises(CheckpointCorruptError, match="leads to 40 of the 60 elements of 'weight'"):
        require(Leaves("weight", 4), WHOLE)

    class Grows(Leaves):
        """The tensor has more rows than were saved."""

        def create_local_plan(self) -> LoadPlan:
            wanted = self.state_dict["weight"]
            self.state_dict["weight"] = wanted[:ROWS]
            plan = super().create_local_plan()
            self.state_dict["weight"] = wanted
            return plan

    require(Grows("weight", 4), WHOLE, {**state(), "weight": torch.zeros(ROWS + 2, COLUMNS)})


def test_a_planner_says_that_it_loads_less() -> None:
    require(Leaves("weight", 4, allow_partial_load=True), WHOLE)


def test_other_planners_answer_for_themselves() -> None:
    class Other(LoadPlanner):
        """Has no state dict that anyone could look at."""

    Other.__abstractmethods__ = frozenset()
    require_covered(LoadPlan([]), Other(), WHOLE)  # type: ignore[abstract]


def test_a_load_that_falls_short_changes_nothing(tmp_path: Path) -> None:
    """It is found before the first byte is asked for."""
    store = stock_checkpoint(tmp_path)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    entry = metadata.state_dict_metadata["weight"]
    entry.size = torch.Size([16, 4])
    store.put("run/.metadata", body_of(pickle.dumps(metadata)))
    found = {"weight": torch.zeros(16, 4), "bias": torch.zeros(3)}
    with pytest.raises(dcp.CheckpointException) as caught:
        dcp.load(found, storage_reader=reader(store), no_dist=True)
    assert isinstance(failure(caught), CheckpointCorruptError)
    assert not any(tensor.any() for tensor in found.values())
