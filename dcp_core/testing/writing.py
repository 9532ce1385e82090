"""The contract's clauses on writing in one request, with conditions and races."""

from __future__ import annotations

import threading

import pytest

from dcp_core.errors import (
    CheckpointCorruptError,
    CloudCheckpointError,
    ConflictError,
    ObjectNotFoundError,
    TransientError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.seam.store import Body, CreateOnly, ObjectStore, ReplaceVersion
from dcp_core.testing.deviation import Contract
from dcp_core.testing.material import RawBucket, body_of, in_threads, pattern, read_all

__all__ = ["WriteContract"]


class WriteContract(Contract):
    """``put`` and its conditions. ``store`` and ``raw`` are fixtures of the subclass."""

    def test_put_get_head(self, store: ObjectStore, raw: RawBucket) -> None:
        data = pattern(100_000)
        put = store.put("a/b", body_of(data))
        assert raw.read("a/b") == data
        got, info = store.get("a/b")
        assert got == data
        head = store.head("a/b")
        assert (info.size, info.version, info.key) == (head.size, head.version, head.key)
        assert (put.key, put.size, put.version, head.size) == ("a/b", len(data), head.version, len(data))

    def test_put_replaces(self, store: ObjectStore, raw: RawBucket) -> None:
        first = store.put("key", body_of(b"first"))
        second = store.put("key", body_of(b"second"))
        assert raw.read("key") == b"second"
        assert first.version != second.version

    def test_body_of_many_buffers(self, store: ObjectStore, raw: RawBucket) -> None:
        buffers = [b"", pattern(3), b"", pattern(1 << 21, 1), pattern(1, 2), b""]
        store.put("key", body_of(*buffers))
        assert raw.read("key") == b"".join(buffers)

    def test_empty_object(self, store: ObjectStore, raw: RawBucket) -> None:
        assert store.put("empty", body_of()).size == 0
        assert raw.read("empty") == b""
        assert store.get("empty")[0] == b""
        with pytest.raises(CheckpointCorruptError), store.read_range("empty", 0, 1):
            pass

    def test_wrong_checksum_stores_nothing(self, store: ObjectStore, raw: RawBucket) -> None:
        with pytest.raises(CloudCheckpointError):
            store.put("key", Body([b"data"], crc32c(b"other")))
        assert raw.keys() == []

    def test_wrong_checksum_keeps_the_old(self, store: ObjectStore, raw: RawBucket) -> None:
        old = store.put("key", body_of(b"old"))
        with pytest.raises(CloudCheckpointError):
            store.put("key", Body([b"data"], crc32c(b"other")), ReplaceVersion(old.version))
        assert raw.read("key") == b"old"
        assert store.head("key").version == old.version

    def test_create_only(self, store: ObjectStore, raw: RawBucket) -> None:
        store.put("key", body_of(b"first"), CreateOnly())
        with pytest.raises(ConflictError) as caught:
            store.put("key", body_of(b"second"), CreateOnly())
        assert (caught.value.bucket, caught.value.key) == (store.bucket, "key")
        assert raw.read("key") == b"first"

    def test_create_only_after_a_delete(self, store: ObjectStore, raw: RawBucket) -> None:
        store.put("key", body_of(b"first"), CreateOnly())
        store.delete(["key"])
        store.put("key", body_of(b"second"), CreateOnly())
        assert raw.read("key") == b"second"

    def test_create_only_of_an_empty_object(self, store: ObjectStore, raw: RawBucket) -> None:
        """An object without bytes is an object."""
        store.put("key", body_of(), CreateOnly())
        with pytest.raises(ConflictError):
            store.put("key", body_of(b"second"), CreateOnly())
        assert raw.read("key") == b""

    def test_replace_version(self, store: ObjectStore, raw: RawBucket) -> None:
        first = store.put("key", body_of(b"first"))
        second = store.put("key", body_of(b"second"), ReplaceVersion(first.version))
        with pytest.raises(ConflictError) as caught:
            store.put("key", body_of(b"third"), ReplaceVersion(first.version))
        assert (caught.value.bucket, caught.value.key) == (store.bucket, "key")
        assert raw.read("key") == b"second"
        store.put("key", body_of(b"fourth"), ReplaceVersion(second.version))
        assert raw.read("key") == b"fourth"

    def test_replace_version_that_was_read(self, store: ObjectStore, raw: RawBucket) -> None:
        """Every way to learn a version gives one that a condition takes."""
        raw.write("key", b"0")
        store.put("key", body_of(b"1"), ReplaceVersion(store.head("key").version))
        store.put("key", body_of(b"2"), ReplaceVersion(store.get("key")[1].version))
        with store.read_range("key", 0, 1) as reader:
            assert read_all(reader, 1) == b"2"
        store.put("key", body_of(b"3"), ReplaceVersion(reader.info.version))
        (listed,) = store.list("key")
        store.put("key", body_of(b"4"), ReplaceVersion(listed.version))
        assert raw.read("key") == b"4"

    def test_replace_version_of_nothing(self, store: ObjectStore, raw: RawBucket) -> None:
        """The object is gone: a conflict, or said outright. Never a new object."""
        old = store.put("key", body_of(b"first"))
        store.delete(["key"])
        with pytest.raises((ConflictError, ObjectNotFoundError)):
            store.put("key", body_of(b"second"), ReplaceVersion(old.version))
        assert raw.keys() == []

    @pytest.mark.parametrize("replacing", [False, True])
    def test_one_of_many_racers_wins(self, store: ObjectStore, raw: RawBucket, replacing: bool) -> None:
        condition = ReplaceVersion(store.put("key", body_of(b"old")).version) if replacing else CreateOnly()
        outcomes: list[bytes | CloudCheckpointError] = []
        together = threading.Barrier(6)

        def race(number: int) -> None:
            data = b"racer %d" % number
            together.wait()
            try:
                store.put("key", body_of(data), condition)
                outcomes.append(data)
            except CloudCheckpointError as error:
                outcomes.append(error)

        in_threads(race, 6)
        winners = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
        losers = [outcome for outcome in outcomes if not isinstance(outcome, bytes)]
        assert winners == [raw.read("key")]
        # a store may respond with "try again" while another conditional write is under way
        assert all(isinstance(loser, (ConflictError, TransientError)) for loser in losers)

    def test_replaced_under_readers(self, store: ObjectStore) -> None:
        """A reader gets one version whole, or an error: never a mixture."""
        versions = [pattern(1 << 20, seed) for seed in (1, 2)]
        store.put("key", body_of(versions[0]))

        def work(number: int) -> None:
            for step in range(6):
                if number == 0:
                    store.put("key", body_of(versions[step % 2]))
                    continue
                try:
                    data, info = store.get("key")
                except (ConflictError, TransientError):
                    continue
                assert data in versions
                assert info.size == len(data)

        in_threads(work, 4)

    def test_odd_keys(self, store: ObjectStore, raw: RawBucket) -> None:
        for key in self.odd_keys:
            store.put(key, body_of(key.encode()))
            assert store.get(key)[0] == key.encode()
            with store.read_range(key, 0, 1) as reader:
                assert read_all(reader, 1) == key.encode()[:1]
        assert sorted(raw.keys()) == sorted(self.odd_keys)
        assert sorted(info.key for info in store.list("")) == sorted(self.odd_keys)
        for key in self.odd_keys:
            assert [info.key for info in store.list(key)] == [key]
        store.delete(self.odd_keys)
        assert raw.keys() == []

    def test_large_object(self, store: ObjectStore) -> None:
        data = pattern(24 << 20)
        store.put("large", body_of(data))
        with store.read_range("large", 1, len(data)) as reader:
            assert read_all(reader, len(data)) == data[1:]
