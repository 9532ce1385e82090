"""One contract, every store."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from conftest import Bucket

from dcp_core import TransientError
from dcp_core.format.checksum import crc32c
from dcp_core.seam.store import Body, ObjectStore, ReplaceVersion
from dcp_core.testing import (
    ODD_KEYS,
    MemoryStore,
    OpenStore,
    RawBucket,
    StoreContract,
    body_of,
    deviates,
    deviations,
)
from dcp_s3.options import S3Options
from dcp_s3.store import S3Store

_numbers = itertools.count(1)


class RawMemory:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def read(self, key: str) -> bytes:
        return self._store.get(key)[0]

    def write(self, key: str, data: bytes) -> None:
        self._store.put(key, body_of(data))

    def keys(self) -> list[str]:
        return [info.key for info in self._store.list("")]


class TestMemory(StoreContract):
    odd_keys = (*ODD_KEYS, "a//b", "/leading", "trailing/", "../up")

    @pytest.fixture
    def store(self) -> MemoryStore:
        name = f"contract-{next(_numbers)}"
        MemoryStore.create_bucket(name)
        return MemoryStore(name)

    @pytest.fixture
    def raw(self, store: MemoryStore) -> RawBucket:
        return RawMemory(store)

    @pytest.fixture
    def open_store(self) -> OpenStore:
        return MemoryStore


def open_s3(name: str) -> ObjectStore:
    return S3Store(name, S3Options())


class TestSeaweedFS(StoreContract):
    # its keys are paths: it folds "//" and "\\", and takes neither "/leading" nor "trailing/" for an object
    odd_keys = tuple(key for key in ODD_KEYS if "\\" not in key)

    @pytest.fixture
    def raw(self, seaweedfs_bucket: Bucket) -> RawBucket:
        return seaweedfs_bucket

    @pytest.fixture
    def store(self, seaweedfs_bucket: Bucket) -> Iterator[ObjectStore]:
        with contextlib.closing(open_s3(seaweedfs_bucket.name)) as store:
            yield store

    @pytest.fixture
    def open_store(self, seaweedfs_bucket: Bucket) -> OpenStore:
        return open_s3

    @deviates("an administrator's write creates the bucket; a save looks first, and refuses")
    def test_write_to_a_missing_bucket(self, seaweedfs_bucket: Bucket) -> None:
        created = replace(seaweedfs_bucket, name=self.missing_bucket)
        with contextlib.closing(open_s3(created.name)) as store:
            store.put("key", body_of(b"data"))
        assert created.keys() == ["key"]
        created.remove()


class TestLocalStack(StoreContract):
    odd_keys = (*ODD_KEYS, "a//b", "/leading", "trailing/")

    @pytest.fixture
    def raw(self, localstack_bucket: Bucket) -> RawBucket:
        return localstack_bucket

    @pytest.fixture
    def store(self, localstack_bucket: Bucket) -> Iterator[ObjectStore]:
        with contextlib.closing(open_s3(localstack_bucket.name)) as store:
            yield store

    @pytest.fixture
    def open_store(self, localstack_bucket: Bucket) -> OpenStore:
        return open_s3

    @deviates("a PUT over an object is refused only after its bytes took the place of the old ones")
    def test_wrong_checksum_keeps_the_old(self, store: ObjectStore) -> None:
        old = store.put("key", body_of(b"old"))
        with pytest.raises(TransientError):
            store.put("key", Body([b"data"], crc32c(b"other")), ReplaceVersion(old.version))
        assert store.head("key").version == old.version


def test_deviations_are_known() -> None:
    """The reference store has none; others only those that docs/s3-stores.md tells of."""
    assert deviations(StoreContract) == deviations(TestMemory) == {}
    assert list(deviations(TestSeaweedFS)) == ["test_write_to_a_missing_bucket"]
    assert list(deviations(TestLocalStack)) == ["test_wrong_checksum_keeps_the_old"]
