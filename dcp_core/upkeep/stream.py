"""Bytes of one object, read in order with one request for as long as nothing breaks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from dcp_core.errors import TransientError
from dcp_core.seam.store import RangeReader, ReadableStore
from dcp_core.transfer import Transfer

__all__ = ["ObjectStream"]

#: Bytes that are read and dropped rather than skipped with another request.
_READ_THROUGH = 256 << 10


class ObjectStream:
    """Bytes ``[…, stop)`` of the object at ``key``; a broken connection is replaced by another one.

    All of them come from one version of the object: ``version``, or the first that is seen. For one thread.
    """

    def __init__(
        self, store: ReadableStore, key: str, stop: int, transfer: Transfer, version: str | None = None
    ) -> None:
        self._store = store
        self._key = key
        self._stop = stop
        self._transfer = transfer
        #: Of the object; known once something was read.
        self.version = version
        self._opened: AbstractContextManager[RangeReader] | None = None
        self._reader: RangeReader | None = None
        self._position = 0

    def read(self, start: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``start`` on.

        Raises:
            ConflictError: the object changed since the first read.
            ObjectNotFoundError: it does not exist.
            CheckpointCorruptError: it ends before ``start``.
        """
        filled = 0

        def receive() -> None:
            nonlocal filled
            reader = self._at(start + filled)
            while filled < len(view):
                count = reader.readinto(view[filled:])
                if count <= 0:
                    raise TransientError("the response ended early", bucket=self._store.bucket, key=self._key)
                filled += count
                self._position += count

        def attempt() -> None:
            try:
                receive()
            except BaseException:
                self.close()
                raise

        if view:
            self._transfer.attempt(attempt, lambda: filled)

    def _at(self, position: int) -> RangeReader:
        """The open response, about to yield the byte at ``position``."""
        reader = self._reader
        if reader is not None and 0 <= position - self._position <= _READ_THROUGH:
            self._drop(reader, position - self._position)
            return reader
        self.close()
        opened = self._store.read_range(self._key, position, self._stop, version=self.version)
        self._reader = reader = opened.__enter__()
        self._opened = opened
        self.version = reader.info.version
        self._position = position
        return reader

    def _drop(self, reader: RangeReader, count: int) -> None:
        rest = memoryview(bytearray(count))
        while rest:
            received = reader.readinto(rest)
            if received <= 0:
                raise TransientError("the response ended early", bucket=self._store.bucket, key=self._key)
            rest = rest[received:]
            self._position += received

    def close(self) -> None:
        """Give the connection back; reading on opens another one."""
        opened, self._opened, self._reader = self._opened, None, None
        if opened is not None:
            opened.__exit__(None, None, None)

    def __enter__(self) -> ObjectStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
