"""What all backends on urllib3 share: answers received straight into memory, and sends that do not stall.

Nothing here imports urllib3: the backends' SDKs bring it, and hand over its objects.

urllib3's own ``readinto`` and what SDKs wrap around it copy every byte at least once in user space. The
``http.client`` response below has a ``readinto`` that ends in ``recv_into``. It is reached through urllib3's
private attribute ``_fp``, which has kept its name since urllib3 1.21; where it is missing, or the answer is
chunked or encoded, urllib3's public interface serves.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from dcp_core.errors import TransientError
from dcp_core.low_water import LowWater
from dcp_core.store import ObjectInfo

__all__ = ["HttpRangeReader", "with_send_limit"]


class HttpRangeReader:
    """A :class:`~dcp_core.store.RangeReader` on a ``urllib3.HTTPResponse``.

    Args:
        info: the object that the bytes come from.
        raw: the answer, of which nothing has been read yet.
        expected: the number of bytes that the answer promises.
        operation: name of the request, for errors.
        bucket: where the object is, for errors.
        mapped: makes the context in which the backend turns errors of the connection into ours.
    """

    def __init__(
        self,
        info: ObjectInfo,
        raw: Any,
        expected: int,
        *,
        operation: str,
        bucket: str,
        mapped: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.info = info
        self._raw = raw
        self._left = expected
        self._operation = operation
        self._bucket = bucket
        self._mapped = mapped
        response = _socket_response(raw)
        self._source = response or raw
        self._water = LowWater(response, expected)

    def readinto(self, buffer: memoryview) -> int:
        """Receive into ``buffer``; 0 at the end."""
        if self._left == 0 or buffer.nbytes == 0:
            return 0
        wanted = min(buffer.nbytes, self._left)
        self._water.before(wanted, self._left)
        with self._mapped():
            count = int(self._source.readinto(buffer[:wanted]) or 0)
        if count == 0:
            raise TransientError(
                f"{self._operation}: the answer ended {self._left} bytes early",
                bucket=self._bucket,
                key=self.info.key,
            )
        self._left -= count
        return count

    def close(self) -> None:
        """Give the connection back if everything was read, else drop it."""
        self._water.lower()
        if self._left == 0 and hasattr(self._raw, "release_conn"):
            self._raw.release_conn()
        self._raw.close()


def _socket_response(raw: Any) -> http.client.HTTPResponse | None:
    response = getattr(raw, "_fp", None)
    if not isinstance(response, http.client.HTTPResponse) or response.chunked:
        return None
    return None if response.headers.get("Content-Encoding") in ("gzip", "deflate", "br", "zstd") else response


def with_send_limit(pools: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Pools like ``pools``, a pool manager's ``pool_classes_by_scheme``, whose sends take up to ``seconds``.

    urllib3 sends with the time limit for connecting, whose value suits neither a dead nor a slow link, and
    still does so through an HTTP proxy and with a client certificate.
    """
    return {scheme: _limited_pool(pool, seconds) for scheme, pool in pools.items()}


def _limited_pool(pool: Any, seconds: float) -> Any:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]  # a class that is known at run time only
        def send(self, data: Any) -> None:
            if self.sock is None:
                self.connect()
            if self.sock.gettimeout() != seconds:
                self.sock.settimeout(seconds)
            super().send(data)

    class Pool(pool):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool
