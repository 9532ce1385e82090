"""Lightning's Trainer and Fabric with checkpoints in buckets, with the real packages."""

from __future__ import annotations

import io
import re
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
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

pytest.importorskip("lightning")

from support import lightning_jobs as jobs

from dcp_core import CheckpointNotFoundError, CloudStorageReader, PermissionDeniedError, UnsupportedError
from dcp_core.frameworks.newest import newest_checkpoint

World = Callable[[int], Ranks]

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
