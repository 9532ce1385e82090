"""``dcp-cloud cp``: between clouds and a disk, byte for byte, and never half a checkpoint."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from support.command import PROGRAM, as_json, command, environment, fails
from support.ranks import Ranks
from support.torch_releases import since
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from dcp_core import (
    CheckpointCorruptError,
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
    ConflictError,
)
from dcp_core.format.frames import frame_template
from dcp_core.tools.copying import Copied, copy
from dcp_core.upkeep.shards import Shard
from dcp_core.upkeep.verify import verify_checkpoint

World = Callable[[int], Ranks]

MIB = 1 << 20
#: Parts of the smallest size that S3 takes.
PARTS = {"part_size": 5 * MIB}


def state_of(seed: int) -> dict[str, Any]:
    """Two tensors of 7 MiB, one of 12, and small items."""
    sizes = {"a": 7, "big": 12, "c": 7}
    tensors = {name: scenarios.noise(seed + size, (size, 512, 512)) for name, size in sizes.items()}
    return {**tensors, "small": torch.ones(3), "none": torch.empty(0, 2), "step": seed}


def save(url: str, seed: int = 1) -> None:
    """Three data objects of more than one part each."""
    limits = {"max_object_size": 13 * MIB}
    dcp.save(state_of(seed), storage_writer=CloudStorageWriter(url, limits=limits))


def load(url: str, seed: int = 1) -> None:
    loaded = scenarios.blanked(state_of(seed))
    dcp.load(loaded, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(loaded, state_of(seed))


def held(bucket: Any, prefix: str) -> dict[str, bytes]:
    """What is in a folder of a bucket, by name."""
    return {key.removeprefix(prefix): bucket.read(key) for key in bucket.keys(prefix)}


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_from_a_cloud_to_a_disk_and_back(bucket: Bucket, tmp_path: Path) -> None:
    """Every byte of every object, in parts; the record too, so that it says all it said."""
    url, back = f"{bucket.url}/run", f"{bucket.url}/back"
    save(url)
    original = held(bucket, "run/")
    assert len(original) == 4
    size = sum(len(data) for name, data in original.items() if name != ".metadata")
    found = as_json("cp", url, str(tmp_path / "copy"))
    expected = {"objects": 3, "size": size, "kept": 0, "kept_size": 0, "committed": True}
    assert found == {"from": url, "to": str(tmp_path / "copy"), **expected}
    assert files(tmp_path / "copy") == original
    copy(str(tmp_path / "copy"), back, target_options=PARTS)
    assert held(bucket, "back/") == original
    assert bucket.uploads() == []
    assert verify_checkpoint(back).ok
    load(back)
    assert command("cp", url, back) == f"{back}: 0 objects (0.0 MiB) copied, 3 (26.0 MiB) were there\n"


def test_between_clouds(seaweedfs_bucket: Bucket, gcs_bucket: Any, azure_bucket: Any) -> None:
    save(f"{seaweedfs_bucket.url}/run")
    copy(f"{seaweedfs_bucket.url}/run", f"{gcs_bucket.url}/copy", target_options=PARTS)
    copy(f"{gcs_bucket.url}/copy", f"{azure_bucket.url}/copy", target_options=PARTS)
    assert held(azure_bucket, "copy/") == held(seaweedfs_bucket, "run/")
    load(f"{azure_bucket.url}/copy")


def test_a_copy_that_was_interrupted_goes_on(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    """Nothing is a checkpoint before it is whole, and what is there is not sent again."""
    url, target = f"{seaweedfs_bucket.url}/run", f"{seaweedfs_bucket.url}/copy"
    save(url)
    stored = len(held(seaweedfs_bucket, "run/"))
    faults = {"UploadPart": 1, "CompleteMultipartUpload": 0, "PutObject": 0}
    for operation, skip in faults.items():
        path = r"copy/\.metadata" if operation == "PutObject" else "copy/"
        denied: dict[str, Any] = {"status": 403, "code": "AccessDenied", "times": 99}
        proxy.clear()
        proxy.add(Fault("error", operation=operation, path=path, skip=skip, **denied))
        with pytest.raises(PermissionError):
            copy(url, target, target_options={**PARTS, "concurrency": 1})
        there = held(seaweedfs_bucket, "copy/")
        assert ".metadata" not in there
        assert there.items() <= held(seaweedfs_bucket, "run/").items()
        assert seaweedfs_bucket.uploads() == []
        assert "no committed checkpoint" in fails("verify", target)
    assert len(there) == stored - 1
    proxy.clear()
    report = copy(url, target)
    assert (report.kept, report.objects, report.committed) == (3, 3, True)
    sent = [seen.path for seen in proxy.requests if seen.method in ("PUT", "POST")]
    assert sent == [f"/{seaweedfs_bucket.name}/copy/.metadata"]
    assert held(seaweedfs_bucket, "copy/") == held(seaweedfs_bucket, "run/")


def test_a_copy_that_was_killed_leaves_no_checkpoint(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    """At the worst moment: when all of the data is there, and the record is on its way."""
    url, target = f"{seaweedfs_bucket.url}/run", f"{seaweedfs_bucket.url}/copy"
    save(url)
    proxy.add(Fault("hold", operation="PutObject", path=r"copy/\.metadata"))
    with subprocess.Popen(
        [PROGRAM, "cp", url, target], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert proxy.wait_held(60)
        process.send_signal(signal.SIGKILL)
    proxy.release(drop=True)
    assert len(held(seaweedfs_bucket, "copy/")) == 3
    assert "no committed checkpoint" in fails("show", target)
    # what is left is what gc removes, or the next copy takes
    assert "3 objects" in command("gc", target, "--older-than-hours", "0")
    assert copy(url, target).kept == 3
    load(target)


def test_a_lost_response_to_the_commit_is_settled(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    url, target = f"{seaweedfs_bucket.url}/run", f"{seaweedfs_bucket.url}/copy"
    save(url)
    proxy.add(Fault("lose_response", operation="PutObject", path="copy/", times=1))
    assert copy(url, target).committed
    load(target)


def test_damage_of_the_source_is_not_copied(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    """In any block of any object: nothing is committed, and nothing left uploading."""
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    (key, *_) = (key for key in seaweedfs_bucket.keys() if key.endswith(".distcp"))
    whole = seaweedfs_bucket.read(key)
    for place in (5 * MIB + 17, len(whole) - 8000):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        seaweedfs_bucket.write(key, bytes(damaged))
        for target in (f"{seaweedfs_bucket.url}/copy", str(tmp_path / "copy")):
            with pytest.raises(CheckpointCorruptError, match="do not have the CRC32C") as caught:
                # one at a time: what is cut in the middle of a request may leave an upload, for gc to find
                copy(url, target, target_options={**PARTS, "concurrency": 1})
            assert caught.value.key == key
    assert not any(key.endswith(".metadata") for key in seaweedfs_bucket.keys("copy/"))
    assert not (tmp_path / "copy" / ".metadata").exists()
    assert seaweedfs_bucket.uploads() == []
    seaweedfs_bucket.write(key, whole[:-1])
    with pytest.raises(CheckpointCorruptError, match="the object ends at byte"):
        copy(url, str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("place", [3 * MIB, 1 << 40])
def test_damage_on_the_way_is_read_again(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, tmp_path: Path, place: int
) -> None:
    """In a block, and at the end of a response, which may be that of a frame."""
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    fault = Fault("flip_response", method="GET", path="distcp", after=place, times=1)
    proxy.add(fault)
    # one at a time: the first response is a whole object
    copy(url, str(tmp_path), target_options={**PARTS, "concurrency": 1})
    assert fault.hits > 3
    assert files(tmp_path) == held(seaweedfs_bucket, "run/")


@since(2, 7, "another alignment")
def test_frames_of_another_release_of_torch_are_copied(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    """What is around their tensors is not what this one writes."""
    from torch.utils.serialization import config

    url = f"{seaweedfs_bucket.url}/run"
    before = config.save.storage_alignment
    for alignment in (256, before):
        config.save.storage_alignment = alignment
        frame_template.cache_clear()
        if alignment != before:
            save(url)
    copy(url, str(tmp_path), target_options=PARTS)
    assert files(tmp_path) == held(seaweedfs_bucket, "run/")


def test_what_is_there_and_damaged_is_sent_again(seaweedfs_bucket: Bucket) -> None:
    """Of the right name and size, but not equal; only ``--quick`` does not look."""
    url, target = f"{seaweedfs_bucket.url}/run", f"{seaweedfs_bucket.url}/copy"
    save(url)
    copy(url, target)
    (key, *_) = (key for key in seaweedfs_bucket.keys("copy/") if key.endswith(".distcp"))
    whole = seaweedfs_bucket.read(key)
    seaweedfs_bucket.write(key, whole[: 4 * MIB] + b"x" + whole[4 * MIB + 1 :])
    assert as_json("cp", url, target, "--quick")["kept"] == 3
    assert seaweedfs_bucket.read(key) != whole
    assert as_json("cp", url, target)["kept"] == 2
    assert held(seaweedfs_bucket, "copy/") == held(seaweedfs_bucket, "run/")


def test_another_checkpoint_is_replaced_only_when_asked(bucket: Bucket) -> None:
    url, target = f"{bucket.url}/run", f"{bucket.url}/copy"
    save(url, 1)
    save(target, 2)
    before = held(bucket, "copy/")
    assert "another checkpoint is committed" in fails("cp", url, target)
    assert held(bucket, "copy/") == before
    command("cp", url, target, "--overwrite")
    # the old data is gone, once nothing refers to it
    assert held(bucket, "copy/") == held(bucket, "run/")


def test_a_save_that_commits_meanwhile_wins(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    url, target = f"{seaweedfs_bucket.url}/run", f"{seaweedfs_bucket.url}/copy"
    save(url, 1)
    proxy.add(Fault("hold", operation="PutObject", path=r"copy/\.metadata"))
    outcome: list[BaseException | Copied] = []

    def work() -> None:
        try:
            outcome.append(copy(url, target))
        except ConflictError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert proxy.wait_held(60)
    save(target, 2)
    proxy.release()
    thread.join(60)
    assert isinstance(outcome[0], ConflictError)
    load(target, 2)
    # the copied data is not left behind
    assert len(seaweedfs_bucket.keys("copy/")) == 4


def test_machines_share_a_copy(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    url, target = f"{seaweedfs_bucket.url}/run", f"{seaweedfs_bucket.url}/copy"
    save(url)
    reports = [as_json("cp", url, target, "--shard", f"{number}/2") for number in (2, 1)]
    assert sorted(one["objects"] for one in reports) == [1, 2]
    assert not any(one["committed"] for one in reports)
    assert "no committed checkpoint" in fails("verify", target)
    proxy.clear()
    assert as_json("cp", url, target, "--quick")["committed"] is True
    moved = [seen.path for seen in proxy.requests if "distcp" in seen.path]
    assert moved == []
    assert held(seaweedfs_bucket, "copy/") == held(seaweedfs_bucket, "run/")


def test_machines_share_a_verification(seaweedfs_bucket: Bucket) -> None:
    """Each byte is in one share; what is damaged is told by one of them."""
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    shards = [Shard(number, 3) for number in (1, 2, 3)]
    reports = [verify_checkpoint(url, shard=shard) for shard in shards]
    assert sum(report.checked for report in reports) == reports[0].size == verify_checkpoint(url).checked
    assert all(report.checked for report in reports)
    (key, *_) = (key for key in seaweedfs_bucket.keys() if key.endswith(".distcp"))
    whole = bytearray(seaweedfs_bucket.read(key))
    whole[6 * MIB] ^= 1
    seaweedfs_bucket.write(key, bytes(whole))
    assert sum(len(verify_checkpoint(url, shard=shard).defects) for shard in shards) == 1
    seaweedfs_bucket.delete(key)
    assert [bool(verify_checkpoint(url, shard=shard).defects) for shard in shards] == [True, False, False]
    assert ", shard 2/3" in command("verify", url, "--shard", "2/3")


def test_checkpoints_of_stock_torch_are_converted(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    """Every save of stock torch gives the same names: another one may change them while they are copied."""
    folder, target = tmp_path / "stock", f"{seaweedfs_bucket.url}/copy"
    dcp.save(state_of(1), storage_writer=FileSystemWriter(folder))
    said = fails("cp", str(folder), target)
    assert "objects that this library did not name, as '__0_0.distcp'" in said
    assert "dcp-cloud convert --to dcp" in said
    assert seaweedfs_bucket.keys("copy/") == []
    command("convert", str(folder), target, "--to", "dcp")
    load(target)


@pytest.mark.parametrize("name", [".git/config", "../out", "step-6/.metadata", "latest/x", "__0_0.distcp"])
def test_a_record_can_make_nobody_write_elsewhere(tmp_path: Path, name: str) -> None:
    """Whoever can write one object must not have files written that are none of a checkpoint."""
    source = tmp_path / "source"
    dcp.save({"w": torch.ones(4)}, storage_writer=FileSystemWriter(source))
    metadata = dcp.FileSystemReader(source).read_metadata()
    for info in metadata.storage_data.values():
        info.relative_path = name
    (source / ".metadata").write_bytes(pickle.dumps(metadata))
    assert fails("cp", str(source), str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def saves_without_collectives(url: str) -> None:
    rank = dist.get_rank()
    state = {f"rank {rank}": torch.full((50,), float(rank))}
    dcp.save(state, storage_writer=CloudStorageWriter(url), use_collectives=False)


@since(2, 9, "saving without collectives")
def test_records_of_single_ranks_are_not_copied_nor_hidden(
    seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path
) -> None:
    """They are committed one by one: a copy would show half of them, and one for all would hide them."""
    url, other = f"{seaweedfs_bucket.url}/run", f"{seaweedfs_bucket.url}/other"
    worlds(2).run(saves_without_collectives, url)
    before = held(seaweedfs_bucket, "run/")
    assert "each rank has a commit record of its own" in fails("cp", url, str(tmp_path / "copy"))
    assert "each rank has a commit record of its own" in fails("rm", url, "--yes")
    save(other)
    assert "commit records of single ranks" in fails("cp", other, url, "--overwrite")
    assert held(seaweedfs_bucket, "run/") == before
    seaweedfs_bucket.write("other/__1.metadata", before["__1.metadata"])
    assert "commit records of single ranks" in fails("rm", other, "--yes")
    load(other)


def test_a_refused_request_is_not_taken_for_done_by_what_was_there(
    seaweedfs_bucket: Bucket, proxy: FaultProxy
) -> None:
    """An object of the same name and size, but damaged, that may not be replaced."""
    url, target = f"{seaweedfs_bucket.url}/run", f"{seaweedfs_bucket.url}/copy"
    dcp.save({"w": torch.ones(9)}, storage_writer=CloudStorageWriter(url))
    (name,) = (name for name in held(seaweedfs_bucket, "run/") if name.endswith(".distcp"))
    whole = seaweedfs_bucket.read(f"run/{name}")
    seaweedfs_bucket.write(f"copy/{name}", bytes(len(whole)))
    proxy.add(Fault("error", operation="PutObject", path="distcp", status=403, code="AccessDenied", times=99))
    with pytest.raises(PermissionError):
        copy(url, target)
    assert "copy/.metadata" not in seaweedfs_bucket.keys()


def test_a_committed_copy_loses_nothing_when_it_cannot_be_mended(
    seaweedfs_bucket: Bucket, proxy: FaultProxy
) -> None:
    """What is whole in a damaged object stays, and the copy says that the damage does too."""
    url, target = f"{seaweedfs_bucket.url}/run", f"{seaweedfs_bucket.url}/copy"
    dcp.save({"w": torch.ones(9)}, storage_writer=CloudStorageWriter(url))
    copy(url, target)
    (key,) = (key for key in seaweedfs_bucket.keys("copy/") if key.endswith(".distcp"))
    damaged = bytes(len(seaweedfs_bucket.read(key)))
    seaweedfs_bucket.write(key, damaged)
    proxy.add(Fault("error", operation="PutObject", path="distcp", status=500, times=99))
    with pytest.raises(CloudCheckpointError):
        copy(url, target, target_options={"max_attempts": 2})
    assert seaweedfs_bucket.read(key) == damaged
    proxy.clear()
    assert copy(url, target).committed
    assert seaweedfs_bucket.read(key) == seaweedfs_bucket.read(key.replace("copy/", "run/"))


def test_what_cannot_be_copied(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    assert "no committed checkpoint" in fails("cp", f"{seaweedfs_bucket.url}/none", url)
    assert "are the same place" in fails("cp", url, f"{url}/")
    assert "can only be loaded from" in fails("cp", url, "https://host/run")
    for shard in ("0/2", "3/2", "2", "a/b", "1/2/3", "-1/2", f"1/{'9' * 5000}"):
        assert "a shard is" in fails("cp", url, str(tmp_path), "--shard", shard)
    (tmp_path / "file").write_bytes(b"")
    assert "is no path of a folder" in fails("cp", url, str(tmp_path / "file"))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_disk_that_is_full_or_may_not_be_written(
    seaweedfs_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and nothing left."""
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    full = OSError(28, "No space left on device")

    def refuse(*_: Any) -> None:
        raise full

    monkeypatch.setattr("dcp_core.disk.uploads.shutil.copyfileobj", refuse)
    with pytest.raises(ValueError, match="No space left on device"):
        copy(url, str(tmp_path / "copy"), target_options=PARTS)
    assert not any(path.name == ".metadata" for path in tmp_path.rglob("*"))
    assert not any(".upload" in path.name for path in tmp_path.rglob("*"))
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(tmp_path / "copy")
