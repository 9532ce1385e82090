"""Lightning's Trainer and Fabric with checkpoints in buckets, with the real packages."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from fsspec.registry import _registry
from support.ranks import Ranks
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

pytest.importorskip("lightning")

from support import lightning_jobs as jobs
from support import pages
from support.killed import finished, killed_while_saving, losses, resumed_from

from dcp_core import (
    CheckpointNotFoundError,
    CloudStorageReader,
    InvalidLocationError,
    PermissionDeniedError,
    UnsupportedError,
)
from dcp_core.frameworks.newest import newest_checkpoint

World = Callable[[int], Ranks]
EXAMPLE = Path(__file__).parents[2] / "docs" / "frameworks" / "lightning" / "train.py"

pytestmark = [
    # Lightning's own, and what it says of machines
    pytest.mark.filterwarnings("ignore::Warning:lightning(\\..*)?$"),
    pytest.mark.filterwarnings("ignore:.*(num_workers|logging interval|isinstance.treespec):Warning"),
]


@pytest.fixture(autouse=True)
def file_systems() -> Iterator[None]:
    """Those that fsspec knows, as they were."""
    known = dict(_registry)
    yield
    _registry.clear()
    _registry.update(known)


def checkpoints(bucket: Bucket, prefix: str = "run/") -> list[str]:
    """Those that are whole."""
    return [key.split("/")[1] for key in bucket.keys(prefix) if key.endswith("/.metadata")]


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert len(first) > 8
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def stored(url: str) -> dict[str, torch.Tensor]:
    """Tensors of a model and an optimizer, as the bucket has them."""
    reader = CloudStorageReader(url)
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and name != "meta.pt"
    }
    dcp.load(tensors, storage_reader=reader)
    names = {"state_dict": "model", "optimizer": "optimizer_0"}
    return {_renamed(name, names): value for name, value in tensors.items()}


def _renamed(name: str, names: dict[str, str]) -> str:
    """Strategies call the same thing by different names."""
    first, _, rest = name.partition(".")
    return f"{names.get(first, first)}.{rest}"


@pytest.mark.parametrize("kind", ["fsdp", "model_parallel"])
def test_a_trainer_resumes_as_if_nothing_had_happened(
    seaweedfs_bucket: Bucket, worlds: World, kind: str
) -> None:
    run = f"{seaweedfs_bucket.url}/run"
    whole = worlds(2).run(jobs.fit, kind, 2, f"{seaweedfs_bucket.url}/whole", 4)
    first = worlds(2).run(jobs.fit, kind, 2, run, 3)
    # of three epochs two are kept, and nothing of the other
    kept = ["epoch=1-step=6.ckpt", "epoch=2-step=9.ckpt"]
    assert checkpoints(seaweedfs_bucket) == kept
    assert {key.split("/")[1] for key in seaweedfs_bucket.keys("run/")} == set(kept)
    newest = newest_checkpoint(run, suffix=".ckpt")
    assert newest == f"{run}/{kept[-1]}"
    resumed = worlds(2).run(jobs.fit, kind, 2, run, 4, newest)
    for rank in range(2):
        assert first[rank][0] + resumed[rank][0] == whole[rank][0]
        assert_equal(resumed[rank][1], whole[rank][1])
    # the callback's own state came back too: it deleted the oldest of those that it had kept
    assert checkpoints(seaweedfs_bucket) == ["epoch=2-step=9.ckpt", "epoch=3-step=12.ckpt"]


@pytest.mark.parametrize("kind", ["fsdp", "model_parallel"])
def test_a_trainer_resumes_on_fewer_ranks(seaweedfs_bucket: Bucket, worlds: World, kind: str) -> None:
    run = f"{seaweedfs_bucket.url}/run"
    worlds(2).run(jobs.fit, kind, 2, run, 2)
    saved = f"{run}/epoch=1-step=6.ckpt"
    # nothing is left to train
    ((losses, loaded),) = worlds(1).run(jobs.fit, kind, 1, run, 2, saved)
    assert losses == []
    assert_equal(loaded, stored(saved))


@pytest.mark.parametrize(
    ("kind", "front"), [("fsdp", "fabric"), ("model_parallel", "fabric"), ("fsdp", "standalone_fabric")]
)
def test_fabric_loads_what_it_saved(seaweedfs_bucket: Bucket, worlds: World, kind: str, front: str) -> None:
    url = f"{seaweedfs_bucket.url}/run/step-3"
    saved = worlds(2).run(jobs.save_with_fabric, kind, 2, front, url)
    assert checkpoints(seaweedfs_bucket) == ["step-3"]
    loaded = worlds(2).run(jobs.load_with_fabric, kind, 2, front, url)
    loaded_whole = worlds(1).run(jobs.load_with_fabric, kind, 1, front, url)
    for found, values in zip([*loaded, *loaded_whole], [*saved, stored(url)], strict=True):
        assert_equal(found[0], values)
        assert found[1:] == (3, 3, {"extra": [1, 2]})


def test_saves_go_on_while_training_does(seaweedfs_bucket: Bucket, worlds: World) -> None:
    run = f"{seaweedfs_bucket.url}/run"
    asynchronous = worlds(2).run(functools.partial(jobs.fit, asynchronous=True), "fsdp", 2, run, 3)
    whole = worlds(2).run(jobs.fit, "fsdp", 2, f"{seaweedfs_bucket.url}/whole", 3)
    assert checkpoints(seaweedfs_bucket) == checkpoints(seaweedfs_bucket, "whole/")
    assert len(checkpoints(seaweedfs_bucket)) == 2
    for name in checkpoints(seaweedfs_bucket):
        assert_equal(stored(f"{run}/{name}"), stored(f"{seaweedfs_bucket.url}/whole/{name}"))
    assert [found[0] for found in asynchronous] == [found[0] for found in whole]


def test_a_checkpoint_stays_if_the_one_to_replace_it_fails(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, worlds: World
) -> None:
    run = f"{seaweedfs_bucket.url}/run"
    proxy.add(
        Fault("error", operation="PutObject", path="epoch%3D2.*metadata", status=403, code="AccessDenied")
    )
    fit = functools.partial(jobs.fit, asynchronous=True)
    for error in worlds(2).outcomes(fit, "model_parallel", 2, run, 3):
        assert isinstance(error, CheckpointException)
        assert isinstance(error.failures[0][0], PermissionDeniedError)
    assert checkpoints(seaweedfs_bucket) == ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"]
    # what the failed save left is no checkpoint
    assert newest_checkpoint(run, suffix=".ckpt") == f"{run}/epoch=1-step=6.ckpt"


def test_lightnings_own_checkpoint_loads_from_a_bucket(
    seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path
) -> None:
    saved = worlds(2).run(jobs.fit_stock, 2, str(tmp_path))
    for path in (tmp_path / "stock.ckpt").iterdir():
        seaweedfs_bucket.write(f"copied/{path.name}", path.read_bytes())
    run = f"{seaweedfs_bucket.url}/run"
    loaded = worlds(2).run(jobs.fit, "fsdp", 2, run, 2, f"{seaweedfs_bucket.url}/copied")
    for rank in range(2):
        assert_equal(loaded[rank][1], saved[rank])


def test_a_folder_goes_the_way_it_went(worlds: World, tmp_path: Path) -> None:
    path = tmp_path / "local.ckpt"
    worlds(2).run(jobs.save_with_trainer, "fsdp", 2, str(path))
    assert {".metadata", "meta.pt"} <= {entry.name for entry in path.iterdir()}


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("s3:/bucket/run", {}, "drops a slash"),
        ("s3://bucket/run", {"state_dict_type": "full"}, "state_dict_type='sharded'"),
    ],
)
def test_what_cannot_be_saved_is_said(
    worlds: World, path: str, options: dict[str, Any], message: str
) -> None:
    save = functools.partial(jobs.save_with_trainer, **options)
    (error,) = worlds(1).outcomes(save, "fsdp", 1, path)
    assert isinstance(error, (InvalidLocationError, UnsupportedError))
    assert message in str(error)
    assert not Path("s3:").exists()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_checkpoint_of_one_file(seaweedfs_bucket: Bucket, asynchronous: bool) -> None:
    from dcp_core.frameworks.lightning.trainer import CloudCheckpointIO

    run = f"{seaweedfs_bucket.url}/run"
    whole = jobs.fit_plain(f"{seaweedfs_bucket.url}/whole", 4, CloudCheckpointIO())
    first = jobs.fit_plain(run, 3, CloudCheckpointIO(asynchronous=asynchronous))
    names = ["run/epoch=1-step=12.ckpt", "run/epoch=2-step=18.ckpt"]
    assert seaweedfs_bucket.keys("run/") == names
    newest = newest_checkpoint(run, suffix=".ckpt")
    assert newest == f"{seaweedfs_bucket.url}/{names[-1]}"
    resumed = jobs.fit_plain(run, 4, CloudCheckpointIO(asynchronous=asynchronous), newest)
    assert first + resumed == whole
    plain = torch.load(io.BytesIO(seaweedfs_bucket.read(names[-1])))
    assert plain["global_step"] == 18
    loaded = jobs.Plain.load_from_checkpoint(newest)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, plain["state_dict"][name])


def test_large_tensors_of_a_file_come_back(seaweedfs_bucket: Bucket) -> None:
    from dcp_core.frameworks.lightning.trainer import CloudCheckpointIO

    files = CloudCheckpointIO(part_size=5 << 20)
    url = f"{seaweedfs_bucket.url}/large.ckpt"
    weights = torch.arange(3_000_000, dtype=torch.float32)
    saved = {"state_dict": {"a": weights, "b": weights[7:9], "c": torch.ones(3)}, "epoch": 3}
    files.save_checkpoint(saved, url)
    loaded = files.load_checkpoint(url)
    assert loaded["epoch"] == 3
    for name, value in saved["state_dict"].items():
        assert torch.equal(loaded["state_dict"][name], value)
    # what shared memory does so again
    shared = {loaded["state_dict"][name].untyped_storage().data_ptr() for name in "ab"}
    assert len(shared) == 1
    files.remove_checkpoint(url)
    assert seaweedfs_bucket.keys() == []
    with pytest.raises(CheckpointNotFoundError):
        files.load_checkpoint(url)


def test_a_file_stays_if_the_one_to_replace_it_fails(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    from dcp_core.frameworks.lightning.trainer import CloudCheckpointIO

    files = CloudCheckpointIO(asynchronous=True)
    first, second = (f"{seaweedfs_bucket.url}/{name}.ckpt" for name in ("first", "second"))
    values = torch.zeros(4)
    files.save_checkpoint({"values": values}, first)
    # training goes on: a copy was made
    values += 1
    proxy.add(Fault("error", operation="PutObject", path="second", status=403, code="AccessDenied"))
    files.save_checkpoint({"values": values}, second)
    files.remove_checkpoint(first)
    with pytest.raises(PermissionDeniedError):
        files.wait_for_saves()
    assert seaweedfs_bucket.keys() == ["first.ckpt"]
    assert files.load_checkpoint(first)["values"].tolist() == [0.0] * 4
    files.save_checkpoint({"values": values}, second)
    files.remove_checkpoint(first)
    files.teardown()
    assert seaweedfs_bucket.keys() == ["second.ckpt"]


def test_the_example_is_killed_while_it_saves_and_goes_on(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    whole, run = f"{seaweedfs_bucket.url}/whole", f"{seaweedfs_bucket.url}/run"
    expected = losses(finished(EXAMPLE, [whole, "--epochs=6"], tmp_path))
    assert sorted(expected) == list(range(6))
    said = killed_while_saving(
        EXAMPLE, [run, "--epochs=6"], tmp_path, proxy, r"run/epoch(=|%3D)3\.ckpt/\.metadata"
    )
    assert resumed_from(said) == "None"
    assert checkpoints(seaweedfs_bucket) == ["epoch=1.ckpt", "epoch=2.ckpt"]
    # data of the save that was killed is there, and is no checkpoint
    assert any(key.startswith("run/epoch=3.ckpt/__") for key in seaweedfs_bucket.keys("run/"))
    resumed = finished(EXAMPLE, [run, "--epochs=6"], tmp_path)
    assert resumed_from(resumed) == f"{run}/epoch=2.ckpt"
    assert losses(resumed) == {epoch: expected[epoch] for epoch in (3, 4, 5)}
    assert {**losses(said), **losses(resumed)} == expected
    assert checkpoints(seaweedfs_bucket) == ["epoch=4.ckpt", "epoch=5.ckpt"]


def test_blocks_of_the_page_run(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    assert pages.run_blocks("docs/frameworks/lightning.md", {"BUCKET": seaweedfs_bucket.name}, tmp_path) == 4
    assert "one.ckpt" in seaweedfs_bucket.keys()
    assert "fabric/step-7/.metadata" in seaweedfs_bucket.keys()


def test_what_is_written_later_is_what_was_there() -> None:
    """Counters count what they are updated with, and training goes on with arrays and tuples."""
    from collections import Counter, deque, namedtuple

    from dcp_core.frameworks.lightning.checkpoint_io import _copied

    pair = namedtuple("pair", "tensor number")
    state = {
        "milestones": Counter({3: 1, 5: 1}),
        "queue": deque([1, 2]),
        "pair": pair(torch.zeros(2), 1),
        "set": {1},
    }
    copied = _copied(state)
    state["milestones"][3] = 9
    state["queue"].append(3)
    state["pair"].tensor.fill_(9)
    state["set"].add(2)
    assert copied["milestones"] == Counter({3: 1, 5: 1})
    assert copied["queue"] == deque([1, 2])
    assert copied["pair"].tensor.tolist() == [0, 0]
    assert type(copied["pair"]) is pair
    assert copied["set"] == {1}
