"""The seam between the core and a cloud.

The core plans, frames, checks and retries; an :class:`ObjectStore` is one bucket of one cloud and
does single requests. Its rules:

- thread-safe, blocking, and stateless between calls: an :class:`Upload` is a plain token that another
  thread, process or rank can go on with;
- one call is one attempt. The core repeats idempotent calls and settles ambiguous ones, so an SDK's own
  retries are to be switched off: a conditional write repeated inside an SDK reports the success of its
  first attempt as a conflict;
- a missing object is always :class:`~dcp_core.errors.ObjectNotFoundError`, never ``None``;
- ranges have an inclusive start and an exclusive stop;
- every error is one of :mod:`dcp_core.errors`, raised ``from`` the SDK's.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from dcp_core.errors import UnsupportedError
from dcp_core.seam.body import Body

__all__ = [
    "Body",
    "CommonPrefix",
    "Condition",
    "CreateOnly",
    "Limits",
    "ObjectInfo",
    "ObjectStore",
    "Part",
    "RangeReader",
    "ReadableStore",
    "ReplaceVersion",
    "Upload",
    "UploadInfo",
]


@dataclass(frozen=True)
class Limits:
    """What one store allows, in bytes and counts.

    Attributes:
        min_part_size: smallest part of a multipart upload, except for the last one.
        max_part_size: largest part.
        max_parts: most parts of one upload.
        max_object_size: largest object.
        max_put_size: largest body of a single ``put``.
        source: where the store's documentation says so.
        checked: month in which it did, such as ``2026-11``.
    """

    min_part_size: int
    max_part_size: int
    max_parts: int
    max_object_size: int
    max_put_size: int
    source: str = ""
    checked: str = ""

    def changed(self, by: Mapping[str, int] | None) -> Limits:
        """The limits of a store that differs in those of ``by``."""
        return replace(self, **(by or {}))  # type: ignore[arg-type]  # all of them are numbers


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object.

    ``version`` is the token that conditions and pinned reads compare (S3, Azure: ETag; Google: generation);
    after an upload it is empty where the store tells it only to those who may read. ``modified`` is ``None``
    where the response does not say.
    """

    key: str
    size: int
    version: str
    modified: datetime | None = None


@dataclass(frozen=True)
class CreateOnly:
    """Write only if the key holds no object."""


@dataclass(frozen=True)
class ReplaceVersion:
    """Write only if the key still holds this version."""

    version: str


Condition = CreateOnly | ReplaceVersion


@dataclass(frozen=True)
class Upload:
    """A started multipart upload."""

    key: str
    upload_id: str


@dataclass(frozen=True)
class Part:
    """One uploaded part: ``number`` counts from 1; ``tag`` is what the store wants back at the end."""

    number: int
    size: int
    tag: str
    crc32c: int


@dataclass(frozen=True)
class UploadInfo:
    """An unfinished upload found by :meth:`ObjectStore.list_uploads`."""

    upload: Upload
    started: datetime | None


@dataclass(frozen=True)
class CommonPrefix:
    """Keys that a listing rolled up: all that begin with ``prefix``."""

    prefix: str


class RangeReader(Protocol):
    """The body of one range request."""

    @property
    def info(self) -> ObjectInfo:
        """The object the bytes come from; ``size`` is that of the whole object."""

    def readinto(self, buffer: memoryview) -> int:
        """Receive up to ``len(buffer)`` bytes straight into ``buffer``; 0 at the end of the range.

        Raises:
            TransientError: the connection broke or stalled.
        """


class ReadableStore(abc.ABC):
    """Objects that can be read by key: what a load needs. See the module's rules."""

    bucket: str

    @abc.abstractmethod
    def head(self, key: str) -> ObjectInfo:
        """Facts about one object.

        Raises:
            ObjectNotFoundError: the key holds no object.
        """

    @abc.abstractmethod
    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        """A whole small object."""

    @abc.abstractmethod
    def read_range(
        self, key: str, start: int, stop: int, *, version: str | None = None
    ) -> AbstractContextManager[RangeReader]:
        """Open ``[start, stop)`` of an object, ``0 <= start < stop``; closing early drops the connection.

        A range that reaches past the end of the object yields only what there is.

        Raises:
            ObjectNotFoundError: the key holds no object.
            ConflictError: ``version`` is given and the object is another one.
            CheckpointCorruptError: ``start`` is at or past the end of the object.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close connections; the store is not used afterwards."""


class ObjectStore(ReadableStore):
    """One bucket of one cloud: reading, writing and listing."""

    limits: Limits

    @abc.abstractmethod
    def put(self, key: str, body: Body, condition: Condition | None = None) -> ObjectInfo:
        """Store an object in one request; the store checks ``body.crc32c``.

        Raises:
            ConflictError: ``condition`` does not hold.
            UnsupportedError: the store cannot do conditional writes.
        """

    @abc.abstractmethod
    def start_upload(self, key: str) -> Upload:
        """Begin a multipart upload."""

    @abc.abstractmethod
    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        """Upload part ``number`` (from 1); sending it again replaces it. The store checks ``body.crc32c``."""

    @abc.abstractmethod
    def finish_upload(self, upload: Upload, parts: Sequence[Part]) -> ObjectInfo:
        """Make one object of ``parts``, given in ascending number.

        Raises:
            ObjectNotFoundError: no such upload, as after it was finished or aborted.
        """

    @abc.abstractmethod
    def abort_upload(self, upload: Upload) -> None:
        """Drop an upload and its parts; one that is gone already is no error."""

    @abc.abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key starts with ``prefix``, in key order, through every page."""

    def list_rolled(self, prefix: str, delimiter: str) -> Iterator[ObjectInfo | CommonPrefix]:
        """Like :meth:`list`, with the keys that have ``delimiter`` behind ``prefix`` rolled up.

        Each group becomes one :class:`CommonPrefix`, up to the delimiter, or with the whole or the beginning
        of it. Entries of one page come in any order. Stores that can, do it on their side: a listing then
        costs a request for every 1,000 groups or so, however many keys are in them. This default reads the
        whole listing.
        """
        last: str | None = None
        for info in self.list(prefix):
            head, found, _ = info.key[len(prefix) :].partition(delimiter)
            if not found:
                yield info
            elif head != last:
                last = head
                yield CommonPrefix(prefix + head + delimiter)

    @abc.abstractmethod
    def list_uploads(self, prefix: str) -> Iterator[UploadInfo]:
        """All unfinished uploads whose key starts with ``prefix``."""

    @abc.abstractmethod
    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, in batches where the store has them; absent ones are no error."""

    def delete_version(self, key: str, version: str) -> None:
        """Delete an object if it still is this version.

        Raises:
            ConflictError: it is another one.
            ObjectNotFoundError: the key holds no object; to some stores that is no error.
            UnsupportedError: the store has no conditional deletes. That is this default.
        """
        del version
        raise UnsupportedError("the store has no conditional deletes", bucket=self.bucket, key=key)
