"""Planning a rank's data objects. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItem

from dcp_core.config import KIB, MIB
from dcp_core.format.tiling import GAP, chunk_fault
from dcp_core.runtime.torch_private import planned_object_bytes
from dcp_core.seam.store import Limits

__all__ = ["misfits", "missing_items", "part_size_for", "planned_bytes", "write_order"]

#: A frame's header and tail, generously.
_FRAME_OVERHEAD = 4096
#: Parts below this size cost more in round trips than they win in parallelism.
_SMALLEST_PART = 16 * MIB
_PAGE = 64 * KIB
#: Items planned with less come first in an object.
_SMALL = 64 * KIB


def planned_bytes(items: Iterable[WriteItem]) -> int:
    """Bytes that ``items`` will take, as far as the plan knows: non-tensor items often have no size."""
    total = 0
    for item in items:
        total += _FRAME_OVERHEAD
        if item.tensor_data is not None:
            itemsize = item.tensor_data.properties.dtype.itemsize
            total += math.prod(item.tensor_data.chunk.sizes) * itemsize
        else:
            total += planned_object_bytes(item)
    return total


def write_order(items: Sequence[WriteItem]) -> list[WriteItem]:
    """``items`` with the small ones first, otherwise in the plan's order.

    Replicated scalars are written by one rank and read by all. Between the shards of that rank each would
    take every other rank a request of its own; side by side they take one.
    """
    return sorted(items, key=lambda item: planned_bytes((item,)) >= _SMALL)


def part_size_for(total: int, wanted: int, limits: Limits, concurrency: int = 1) -> int:
    """Part size near ``wanted`` for an object of ``total`` bytes.

    The object needs at most half of the parts allowed: the other half is for what the plan does not know.
    The parts fill rounds of ``concurrency`` uploads: with one part too many, all other connections would
    wait for the last one. All parts but the last have this size: some stores insist on it.
    """
    largest_object = min(total, limits.max_object_size)
    rounds = max(1, round(largest_object / (wanted * concurrency)))
    even = _whole_pages(-(-largest_object // (rounds * concurrency)))
    # small objects are not cut small for the sake of it
    wanted = max(even, min(wanted, _SMALLEST_PART))
    needed = -(-largest_object // max(1, limits.max_parts // 2))
    if needed > wanted:
        needed = -(-needed // MIB) * MIB
    return min(max(wanted, needed, limits.min_part_size), limits.max_part_size)


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def missing_items(metadata: Metadata, written: Iterable[MetadataIndex]) -> list[str]:
    """Items that a whole checkpoint with this metadata has and ``written`` lacks, for people."""
    found: dict[str, set[torch.Size | None]] = {}
    for index in written:
        found.setdefault(index.fqn, set()).add(index.offset)
    nothing: set[torch.Size | None] = set()
    missing: list[str] = []
    for name, entry in metadata.state_dict_metadata.items():
        offsets = found.get(name, nothing)
        if isinstance(entry, TensorStorageMetadata):
            missing += (
                f"{name} at {list(chunk.offsets)}" for chunk in entry.chunks if chunk.offsets not in offsets
            )
        elif None not in offsets:
            missing.append(name)
    return missing


def misfits(metadata: Metadata, ranks: int) -> list[str]:
    """Tensors that the planned chunks of ``ranks`` do not make up, for people.

    A rank that plans alone may have a part of a tensor only, as with ``use_collectives=False``.
    """
    found: list[str] = []
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        fault = chunk_fault(entry.size, entry.chunks)
        if fault is not None and (ranks > 1 or fault is not GAP):
            found.append(f"the chunks of {name!r}, of shape {tuple(entry.size)}, {fault}")
    return found
