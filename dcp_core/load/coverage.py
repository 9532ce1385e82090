"""Proof that a load asks for all that it should: every element of every tensor of the state dict.

torch's planner makes a read item for each chunk of the record that overlaps a local shard. Where a record
lacks chunks, or has them at wrong places, it makes fewer items or none, and the load would end well with the
tensor as it was. The chunks of a record do not overlap, so that counting elements is enough.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.distributed.tensor import DTensor

from dcp_core.errors import CheckpointCorruptError

__all__ = ["require_covered"]

_PLANNING = ("create_local_plan", "create_global_plan", "finish_plan")


def require_covered(plan: LoadPlan, planner: LoadPlanner, metadata: Metadata) -> None:
    """Make sure that ``plan`` reads all elements that the planner's state dict wants on this rank.

    What a planner wants is known of torch's ``DefaultLoadPlanner`` and of classes derived from it. Where such
    a class plans by itself, it may leave tensors out, read a part of one that is saved in another size, and
    with ``allow_partial_load`` whatever it likes. Other planners are trusted with theirs.

    Raises:
        CheckpointCorruptError: the plan falls short: the record lacks a part of a tensor.
    """
    if not isinstance(planner, DefaultLoadPlanner):
        return
    plans_itself = any(
        getattr(getattr(planner, name), "__func__", None) is not getattr(DefaultLoadPlanner, name)
        for name in _PLANNING
    )
    if plans_itself and planner.allow_partial_load:
        return
    planned = _planned(plan)
    for name, value in planner.state_dict.items():
        entry = metadata.state_dict_metadata.get(name)
        if entry is None or (plans_itself and (name not in planned or _resized(entry, value))):
            continue
        with torch.no_grad():
            wanted = _local_elements(value) if isinstance(entry, TensorStorageMetadata) else 1
        if planned[name] != wanted:
            raise CheckpointCorruptError(_shortfall(name, entry, planned[name], wanted))


def _planned(plan: LoadPlan) -> Counter[str]:
    """Elements that the plan reads, by name; 1 for a non-tensor item."""
    found: Counter[str] = Counter()
    for item in plan.items:
        found[item.dest_index.fqn] += math.prod(item.lengths) if item.type is LoadItemType.TENSOR else 1
    return found


def _resized(entry: Any, value: Any) -> bool:
    return (
        isinstance(entry, TensorStorageMetadata)
        and isinstance(value, torch.Tensor)
        and tuple(entry.size) != tuple(value.shape)
    )


def _local_elements(value: Any) -> int:
    """Elements of a state dict's tensor that this rank holds."""
    if isinstance(value, DTensor):
        if value.device_mesh.get_coordinate() is None:
            return 0
        value = value.to_local()
    # torch's protocol for tensors that consist of several shards
    if hasattr(value, "__create_chunk_list__"):
        return sum(math.prod(chunk.sizes) for chunk in value.__create_chunk_list__())
    # a ShardedTensor
    if hasattr(value, "local_shards"):
        return sum(shard.tensor.numel() for shard in value.local_shards())
    return int(value.numel())


def _shortfall(name: str, entry: Any, planned: int, wanted: int) -> str:
    if not isinstance(entry, TensorStorageMetadata):
        return f"{name!r} is in the commit record and not in the plan to load it"
    return (
        f"the commit record leads to {planned} of the {wanted} elements of {name!r} to be loaded here: its "
        f"{len(entry.chunks)} chunks do not make up a tensor of shape {tuple(entry.size)}"
    )
