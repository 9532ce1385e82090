"""From HTTP's statuses and aiohttp's errors to ours: the only place that knows either by name.

Statuses: https://www.rfc-editor.org/rfc/rfc9110#name-status-codes. aiohttp's errors name the URL with its
query, which may be a signature: their text is left out of ours, and the URL is taken out of theirs.
"""

from __future__ import annotations

import concurrent.futures
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import aiohttp

from dcp_core.errors import (
    CheckpointCorruptError,
    CloudCheckpointError,
    ConfigurationError,
    ConflictError,
    ObjectNotFoundError,
    PermissionDeniedError,
    ThrottledError,
    TransientError,
    UnsupportedError,
)

__all__ = ["mapped", "refusal"]

_Kind = type[CloudCheckpointError]

_STATUSES: dict[int, tuple[_Kind, str]] = {
    400: (ConfigurationError, "the server does not understand the request: check the URL and the query"),
    401: (PermissionDeniedError, "the server wants credentials: pass token= or headers="),
    403: (
        PermissionDeniedError,
        "the server refuses: the token, signature or query is missing, wrong or expired",
    ),
    404: (ObjectNotFoundError, "the object does not exist"),
    405: (UnsupportedError, "the server does not allow this method"),
    407: (ConfigurationError, "the proxy wants credentials"),
    408: (TransientError, "the server waited too long"),
    410: (ObjectNotFoundError, "the object does not exist any more"),
    412: (ConflictError, "the object is another version"),
    416: (CheckpointCorruptError, "the object ends before the range that the record names"),
    421: (ConfigurationError, "this server does not serve this host"),
    425: (TransientError, "the server asks to try again"),
    429: (ThrottledError, "the server asks for fewer requests"),
    501: (UnsupportedError, "the server does not know this method"),
    503: (ThrottledError, "the server is overloaded"),
}

#: Exceptions raised before or instead of an answer, most specific first.
_EXCEPTIONS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], _Kind, str], ...] = (
    (
        (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError),
        ConfigurationError,
        "the server's certificate is not trusted: pass ca_bundle= with its authority, or correct the host",
    ),
    ((aiohttp.ClientSSLError, ssl.SSLError), TransientError, "the TLS connection failed"),
    (
        aiohttp.ClientConnectorDNSError,
        TransientError,
        "the host name could not be resolved: check it in the URL",
    ),
    (aiohttp.ClientProxyConnectionError, TransientError, "the proxy could not be reached"),
    (aiohttp.SocketTimeoutError, TransientError, "no byte arrived within stall_timeout"),
    (aiohttp.ConnectionTimeoutError, TransientError, "no connection within connect_timeout"),
    (aiohttp.ClientConnectorError, TransientError, "the server could not be reached"),
    (aiohttp.ClientPayloadError, TransientError, "the answer ended early"),
    (aiohttp.InvalidURL, ConfigurationError, "the URL is not one"),
    (aiohttp.ClientHttpProxyError, ConfigurationError, "the proxy refused"),
    (aiohttp.ClientResponseError, TransientError, "the answer is not HTTP"),
    (aiohttp.ClientError, TransientError, "the connection broke"),
    (concurrent.futures.CancelledError, TransientError, "the reader was closed meanwhile"),
    (TimeoutError, TransientError, "no byte arrived within stall_timeout"),
    (OSError, TransientError, "the connection broke"),
)

#: Headers in which servers name a request.
_REQUEST_IDS = ("x-amz-request-id", "x-ms-request-id", "x-guploader-uploadid", "cf-ray", "x-request-id")


def refusal(
    operation: str, status: int, headers: Mapping[str, str], bucket: str, key: str
) -> CloudCheckpointError:
    """The error for an answer that is no success."""
    kind, advice = _STATUSES.get(status) or _by_class(status)
    request_id = next((headers[name] for name in _REQUEST_IDS if name in headers), None)
    return kind(
        f"{operation}: {advice} (the server says {status})", bucket=bucket, key=key, request_id=request_id
    )


def _by_class(status: int) -> tuple[_Kind, str]:
    if status >= 500:
        return TransientError, "the server had an internal error"
    if 300 <= status < 400:
        return ConfigurationError, "the server redirects without saying where to"
    return ConfigurationError, "the server refused the request"


@contextmanager
def mapped(operation: str, bucket: str, key: str | None = None) -> Iterator[None]:
    """Turn the errors of one request into ours, chained to the original."""
    try:
        yield
    except CloudCheckpointError:
        raise
    except (aiohttp.ClientError, concurrent.futures.CancelledError, OSError) as error:
        _without_query(error)
        for kinds, kind, advice in _EXCEPTIONS:
            if isinstance(error, kinds):
                raise kind(
                    f"{operation}: {advice} ({type(error).__name__})", bucket=bucket, key=key
                ) from error
        raise


def _without_query(error: BaseException) -> None:
    if isinstance(error, aiohttp.ClientResponseError):
        info = error.request_info
        bare = info.real_url.with_query(None)
        error.request_info = info._replace(url=bare, real_url=bare)
        error.history = ()
        error.args = (error.request_info, ())
