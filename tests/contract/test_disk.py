"""The contract on a folder, where keys are paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcp_core.disk.store import DiskStore
from dcp_core.errors import CloudCheckpointError, ConflictError, UnsupportedError
from dcp_core.seam.store import ObjectStore
from dcp_core.testing import (
    OpenStore,
    RawBucket,
    StoreContract,
    body_of,
    deviates,
    deviations,
)


class RawFolder:
    """Files of a folder, without the code under test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: str) -> bytes:
        return (self._folder / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def keys(self) -> list[str]:
        found = (path for path in self._folder.rglob("*") if path.is_file())
        names = [path.relative_to(self._folder).as_posix() for path in found]
        return sorted(name for name in names if ".upload" not in name)


class TestDisk(StoreContract):
    @pytest.fixture
    def raw(self, tmp_path: Path) -> RawBucket:
        return RawFolder(tmp_path)

    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return DiskStore(str(tmp_path))

    @pytest.fixture
    def open_store(self) -> OpenStore:
        return DiskStore

    @deviates("a file is no folder: 'b' and 'b/2' cannot both be")
    def test_list_by_prefix_in_order(self, store: ObjectStore, raw: RawBucket) -> None:
        for key in ("b/2", "a/1", "b/10", "b.c", "b-c", "c"):
            raw.write(key, key.encode())
        assert [info.key for info in store.list("b/")] == ["b/10", "b/2"]
        assert [(info.key, info.size) for info in store.list("")] == [
            ("a/1", 3), ("b-c", 3), ("b.c", 3), ("b/10", 4), ("b/2", 3), ("c", 1),
        ]  # fmt: skip
        assert list(store.list("none")) == []

    @deviates("a file is no folder: 'a' and 'a/b' cannot both be")
    def test_delete(self, store: ObjectStore, raw: RawBucket) -> None:
        for key in ("a", "b/c", "ab"):
            store.put(key, body_of(b"x"))
        with pytest.raises(CloudCheckpointError):
            store.put("a/b", body_of(b"x"))
        store.delete(["a", "b/c"])
        assert raw.keys() == ["ab"]
        assert [info.key for info in store.list("")] == ["ab"]

    @deviates("a folder that is not there is empty")
    def test_missing_bucket(self, open_store: OpenStore, tmp_path: Path) -> None:
        missing = open_store(str(tmp_path / "missing"))
        assert list(missing.list("")) == []
        assert not (tmp_path / "missing").exists()

    @deviates("a folder is made with its first file")
    def test_write_to_a_missing_bucket(self, open_store: OpenStore, tmp_path: Path) -> None:
        missing = open_store(str(tmp_path / "missing" / "folder"))
        missing.put("key", body_of(b"data"))
        assert (tmp_path / "missing" / "folder" / "key").read_bytes() == b"data"

    def test_keys_stay_below_the_folder(self, store: ObjectStore, tmp_path: Path) -> None:
        outside = tmp_path.parent / "outside"
        for key in ("../outside", "a/../../outside", "/outside", "a//b", "", ".", "a/."):
            for work in (
                lambda key=key: store.put(key, body_of(b"x")),
                lambda key=key: store.get(key),
                lambda key=key: store.delete([key]),
                lambda key=key: store.start_upload(key),
            ):
                with pytest.raises(UnsupportedError):
                    work()
        assert not outside.exists()

    def test_what_a_killed_process_left_is_no_object(self, store: ObjectStore, tmp_path: Path) -> None:
        """It is found as an unfinished upload, and goes with it."""
        left = tmp_path / "run" / ".key.0123456789abcdef.put"
        left.parent.mkdir()
        left.write_bytes(b"half")
        assert list(store.list("")) == []
        (found,) = store.list_uploads("run/")
        assert found.upload.key == "run/key"
        store.abort_upload(found.upload)
        assert list(tmp_path.iterdir()) == []

    def test_an_object_of_the_same_size_is_another_version(self, store: ObjectStore) -> None:
        """However fast they follow each other, and whichever inode they get."""
        versions = [store.put("key", body_of(b"%d" % number)).version for number in range(9)]
        assert len(set(versions)) == 9
        with pytest.raises(ConflictError), store.read_range("key", 0, 1, version=versions[0]):
            pass


def test_deviations_are_known() -> None:
    assert list(deviations(TestDisk)) == [
        "test_delete",
        "test_list_by_prefix_in_order",
        "test_missing_bucket",
        "test_write_to_a_missing_bucket",
    ]
