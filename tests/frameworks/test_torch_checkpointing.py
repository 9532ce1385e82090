"""torch_checkpointing on real ranks, with its checkpoints in a bucket."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Bucket
from dcp_fault_proxy import FaultProxy
from support import checkpointing
from support.ranks import Ranks

from dcp_core.errors import (
    CheckpointCorruptError,
    InvalidLocationError,
    ObjectNotFoundError,
    UnsupportedError,
    UntrustedDataError,
)

pytest.importorskip("torch_checkpointing")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def where(bucket: Bucket, job: str = "one", **more: Any) -> dict[str, Any]:
    return {"url": f"{bucket.url}/run", "job": job, **more}


def storage(bucket: Bucket, job: str = "one", **more: Any) -> Any:
    from dcp_core.frameworks.torch_checkpointing import CloudStorageConfig

    return CloudStorageConfig(**where(bucket, job, **more)).create_storage()


def names(bucket: Bucket, prefix: str = "run/") -> list[str]:
    return [key for key in bucket.keys(prefix) if not key.endswith("/")]


def test_what_is_saved_is_loaded(pair: Ranks, bucket: Bucket) -> None:
    pair.run(checkpointing.save, where(bucket), "step-1", 1)
    record = json.loads(bucket.read("run/step-1/.directory"))
    assert {"model_0.pt", "model_1.pt", "metadata.pkl"} <= record["files"].keys()
    assert sorted(f"run/step-1/{at}" for at, _ in record["files"].values()) == [
        key for key in names(bucket) if not key.endswith("/.directory")
    ]
    assert pair.run(checkpointing.load, where(bucket), "step-1", 1) == [(True, 1)] * 2
    assert pair.run(checkpointing.load, where(bucket, "two"), "step-1", 1, False) == [(True, 1)] * 2


def test_what_is_saved_in_the_background_is_loaded(pair: Ranks, seaweedfs_bucket: Bucket) -> None:
    pair.run(checkpointing.save, where(seaweedfs_bucket), "step-1", 1, True)
    assert pair.run(checkpointing.load, where(seaweedfs_bucket), "step-1", 1) == [(True, 1)] * 2


def test_a_rename_is_one_conditional_record_and_no_copy(
    pair: Ranks, proxy: FaultProxy, seaweedfs_bucket: Bucket
) -> None:
    pair.run(checkpointing.save, where(seaweedfs_bucket), "step-1", 1)
    assert not {"CopyObject", "UploadPartCopy", "DeleteObject", "DeleteObjects"} & set(proxy.operations())
    records = [
        seen for seen in proxy.requests if seen.path.endswith("/.directory") and seen.operation == "PutObject"
    ]
    assert len(records) == 1


def test_tensors_are_loaded_into_another_sharding(pair: Ranks, seaweedfs_bucket: Bucket) -> None:
    pair.run(checkpointing.save, where(seaweedfs_bucket), "step-1", 1)
    assert pair.run(checkpointing.load, where(seaweedfs_bucket), "step-1", 1, True, 1) == [(True, 1)] * 2


def test_a_checkpoint_that_is_there_stays_as_it_was(pair: Ranks, seaweedfs_bucket: Bucket) -> None:
    how = where(seaweedfs_bucket)
    pair.run(checkpointing.save, how, "step-1", 1)
    first, _ = pair.outcomes(checkpointing.save, how, "step-1", 2)
    assert isinstance(first, FileExistsError)
    assert pair.run(checkpointing.load, how, "step-1", 1) == [(True, 1)] * 2
    files = storage(seaweedfs_bucket)
    files.rmdir(Path("step-1"))
    assert names(seaweedfs_bucket) == []
    pair.run(checkpointing.save, how, "step-1", 3)
    assert pair.run(checkpointing.load, how, "step-1", 3) == [(True, 3)] * 2


def test_what_was_not_renamed_is_not_there(bucket: Bucket) -> None:
    """Nor is what another job writes for the same folder ever part of it."""
    killed, files = storage(bucket, "killed"), storage(bucket)
    for part in (killed, files):
        part.write(Path("tmp_step-1/model_0.pt"), b"of an earlier write")
        part.write(Path("tmp_step-1/model_0.pt"), b"of " + part._job.encode())
    killed.write(Path("tmp_step-1/model_1.pt"), b"of a job that was killed")
    assert not files.exists(Path("step-1"))
    assert not files.isdir(Path("step-1"))
    assert files.exists(Path("tmp_step-1"))
    assert files.ls(Path(".")) == ["tmp_step-1"]
    files.rename(Path("tmp_step-1"), Path("step-1"), is_directory=True)
    assert files.exists(Path("step-1"))
    assert files.isdir(Path("step-1"))
    assert files.ls(Path("step-1")) == ["model_0.pt"]
    assert "step-1" in files.ls(Path("."))
    assert files.read(Path("step-1/model_0.pt")) == b"of one"
    assert files.getsize(Path("step-1/model_0.pt")) == len(b"of one")
    with pytest.raises(FileNotFoundError):
        files.read(Path("step-1/model_1.pt"))
    with pytest.raises(FileExistsError):
        killed.rename(Path("tmp_step-1"), Path("step-1"), is_directory=True)
    assert storage(bucket).read(Path("step-1/model_0.pt")) == b"of one"


def test_a_folder_that_holds_anything_is_not_renamed_onto(seaweedfs_bucket: Bucket) -> None:
    files = storage(seaweedfs_bucket)
    files.write(Path("step-1/notes.txt"), b"mine")
    files.write(Path("tmp_step-1/model_0.pt"), b"model")
    with pytest.raises(FileExistsError):
        files.rename(Path("tmp_step-1"), Path("step-1"), is_directory=True)
    assert files.read(Path("step-1/notes.txt")) == b"mine"
    with pytest.raises(ObjectNotFoundError):
        files.rename(Path("tmp_step-2"), Path("step-2"), is_directory=True)
    for source, target, whole in (("a", "b", False), ("other_step-1", "step-1", True)):
        with pytest.raises(UnsupportedError, match="cannot be renamed"):
            files.rename(Path(source), Path(target), is_directory=whole)
    for path in ("../elsewhere", "s3://bucket/run"):
        with pytest.raises(InvalidLocationError):
            files.read(Path(path))


def test_large_reads_go_into_the_callers_memory_and_small_ones_share_a_request(
    proxy: FaultProxy, seaweedfs_bucket: Bucket
) -> None:
    data = bytes(range(256)) * 8192
    files = storage(seaweedfs_bucket)
    files.write(Path("tmp_step-1/f"), data)
    files.rename(Path("tmp_step-1"), Path("step-1"), is_directory=True)
    with files.stream_read(Path("step-1/f")) as file:
        proxy.clear()
        buffer = bytearray(1 << 20)
        file.seek(1000)
        assert file.readinto(buffer) == len(buffer)
        assert buffer == data[1000 : 1000 + len(buffer)]
        assert proxy.operations() == ["GetObject"]
        file.seek(-100, io.SEEK_END)
        assert b"".join(file.read(7) for _ in range(20)) == data[-100:]
        file.seek(-1000, io.SEEK_END)
        assert file.read(10) == data[-1000:-990]
        assert proxy.operations() == ["GetObject"] * 2


class Attack:
    def __reduce__(self) -> Any:
        return (open, (MARK, "w"))


MARK = ""


def test_metadata_runs_no_code(
    pair: Ranks, seaweedfs_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do files of tensors, where PyTorch is told so."""
    how = where(seaweedfs_bucket)
    pair.run(checkpointing.save, how, "step-1", 1)
    record = json.loads(seaweedfs_bucket.read("run/step-1/.directory"))
    keys = {name: f"run/step-1/{at}" for name, (at, _) in record["files"].items()}
    monkeypatch.setitem(globals(), "MARK", str(tmp_path / "mark"))

    def replaced(name: str, data: bytes) -> None:
        kept = seaweedfs_bucket.read(keys[name])
        seaweedfs_bucket.write(keys[name], data)
        record["files"][name][1] = len(data)
        seaweedfs_bucket.write("run/step-1/.directory", json.dumps(record).encode())
        assert kept != data

    file = io.BytesIO()
    torch.save(Attack(), file)
    good = seaweedfs_bucket.read(keys["model_0.pt"])
    replaced("model_0.pt", file.getvalue())
    outcomes = pair.outcomes(checkpointing.load_weights_only, how, "step-1")
    assert isinstance(outcomes[0], pickle.UnpicklingError)
    replaced("model_0.pt", good)
    named = {"type": "JsonSerialization", "cls": "subprocess.Popen"}
    for hostile in (Attack(), {"metadata": {"model": {"rank_to_layout_info": named}}}):
        replaced("metadata.pkl", pickle.dumps(hostile))
        for outcome in pair.outcomes(checkpointing.load, how, "step-1", 1, True, 1):
            assert isinstance(outcome, UntrustedDataError)
    assert not (tmp_path / "mark").exists()
    files = storage(seaweedfs_bucket, json_types=["subprocess.Popen"])
    assert pickle.loads(files.read(Path("step-1/metadata.pkl")))["metadata"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b'{"format": "dcp-cloud directory 1", "save": "x", "files": {"f": ["../step-2/f", 1]}}',
        b'{"format": "dcp-cloud directory 1", "save": "x", "files": {"f": [".staged/../../f", 1]}}',
        b'{"format": "dcp-cloud directory 2", "save": "x", "files": {}}',
        b'{"format": "dcp-cloud directory 1", "files": {}}',
    ],
)
def test_a_damaged_record_is_told(seaweedfs_bucket: Bucket, damage: bytes) -> None:
    seaweedfs_bucket.write("run/step-1/.directory", damage)
    with pytest.raises(CheckpointCorruptError, match="record of a folder"):
        storage(seaweedfs_bucket).read(Path("step-1/f"))


def test_the_block_of_the_page_runs(seaweedfs_bucket: Bucket) -> None:
    page = (ROOT / "docs/frameworks/torch_checkpointing.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"BUCKET = {seaweedfs_bucket.name!r}\n{block}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "runs/titan/step-1/model_0.pt" in names(seaweedfs_bucket, "runs/")
