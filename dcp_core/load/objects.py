"""The objects of a checkpoint as one load sees them: each stays the version that it was first seen as."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dcp_core.errors import CheckpointCorruptError, CheckpointError, CheckpointReplacedError
from dcp_core.load.plan import Request
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectInfo, RangeReader, ReadableStore

__all__ = ["PinnedObjects"]


class PinnedObjects:
    """Opens ranges of the objects below ``location``; ``seen`` are versions by name. Thread-safe."""

    def __init__(self, store: ReadableStore, location: Location, seen: Mapping[str, str]) -> None:
        self.bucket = store.bucket
        self.key = location.key
        self._store = store
        self._versions = dict(seen)
        self._lock = threading.Lock()

    @contextmanager
    def open(self, request: Request, start: int) -> Iterator[RangeReader]:
        """Open ``request`` from ``start`` on.

        Raises:
            CheckpointReplacedError: the object is no longer the version that this load began with.
            CheckpointCorruptError: it ends before the request does.
        """
        with self._store.read_range(self.key(request.name), start, request.stop) as reader:
            self._check(request, reader.info)
            yield reader

    @contextmanager
    def named(self) -> Iterator[None]:
        """Complete errors that know only a name below the checkpoint, or none where its record is wrong."""
        try:
            yield
        except CheckpointError as error:
            if error.bucket is None:
                error.bucket, error.key = self.bucket, self.key(error.key or "")
            raise

    def _check(self, request: Request, info: ObjectInfo) -> None:
        with self._lock:
            version = self._versions.setdefault(request.name, info.version)
        if version != info.version:
            raise CheckpointReplacedError(
                "the object changed during this load; load again", bucket=self.bucket, key=info.key
            )
        if info.size < request.stop:
            raise CheckpointCorruptError(
                f"the object has {info.size} bytes, the commit record needs {request.stop}: it is cut short",
                bucket=self.bucket,
                key=info.key,
            )
