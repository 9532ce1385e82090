"""The reference store: the seam's rules in the fewest lines, in this process's memory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from dcp_core.errors import (
    BucketNotFoundError,
    CheckpointCorruptError,
    ConflictError,
    ObjectNotFoundError,
    TransientError,
    UnsupportedError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.seam.backend import Backend
from dcp_core.seam.location import Location
from dcp_core.seam.store import (
    Body,
    Condition,
    CreateOnly,
    Limits,
    ObjectInfo,
    ObjectStore,
    Part,
    ReplaceVersion,
    Upload,
    UploadInfo,
)

__all__ = ["MemoryBackend", "MemoryOptions", "MemoryStore"]


@dataclass
class _Upload:
    key: str
    started: datetime
    parts: dict[int, bytes] = field(default_factory=dict)


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class _Bucket:
    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.lock = threading.Lock()
        self.objects: dict[str, tuple[bytes, ObjectInfo]] = {}
        self.uploads: dict[str, _Upload] = {}
        self.numbers = itertools.count(1)


_BUCKETS: dict[str, _Bucket] = {}


class MemoryStore(ObjectStore):
    """A bucket in memory, shared by all stores of this process that name it.

    Args:
        bucket: its name.
        min_part_size: smallest part but the last, small so that multipart paths are cheap to test.
    """

    def __init__(self, bucket: str, *, min_part_size: int = 1024) -> None:
        self.bucket = bucket
        self.limits = Limits(
            min_part_size=min_part_size,
            max_part_size=1 << 30,
            max_parts=1000,
            max_object_size=1 << 34,
            max_put_size=1 << 30,
        )

    @classmethod
    def create_bucket(cls, name: str, *, clock: Callable[[], datetime] = _utc_now) -> None:
        """Make an empty bucket, in place of one that is there; ``clock`` dates what is written to it."""
        _BUCKETS[name] = _Bucket(clock)

    @property
    def _held(self) -> _Bucket:
        try:
            return _BUCKETS[self.bucket]
        except KeyError:
            raise BucketNotFoundError("the bucket does not exist", bucket=self.bucket) from None

    def _found(self, key: str) -> tuple[bytes, ObjectInfo]:
        try:
            return self._held.objects[key]
        except KeyError:
            raise ObjectNotFoundError("the object does not exist", bucket=self.bucket, key=key) from None

    def head(self, key: str) -> ObjectInfo:
        return self._found(key)[1]

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        return self._found(key)

    @contextmanager
    def read_range(
        self, key: str, start: int, stop: int, *, version: str | None = None
    ) -> Iterator[_MemoryReader]:
        data, info = self._found(key)
        if version is not None and version != info.version:
            raise ConflictError("the object is another version", bucket=self.bucket, key=key)
        if start >= info.size:
            raise CheckpointCorruptError(f"the object has {info.size} bytes", bucket=self.bucket, key=key)
        yield _MemoryReader(info, data[start:stop])

    def put(self, key: str, body: Body, condition: Condition | None = None) -> ObjectInfo:
        data = self._received(key, body)
        bucket = self._held
        with bucket.lock:
            self._check(key, condition)
            return self._store(key, data)

    def _received(self, key: str, body: Body) -> bytes:
        data = body.tobytes()
        if crc32c(data) != body.crc32c:
            raise TransientError("the bytes changed on their way", bucket=self.bucket, key=key)
        return data

    def _check(self, key: str, condition: Condition | None) -> None:
        there = self._held.objects.get(key)
        held = True
        if isinstance(condition, CreateOnly):
            held = there is None
        elif isinstance(condition, ReplaceVersion):
            held = there is not None and there[1].version == condition.version
        if not held:
            raise ConflictError("another writer changed the object", bucket=self.bucket, key=key)

    def _store(self, key: str, data: bytes) -> ObjectInfo:
        version = f"v{next(self._held.numbers)}"
        info = ObjectInfo(key, len(data), version, self._held.clock())
        self._held.objects[key] = (data, info)
        return info

    def start_upload(self, key: str) -> Upload:
        upload_id = f"u{next(self._held.numbers)}"
        self._held.uploads[upload_id] = _Upload(key, self._held.clock())
        return Upload(key, upload_id)

    def _started(self, upload: Upload) -> _Upload:
        found = self._held.uploads.get(upload.upload_id)
        if found is None or found.key != upload.key:
            raise ObjectNotFoundError("the upload does not exist", bucket=self.bucket, key=upload.key)
        return found

    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        if not 1 <= number <= self.limits.max_parts:
            raise UnsupportedError(f"part number {number}", bucket=self.bucket, key=upload.key)
        data = self._received(upload.key, body)
        self._started(upload).parts[number] = data
        return Part(number, len(data), f"{number}:{body.crc32c:08x}", body.crc32c)

    def finish_upload(self, upload: Upload, parts: Sequence[Part]) -> ObjectInfo:
        bucket = self._held
        with bucket.lock:
            held = self._started(upload)
            pieces = [held.parts.get(part.number, b"") for part in parts]
            for part, piece in zip(parts, pieces, strict=True):
                if crc32c(piece) != part.crc32c:
                    raise TransientError(f"part {part.number} is lost", bucket=self.bucket, key=upload.key)
            if any(len(piece) < self.limits.min_part_size for piece in pieces[:-1]):
                raise UnsupportedError("a part is too small", bucket=self.bucket, key=upload.key)
            del bucket.uploads[upload.upload_id]
            return self._store(upload.key, b"".join(pieces))

    def abort_upload(self, upload: Upload) -> None:
        self._held.uploads.pop(upload.upload_id, None)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        # as they are now: others may delete some before the listing comes to them
        objects = dict(self._held.objects)
        for key in sorted(objects, key=str.encode):
            if key.startswith(prefix):
                yield objects[key][1]

    def list_uploads(self, prefix: str) -> Iterator[UploadInfo]:
        for upload_id, upload in list(self._held.uploads.items()):
            if upload.key.startswith(prefix):
                yield UploadInfo(Upload(upload.key, upload_id), upload.started)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._held.objects.pop(key, None)

    def delete_version(self, key: str, version: str) -> None:
        bucket = self._held
        with bucket.lock:
            self._found(key)
            self._check(key, ReplaceVersion(version))
            del bucket.objects[key]

    def close(self) -> None:
        """Nothing is open."""


class _MemoryReader:
    def __init__(self, info: ObjectInfo, data: bytes) -> None:
        self.info = info
        self._left = memoryview(data)

    def readinto(self, buffer: memoryview) -> int:
        count = min(buffer.nbytes, self._left.nbytes)
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


@dataclass(frozen=True)
class MemoryOptions:
    """Options of the reference store."""

    min_part_size: int = 1024


class MemoryBackend(Backend):
    """``memory://bucket/prefix``, for tests within one process. Not registered by itself."""

    options_type: type[Any] = MemoryOptions

    def locate(self, url: str) -> Location:
        return Location.parse(url)

    def open(self, location: Location, options: MemoryOptions, *, concurrency: int) -> ObjectStore:
        del concurrency
        return MemoryStore(location.bucket, min_part_size=options.min_part_size)
