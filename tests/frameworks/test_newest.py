"""Which checkpoint of a folder is the newest whole one, on the store of each cloud."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import CloudStorageReader, ThrottledError
from dcp_core.frameworks.keep import keep_newest
from dcp_core.frameworks.newest import newest_checkpoint
from dcp_core.frameworks.training_state import load_training_state, save_training_state


def save(url: str, step: int) -> None:
    save_training_state(url, {"model": {"weights": torch.ones(9)}}, {"state.json": b"{}"}, {}, step=step)


def test_the_newest_is_the_one_committed_last(bucket: Bucket) -> None:
    run = f"{bucket.url}/run"
    assert newest_checkpoint(run) is None
    for step in (9, 100, 20):
        save(f"{run}/step={step}.ckpt", step)
    # within a second the later step counts as the newer one
    assert newest_checkpoint(run) in {f"{run}/step=100.ckpt", f"{run}/step=20.ckpt"}
    bucket.write("run/step=200.ckpt/__0_0.0123456789abcdef.distcp", b"of a save that never ended")
    bucket.write("run/step=400.ckpt/notes.txt", b"no checkpoint")
    bucket.write("run/notes.txt", b"no checkpoint")
    bucket.write("run/deeper/step=300.ckpt/.metadata", b"in another folder")
    for suffix in ("", ".ckpt"):
        newest = newest_checkpoint(run, suffix=suffix)
        assert newest in {f"{run}/step=100.ckpt", f"{run}/step=20.ckpt"}
    assert newest_checkpoint(f"{run}/nothing") is None


def test_steps_of_one_second_are_told_apart(seaweedfs_bucket: Bucket) -> None:
    for number in range(8, 12):
        save(f"{seaweedfs_bucket.url}/run/{number}", number)
        assert newest_checkpoint(f"{seaweedfs_bucket.url}/run") == f"{seaweedfs_bucket.url}/run/{number}"
        seaweedfs_bucket.write(f"files/{number}.ckpt", b"a file")
        newest = newest_checkpoint(f"{seaweedfs_bucket.url}/files", suffix=".ckpt")
        assert newest == f"{seaweedfs_bucket.url}/files/{number}.ckpt"


def test_a_throttled_listing_is_no_empty_folder(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    save(f"{seaweedfs_bucket.url}/run/1", 1)
    proxy.clear()
    assert newest_checkpoint(f"{seaweedfs_bucket.url}/run") is not None
    assert [seen.operation for seen in proxy.requests] == ["ListObjectsV2"]
    proxy.add(Fault("error", operation="ListObjectsV2", status=503, code="SlowDown", times=99))
    with pytest.raises(ThrottledError):
        newest_checkpoint(f"{seaweedfs_bucket.url}/run", retry_timeout=0.5)


def test_files_lie_in_the_checkpoint_itself(bucket: Bucket) -> None:
    url = f"{bucket.url}/run"
    files = {"rank-0/state.json": b"{}", "empty": b"", "rank-1/large": bytes(range(256)) * 9}
    save_training_state(url, {"model": {"weights": torch.ones(9)}}, files, {}, step=1)
    state = {"model": {"weights": torch.zeros(9)}}
    loaded = load_training_state(url, state, lambda name: name.startswith("rank-") or name == "empty", {})
    assert loaded == files
    assert state["model"]["weights"].sum() == 9
    assert load_training_state(url, state, lambda name: name == "missing", {}) == {}
    # stock torch sees tensors
    plain = {"rank-1/large": torch.empty(256 * 9, dtype=torch.uint8)}
    dcp.load(plain, storage_reader=CloudStorageReader(url))
    assert bytes(plain["rank-1/large"].tolist()) == files["rank-1/large"]


def test_a_new_save_replaces_tensors_and_files_together(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    url = f"{seaweedfs_bucket.url}/last"

    def saved(value: int) -> None:
        tensors = {"model": {"weights": torch.full((9,), float(value))}}
        save_training_state(url, tensors, {"step": str(value).encode()}, {}, step=value)

    saved(1)
    proxy.add(Fault("error", operation="PutObject", path=r"\.metadata$", status=403, code="AccessDenied"))
    with pytest.raises(CheckpointException):
        saved(2)
    state = {"model": {"weights": torch.zeros(9)}}
    assert load_training_state(url, state, lambda name: name == "step", {}) == {"step": b"1"}
    assert state["model"]["weights"].tolist() == [1.0] * 9


def test_only_names_that_begin_so_are_looked_at(seaweedfs_bucket: Bucket) -> None:
    run = f"{seaweedfs_bucket.url}/run"
    save(f"{run}/checkpoint-500", 500)
    save(f"{run}/best", 600)
    assert newest_checkpoint(run) == f"{run}/best"
    assert newest_checkpoint(f"{run}/", prefix="checkpoint-") == f"{run}/checkpoint-500"


def test_those_committed_last_are_kept_whatever_their_numbers(seaweedfs_bucket: Bucket) -> None:
    """Training that begins anew at a lower number would lose each checkpoint at once."""
    run = f"{seaweedfs_bucket.url}/run"
    for number in (8, 9, 10):
        save(f"{run}/epoch-{number}", number)
    # stores count in seconds
    time.sleep(1.1)
    save(f"{run}/epoch-4", 4)
    keep_newest(f"{run}/", 2, "epoch-")
    there = {key.split("/")[1] for key in seaweedfs_bucket.keys("run/")}
    assert there == {"epoch-4", "epoch-10"}
