"""Receiving a range straight into memory.

The SDK's downloads copy every byte at least twice in user space. The ``http.client`` response below has a
``readinto`` that ends in ``recv_into``. It is reached through azure-core's ``_internal_response``, which is
the ``requests`` response, and urllib3's ``_fp``; where one is missing, or the answer is encoded, the public
interface serves.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any

from dcp_azure.error_table import mapped
from dcp_core.errors import TransientError
from dcp_core.store import ObjectInfo

__all__ = ["AzureRangeReader"]


class AzureRangeReader:
    """The body of a Get Blob answer; ``expected`` is the number of bytes it promises."""

    def __init__(self, info: ObjectInfo, response: Any, expected: int, bucket: str) -> None:
        self.info = info
        self._response = response
        self._left = expected
        self._bucket = bucket
        self._raw = getattr(getattr(response, "_internal_response", None), "raw", None)
        self._source = _socket_response(self._raw) or _Chunks(response)

    def readinto(self, buffer: memoryview) -> int:
        """Receive into ``buffer``; 0 at the end."""
        if self._left == 0 or buffer.nbytes == 0:
            return 0
        with mapped("Get Blob", self._bucket, self.info.key):
            count = self._source.readinto(buffer[: self._left])
        if count == 0:
            raise TransientError(
                f"Get Blob: the answer ended {self._left} bytes early",
                bucket=self._bucket,
                key=self.info.key,
            )
        self._left -= count
        return count

    def close(self) -> None:
        """Give the connection back if everything was read, else drop it."""
        if self._left == 0 and self._raw is not None and hasattr(self._raw, "release_conn"):
            self._raw.release_conn()
        self._response.close()


class _Chunks:
    """``readinto`` on the public interface, with its copies."""

    def __init__(self, response: Any) -> None:
        self._chunks: Iterator[bytes] = response.iter_raw()
        self._left = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        count = min(buffer.nbytes, self._left.nbytes)
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _socket_response(raw: Any) -> http.client.HTTPResponse | None:
    response = getattr(raw, "_fp", None)
    if not isinstance(response, http.client.HTTPResponse) or response.chunked:
        return None
    return None if response.headers.get("Content-Encoding") in ("gzip", "deflate", "br", "zstd") else response
