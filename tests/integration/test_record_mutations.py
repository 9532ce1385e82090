"""Commit records in a bucket that were changed, exchanged or fall short: a load says so."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from support.ranks import Ranks
from support.records import read
from support.scenarios import assert_same, mesh, noise
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.tensor import Shard, distribute_tensor

from dcp_core import (
    CheckpointCorruptError,
    CheckpointIncompleteError,
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
)
from dcp_core.format.metadata import encode_metadata
from dcp_core.save.plan import misfits

WEIGHT, OFFSETS = noise(1, (6, 5)), noise(2, (7,), torch.int64)


def state() -> dict[str, Any]:
    return {"weight": WEIGHT.clone(), "offsets": OFFSETS.clone(), "step": 17}


def blank() -> dict[str, Any]:
    return {"weight": torch.zeros(6, 5), "offsets": torch.zeros(7, dtype=torch.int64), "step": 0}


def failure(url: str, into: dict[str, Any] | None = None) -> BaseException | None:
    """The first rank's error of a load, or nothing."""
    try:
        dcp.load(blank() if into is None else into, storage_reader=CloudStorageReader(url))
    except dcp.CheckpointException as error:
        return next(iter(error.failures.values()))[0]
    # torch raises what it pleases while it plans
    except Exception as error:  # noqa: BLE001
        return error
    return None


def upload(folder: Path, bucket: Bucket, prefix: str) -> None:
    for path in folder.iterdir():
        bucket.write(f"{prefix}/{path.name}", path.read_bytes())


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 23])
def test_a_load_from_a_changed_stock_record_fails_or_is_right(
    step: int, seaweedfs_bucket: Bucket, tmp_path: Path
) -> None:
    """Every ``step``-th bit: records of stock torch have no checksum."""
    dcp.save(state(), checkpoint_id=tmp_path / "stock")
    upload(tmp_path / "stock", seaweedfs_bucket, "run")
    record = seaweedfs_bucket.read("run/.metadata")
    refused = 0
    for bit in range(0, 8 * len(record), step):
        changed = bytearray(record)
        changed[bit // 8] ^= 1 << bit % 8
        seaweedfs_bucket.write("run/.metadata", bytes(changed))
        target = blank()
        error = failure(f"{seaweedfs_bucket.url}/run", target)
        if error is None:
            assert_same(target, state(), str(bit))
            continue
        refused += 1
        # torch's own: what the state dict asks for is not in the record, or has another size there
        assert isinstance(error, (CloudCheckpointError, RuntimeError, ValueError)), (bit, error)
    assert refused > 8 * len(record) / step / 2


def test_the_checksum_of_a_record_is_checked_when_loading(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    dcp.save(state(), storage_writer=CloudStorageWriter(url))
    record = seaweedfs_bucket.read("run/.metadata")
    for at in range(40, len(record), 97):
        seaweedfs_bucket.write("run/.metadata", record[:at] + bytes([record[at] ^ 4]) + record[at + 1 :])
        target = blank()
        error = failure(url, target)
        assert isinstance(error, CheckpointCorruptError)
        assert "does not have the checksum it was written with" in str(error)
        assert_same(target, blank())
    seaweedfs_bucket.write("run/.metadata", record)
    assert failure(url) is None


def test_a_record_of_another_checkpoint_is_noticed(seaweedfs_bucket: Bucket) -> None:
    """It names data that is not there: names are of one save alone."""
    for name in ("one", "other"):
        dcp.save(state(), storage_writer=CloudStorageWriter(f"{seaweedfs_bucket.url}/{name}"))
    seaweedfs_bucket.write("one/.metadata", seaweedfs_bucket.read("other/.metadata"))
    target = blank()
    error = failure(f"{seaweedfs_bucket.url}/one", target)
    assert isinstance(error, CheckpointCorruptError)
    (data,) = (key for key in seaweedfs_bucket.keys("other/") if key.endswith(".distcp"))
    assert error.key == data.replace("other/", "one/")
    assert_same(target, blank())


def save_rows(url: str) -> None:
    dcp.save(
        {"weight": distribute_tensor(WEIGHT, mesh(), [Shard(0)])}, storage_writer=CloudStorageWriter(url)
    )


def test_a_record_that_lacks_a_part_is_noticed_by_the_load(
    seaweedfs_bucket: Bucket, worlds: Callable[[int], Ranks]
) -> None:
    """With a right checksum: what the load is to fill is held against what it reads."""
    url = f"{seaweedfs_bucket.url}/run"
    worlds(2).run(save_rows, url)
    record = seaweedfs_bucket.read("run/.metadata")
    lacking: dict[str, Callable[[Metadata], object]] = {
        "15 of the 30 elements": lambda found: found.state_dict_metadata["weight"].chunks.pop(),  # type: ignore[union-attr]
        "0 of the 30 elements": lambda found: found.state_dict_metadata["weight"].chunks.clear(),  # type: ignore[union-attr]
    }
    for message, take_out in lacking.items():
        metadata = read(record)
        take_out(metadata)
        seaweedfs_bucket.write("run/.metadata", encode_metadata(metadata))
        target = {"weight": torch.zeros(6, 5)}
        error = failure(url, target)
        assert isinstance(error, CheckpointCorruptError)
        assert f"the commit record leads to {message} of 'weight'" in str(error)
        assert_same(target, {"weight": torch.zeros(6, 5)})


class OverlappingPlanner(dcp.DefaultSavePlanner):
    """Plans a chunk twice, after torch has looked for that."""

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, metadata = super().create_global_plan(all_plans)
        entry: Any = metadata.state_dict_metadata["weight"]
        first = entry.chunks[0]
        entry.chunks.append(ChunkStorageMetadata(first.offsets, first.sizes))
        return plans, metadata


def test_a_save_whose_plan_does_not_make_up_a_tensor_is_not_committed(seaweedfs_bucket: Bucket) -> None:
    writer = CloudStorageWriter(f"{seaweedfs_bucket.url}/run")
    with pytest.raises(dcp.CheckpointException) as caught:
        dcp.save(state(), storage_writer=writer, planner=OverlappingPlanner())
    error = caught.value.failures[0][0]
    assert isinstance(error, CheckpointIncompleteError)
    assert "the plan is wrong, the chunks of 'weight', of shape (6, 5), overlap" in str(error)
    assert "run/.metadata" not in seaweedfs_bucket.keys()


def test_a_plan_of_several_ranks_has_no_gap(seaweedfs_bucket: Bucket, worlds: Callable[[int], Ranks]) -> None:
    """One rank's own may have: it has a part of a tensor."""
    worlds(2).run(save_rows, f"{seaweedfs_bucket.url}/run")
    metadata = read(seaweedfs_bucket.read("run/.metadata"))
    assert misfits(metadata, 2) == misfits(metadata, 1) == []
    entry: Any = metadata.state_dict_metadata["weight"]
    entry.chunks.pop(0)
    assert misfits(metadata, 2) == ["the chunks of 'weight', of shape (6, 5), leave a gap"]
    assert misfits(metadata, 1) == []


def test_stock_readers_pass_over_the_checksum(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    dcp.save(state(), storage_writer=CloudStorageWriter(f"{seaweedfs_bucket.url}/run"))
    record = seaweedfs_bucket.read("run/.metadata")
    assert record[4:12] == b"DCPCLOUD"
    loaded = pickle.loads(record)
    # what somebody loads and pickles anew comes without, and is read as well
    assert b"DCPCLOUD" not in pickle.dumps(loaded)
    assert read(pickle.dumps(loaded)) == loaded == read(record)
    for key in seaweedfs_bucket.keys("run/"):
        (tmp_path / key.removeprefix("run/")).write_bytes(seaweedfs_bucket.read(key))
    target = blank()
    dcp.load(target, storage_reader=dcp.FileSystemReader(tmp_path))
    assert_same(target, state())
