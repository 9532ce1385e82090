"""The writer as the stager of ``async_save``, and torch's stagers and some user's beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from support.ranks import Ranks
from support.torch_releases import since
from torch.distributed.checkpoint import staging

from dcp_core import CloudStorageReader, CloudStorageWriter

World = Callable[[int], Ranks]

STAGES = since(2, 9, "async_stager=, and stagers that copy what is in CPU memory")


def state_of(value: float) -> dict[str, Any]:
    return {
        "weight": torch.full((300, 40), value),
        "transposed": torch.full((40, 30), value).t(),
        "nested": {"step": int(value), "history": [value, 2.5], "moment": torch.full((3,), value)},
    }


def spoil(state: dict[str, Any]) -> None:
    """What training does next."""
    for tensor in (state["weight"], state["transposed"], state["nested"]["moment"]):
        tensor.fill_(-1)
    state["nested"]["step"] = -1
    state["nested"]["history"][0] = -1.0


def loaded(url: str) -> dict[str, Any]:
    state = state_of(0.0)
    dcp.load(state, storage_reader=CloudStorageReader(url))
    return state


def test_a_writer_is_a_stager_to_torch() -> None:
    writer = CloudStorageWriter("s3://bucket/run")
    assert isinstance(writer, staging.AsyncStager)
    # as of FileSystemWriter: there is nothing to wait for
    assert writer.should_synchronize_after_execute is False
    assert dcp.FileSystemWriter("folder").should_synchronize_after_execute is False
    assert writer.synchronize_staging() is None


@STAGES
@pytest.mark.parametrize("given", [True, False], ids=["given", "taken by itself"])
def test_what_is_saved_is_the_state_at_the_call(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, given: bool
) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    # the upload begins after training has gone on
    proxy.add(Fault("delay", operation="PutObject", seconds=1.0))
    writer = CloudStorageWriter(url)
    state = state_of(3.0)
    future = dcp.async_save(state, storage_writer=writer, **({"async_stager": writer} if given else {}))
    spoil(state)
    future.result()
    scenarios.assert_same(loaded(url), state_of(3.0))


@STAGES
def test_saves_back_to_back_stage_into_memory_of_their_own(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    writer = CloudStorageWriter(url)
    state, futures = state_of(0.0), []
    for step in range(1, 6):
        spoil(state)
        for name, value in state_of(float(step)).items():
            if isinstance(value, torch.Tensor):
                state[name].copy_(value)
            else:
                state[name] = value
        options = {"storage_writer": writer, "async_stager": writer}
        futures.append(dcp.async_save(state, checkpoint_id=f"step-{step}", **options))
    spoil(state)
    for step, future in enumerate(futures, 1):
        future.result()
        scenarios.assert_same(loaded(f"{url}/step-{step}"), state_of(float(step)))


def staged_by_the_writer(url: str, kind: str) -> None:
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    writer = CloudStorageWriter(url)
    full = {"dim 0": scenarios.noise(7, (64, 48)), "dim 1": scenarios.noise(8, (6, 5))}
    state = scenarios.sharded(full)
    future = dcp.async_save(
        state,
        storage_writer=writer,
        async_stager=writer,
        async_checkpointer_type=AsyncCheckpointerType[kind],
    )
    for tensor in state.values():
        tensor.to_local().zero_()
    future.result()
    found = scenarios.blanked(scenarios.sharded(full))
    dcp.load(found, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(found, full)


@STAGES
@pytest.mark.parametrize("kind", ["THREAD", "PROCESS"])
def test_ranks_stage_shards_with_the_writer(seaweedfs_bucket: Bucket, worlds: World, kind: str) -> None:
    worlds(2).run(staged_by_the_writer, f"{seaweedfs_bucket.url}/run", kind)


def staged_sharded_tensor(url: str) -> None:
    from torch.distributed._shard import sharded_tensor
    from torch.distributed._shard.metadata import ShardMetadata

    rank = torch.distributed.get_rank()
    part = torch.full((3, 4), float(rank))
    place = ShardMetadata([3 * rank, 0], [3, 4], f"rank:{rank}/cpu")
    whole = sharded_tensor.init_from_local_shards([sharded_tensor.Shard(part, place)], 6, 4)
    state = {"model": {"weight": whole, "step": torch.tensor(7)}}
    future = dcp.async_save(state, storage_writer=CloudStorageWriter(url))
    part.fill_(-1)
    state["model"]["step"].fill_(-1)
    future.result()


@STAGES
def test_tensors_of_the_first_fsdp_are_staged(seaweedfs_bucket: Bucket, worlds: World) -> None:
    """torch's own stager fails on them."""
    url = f"{seaweedfs_bucket.url}/run"
    worlds(2).run(staged_sharded_tensor, url)
    state = {"model": {"weight": torch.zeros(6, 4), "step": torch.tensor(0)}}
    dcp.load(state, storage_reader=CloudStorageReader(url))
    assert state["model"]["weight"].tolist() == [[0.0] * 4] * 3 + [[1.0] * 4] * 3
    assert state["model"]["step"] == 7


def test_staging_copies_everything_and_keeps_nothing() -> None:
    writer = CloudStorageWriter("s3://bucket/run")
    state = state_of(2.0)
    first, second = writer.stage(state), writer.stage(state)
    addresses = {one["weight"].data_ptr() for one in (state, first, second)}
    assert len(addresses) == 3
    scenarios.assert_same(first, state_of(2.0))
    # a writer that has staged is pickled and used as before
    assert writer.checkpoint_id == "s3://bucket/run"


@STAGES
def test_closing_the_writer_after_its_save_is_closing_the_stager(seaweedfs_bucket: Bucket) -> None:
    """Whoever gives a stager is to close it after the last save; the writer then saves on all the same."""
    url = f"{seaweedfs_bucket.url}/run"
    writer = CloudStorageWriter(url)
    for step in (1.0, 2.0):
        dcp.async_save(state_of(step), storage_writer=writer, async_stager=writer).result()
        writer.close()
        scenarios.assert_same(loaded(url), state_of(step))


@since(2, 9, "DefaultStager")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("in_background", [False, True])
def test_the_stager_of_torch(seaweedfs_bucket: Bucket, shared: bool, in_background: bool) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    options = staging.StagingOptions(False, shared, in_background, False)
    stager = staging.DefaultStager(options)
    try:
        for step in (1.0, 2.0):
            state = state_of(step)
            response = dcp.async_save(state, storage_writer=CloudStorageWriter(url), async_stager=stager)
            if in_background:
                response.staging_completion.result()
            spoil(state)
            (response.upload_completion if in_background else response).result()
            scenarios.assert_same(loaded(url), state_of(step))
    finally:
        stager.close()


@since(2, 9, "async_stager=")
def test_a_writer_on_a_disk_stages_for_ours(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    stager = dcp.FileSystemWriter(tmp_path / "unused")
    state = state_of(4.0)
    dcp.async_save(state, storage_writer=CloudStorageWriter(url), async_stager=stager).result()
    scenarios.assert_same(loaded(url), state_of(4.0))
    assert not (tmp_path / "unused").exists()


class Halving(staging.BlockingAsyncStager):
    """A stager of a user's own: saves less than what it is given."""

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {"weight": (state_dict["weight"] / 2).clone()}


@since(2, 9, "async_stager=")
def test_a_stager_of_the_users_own(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    state = state_of(8.0)
    dcp.async_save(state, storage_writer=CloudStorageWriter(url), async_stager=Halving()).result()
    found = {"weight": torch.zeros(300, 40)}
    dcp.load(found, storage_reader=CloudStorageReader(url))
    assert (found["weight"] == 4).all()
    metadata = CloudStorageReader(url).read_metadata()
    assert set(metadata.state_dict_metadata) == {"weight"}
