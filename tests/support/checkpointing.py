"""torch_checkpointing on real ranks."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist


def _payload(seed: int, shard: int = 0) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    generator = torch.Generator().manual_seed(seed)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = {name: torch.randn(size, 256, generator=generator) for name, size in (("a", 2048), ("b", 6))}
    return {
        "model": {name: distribute_tensor(value, mesh, [Shard(shard)]) for name, value in whole.items()},
        "train_state": {"step": seed},
    }


def _gathered(self: Any, data: Any, process_group: Any = None) -> dict[int, Any]:
    """What torch_checkpointing 0.1.1 does on CUDA devices, whatever the group."""
    found: list[Any] = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(found, data, group=process_group)
    return dict(enumerate(found))


def manager(config: dict[str, Any], asynchronous: bool = False, use_mmap: bool = True) -> Any:
    from torch_checkpointing import (
        AsyncCheckpointSaverConfig,
        CheckpointLoaderConfig,
        CheckpointManager,
        DefaultMetadataManager,
        ItemSpec,
        SyncCheckpointSaverConfig,
    )
    from torch_checkpointing.default_resharder import DefaultResharder
    from torch_checkpointing.staging import CheckpointStagerConfig

    from dcp_core.frameworks.torch_checkpointing import CloudStorageConfig

    DefaultMetadataManager._all_gather_pickled_data = _gathered
    staging = CheckpointStagerConfig(use_pinned_memory=False, use_non_blocking_copy=False)
    return CheckpointManager.Config(
        items={"model": ItemSpec(requires_copy=True, resharder=DefaultResharder())},
        save=AsyncCheckpointSaverConfig(staging_config=staging)
        if asynchronous
        else SyncCheckpointSaverConfig(),
        load=CheckpointLoaderConfig(use_mmap=use_mmap),
        storage_config=CloudStorageConfig(**config),
    ).build()


def save(config: dict[str, Any], name: str, seed: int, asynchronous: bool = False) -> None:
    running = manager(config, asynchronous)
    try:
        future = running.save(name, _payload(seed))
        if future is not None:
            future.result(120)
    finally:
        running.close()


def load(
    config: dict[str, Any], name: str, seed: int, use_mmap: bool = True, shard: int = 0
) -> tuple[bool, int]:
    """Load into other values; whether tensors are those of ``seed``, and the step."""
    running = manager(config, use_mmap=use_mmap)
    try:
        target, wanted = _payload(99, shard), _payload(seed, shard)["model"]
        found = running.load(name, target, strict=True)
        same = [torch.equal(found["model"][key].to_local(), one.to_local()) for key, one in wanted.items()]
        return all(same), found["train_state"]["step"]
    finally:
        running.close()


def load_weights_only(config: dict[str, Any], name: str) -> None:
    """With what PyTorch has to forbid code in what ``torch.load`` reads."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        load(config, name, 1, use_mmap=False)
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
