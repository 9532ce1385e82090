"""What all backends on urllib3 share: answers received straight into memory, and connections made for that.

Nothing here imports urllib3: the backends' SDKs bring it, and hand over its objects.

urllib3's own ``readinto`` and what SDKs wrap around it copy every byte at least once in user space. The
``http.client`` response below has a ``readinto`` that ends in ``recv_into``. It is reached through urllib3's
private attribute ``_fp``, which has kept its name since urllib3 1.21; where it is missing, or the answer is
chunked or encoded, urllib3's public interface serves.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from dcp_core.errors import TransientError
from dcp_core.low_water import LowWater
from dcp_core.store import ObjectInfo
from dcp_core.tls import TlsAnswer, read_ahead

__all__ = ["HttpRangeReader", "tuned_pools"]


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
        connection = None if response is None else _socket_of(response)
        self._source = response or raw
        if response is not None and isinstance(connection, ssl.SSLSocket):
            self._source = TlsAnswer(response, connection)
        self._water = LowWater(connection, expected)

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


def _socket_of(response: http.client.HTTPResponse) -> socket.socket | None:
    # SocketIO has kept the socket under this name since Python 3.0
    found = getattr(getattr(response.fp, "raw", None), "_sock", None)
    return found if isinstance(found, socket.socket) else None


def tuned_pools(
    pools: Mapping[str, Any], stall_timeout: float, new_context: Callable[..., ssl.SSLContext] | None = None
) -> dict[str, Any]:
    """Pools like ``pools``, a pool manager's ``pool_classes_by_scheme``, with connections that suit us.

    Their sends take up to ``stall_timeout`` seconds: urllib3 sends with the time limit for connecting, whose
    value suits neither a dead nor a slow link, and still does so through an HTTP proxy and with a client
    certificate. Over TLS they read ahead, see :func:`~dcp_core.tls.read_ahead`; ``new_context`` is urllib3's
    ``create_urllib3_context``, for SDKs that leave it to urllib3 to make a context.
    """
    return {
        scheme: _tuned_pool(pool, stall_timeout, scheme == "https", new_context)
        for scheme, pool in pools.items()
    }


def _tuned_pool(
    pool: Any, stall_timeout: float, secure: bool, new_context: Callable[..., ssl.SSLContext] | None
) -> Any:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]  # a class that is known at run time only
        ssl_context: ssl.SSLContext | None

        def connect(self) -> None:
            if secure:
                if self.ssl_context is None and new_context is not None:
                    self.ssl_context = _context_for(self, new_context)
                read_ahead(self.ssl_context)
            super().connect()

        def send(self, data: Any) -> None:
            if self.sock is None:
                self.connect()
            if self.sock.gettimeout() != stall_timeout:
                self.sock.settimeout(stall_timeout)
            super().send(data)

    class Pool(pool):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool


def _context_for(connection: Any, new_context: Callable[..., ssl.SSLContext]) -> ssl.SSLContext | None:
    """The context that urllib3 would make for a connection itself, and then verifies with all the same.

    ``None`` leaves it to urllib3, as before version 2.
    """
    if not hasattr(connection, "ssl_minimum_version"):
        return None
    required = connection.cert_reqs
    context = new_context(
        cert_reqs=getattr(ssl, required, None) if isinstance(required, str) else required,
        ssl_minimum_version=connection.ssl_minimum_version,
        ssl_maximum_version=connection.ssl_maximum_version,
    )
    own = connection.ca_certs or connection.ca_cert_dir or connection.ca_cert_data
    # pyOpenSSL's has none
    if not own and hasattr(context, "load_default_certs"):
        context.load_default_certs()
    return context
