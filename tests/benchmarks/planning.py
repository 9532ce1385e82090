"""CPU seconds of planning a load, by number of items: ``python planning.py 100000``.

From DCP's load plan and the commit record to range requests, which is all that a load does before it asks
for bytes. No tensor is allocated for real: all items share one small one.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from dcp_core.config import LoadOptions
from dcp_core.format.stored import Payload, storage_info
from dcp_core.load.fetch import RankReader
from dcp_core.load.open_targets import OpenTargets
from dcp_core.load.source import Catalog
from dcp_core.seam.location import Location
from dcp_core.testing import MemoryStore
from dcp_core.transfer import Transfer

SHAPE = torch.Size([256])
FRAME = 4096


class _Planner(LoadPlanner):
    """Gives every item the same tensor."""

    tensor = torch.empty(SHAPE)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return self.tensor

    def set_up_planner(self, *arguments: object) -> None: ...
    def create_local_plan(self) -> LoadPlan: ...  # type: ignore[empty-body]
    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]: ...  # type: ignore[empty-body]
    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan: ...  # type: ignore[empty-body]
    def load_bytes(self, read_item: ReadItem, value: object) -> None: ...
    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None: ...


def case(count: int, objects: int = 8) -> tuple[LoadPlan, Catalog]:
    """``count`` items in ``objects`` objects, as ``objects`` ranks would have written them."""
    zero = torch.Size([0])
    properties = TensorProperties(dtype=torch.float32)
    chunk = ChunkStorageMetadata(zero, SHAPE)
    state, stored, items = {}, {}, []
    for number in range(count):
        name = f"layer.{number}"
        state[name] = TensorStorageMetadata(properties, SHAPE, [chunk])
        index = MetadataIndex(name, zero, 0)
        offset = number // objects * FRAME
        payload = Payload(1024, SHAPE.numel() * 4, True, b"\0\0\0\0")
        stored[index] = storage_info(f"__{number % objects}_0.distcp", offset, FRAME, payload)
        items.append(ReadItem(LoadItemType.TENSOR, index, zero, index, zero, SHAPE))
    return LoadPlan(items), Catalog(Metadata(state, storage_data=stored))


def seconds(count: int) -> float:
    """CPU seconds of planning a load of ``count`` items."""
    plan, catalog = case(count)
    MemoryStore.create_bucket("planning")
    options = LoadOptions()
    location = Location("memory", "planning", "")
    reader = RankReader(MemoryStore("planning"), location, options, Transfer(options, 0))
    started = time.process_time()
    items = reader.items(plan, catalog)
    requests = reader.requests(items, OpenTargets(_Planner()))
    spent = time.process_time() - started
    assert len(items) == count
    assert sum(len(step.placements) for request in requests for step in request.steps) == count
    return spent


if __name__ == "__main__":
    print(json.dumps({"items": int(sys.argv[1]), "cpu": seconds(int(sys.argv[1]))}))
