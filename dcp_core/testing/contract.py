"""What every :class:`~dcp_core.store.ObjectStore` has to do, as a pytest class.

A backend's tests subclass it, give it a store and raw access that bypasses the code under test::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self): ...          # an ObjectStore on an empty bucket

        @pytest.fixture
        def raw(self): ...            # a RawBucket on the same bucket

A store that cannot keep a clause overrides the test, marked with :func:`deviates` and the reason.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import pytest

from dcp_core.errors import (
    CheckpointCorruptError,
    CloudCheckpointError,
    ConflictError,
    ObjectNotFoundError,
    TransientError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.store import Body, CreateOnly, ObjectStore, Part, RangeReader, ReplaceVersion, Upload

__all__ = ["ODD_KEYS", "RawBucket", "StoreContract", "body_of", "deviates"]

_Test = TypeVar("_Test", bound=Callable[..., None])

ODD_KEYS = (
    "with space",
    "ümläut/日本語/emoji-🚀",
    "100%",
    "already%20encoded",
    "a+b=c&d",
    "quotes'\"",
    "<xml>&amp;",
    "semi;colon,comma",
    "tilde~dot.",
    "brackets[0]{1}(2)",
    "q?x=1",
    "hash#tag",
    "back\\slash",
)


class RawBucket(Protocol):
    """Access to the bucket that does not go through the store under test."""

    def read(self, key: str) -> bytes: ...

    def write(self, key: str, data: bytes) -> None: ...

    def keys(self) -> list[str]: ...


def deviates(reason: str) -> Callable[[_Test], _Test]:
    """Mark a test that replaces one of the contract's, with the reason for the replacement."""

    def mark(test: _Test) -> _Test:
        test.__dict__["deviates"] = reason
        return test

    return mark


def body_of(*buffers: bytes) -> Body:
    """A body with the right checksum."""
    return Body(buffers, crc32c(b"".join(buffers)))


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two neighbourhoods look alike."""
    unit = bytes((index * 31 + index // 251 + seed * 7) % 256 for index in range(65521))
    return (unit * (size // len(unit) + 1))[:size]


class StoreContract:
    """The contract. ``store`` and ``raw`` are fixtures of the subclass."""

    #: Keys that the store must keep apart and give back as they are.
    odd_keys: Sequence[str] = ODD_KEYS

    def test_put_get_head(self, store: ObjectStore, raw: RawBucket) -> None:
        data = pattern(100_000)
        put = store.put("a/b", body_of(data))
        assert raw.read("a/b") == data
        got, info = store.get("a/b")
        assert got == data
        head = store.head("a/b")
        assert (info.size, info.version, info.key) == (head.size, head.version, head.key)
        assert (put.size, put.version, head.size) == (len(data), head.version, len(data))

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

    @pytest.mark.parametrize("operation", ["head", "get", "read_range"])
    def test_missing_object(self, store: ObjectStore, operation: str) -> None:
        def ask() -> None:
            if operation == "read_range":
                with store.read_range("missing", 0, 1):
                    pass
            else:
                getattr(store, operation)("missing")

        with pytest.raises(ObjectNotFoundError) as caught:
            ask()
        assert caught.value.key == "missing"
        assert caught.value.bucket == store.bucket

    @pytest.mark.parametrize(
        ("start", "stop"), [(0, 1), (0, 300_000), (299_999, 300_000), (1, 2), (70_000, 200_001)]
    )
    def test_ranges(self, store: ObjectStore, raw: RawBucket, start: int, stop: int) -> None:
        data = pattern(300_000)
        raw.write("key", data)
        with store.read_range("key", start, stop) as reader:
            assert reader.info.size == len(data)
            assert read_all(reader, stop - start) == data[start:stop]

    def test_range_past_the_end(self, store: ObjectStore, raw: RawBucket) -> None:
        raw.write("key", b"0123456789")
        with store.read_range("key", 6, 100) as reader:
            assert read_all(reader, 100) == b"6789"
        with pytest.raises(CheckpointCorruptError), store.read_range("key", 10, 11):
            pass

    def test_range_of_a_version(self, store: ObjectStore) -> None:
        old = store.put("key", body_of(b"old bytes")).version
        with store.read_range("key", 0, 3, version=old) as reader:
            assert read_all(reader, 3) == b"old"
            assert reader.info.version == old
        store.put("key", body_of(b"new bytes"))
        with pytest.raises(ConflictError), store.read_range("key", 0, 3, version=old):
            pass

    def test_range_closed_early(self, store: ObjectStore, raw: RawBucket) -> None:
        data = pattern(1 << 22)
        raw.write("key", data)
        for _ in range(3):
            with store.read_range("key", 0, len(data)) as reader:
                assert read_all(reader, 10) == data[:10]
        with store.read_range("key", 5, 9) as reader:
            assert read_all(reader, 4) == data[5:9]

    def test_create_only(self, store: ObjectStore, raw: RawBucket) -> None:
        store.put("key", body_of(b"first"), CreateOnly())
        with pytest.raises(ConflictError):
            store.put("key", body_of(b"second"), CreateOnly())
        assert raw.read("key") == b"first"

    def test_replace_version(self, store: ObjectStore, raw: RawBucket) -> None:
        first = store.put("key", body_of(b"first"))
        store.put("key", body_of(b"second"), ReplaceVersion(first.version))
        with pytest.raises(ConflictError):
            store.put("key", body_of(b"third"), ReplaceVersion(first.version))
        assert raw.read("key") == b"second"

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
        # a store may answer "try again" while another conditional write is under way
        assert all(isinstance(loser, (ConflictError, TransientError)) for loser in losers)

    def test_multipart(self, store: ObjectStore, raw: RawBucket) -> None:
        size = store.limits.min_part_size
        chunks = [pattern(size, 1), pattern(size, 2), pattern(17, 3)]
        upload = store.start_upload("key")
        parts: dict[int, Part] = {}

        def send(number: int) -> None:
            parts[number] = store.put_part(upload, number + 1, body_of(chunks[number]))

        in_threads(send, 3)
        assert raw.keys() == []
        info = store.finish_upload(upload, [parts[number] for number in range(3)])
        assert info.size == sum(map(len, chunks))
        assert raw.read("key") == b"".join(chunks)
        assert store.head("key").size == info.size
        assert list(store.list_uploads("")) == []

    def test_part_sent_again_replaces(self, store: ObjectStore, raw: RawBucket) -> None:
        size = store.limits.min_part_size
        upload = store.start_upload("key")
        last = store.put_part(upload, 2, body_of(b"end"))
        store.put_part(upload, 1, body_of(pattern(size, 1)))
        first = store.put_part(upload, 1, body_of(pattern(size, 2)))
        store.finish_upload(upload, [first, last])
        assert raw.read("key") == pattern(size, 2) + b"end"

    def test_part_with_wrong_checksum(self, store: ObjectStore) -> None:
        upload = store.start_upload("key")
        with pytest.raises(CloudCheckpointError):
            store.put_part(upload, 1, Body([b"data"], crc32c(b"other")))
        store.abort_upload(upload)

    def test_abort(self, store: ObjectStore, raw: RawBucket) -> None:
        upload = store.start_upload("key")
        part = store.put_part(upload, 1, body_of(b"data"))
        assert [found.upload for found in store.list_uploads("k")] == [upload]
        assert list(store.list_uploads("other")) == []
        store.abort_upload(upload)
        store.abort_upload(upload)
        assert list(store.list_uploads("")) == []
        with pytest.raises(ObjectNotFoundError):
            store.finish_upload(upload, [part])
        with pytest.raises(ObjectNotFoundError):
            store.put_part(Upload("key", upload.upload_id), 1, body_of(b"data"))
        assert raw.keys() == []

    def test_finish_twice(self, store: ObjectStore, raw: RawBucket) -> None:
        """A repeated finish either succeeds again or says that the upload is gone."""
        upload = store.start_upload("key")
        part = store.put_part(upload, 1, body_of(b"data"))
        store.finish_upload(upload, [part])
        with contextlib.suppress(ObjectNotFoundError):
            store.finish_upload(upload, [part])
        assert raw.read("key") == b"data"

    def test_odd_keys(self, store: ObjectStore, raw: RawBucket) -> None:
        for key in self.odd_keys:
            store.put(key, body_of(key.encode()))
            assert store.get(key)[0] == key.encode()
            with store.read_range(key, 0, 1) as reader:
                assert read_all(reader, 1) == key.encode()[:1]
        assert sorted(raw.keys()) == sorted(self.odd_keys)
        assert sorted(info.key for info in store.list("")) == sorted(self.odd_keys)
        store.delete(self.odd_keys)
        assert raw.keys() == []

    def test_odd_keys_multipart(self, store: ObjectStore, raw: RawBucket) -> None:
        for key in self.odd_keys:
            upload = store.start_upload(key)
            assert [found.upload for found in store.list_uploads(key)] == [upload]
            store.finish_upload(upload, [store.put_part(upload, 1, body_of(key.encode()))])
            assert raw.read(key) == key.encode()

    def test_list_by_prefix_in_order(self, store: ObjectStore, raw: RawBucket) -> None:
        for key in ("b/2", "a/1", "b/10", "b", "c"):
            raw.write(key, key.encode())
        assert [info.key for info in store.list("b/")] == ["b/10", "b/2"]
        assert [(info.key, info.size) for info in store.list("")] == [
            ("a/1", 3), ("b", 1), ("b/10", 4), ("b/2", 3), ("c", 1),
        ]  # fmt: skip
        assert list(store.list("none")) == []

    def test_list_and_delete_more_than_a_page(self, store: ObjectStore, raw: RawBucket) -> None:
        keys = [f"many/{number:04}" for number in range(1005)]

        def write(worker: int) -> None:
            for key in keys[worker::8]:
                store.put(key, body_of(b"x"))

        in_threads(write, 8)
        assert [info.key for info in store.list("many/")] == keys
        store.delete([*keys, "many/absent"])
        assert raw.keys() == []

    def test_delete_of_nothing(self, store: ObjectStore) -> None:
        store.delete([])
        store.delete(["absent"])

    def test_large_object(self, store: ObjectStore) -> None:
        data = pattern(24 << 20)
        store.put("large", body_of(data))
        with store.read_range("large", 1, len(data)) as reader:
            assert read_all(reader, len(data)) == data[1:]


def read_all(reader: RangeReader, most: int) -> bytes:
    """Up to ``most`` bytes of what is left."""
    buffer = memoryview(bytearray(most))
    count = 0
    while count < most and (received := reader.readinto(buffer[count:])):
        count += received
    return bytes(buffer[:count])


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Run ``work(0) … work(count - 1)`` at once; the first error is raised here."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        # raised below, in the test's own thread
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
