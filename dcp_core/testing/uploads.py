"""The contract's clauses on multipart uploads."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest

from dcp_core.errors import CloudCheckpointError, ObjectNotFoundError
from dcp_core.format.checksum import crc32c
from dcp_core.seam.store import Body, ObjectStore, Part, Upload
from dcp_core.testing.deviation import Contract
from dcp_core.testing.material import (
    OpenStore,
    RawBucket,
    body_of,
    in_threads,
    pattern,
    read_all,
)

__all__ = ["UploadContract"]

_MIB = 1 << 20


def _upload(store: ObjectStore, key: str, chunks: Sequence[bytes], workers: int) -> int:
    """Upload ``chunks`` as parts with several threads; returns the size that the store reports."""
    upload = store.start_upload(key)
    parts: dict[int, Part] = {}

    def send(worker: int) -> None:
        for number in range(worker, len(chunks), workers):
            parts[number] = store.put_part(upload, number + 1, body_of(chunks[number]))

    in_threads(send, workers)
    return store.finish_upload(upload, [parts[number] for number in sorted(parts)]).size


class UploadContract(Contract):
    """``start_upload`` to ``abort_upload``. Fixtures of the subclass: ``store``, ``raw``, ``open_store``."""

    def test_limits(self, store: ObjectStore) -> None:
        """The core sizes parts by these."""
        limits = store.limits
        assert 0 < limits.min_part_size <= limits.max_part_size
        assert limits.max_parts >= 2
        assert limits.min_part_size <= limits.max_put_size <= limits.max_object_size
        assert limits.max_object_size <= limits.max_parts * limits.max_part_size

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
        assert store.head("key").version == info.version
        assert list(store.list_uploads("")) == []

    def test_part_says_what_it_holds(self, store: ObjectStore) -> None:
        upload = store.start_upload("key")
        part = store.put_part(upload, 3, body_of(b"da", b"ta"))
        assert (part.number, part.size, part.crc32c) == (3, 4, crc32c(b"data"))
        store.abort_upload(upload)

    def test_ranges_across_parts(self, store: ObjectStore) -> None:
        size = max(store.limits.min_part_size, 1000)
        chunks = [pattern(size, 1), pattern(size, 2), pattern(17, 3)]
        data = b"".join(chunks)
        _upload(store, "key", chunks, 1)
        for start, stop in (
            (size - 3, size + 3),
            (size, size + 1),
            (2 * size - 1, len(data)),
            (1, len(data)),
        ):
            with store.read_range("key", start, stop) as reader:
                assert read_all(reader, stop - start) == data[start:stop]

    def test_many_parts(self, store: ObjectStore, raw: RawBucket) -> None:
        """Seven parts of several MiB, sent by four threads."""
        size = max(store.limits.min_part_size, 2 * _MIB)
        chunks = [pattern(size, seed) for seed in range(6)] + [pattern(12_345, 7)]
        assert _upload(store, "key", chunks, 4) == sum(map(len, chunks))
        assert raw.read("key") == b"".join(chunks)

    @pytest.mark.slow
    def test_hundred_mebibytes(self, store: ObjectStore, raw: RawBucket) -> None:
        size = max(store.limits.min_part_size, 8 * _MIB)
        chunks = [pattern(size, seed) for seed in range(max(13, -(-104 * _MIB // size)))]
        assert _upload(store, "key", chunks, 4) >= 100 * _MIB
        assert raw.read("key") == b"".join(chunks)

    def test_parts_in_any_order(self, store: ObjectStore, raw: RawBucket) -> None:
        """Numbers order the parts, not the time they were sent; gaps between numbers do not matter."""
        size = store.limits.min_part_size
        upload = store.start_upload("key")
        third = store.put_part(upload, 9, body_of(b"end"))
        first = store.put_part(upload, 2, body_of(pattern(size, 1)))
        second = store.put_part(upload, 5, body_of(pattern(size, 2)))
        store.finish_upload(upload, [first, second, third])
        assert raw.read("key") == pattern(size, 1) + pattern(size, 2) + b"end"

    def test_single_part(self, store: ObjectStore, raw: RawBucket) -> None:
        """The last part may be of any size, also when it is the only one."""
        assert _upload(store, "key", [b"x"], 1) == 1
        assert raw.read("key") == b"x"

    def test_upload_replaces(self, store: ObjectStore, raw: RawBucket) -> None:
        old = store.put("key", body_of(b"old"))
        upload = store.start_upload("key")
        part = store.put_part(upload, 1, body_of(b"new"))
        assert raw.read("key") == b"old"
        assert store.finish_upload(upload, [part]).version != old.version
        assert raw.read("key") == b"new"

    def test_upload_of_another_store(self, store: ObjectStore, raw: RawBucket, open_store: OpenStore) -> None:
        """An upload is a plain token: other ranks go on with it, find it, and end it."""
        size = store.limits.min_part_size
        chunks = [pattern(size, 1), pattern(17, 2)]
        with contextlib.closing(open_store(store.bucket)) as other:
            upload = store.start_upload("key")
            token = Upload(upload.key, upload.upload_id)
            parts = [
                other.put_part(token, 1, body_of(chunks[0])),
                store.put_part(upload, 2, body_of(chunks[1])),
            ]
            assert [found.upload for found in other.list_uploads("")] == [token]
            copies = [Part(part.number, part.size, part.tag, part.crc32c) for part in parts]
            other.finish_upload(token, copies)
            assert raw.read("key") == b"".join(chunks)
            left = store.start_upload("left")
            store.put_part(left, 1, body_of(b"data"))
            other.abort_upload(left)
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

    def test_part_after_a_wrong_one(self, store: ObjectStore, raw: RawBucket) -> None:
        """A part that was refused is sent again and takes its place."""
        upload = store.start_upload("key")
        with pytest.raises(CloudCheckpointError):
            store.put_part(upload, 1, Body([b"data"], crc32c(b"other")))
        store.finish_upload(upload, [store.put_part(upload, 1, body_of(b"right"))])
        assert raw.read("key") == b"right"

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

    def test_abort_keeps_the_object(self, store: ObjectStore, raw: RawBucket) -> None:
        raw.write("key", b"old")
        upload = store.start_upload("key")
        store.put_part(upload, 1, body_of(b"new"))
        store.abort_upload(upload)
        assert raw.read("key") == b"old"

    def test_finish_twice(self, store: ObjectStore, raw: RawBucket) -> None:
        """A repeated finish either succeeds again or says that the upload is gone."""
        upload = store.start_upload("key")
        part = store.put_part(upload, 1, body_of(b"data"))
        store.finish_upload(upload, [part])
        with contextlib.suppress(ObjectNotFoundError):
            assert store.finish_upload(upload, [part]).size == 4
        assert raw.read("key") == b"data"
        assert store.head("key").size == 4

    def test_finish_again_replaces_nothing(self, store: ObjectStore, raw: RawBucket) -> None:
        """A request that is delivered once more, late, does not bring an old object back."""
        upload = store.start_upload("key")
        part = store.put_part(upload, 1, body_of(b"old"))
        store.finish_upload(upload, [part])
        store.put("key", body_of(b"newer"))
        with contextlib.suppress(ObjectNotFoundError):
            store.finish_upload(upload, [part])
        assert raw.read("key") == b"newer"

    def test_start_twice(self, store: ObjectStore, raw: RawBucket) -> None:
        """Each start is an upload of its own: one whose response was lost stands in no other's way."""
        lost, upload = store.start_upload("key"), store.start_upload("key")
        assert lost.upload_id != upload.upload_id
        found = [info.upload for info in store.list_uploads("key")]
        assert sorted(found, key=str) == sorted([lost, upload], key=str)
        store.finish_upload(upload, [store.put_part(upload, 1, body_of(b"data"))])
        store.abort_upload(lost)
        assert raw.read("key") == b"data"
        assert list(store.list_uploads("")) == []

    def test_abort_after_the_end_keeps_the_object(self, store: ObjectStore, raw: RawBucket) -> None:
        upload = store.start_upload("key")
        store.finish_upload(upload, [store.put_part(upload, 1, body_of(b"data"))])
        store.abort_upload(upload)
        store.abort_upload(upload)
        assert raw.read("key") == b"data"

    def test_abort_spares_another_upload_of_the_key(self, store: ObjectStore, raw: RawBucket) -> None:
        """Also when it comes twice, and the second time late."""
        first, second = store.start_upload("key"), store.start_upload("key")
        store.put_part(first, 1, body_of(b"first"))
        part = store.put_part(second, 1, body_of(b"second"))
        store.abort_upload(first)
        store.abort_upload(first)
        assert [info.upload for info in store.list_uploads("key")] == [second]
        store.finish_upload(second, [part])
        store.abort_upload(first)
        assert raw.read("key") == b"second"
        assert list(store.list_uploads("")) == []

    def test_aborts_of_all_uploads_of_a_key_leave_nothing(self, store: ObjectStore, raw: RawBucket) -> None:
        uploads = [store.start_upload("key") for _ in range(3)]
        for upload in uploads:
            store.put_part(upload, 1, body_of(b"data"))
        for upload in uploads:
            store.abort_upload(upload)
        assert list(store.list_uploads("")) == []
        assert raw.keys() == []

    def test_uploads_are_found_by_prefix(self, store: ObjectStore) -> None:
        uploads = {key: store.start_upload(key) for key in ("run/a", "run/b", "runner", "other")}
        for upload in uploads.values():
            store.put_part(upload, 1, body_of(b"data"))
        found = list(store.list_uploads("run/"))
        assert sorted(info.upload.key for info in found) == ["run/a", "run/b"]
        assert all(info.started is None or info.started.utcoffset() is not None for info in found)
        for upload in uploads.values():
            store.abort_upload(upload)
        assert list(store.list_uploads("")) == []

    def test_odd_keys_multipart(self, store: ObjectStore, raw: RawBucket) -> None:
        for key in self.odd_keys:
            upload = store.start_upload(key)
            assert [found.upload for found in store.list_uploads(key)] == [upload]
            store.finish_upload(upload, [store.put_part(upload, 1, body_of(key.encode()))])
            assert raw.read(key) == key.encode()
