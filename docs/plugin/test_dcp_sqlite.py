"""The store keeps the contract."""

from pathlib import Path

import pytest
from dcp_sqlite import SQLiteStore

from dcp_core.testing import OpenStore, RawBucket, StoreContract, body_of


class RawFile:
    """A second store is raw enough here: there is no other way into the file."""

    def __init__(self, folder: Path) -> None:
        self._store = SQLiteStore(folder, "bucket")

    def read(self, key: str) -> bytes:
        return self._store.get(key)[0]

    def write(self, key: str, data: bytes) -> None:
        self._store.put(key, body_of(data))

    def keys(self) -> list[str]:
        return [info.key for info in self._store.list("")]


class TestSQLite(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> SQLiteStore:
        store = SQLiteStore(tmp_path, "bucket")
        store.create()
        return store

    @pytest.fixture
    def raw(self, store: SQLiteStore, tmp_path: Path) -> RawBucket:
        return RawFile(tmp_path)

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda bucket: SQLiteStore(tmp_path, bucket)
