"""One contract, every store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from conftest import Bucket
from gcs_bucket import GCSBucket

from dcp_core.store import ObjectStore
from dcp_core.testing import MemoryStore, StoreContract
from dcp_core.testing.contract import ODD_KEYS, RawBucket, body_of
from dcp_gcs.options import GCSOptions
from dcp_gcs.store import GCSStore
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


class TestSeaweedFS(StoreContract):
    # its keys are paths: it folds "//" and "\\", and takes neither "/leading" nor "trailing/" for an object
    odd_keys = tuple(key for key in ODD_KEYS if "\\" not in key)

    @pytest.fixture
    def raw(self, seaweedfs_bucket: Bucket) -> RawBucket:
        return seaweedfs_bucket

    @pytest.fixture
    def store(self, seaweedfs_bucket: Bucket) -> Iterator[ObjectStore]:
        store = S3Store(seaweedfs_bucket.name, S3Options())
        yield store
        store.close()


class TestLocalStack(StoreContract):
    odd_keys = (*ODD_KEYS, "a//b", "/leading", "trailing/")

    @pytest.fixture
    def raw(self, localstack_bucket: Bucket) -> RawBucket:
        return localstack_bucket

    @pytest.fixture
    def store(self, localstack_bucket: Bucket) -> Iterator[ObjectStore]:
        store = S3Store(localstack_bucket.name, S3Options())
        yield store
        store.close()


class TestGCS(StoreContract):
    odd_keys = (*ODD_KEYS, "a//b", "/leading", "trailing/", "../up")

    @pytest.fixture
    def raw(self, gcs_bucket: GCSBucket) -> RawBucket:
        return gcs_bucket

    @pytest.fixture
    def store(self, gcs_bucket: GCSBucket) -> Iterator[ObjectStore]:
        store = GCSStore(gcs_bucket.name, GCSOptions())
        yield store
        store.close()
