"""Receiving a range straight into memory.

botocore's ``StreamingBody`` copies every byte at least once in user space. The ``http.client`` response
below it has a ``readinto`` that ends in ``recv_into``. It is reached through two private attributes,
which have kept their names since botocore 1.10 and urllib3 1.21; where they are missing, or the answer is
encoded, the public interface serves.
"""

from __future__ import annotations

import http.client
from typing import Any

from dcp_core.errors import TransientError
from dcp_core.store import ObjectInfo
from dcp_s3.error_table import mapped

__all__ = ["S3RangeReader"]


class S3RangeReader:
    """The body of a ``GetObject`` answer; ``expected`` is the number of bytes it promises."""

    def __init__(self, info: ObjectInfo, body: Any, expected: int, bucket: str) -> None:
        self.info = info
        self._body = body
        self._left = expected
        self._bucket = bucket
        self._raw = getattr(body, "_raw_stream", None)
        self._source = _socket_response(self._raw) or body

    def readinto(self, buffer: memoryview) -> int:
        """Receive into ``buffer``; 0 at the end."""
        if self._left == 0 or buffer.nbytes == 0:
            return 0
        with mapped("GetObject", self._bucket, self.info.key):
            count = int(self._source.readinto(buffer[: self._left]) or 0)
        if count == 0:
            raise TransientError(
                f"GetObject: the answer ended {self._left} bytes early",
                bucket=self._bucket,
                key=self.info.key,
            )
        self._left -= count
        return count

    def close(self) -> None:
        """Give the connection back if everything was read, else drop it."""
        if self._left == 0 and self._raw is not None and hasattr(self._raw, "release_conn"):
            self._raw.release_conn()
        self._body.close()


def _socket_response(raw: Any) -> http.client.HTTPResponse | None:
    response = getattr(raw, "_fp", None)
    if not isinstance(response, http.client.HTTPResponse) or response.chunked:
        return None
    return None if response.headers.get("Content-Encoding") in ("gzip", "deflate", "br", "zstd") else response
