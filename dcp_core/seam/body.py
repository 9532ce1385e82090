"""Bytes to send: buffers that are never joined."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from functools import cached_property

__all__ = ["Body", "BodyReader"]


class Body:
    """A list of buffers and the CRC32C of all their bytes: a value, which any number of attempts may read.

    Args:
        buffers: bytes-format views.
        crc32c: of all bytes together.
    """

    def __init__(self, buffers: Iterable[bytes | memoryview], crc32c: int) -> None:
        self.buffers: list[memoryview] = [memoryview(buffer) for buffer in buffers]
        self.size = sum(buffer.nbytes for buffer in self.buffers)
        self.crc32c = crc32c

    def open(self) -> BodyReader:
        """A file object on the bytes, at their start; each attempt opens its own."""
        return BodyReader(self.buffers, self.size)

    @cached_property
    def crc32c_base64(self) -> str:
        """The checksum as S3 and Google take it: four big-endian bytes in base64."""
        return base64.b64encode(self.crc32c.to_bytes(4, "big")).decode()

    def tobytes(self) -> bytes:
        """All bytes joined. A copy: for small bodies and for tests."""
        return b"".join(self.buffers)


class BodyReader:
    """A file object for SDKs.

    ``read`` hands out the next view of at most ``SEND_BYTES`` as it is, without a copy, whatever size is
    asked for: HTTP clients send what they get, and a socket's stall limit then applies to that much data
    rather than to a whole part. ``seek`` serves the retries and the length probes of SDKs.
    """

    #: 1 MiB keeps the per-call cost under 0.1 % of the copy into the kernel and still lets a stall limit
    #: of some seconds hold on a slow link.
    SEND_BYTES = 1 << 20

    def __init__(self, buffers: list[memoryview], size: int) -> None:
        self.size = size
        self._buffers = buffers
        self._index = 0
        self._offset = 0
        self._position = 0

    def read(self, size: int | None = -1) -> bytes | memoryview:
        """The next view; ``size`` is ignored unless it is 0. Empty at the end."""
        if size == 0:
            return b""
        while self._index < len(self._buffers):
            buffer = self._buffers[self._index]
            if self._offset < buffer.nbytes:
                view = buffer[self._offset : self._offset + self.SEND_BYTES]
                self._offset += view.nbytes
                self._position += view.nbytes
                return view
            self._index += 1
            self._offset = 0
        return b""

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self._position, self.size)[whence]
        target = min(max(start + offset, 0), self.size)
        self._position = target
        self._index = 0
        while self._index < len(self._buffers) and target >= self._buffers[self._index].nbytes:
            target -= self._buffers[self._index].nbytes
            self._index += 1
        self._offset = target
        return self._position

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
