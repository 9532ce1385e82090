"""The contract's clauses on reading. Objects come from raw access, so that a read-only store has them too."""

from __future__ import annotations

import pytest

from dcp_core.errors import CheckpointCorruptError, ConflictError, ObjectNotFoundError
from dcp_core.seam.store import ReadableStore
from dcp_core.testing.deviation import Contract
from dcp_core.testing.material import RawBucket, in_threads, pattern, read_all

__all__ = ["ReadContract"]

_SIZE = 300_000


def _ask(store: ReadableStore, operation: str, key: str) -> None:
    if operation == "read_range":
        with store.read_range(key, 0, 1):
            pass
    else:
        getattr(store, operation)(key)


class ReadContract(Contract):
    """``head``, ``get`` and ``read_range``. ``store`` and ``raw`` are fixtures of the subclass."""

    def test_get_and_head(self, store: ReadableStore, raw: RawBucket) -> None:
        data = pattern(100_000)
        raw.write("a/b", data)
        got, info = store.get("a/b")
        assert got == data
        assert isinstance(got, bytes)
        head = store.head("a/b")
        assert (info.size, info.version, info.key) == (head.size, head.version, head.key)
        assert (head.key, head.size) == ("a/b", len(data))
        assert head.version

    def test_version_changes(self, store: ReadableStore, raw: RawBucket) -> None:
        raw.write("key", b"first")
        first = store.head("key").version
        assert store.head("key").version == first
        raw.write("key", b"other")
        assert store.head("key").version != first

    def test_times_have_a_zone(self, store: ReadableStore, raw: RawBucket) -> None:
        """What failed saves left is told by its age."""
        raw.write("key", b"data")
        modified = store.head("key").modified
        assert modified is None or modified.utcoffset() is not None

    def test_get_of_empty(self, store: ReadableStore, raw: RawBucket) -> None:
        raw.write("empty", b"")
        assert store.head("empty").size == 0
        assert store.get("empty")[0] == b""
        with pytest.raises(CheckpointCorruptError), store.read_range("empty", 0, 1):
            pass

    @pytest.mark.parametrize("operation", ["head", "get", "read_range"])
    def test_missing_object(self, store: ReadableStore, operation: str) -> None:
        with pytest.raises(ObjectNotFoundError) as caught:
            _ask(store, operation, "missing")
        assert caught.value.key == "missing"
        assert caught.value.bucket == store.bucket

    @pytest.mark.parametrize("operation", ["head", "get", "read_range"])
    def test_folder_is_no_object(self, store: ReadableStore, raw: RawBucket, operation: str) -> None:
        raw.write("folder/key", b"data")
        with pytest.raises(ObjectNotFoundError):
            _ask(store, operation, "folder")

    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, 1), (0, _SIZE), (_SIZE - 1, _SIZE), (1, 2), (70_000, 200_001), (65_536, 131_072)],
    )
    def test_ranges(self, store: ReadableStore, raw: RawBucket, start: int, stop: int) -> None:
        data = pattern(_SIZE)
        raw.write("key", data)
        with store.read_range("key", start, stop) as reader:
            assert reader.info.size == len(data)
            assert reader.info.key == "key"
            assert reader.info.version == store.head("key").version
            assert read_all(reader, stop - start) == data[start:stop]
            assert reader.readinto(memoryview(bytearray(1))) == 0

    def test_range_past_the_end(self, store: ReadableStore, raw: RawBucket) -> None:
        raw.write("key", b"0123456789")
        with store.read_range("key", 6, 100) as reader:
            assert reader.info.size == 10
            assert read_all(reader, 100) == b"6789"
        for start in (10, 11, 1 << 40):
            with pytest.raises(CheckpointCorruptError) as caught, store.read_range("key", start, start + 1):
                pass
            assert (caught.value.bucket, caught.value.key) == (store.bucket, "key")

    def test_only_what_was_received_is_written(self, store: ReadableStore, raw: RawBucket) -> None:
        """A target may be larger than the range: a neighbour's bytes stay as they are."""
        data = pattern(100_000)
        raw.write("key", data)
        target = memoryview(bytearray(b"\xee" * 200_000))
        count = 0
        with store.read_range("key", 10, 90_010) as reader:
            while received := reader.readinto(target[count:]):
                assert received > 0
                count += received
        assert count == 90_000
        assert target[:count] == data[10:90_010]
        assert target[count:] == b"\xee" * (200_000 - count)

    def test_small_steps(self, store: ReadableStore, raw: RawBucket) -> None:
        """Targets of any size, as headers and rows of tensors make them."""
        data = pattern(50_000)
        raw.write("key", data)
        got = b""
        with store.read_range("key", 0, len(data)) as reader:
            for size in (1, 7, 1, 4096, 3, 20_000, 65_536):
                got += read_all(reader, min(size, len(data) - len(got)))
        assert got == data

    def test_range_of_a_version(self, store: ReadableStore, raw: RawBucket) -> None:
        raw.write("key", b"old bytes")
        old = store.head("key").version
        with store.read_range("key", 0, 3, version=old) as reader:
            assert read_all(reader, 3) == b"old"
            assert reader.info.version == old
        raw.write("key", b"newer bytes")
        with pytest.raises(ConflictError) as caught, store.read_range("key", 0, 3, version=old):
            pass
        assert (caught.value.bucket, caught.value.key) == (store.bucket, "key")

    def test_range_closed_early(self, store: ReadableStore, raw: RawBucket) -> None:
        data = pattern(1 << 22)
        raw.write("key", data)
        for _ in range(3):
            with store.read_range("key", 0, len(data)) as reader:
                assert read_all(reader, 10) == data[:10]
        with store.read_range("key", 5, 9) as reader:
            assert read_all(reader, 4) == data[5:9]

    def test_error_inside_a_range(self, store: ReadableStore, raw: RawBucket) -> None:
        """An error of the one who reads is theirs, and the store goes on."""
        raw.write("key", pattern(1 << 20))

        def fail() -> None:
            with store.read_range("key", 0, 1 << 20) as reader:
                read_all(reader, 10)
                raise ZeroDivisionError

        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                fail()
        assert store.head("key").size == 1 << 20

    def test_two_ranges_open_at_once(self, store: ReadableStore, raw: RawBucket) -> None:
        data = pattern(200_000)
        raw.write("key", data)
        with (
            store.read_range("key", 0, 100_000) as first,
            store.read_range("key", 100_000, 200_000) as second,
        ):
            mixed = [read_all(reader, 50_000) for reader in (first, second, first, second)]
        assert mixed[0] + mixed[2] + mixed[1] + mixed[3] == data

    def test_many_threads_read(self, store: ReadableStore, raw: RawBucket) -> None:
        data = pattern(1 << 20)
        raw.write("key", data)

        def read(number: int) -> None:
            for step in range(8):
                start = (number * 8 + step) << 14
                with store.read_range("key", start, start + (1 << 14)) as reader:
                    assert read_all(reader, 1 << 14) == data[start : start + (1 << 14)]

        in_threads(read, 8)

    def test_odd_keys_are_read(self, store: ReadableStore, raw: RawBucket) -> None:
        for key in self.odd_keys:
            raw.write(key, key.encode())
        for key in self.odd_keys:
            assert store.get(key)[0] == key.encode()
            assert store.head(key).size == len(key.encode())
            with store.read_range(key, 0, 1) as reader:
                assert read_all(reader, 1) == key.encode()[:1]
                assert reader.info.key == key

    def test_large_object_is_read(self, store: ReadableStore, raw: RawBucket) -> None:
        data = pattern(24 << 20)
        raw.write("large", data)
        with store.read_range("large", 1, len(data)) as reader:
            assert read_all(reader, len(data)) == data[1:]

    def test_close_twice(self, store: ReadableStore, raw: RawBucket) -> None:
        raw.write("key", b"data")
        assert store.get("key")[0] == b"data"
        store.close()
        store.close()
