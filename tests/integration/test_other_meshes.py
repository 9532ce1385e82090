"""Checkpoints of one device mesh, loaded on others: values compared element by element."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from support import scenarios
from support.ranks import Ranks
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardedStateDictConfig, StateDictType
from torch.distributed.fsdp import fully_shard as fsdp2
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from dcp_core import CloudStorageReader, CloudStorageWriter

World = Callable[[int], Ranks]


# --- tensor parallelism under FSDP: strided shards, uneven ones


class Net(torch.nn.Module):
    """Sizes that no mesh divides evenly."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.up = torch.nn.Linear(7, 13)
        self.down = torch.nn.Linear(13, 5)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(
                    scenarios.noise(seed + number, (parameter.numel(),), torch.int8).view_as(parameter)
                )


def two_dimensional(seed: int, shards: int, parallel: int) -> torch.nn.Module:
    """A model of FSDP2 over tensor parallelism; torch has strided shards for that."""
    model = Net(seed)
    mesh = init_device_mesh("cpu", (shards, parallel), mesh_dim_names=("shards", "parallel"))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(model, mesh["parallel"], plan)
    fsdp2(model, mesh=mesh["shards"])
    return model


def save_two_dimensional(url: str, shards: int, parallel: int) -> None:
    model = two_dimensional(1, shards, parallel)
    dcp.save({"model": model.state_dict()}, storage_writer=CloudStorageWriter(url))


def load_two_dimensional(url: str, shards: int, parallel: int) -> None:
    model = two_dimensional(50, shards, parallel) if parallel else Net(50)
    state = {"model": model.state_dict()}
    dcp.load(state, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(state["model"], dict(Net(1).state_dict()))


def test_strided_uneven_shards_load_on_other_meshes(seaweedfs_bucket: Bucket, worlds: World) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    worlds(4).run(save_two_dimensional, url, 2, 2)
    worlds(4).run(load_two_dimensional, url, 2, 2)
    worlds(4).run(load_two_dimensional, url, 1, 4)
    worlds(2).run(load_two_dimensional, url, 2, 1)
    worlds(1).run(load_two_dimensional, url, 1, 0)


# --- FSDP1's sharded tensors


def fsdp1(seed: int) -> torch.nn.Module:
    model = FullyShardedDataParallel(Net(seed), device_id=torch.device("cpu"), use_orig_params=True)
    FullyShardedDataParallel.set_state_dict_type(
        model, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(_use_dtensor=False)
    )
    return model


def save_sharded_tensors(url: str) -> None:
    state = fsdp1(1).state_dict()
    assert {type(value).__name__ for value in state.values()} == {"ShardedTensor"}
    dcp.save({"model": state}, storage_writer=CloudStorageWriter(url))


def load_sharded_tensors(url: str, kind: str) -> None:
    model = fsdp1(50) if kind == "fsdp1" else Net(50)
    if kind == "fsdp2":
        fsdp2(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    state = {"model": model.state_dict()}
    dcp.load(state, storage_reader=CloudStorageReader(url))
    model.load_state_dict(state["model"])
    expected = dict(Net(1).state_dict())
    if kind != "fsdp1":
        scenarios.assert_same(dict(model.state_dict()), expected)
        return
    with FullyShardedDataParallel.summon_full_params(model):
        found = {
            name.replace("_fsdp_wrapped_module.", ""): parameter.detach().clone()
            for name, parameter in model.named_parameters()
        }
    scenarios.assert_same(found, expected)


def test_sharded_tensors_load_into_dtensors_and_plain_ones(seaweedfs_bucket: Bucket, worlds: World) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    worlds(3).run(save_sharded_tensors, url)
    worlds(2).run(load_sharded_tensors, url, "fsdp2")
    worlds(4).run(load_sharded_tensors, url, "fsdp1")
    worlds(1).run(load_sharded_tensors, url, "plain")


# --- placements

#: Placements on a mesh of two dimensions.
PLACEMENTS = {
    "rows and columns": (Shard(0), Shard(1)),
    "columns and rows": (Shard(1), Shard(0)),
    "rows twice": (Shard(0), Shard(0)),
    "rows of a copy": (Replicate(), Shard(0)),
    "copies of columns": (Shard(1), Replicate()),
    "copies": (Replicate(), Replicate()),
}


def placed(seed: int, shape: tuple[int, int]) -> dict[str, DTensor]:
    mesh = init_device_mesh("cpu", shape)
    return {
        name: distribute_tensor(scenarios.noise(seed + number, (11, 9)), mesh, list(placements))
        for number, (name, placements) in enumerate(PLACEMENTS.items())
    }


def save_placed(url: str, shape: tuple[int, int]) -> None:
    dcp.save(placed(3, shape), storage_writer=CloudStorageWriter(url))


def load_placed(url: str, shape: tuple[int, int]) -> None:
    state = scenarios.blanked(placed(3, shape))
    dcp.load(state, storage_reader=CloudStorageReader(url))
    for number, name in enumerate(PLACEMENTS):
        scenarios.assert_same(state[name], scenarios.noise(3 + number, (11, 9)), name)


def test_placements_on_two_dimensions(seaweedfs_bucket: Bucket, worlds: World) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    worlds(4).run(save_placed, url, (2, 2))
    worlds(4).run(load_placed, url, (2, 2))
    worlds(4).run(load_placed, url, (4, 1))
    worlds(2).run(load_placed, url, (1, 2))
    worlds(1).run(load_placed, url, (1, 1))


def save_a_sum(url: str) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    pending = DTensor.from_local(torch.ones(6, 4), mesh, [Partial()], run_check=False)
    dcp.save({"sum": pending}, storage_writer=CloudStorageWriter(url))


def test_a_sum_that_is_not_reduced_is_refused(seaweedfs_bucket: Bucket, worlds: World) -> None:
    """Each rank has a part of every element: there is nothing to store yet, and nothing is left behind."""
    for outcome in worlds(2).outcomes(save_a_sum, f"{seaweedfs_bucket.url}/run"):
        assert isinstance(outcome, CheckpointException)
    assert seaweedfs_bucket.keys() == []
    assert seaweedfs_bucket.uploads() == []
