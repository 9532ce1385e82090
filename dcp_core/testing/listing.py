"""The contract's clauses on listing, deleting and the bucket as a whole."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone

import pytest

from dcp_core.errors import BucketNotFoundError, ConflictError, ObjectNotFoundError, UnsupportedError
from dcp_core.seam.store import CommonPrefix, ObjectInfo, ObjectStore
from dcp_core.testing.deviation import Contract
from dcp_core.testing.material import OpenStore, RawBucket, body_of, in_threads

__all__ = ["ListContract"]


class ListContract(Contract):
    """``list`` and ``delete``. Fixtures of the subclass: ``store``, ``raw``, ``open_store``."""

    #: Name of a bucket that is not there.
    missing_bucket = "no-such-bucket-of-the-contract"

    def test_list_by_prefix_in_order(self, store: ObjectStore, raw: RawBucket) -> None:
        for key in ("b/2", "a/1", "b/10", "b", "c"):
            raw.write(key, key.encode())
        assert [info.key for info in store.list("b/")] == ["b/10", "b/2"]
        assert [(info.key, info.size) for info in store.list("")] == [
            ("a/1", 3), ("b", 1), ("b/10", 4), ("b/2", 3), ("c", 1),
        ]  # fmt: skip
        assert list(store.list("none")) == []

    def test_prefix_is_no_folder(self, store: ObjectStore, raw: RawBucket) -> None:
        """A prefix is the beginning of a key and may end anywhere."""
        for key in ("run/step-1/a", "run/step-10/a", "run/step-2/a", "running"):
            raw.write(key, b"x")
        assert [info.key for info in store.list("run/step-1")] == ["run/step-1/a", "run/step-10/a"]
        assert [info.key for info in store.list("run")] == [
            "run/step-1/a", "run/step-10/a", "run/step-2/a", "running",
        ]  # fmt: skip

    def test_listed_facts(self, store: ObjectStore, raw: RawBucket) -> None:
        """The version is the one that conditions take; the time tells what is old enough to remove."""
        raw.write("key", b"data")
        (listed,) = store.list("key")
        head = store.head("key")
        assert (listed.key, listed.size, listed.version) == (head.key, head.size, head.version)
        assert listed.modified is not None
        assert abs(datetime.now(timezone.utc) - listed.modified) < timedelta(hours=1)

    def test_list_rolled(self, store: ObjectStore, raw: RawBucket) -> None:
        """Keys with the delimiter behind the prefix are one entry; it may have several characters."""
        for key in ("run/a/__0", "run/a/__1", "run/a/.metadata", "run/b/__0", "run/c", "running/__0"):
            raw.write(key, b"x")
        assert _rolled(store, "run/", "/__") == (["run/a/.metadata", "run/c"], ["run/a", "run/b"])
        assert _rolled(store, "run/", "/") == (["run/c"], ["run/a", "run/b"])
        assert _rolled(store, "run/a", "/__") == (["run/a/.metadata"], ["run/a"])
        assert _rolled(store, "none", "/") == ([], [])

    def test_list_rolled_more_than_a_page(self, store: ObjectStore) -> None:
        groups = [f"many/{number:04}" for number in range(600)]

        def write(worker: int) -> None:
            for group in groups[worker::8]:
                store.put(f"{group}/__0", body_of(b"x"))
                store.put(f"{group}/.metadata", body_of(b"x"))

        in_threads(write, 8)
        assert _rolled(store, "many/", "/__") == ([f"{group}/.metadata" for group in groups], groups)

    def test_list_and_delete_more_than_a_page(self, store: ObjectStore, raw: RawBucket) -> None:
        keys = [f"many/{number:04}" for number in range(1005)]

        def write(worker: int) -> None:
            for key in keys[worker::8]:
                store.put(key, body_of(b"x"))

        in_threads(write, 8)
        assert [info.key for info in store.list("many/")] == keys
        store.delete([*keys, "many/absent"])
        assert raw.keys() == []

    def test_delete(self, store: ObjectStore, raw: RawBucket) -> None:
        for key in ("a", "a/b", "ab"):
            store.put(key, body_of(b"x"))
        store.delete(["a"])
        assert sorted(raw.keys()) == ["a/b", "ab"]
        assert [info.key for info in store.list("")] == ["a/b", "ab"]

    def test_delete_of_nothing(self, store: ObjectStore) -> None:
        store.delete([])
        store.delete(["absent"])

    def test_delete_of_a_version(self, store: ObjectStore, raw: RawBucket) -> None:
        """Only of that one; what is there by now stays. A store that cannot says so, and deletes nothing."""
        old = store.put("key", body_of(b"old")).version
        new = store.put("key", body_of(b"newer")).version
        with pytest.raises((ConflictError, UnsupportedError)) as caught:
            store.delete_version("key", old)
        assert (caught.value.bucket, caught.value.key) == (store.bucket, "key")
        assert raw.read("key") == b"newer"
        if isinstance(caught.value, UnsupportedError):
            return
        store.delete_version("key", new)
        assert raw.keys() == []
        with contextlib.suppress(ObjectNotFoundError, ConflictError):
            store.delete_version("key", new)
        assert raw.keys() == []

    def test_another_store_sees_it_at_once(
        self, store: ObjectStore, raw: RawBucket, open_store: OpenStore
    ) -> None:
        """What one rank wrote, another reads and lists without delay; closing one leaves the others."""
        other = open_store(store.bucket)
        store.put("key", body_of(b"data"))
        assert other.get("key")[0] == b"data"
        assert [info.key for info in other.list("")] == ["key"]
        other.close()
        store.delete(["key"])
        with contextlib.closing(open_store(store.bucket)) as third:
            assert list(third.list("")) == []
        assert raw.keys() == []

    def test_missing_bucket(self, open_store: OpenStore) -> None:
        """Not an absent checkpoint: nothing was ever saved there, and nothing can be."""
        with contextlib.closing(open_store(self.missing_bucket)) as store:
            for ask in (lambda: store.get("key"), lambda: list(store.list(""))):
                with pytest.raises(BucketNotFoundError) as caught:
                    ask()
                assert caught.value.bucket == self.missing_bucket

    def test_write_to_a_missing_bucket(self, open_store: OpenStore) -> None:
        with contextlib.closing(open_store(self.missing_bucket)) as store:
            for write in (lambda: store.put("key", body_of(b"data")), lambda: store.start_upload("key")):
                with pytest.raises(BucketNotFoundError) as caught:
                    write()
                assert caught.value.bucket == self.missing_bucket


def _rolled(store: ObjectStore, prefix: str, delimiter: str) -> tuple[list[str], list[str]]:
    """Keys, and what the others have in common but for the delimiter; both in order."""
    listed = list(store.list_rolled(prefix, delimiter))
    keys = [entry.key for entry in listed if isinstance(entry, ObjectInfo)]
    common = [entry.prefix for entry in listed if isinstance(entry, CommonPrefix)]
    return sorted(keys), sorted(one.rstrip(delimiter) for one in common)
