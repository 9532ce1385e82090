"""From HTTP's statuses and aiohttp's errors to ours: the only place that knows either by name.

Statuses: https://www.rfc-editor.org/rfc/rfc9110#name-status-codes. aiohttp's errors name the URL with its
query, which may be a signature: their text is left out of ours, and the URL is taken out of theirs.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Mapping

import aiohttp

from dcp_core.errors import (
    ConfigurationError,
    ConflictError,
    ObjectNotFoundError,
    PermissionDeniedError,
    TransientError,
)
from dcp_core.transport import verdicts
from dcp_core.transport.error_table import ErrorTable, ExceptionVerdicts, Refusal
from dcp_core.transport.verdicts import Verdict

__all__ = ["HTTPErrors", "refusal_by_headers"]

_STATUSES: Mapping[int, Verdict] = {
    400: Verdict(
        ConfigurationError, "the server does not understand the request: check the URL and the query"
    ),
    401: Verdict(PermissionDeniedError, "the server wants credentials: pass token= or headers="),
    403: Verdict(
        PermissionDeniedError,
        "the server refuses: the token, signature or query is missing, wrong or expired",
    ),
    407: Verdict(ConfigurationError, "the proxy wants credentials"),
    410: Verdict(ObjectNotFoundError, "the object does not exist any more"),
    412: Verdict(ConflictError, "the object is another version"),
    421: Verdict(ConfigurationError, "this server does not serve this host"),
    425: Verdict(TransientError, "the server asks to try again"),
    501: verdicts.NOT_ALLOWED,
}

_EXCEPTIONS: ExceptionVerdicts = (
    (aiohttp.ClientConnectorCertificateError, verdicts.UNTRUSTED),
    (aiohttp.ClientSSLError, verdicts.TLS_FAILED),
    (
        aiohttp.ClientConnectorDNSError,
        Verdict(TransientError, "the host name could not be resolved: check it in the URL"),
    ),
    (aiohttp.ClientProxyConnectionError, Verdict(TransientError, "the proxy could not be reached")),
    (aiohttp.SocketTimeoutError, verdicts.STALLED),
    (aiohttp.ConnectionTimeoutError, Verdict(TransientError, "no connection within connect_timeout")),
    (aiohttp.ClientConnectorError, verdicts.UNREACHABLE),
    (aiohttp.ClientPayloadError, verdicts.ENDED_EARLY),
    (aiohttp.InvalidURL, Verdict(ConfigurationError, "the URL is not one")),
    (aiohttp.ClientHttpProxyError, Verdict(ConfigurationError, "the proxy refused")),
    (aiohttp.ClientResponseError, Verdict(TransientError, "the response is not HTTP")),
    (concurrent.futures.CancelledError, Verdict(TransientError, "the reader was closed meanwhile")),
    (TimeoutError, verdicts.STALLED),
    (aiohttp.ClientError, verdicts.BROKEN),
)

#: Headers in which servers name a request.
_REQUEST_IDS = ("x-amz-request-id", "x-ms-request-id", "x-guploader-uploadid", "cf-ray", "x-request-id")


class HTTPErrors(ErrorTable):
    """The errors of web servers and of aiohttp."""

    service = "the server"
    sdk = (aiohttp.ClientError, concurrent.futures.CancelledError)
    statuses = _STATUSES
    exceptions = _EXCEPTIONS

    def verdict_on(self, operation: str, refusal: Refusal) -> Verdict:
        if 300 <= refusal.status < 400:
            return Verdict(ConfigurationError, "the server redirects without saying where to")
        return super().verdict_on(operation, refusal)

    def shown(self, error: BaseException) -> str:
        _remove_query(error)
        return type(error).__name__


def _remove_query(error: BaseException) -> None:
    if isinstance(error, aiohttp.ClientResponseError):
        info = error.request_info
        bare = info.real_url.with_query(None)
        error.request_info = info._replace(url=bare, real_url=bare)
        error.history = ()
        error.args = (error.request_info, ())


def refusal_by_headers(status: int, headers: Mapping[str, str]) -> Refusal:
    """A response that is no success; its body is not looked at."""
    request_id = next((headers[name] for name in _REQUEST_IDS if name in headers), None)
    return Refusal(status, request_id=request_id, headers=headers)
