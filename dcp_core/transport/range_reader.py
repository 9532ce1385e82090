"""The body of a range request, received straight into the caller's memory.

urllib3's own ``readinto`` and what SDKs wrap around it copy every byte at least once in user space. The
``http.client`` response below has a ``readinto`` that ends in ``recv_into``. Where it cannot be reached, or
the response is chunked or encoded, urllib3's public interface serves.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from dcp_core.errors import TransientError
from dcp_core.seam.store import ObjectInfo
from dcp_core.transport.receive_low_water import ReceiveLowWater
from dcp_core.transport.tls import TlsResponse
from dcp_core.transport.urllib3_private import socket_of, socket_response

__all__ = ["Urllib3RangeReader"]


class Urllib3RangeReader:
    """A :class:`~dcp_core.seam.store.RangeReader` on a ``urllib3.HTTPResponse``.

    Args:
        info: the object that the bytes come from.
        raw: the response, of which nothing has been read yet.
        expected: the number of bytes that the response promises.
        operation: name of the request, for errors.
        bucket: where the object is, for errors.
        translated: makes the context in which the backend turns errors of the connection into ours.
    """

    def __init__(
        self,
        info: ObjectInfo,
        raw: Any,
        expected: int,
        *,
        operation: str,
        bucket: str,
        translated: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.info = info
        self._raw = raw
        self._left = expected
        self._operation = operation
        self._bucket = bucket
        self._translated = translated
        response = socket_response(raw)
        connection = None if response is None else socket_of(response)
        self._source = response or raw
        if response is not None and isinstance(connection, ssl.SSLSocket):
            self._source = TlsResponse(response, connection)
        self._low_water = ReceiveLowWater(connection, expected)

    def readinto(self, buffer: memoryview) -> int:
        """Receive into ``buffer``; 0 at the end."""
        if self._left == 0 or buffer.nbytes == 0:
            return 0
        wanted = min(buffer.nbytes, self._left)
        self._low_water.before(wanted, self._left)
        with self._translated():
            count = int(self._source.readinto(buffer[:wanted]) or 0)
        if count == 0:
            raise TransientError(
                f"{self._operation}: the response ended {self._left} bytes early",
                bucket=self._bucket,
                key=self.info.key,
            )
        self._left -= count
        return count

    def close(self) -> None:
        """Give the connection back if everything was read, else drop it."""
        self._low_water.lower()
        if self._left == 0 and hasattr(self._raw, "release_conn"):
            self._raw.release_conn()
        self._raw.close()
