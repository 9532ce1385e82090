"""The helpers that torch has around saving and loading, with checkpoints in a bucket between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from support import scenarios
from support.ranks import Ranks
from support.torch_releases import since
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.default_planner import (
    create_default_global_load_plan,
    create_default_global_save_plan,
    create_default_local_load_plan,
    create_default_local_save_plan,
)
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful

from dcp_core import CloudStorageReader, CloudStorageWriter

World = Callable[[int], Ranks]


# --- models and optimizers by their helpers

#: Options of getting a state, and what is added to them for setting it.
OPTIONS: dict[str, tuple[dict[str, bool], dict[str, bool]]] = {
    "none": ({}, {}),
    "full": ({"full_state_dict": True}, {}),
    "sharded on the CPU": ({"cpu_offload": True}, {}),
    "without frozen": ({"ignore_frozen_params": True}, {"strict": False}),
    "flat optimizer": ({"flatten_optimizer_state_dict": True}, {}),
    # only the first rank has such a state
    "full on the CPU": ({"full_state_dict": True, "cpu_offload": True}, {"broadcast_from_rank0": True}),
}


def trained(name: str, seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model, optimizer = scenarios.trained("fsdp2", seed, 2)
    if name == "without frozen":
        model.norm.requires_grad_(False)
    return model, optimizer


def state_of(model: Any, optimizer: Any, options: StateDictOptions, name: str) -> dict[str, Any]:
    state = {"model": get_model_state_dict(model, options=options)}
    # frozen parameters have no state that the optimizer's helpers could find
    if name != "without frozen":
        state["optimizer"] = get_optimizer_state_dict(model, optimizer, options=options)
    return state


def through_the_helpers(url: str, name: str) -> None:
    getting, more = OPTIONS[name]
    options, setting = StateDictOptions(**getting), StateDictOptions(**getting, **more)
    model, optimizer = trained(name, 1)
    state = state_of(model, optimizer, options, name)
    dcp.save(state, storage_writer=CloudStorageWriter(url))
    assert name != "without frozen" or not any(key.startswith("norm") for key in state["model"])
    other, other_optimizer = trained(name, 5)
    loaded = state_of(other, other_optimizer, options, name)
    if "broadcast_from_rank0" not in more:
        dcp.load(loaded, storage_reader=CloudStorageReader(url))
    elif dist.get_rank() == 0:
        dcp.load(loaded, storage_reader=CloudStorageReader(url), no_dist=True)
    before = scenarios.gathered(other, other_optimizer)
    set_model_state_dict(other, loaded["model"], options=setting)
    if "optimizer" in loaded:
        set_optimizer_state_dict(other, other_optimizer, loaded["optimizer"], options=setting)
    found, expected = scenarios.gathered(other, other_optimizer), scenarios.gathered(model, optimizer)
    if name == "without frozen":
        # these stay as they were
        expected["model"].update({key: one for key, one in before["model"].items() if "norm" in key})
    else:
        scenarios.assert_same(found["optimizer"]["state"], expected["optimizer"]["state"])
    scenarios.assert_same(found["model"], expected["model"])


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_the_helpers(seaweedfs_bucket: Bucket, worlds: World, name: str) -> None:
    worlds(2).run(through_the_helpers, f"{seaweedfs_bucket.url}/run", name)


class Counter:
    """A stateful object of the user's own."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.weight = torch.full((50,), float(value))

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "weight": self.weight}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value = state_dict["value"]
        self.weight = state_dict["weight"]


def test_stateful_objects_are_saved_and_loaded(seaweedfs_bucket: Bucket) -> None:
    assert isinstance(Counter(1), Stateful)
    url = f"{seaweedfs_bucket.url}/run"
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    dcp.save({"counter": Counter(7), "model": model}, storage_writer=CloudStorageWriter(url))
    counter, other = Counter(0), torch.nn.Linear(4, 3)
    dcp.load({"counter": counter, "model": other}, storage_reader=CloudStorageReader(url))
    assert counter.value == 7
    assert (counter.weight == 7).all()
    assert torch.equal(other.weight, model.weight)
    assert isinstance(optimizer, Stateful)


# --- older functions


def test_the_deprecated_functions_save_and_load(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    state = {"weight": scenarios.noise(1, (20, 30)), "step": torch.tensor(3)}
    found = scenarios.blanked(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save_state_dict(state, CloudStorageWriter(url), no_dist=True)
        dcp.load_state_dict(found, CloudStorageReader(url), no_dist=True)
    scenarios.assert_same(found, state)


@since(2, 7, "loading by keys")
def test_a_checkpoint_is_loaded_by_keys_alone(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    state = {"model": {"a": scenarios.noise(1, (20, 30)), "b": scenarios.noise(2, (9,))}, "step": 3}
    dcp.save(state, storage_writer=CloudStorageWriter(url))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load = state_dict_loader._load_state_dict_from_keys
        scenarios.assert_same(load(storage_reader=CloudStorageReader(url)), state)
        found = load({"model.a"}, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(found, {"model": {"a": state["model"]["a"]}})


def fsdp1(seed: int) -> tuple[Any, torch.optim.Optimizer]:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    torch.manual_seed(seed)
    options = {"sharding_strategy": ShardingStrategy.FULL_SHARD, "device_id": torch.device("cpu")}
    model = FullyShardedDataParallel(torch.nn.Linear(16, 8), **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    return model, optimizer


def loads_a_sharded_optimizer(url: str) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp
    from torch.distributed.fsdp import StateDictType

    warnings.simplefilter("ignore")
    model, optimizer = fsdp1(1)
    with Fsdp.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
        state = {"model": model.state_dict(), "optimizer": Fsdp.optim_state_dict(model, optimizer)}
        dcp.save(state, storage_writer=CloudStorageWriter(url))
        found = dcp.load_sharded_optimizer_state_dict(
            model_state_dict=state["model"],
            optimizer_key="optimizer",
            storage_reader=CloudStorageReader(url),
        )
    moments = found["optimizer"]["state"]["weight"]
    expected = state["optimizer"]["state"]["weight"]
    for name in ("exp_avg", "exp_avg_sq"):
        shards = zip(moments[name].local_shards(), expected[name].local_shards(), strict=True)
        for one, other in shards:
            assert torch.equal(one.tensor, other.tensor)


def test_an_optimizer_of_the_first_fsdp_loads_sharded(seaweedfs_bucket: Bucket, worlds: World) -> None:
    """Asked for with ``load_sharded_optimizer_state_dict``, which makes its own tensors."""
    worlds(2).run(loads_a_sharded_optimizer, f"{seaweedfs_bucket.url}/run")


# --- planners of one's own, from nothing


class Plain(SavePlanner):
    """Every method that torch asks of a planner, over the functions that torch offers for them."""

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        self.state, self.coordinator = state_dict, is_coordinator

    def create_local_plan(self) -> SavePlan:
        self.plan = create_default_local_save_plan(self.state, self.coordinator)
        kinds = {item.type for item in self.plan.items}
        assert kinds == {WriteItemType.TENSOR, WriteItemType.BYTE_IO}
        return self.plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        import io

        value = self.state[write_item.index.fqn]
        if write_item.type is WriteItemType.TENSOR:
            assert write_item.tensor_data is not None
            return value
        data = io.BytesIO()
        torch.save(value, data)
        return data


class PlainLoad(LoadPlanner):
    """The same for loading."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Any = None, is_coordinator: bool = False
    ) -> None:
        self.state, self.metadata, self.committed = state_dict, metadata, set()
        kinds = {type(one) for one in metadata.state_dict_metadata.values()}
        assert kinds == {TensorStorageMetadata, BytesStorageMetadata}

    def create_local_plan(self) -> LoadPlan:
        return create_default_local_load_plan(self.state, self.metadata)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return create_default_global_load_plan(global_plan)

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        assert read_item.type is LoadItemType.BYTE_IO
        self.state[read_item.dest_index.fqn] = torch.load(value)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        tensor: torch.Tensor = self.state[read_item.dest_index.fqn]
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        self.committed.add(read_item.dest_index.fqn)


def test_planners_of_ones_own_with_every_hook(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    state = {"a": scenarios.noise(1, (20, 30)), "b": scenarios.noise(2, (7,)), "step": 3}
    dcp.save(state, storage_writer=CloudStorageWriter(url), planner=Plain())
    found, planner = {"a": torch.zeros(20, 30), "b": torch.zeros(7), "step": 0}, PlainLoad()
    dcp.load(found, storage_reader=CloudStorageReader(url), planner=planner)
    scenarios.assert_same(found, state)
    assert planner.committed == {"a", "b"}


# --- some ranks only


def in_a_group(url: str) -> None:
    group = dist.new_group([0, 1])
    if dist.get_rank() < 2:
        # a group of ranks that are not all
        state = {"weight": torch.full((10,), 5.0), "step": 2}
        dcp.save(state, storage_writer=CloudStorageWriter(url), process_group=group)
        found = {"weight": torch.zeros(10), "step": 0}
        dcp.load(found, storage_reader=CloudStorageReader(url), process_group=group)
        scenarios.assert_same(found, state)
    dist.barrier()


def test_a_part_of_the_ranks_saves_and_loads(seaweedfs_bucket: Bucket, worlds: World) -> None:
    worlds(4).run(in_a_group, f"{seaweedfs_bucket.url}/run")
