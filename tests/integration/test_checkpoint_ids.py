"""URLs as ``checkpoint_id``, after the opt-in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import Bucket

#: What each test does after the opt-in, which changes torch for the rest of the process: one of its own.
_START = """
import pathlib, sys, warnings
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from dcp_core import use_url_checkpoint_ids, InvalidLocationError

warnings.filterwarnings("ignore")

def state(value):
    return {"weights": torch.full((100,), float(value))}

def loaded(**options):
    target = state(0)
    dcp.load(target, **options)
    return target["weights"][0].item()

if __name__ == "__main__":
    url, folder = sys.argv[1:]
"""


def run(tmp_path: Path, bucket: Bucket, body: str) -> str:
    script = tmp_path / "script.py"
    lines = [f"    {line}" for line in body.strip().splitlines()]
    script.write_text(_START + "\n".join(lines) + "\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), f"{bucket.url}/run", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    # what was meant for a bucket is not in a folder named s3:
    assert [path.name for path in folder.iterdir() if path.name.startswith("s3")] == []
    return done.stdout


def test_a_process_of_its_own_needs_only_an_id(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    body = """
use_url_checkpoint_ids()
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
future = dcp.async_save(
    state(7), checkpoint_id=url, async_checkpointer_type=AsyncCheckpointerType.PROCESS
)
getattr(future, "upload_completion", future).result()
print(loaded(checkpoint_id=url))
dist.destroy_process_group()
"""
    assert run(tmp_path, seaweedfs_bucket, body).split() == ["7.0"]
    assert "run/.metadata" in seaweedfs_bucket.keys()


def test_a_url_that_was_a_path_is_refused(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    body = """
use_url_checkpoint_ids()
for call in (dcp.save, dcp.load):
    try:
        call(state(1), checkpoint_id=pathlib.Path(url))
    except InvalidLocationError as error:
        print("pathlib" in str(error))
"""
    assert run(tmp_path, seaweedfs_bucket, body).split() == ["True", "True"]
    assert seaweedfs_bucket.keys() == []


def test_fsspec_sees_what_was_saved(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    body = """
import fsspec
use_url_checkpoint_ids()
fs, path = fsspec.core.url_to_fs(url)
for step in range(2):
    dcp.save(state(step), checkpoint_id=f"{url}/step-{step}")
    print(sum(fs.isfile(f"{name}/.metadata") for name in fs.ls(path, detail=False)))
fs.rm(f"{path}/step-0", recursive=True)
print(fs.exists(f"{path}/step-0"), fs.exists(f"{path}/step-1"))
"""
    assert run(tmp_path, seaweedfs_bucket, body).split() == ["1", "2", "False", "True"]


def test_fsspec_is_left_alone_if_asked(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    body = """
import fsspec
use_url_checkpoint_ids(fsspec=False)
dcp.save(state(3), checkpoint_id=url)
print(loaded(checkpoint_id=url), "s3" in fsspec.registry)
"""
    assert run(tmp_path, seaweedfs_bucket, body).split() == ["3.0", "False"]


def test_other_ids_go_their_way(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    body = """
use_url_checkpoint_ids()
use_url_checkpoint_ids()
dcp.save(state(4), checkpoint_id=folder + "/checkpoint")
dcp.save(state(5), storage_writer=dcp.FileSystemWriter(folder + "/other"))
print(loaded(checkpoint_id=pathlib.Path(folder) / "checkpoint"))
print(loaded(storage_reader=dcp.FileSystemReader(folder + "/other")))
"""
    assert run(tmp_path, seaweedfs_bucket, body).split() == ["4.0", "5.0"]
    assert seaweedfs_bucket.keys() == []


def test_writers_of_local_folders_refuse_urls(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    """Before the opt-in they make a folder named after the scheme, and say nothing."""
    body = """
from torch.distributed.checkpoint import format_utils
torch.save(state(1), "file.pt")
writer = dcp.FileSystemWriter("local")
use_url_checkpoint_ids()
calls = [
    lambda: dcp.FileSystemWriter(url),
    lambda: dcp.FileSystemReader(pathlib.Path(url)),
    lambda: dcp.HuggingFaceStorageWriter(url),
    lambda: dcp.HuggingFaceStorageReader(url),
    lambda: format_utils.torch_save_to_dcp("file.pt", url),
    lambda: format_utils.dcp_to_torch_save(url, "made.pt"),
    lambda: dcp.save(state(1), storage_writer=writer, checkpoint_id=url),
]
for call in calls:
    try:
        call()
    except InvalidLocationError as error:
        print("dcp_core.convert" in str(error) or "pathlib" in str(error))
format_utils.torch_save_to_dcp("file.pt", "made")
print(loaded(storage_reader=dcp.FileSystemReader(pathlib.Path("made"))))
"""
    assert run(tmp_path, seaweedfs_bucket, body).split() == [*["True"] * 7, "1.0"]
    assert seaweedfs_bucket.keys() == []
