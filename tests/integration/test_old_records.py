"""Checkpoints that other releases of torch wrote, older and newer than the one that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from support.records import read
from support.scenarios import assert_same
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dcp_core import CheckpointCorruptError, CloudStorageReader
from dcp_core.upkeep.verify import verify_checkpoint

FOLDER = Path(__file__).parents[1] / "data" / "records"
RELEASES = sorted(path.name for path in FOLDER.glob("torch-*"))
ALONE = [name for name in RELEASES if (FOLDER / name / "one-rank").exists()]


def expected() -> dict[str, Any]:
    """What ``make.py`` saves."""
    return {
        "weight": torch.arange(15, dtype=torch.float32).view(5, 3),
        "bias": torch.arange(3, dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "step": {"number": 17, "name": "seventeen"},
    }


def blank() -> dict[str, Any]:
    return {
        "weight": torch.zeros(5, 3),
        "bias": torch.zeros(3, dtype=torch.bfloat16),
        "count": torch.tensor(0),
        "step": {"number": 0, "name": ""},
    }


def upload(bucket: Bucket, folder: Path) -> str:
    for path in folder.iterdir():
        bucket.write(f"run/{path.name}", path.read_bytes())
    return f"{bucket.url}/run"


@pytest.mark.parametrize("name", RELEASES)
def test_a_sharded_checkpoint_of_an_earlier_or_later_release_loads(
    name: str, seaweedfs_bucket: Bucket
) -> None:
    url = upload(seaweedfs_bucket, FOLDER / name / "sharded")
    target = blank()
    dcp.load(target, storage_reader=CloudStorageReader(url))
    assert_same(target, expected())
    metadata = read(seaweedfs_bucket.read("run/.metadata"))
    entry = metadata.state_dict_metadata["weight"]
    assert isinstance(entry, TensorStorageMetadata)
    assert [tuple(chunk.sizes) for chunk in entry.chunks] == [(3, 3), (2, 3)]
    report = verify_checkpoint(url)
    assert report.ok, report.defects
    assert report.items == len(metadata.storage_data)


@pytest.mark.parametrize("name", ALONE)
def test_the_record_of_one_rank_loads(name: str, seaweedfs_bucket: Bucket) -> None:
    """It has all that is not sharded, and says that it lacks the rest."""
    url = upload(seaweedfs_bucket, FOLDER / name / "one-rank")
    target = {key: value for key, value in blank().items() if key != "weight"}
    dcp.load(target, storage_reader=CloudStorageReader(url))
    assert_same(target, {key: value for key, value in expected().items() if key != "weight"})
    with pytest.raises(CheckpointCorruptError, match="leads to 9 of the 15 elements of 'weight'"):
        dcp.load({"weight": torch.zeros(5, 3)}, storage_reader=CloudStorageReader(url))


def test_there_is_a_record_of_each_way_in_which_releases_wrote_them() -> None:
    """What differs between them, as it stands in the bytes."""
    found: dict[str, set[str]] = {}
    for name in RELEASES:
        record = (FOLDER / name / "sharded" / ".metadata").read_bytes()
        for way, mark in WAYS.items():
            if all(part in record for part in mark):
                found.setdefault(way, set()).add(name)
    assert found.keys() == WAYS.keys(), found
    for name in ALONE:
        assert (FOLDER / name / "one-rank" / "__0.metadata").exists()
    assert ALONE


#: Ways in which records were written, and what such a record holds.
WAYS: dict[str, tuple[bytes, ...]] = {
    "TensorProperties of sharded tensors, before 2.2": (
        b"torch.distributed._shard.sharded_tensor.metadata",
        b"TensorProperties",
        b"MEM_FORMAT_ENCODING",
    ),
    "TensorProperties of checkpoints": (b"torch.distributed.checkpoint.metadata", b"_MEM_FORMAT_ENCODING"),
    "a version, since 2.9": (b"version",),
    "paths of Python 3.13": (b"pathlib._local",),
}
