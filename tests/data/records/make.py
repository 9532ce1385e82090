"""Makes the checkpoints in this folder: run it with each release of torch that is to be represented.

    python tests/data/records/make.py

It needs nothing but torch, and writes ``torch-<release>-python-<release>/sharded``, a checkpoint of two
ranks, and where that release can save without collectives, ``…/one-rank``, with a record for each of two.
"""

from __future__ import annotations

import inspect
import os
import pathlib
import platform
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec

WORLD = 2
HERE = pathlib.Path(__file__).resolve().parent


def values(rows: int, columns: int) -> torch.Tensor:
    return torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)


def sharded(full: torch.Tensor) -> Any:
    """``full``, cut into rows: releases since 2.0 know this kind of tensor."""
    spec = ChunkShardingSpec(dim=0, placements=[f"rank:{rank}/cpu" for rank in range(WORLD)])
    made = sharded_tensor.empty(spec, *full.shape)
    for shard in made.local_shards():
        start = shard.metadata.shard_offsets[0]
        shard.tensor.copy_(full[start : start + shard.metadata.shard_sizes[0]])
    return made


def state() -> dict[str, Any]:
    return {
        "weight": sharded(values(5, 3)),
        "bias": torch.arange(3, dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "step": {"number": 17, "name": "seventeen"},
    }


def save(rank: int, folder: str) -> None:
    # records hold the path as it is given
    os.chdir(HERE)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29731")
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    writer = dcp.FileSystemWriter(f"{folder}/sharded")
    if hasattr(dcp, "save"):
        dcp.save(state(), storage_writer=writer)
    else:
        dcp.save_state_dict(state(), writer)
    if hasattr(dcp, "save") and "use_collectives" in inspect.signature(dcp.save).parameters:
        alone = dcp.FileSystemWriter(f"{folder}/one-rank")
        dcp.save(state(), storage_writer=alone, use_collectives=False)
    dist.destroy_process_group()


def main() -> None:
    release = torch.__version__.partition("+")[0]
    python = ".".join(platform.python_version_tuple()[:2])
    folder = f"torch-{release}-python-{python}"
    mp.spawn(save, (folder,), nprocs=WORLD)
    print(folder)


if __name__ == "__main__":
    main()
