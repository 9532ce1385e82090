"""Buckets through fsspec, as trainers look into them."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from fsspec.registry import _registry

from dcp_core import (
    CloudStorageWriter,
    ObjectNotFoundError,
    PermissionDeniedError,
    TransientError,
    UnsupportedError,
)
from dcp_core.integrations.filesystem import register_file_systems

MIB = 1 << 20


@pytest.fixture
def fs(bucket: Bucket) -> Iterator[Any]:
    scheme = bucket.url.partition(":")[0]
    with registered(scheme) as found:
        yield found


@contextlib.contextmanager
def registered(scheme: str, **options: Any) -> Iterator[Any]:
    """What fsspec opens URLs of ``scheme`` with, for as long as this lasts."""
    known = dict(_registry)
    register_file_systems([scheme], options)
    try:
        yield fsspec.filesystem(scheme)
    finally:
        _registry.clear()
        _registry.update(known)


def save(url: str) -> None:
    dcp.save({"weights": torch.arange(100)}, storage_writer=CloudStorageWriter(url))


def steps(fs: Any, run: str) -> list[str]:
    """As trainers find them: folders that hold a record."""
    found = [entry["name"] for entry in fs.ls(run) if entry["type"] == "directory"]
    return [name.rpartition("/")[2] for name in found if fs.isfile(f"{name}/.metadata")]


def test_a_new_step_is_seen_at_once(bucket: Bucket, fs: Any) -> None:
    run = f"{bucket.url}/run"
    assert not fs.exists(run)
    with pytest.raises(FileNotFoundError):
        fs.ls(run)
    for count in (1, 2):
        save(f"{run}/step-{count}")
        assert steps(fs, run) == [f"step-{number}" for number in range(1, count + 1)]
    assert fs.isdir(run)
    assert fs.isdir(bucket.url)
    record = f"{run}/step-1/.metadata"
    assert fs.info(record)["size"] == len(bucket.read("run/step-1/.metadata"))
    assert fs.cat(record) == bucket.read("run/step-1/.metadata")
    assert fs.modified(record) is not None


def test_a_deleted_step_is_gone(bucket: Bucket, fs: Any) -> None:
    run = f"{bucket.url}/run"
    save(f"{run}/step-1")
    save(f"{run}/step-2")
    with pytest.raises(IsADirectoryError, match="recursive=True"):
        fs.rm(f"{run}/step-1")
    fs.rm(f"{run}/step-1", recursive=True)
    assert not fs.exists(f"{run}/step-1")
    assert steps(fs, run) == ["step-2"]
    assert all(key.startswith("run/step-2/") for key in bucket.keys("run/") if not key.endswith("/"))
    with pytest.raises(ObjectNotFoundError):
        fs.rm(f"{run}/step-7", recursive=True)
    fs.rm(f"{run}/step-2/.metadata")
    assert steps(fs, run) == []


def test_the_record_goes_first(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    save(f"{seaweedfs_bucket.url}/run")
    proxy.clear()
    with registered("s3") as fs:
        fs.rm(f"{seaweedfs_bucket.url}/run", recursive=True)
    deleted = [seen for seen in proxy.requests if seen.operation.startswith("DeleteObject")]
    assert len(deleted) == 2
    assert [key for key in seaweedfs_bucket.keys() if not key.endswith("/")] == []


@pytest.mark.parametrize("size", [0, 1, 300_000, 11 * MIB + 7])
def test_what_is_written_is_read(bucket: Bucket, fs: Any, size: int) -> None:
    path, data = f"{bucket.url}/folder/ümläut %20 file", bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    with fs.open(path, "wb", block_size=5 * MIB) as file:
        for start in range(0, size, 700_001):
            file.write(data[start : start + 700_001])
        assert not fs.exists(path)
    assert bucket.read("folder/ümläut %20 file") == data
    assert fs.cat(path) == data
    with fs.open(path, "rb") as file:
        file.seek(size // 2)
        assert file.read(1000) == data[size // 2 : size // 2 + 1000]
    fs.copy(path, f"{bucket.url}/copy")
    assert bucket.read("copy") == data
    assert bucket.uploads() == []


def test_an_error_while_writing_leaves_nothing(bucket: Bucket, fs: Any) -> None:
    path = f"{bucket.url}/file"

    def write() -> None:
        with fs.open(path, "wb", block_size=5 * MIB) as file:
            file.write(bytes(12 * MIB))
            raise RuntimeError("the writer's own")

    with pytest.raises(RuntimeError, match="the writer's own"):
        write()
    assert not fs.exists(path)
    assert bucket.uploads() == []
    assert bucket.keys() == []


def test_a_store_that_does_not_say_is_an_error_and_nothing_missing(
    seaweedfs_bucket: Bucket, proxy: FaultProxy
) -> None:
    """fsspec's own methods say "no" to whatever is raised, and a trainer begins anew."""
    save(f"{seaweedfs_bucket.url}/run")
    record = f"{seaweedfs_bucket.url}/run/.metadata"
    with registered("s3", max_attempts=1) as fs:
        assert fs.exists(record)
        assert fs.isfile(record)
        assert not fs.isdir(record)
        for operation in ("HeadObject", "ListObjectsV2"):
            proxy.add(Fault("error", operation=operation, status=503, code="SlowDown", times=99))
        for ask in (fs.exists, fs.isdir, fs.isfile):
            with pytest.raises(TransientError):
                ask(record)
        proxy.clear()
        proxy.add(Fault("error", operation="ListObjectsV2", status=403, code="AccessDenied", times=99))
        for ask in (fs.exists, fs.isdir):
            with pytest.raises(PermissionDeniedError):
                ask(f"{seaweedfs_bucket.url}/run")
        assert not fs.isfile(f"{seaweedfs_bucket.url}/run/.nothing")


def test_objects_are_not_appended_to(bucket: Bucket, fs: Any) -> None:
    """fsspec's own way would have the new part in the place of the whole."""
    bucket.write("log.csv", b"head")
    with pytest.raises(UnsupportedError, match="cannot be appended to"):
        fs.open(f"{bucket.url}/log.csv", "ab")
    assert bucket.read("log.csv") == b"head"


def test_a_new_file_replaces_none(bucket: Bucket, fs: Any) -> None:
    path = f"{bucket.url}/new"
    with fs.open(path, "xb") as file:
        file.write(b"first")
    with pytest.raises(FileExistsError):
        fs.open(path, "xb")
    assert bucket.read("new") == b"first"


def test_what_is_never_closed_is_no_file(bucket: Bucket, fs: Any, caplog: pytest.LogCaptureFixture) -> None:
    """As when its writer failed."""
    file = fs.open(f"{bucket.url}/half", "wb")
    file.write(b"half")
    with caplog.at_level(logging.WARNING, "dcp_core"):
        del file
        gc.collect()
    assert bucket.keys() == []
    assert "never closed" in caplog.text
