"""Options of the HTTP backend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from dcp_core.config import ConnectionKeywords, ConnectionOptions, LoadKeywords
from dcp_core.errors import ConfigurationError

__all__ = ["HTTPLoadKeywords", "HTTPOptions", "check_query", "is_host"]

#: https://www.rfc-editor.org/rfc/rfc9110#name-tokens
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_QUERY = re.compile(r"[!-~]*")
#: Headers that this backend sets: the bytes received are placed by them.
_OURS = frozenset({"accept-encoding", "host", "if-match", "if-none-match", "if-range", "range"})


@dataclass(frozen=True)
class HTTPOptions(ConnectionOptions):
    """How to ask a web server.

    Proxies come from ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY``. Headers, token and query are sent to
    the host of the URL only, never to one that it redirects to, and never shown.

    Attributes:
        headers: sent with every request.
        token: sent as ``Authorization: Bearer``.
        query: appended to every URL, percent-encoded as it is to be sent: a signature that covers a whole
            folder, such as a shared access signature. A query in the checkpoint URL does the same.
        urls: object name or key → the URL to get it from, for presigned URLs that cover one object each.
            Those URLs are used as they are, without ``query``, ``headers`` and ``token``.
        max_redirects: redirects that are followed for one request; 0 refuses them, as one from https to http
            always is.
        whole_object_limit: bytes up to which an object is received whole, each time a part of it is
            needed, from a server that cannot send ranges.
    """

    headers: Mapping[str, str] | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    query: str | None = field(default=None, repr=False)
    urls: Mapping[str, str] | None = field(default=None, repr=False)
    max_redirects: int = 5
    whole_object_limit: int = 32 << 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_redirects < 0 or self.whole_object_limit < 0:
            raise ConfigurationError("max_redirects and whole_object_limit must not be negative")
        for name, value in (self.headers or {}).items():
            _check_header(name, value)
        if self.token is not None:
            if any(name.lower() == "authorization" for name in self.headers or ()):
                raise ConfigurationError("token and an Authorization header exclude each other")
            if not re.fullmatch(r"[!-~]+", self.token):
                raise ConfigurationError(
                    "token has characters that no header can carry: is a line end in it?"
                )
        check_query(self.query or "")
        for name, url in (self.urls or {}).items():
            if not _is_whole(url):
                raise ConfigurationError(f"urls: what is given for {name!r} is not a whole, encoded URL")


def _check_header(name: str, value: str) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise ConfigurationError(f"headers: {name!r} is not the name of a header")
    if name.lower() in _OURS:
        raise ConfigurationError(f"headers: {name} is set by the reader itself")
    if not _HEADER_VALUE.fullmatch(value):
        raise ConfigurationError(f"headers: the value of {name} has characters that no header can carry")


def _is_whole(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            _QUERY.fullmatch(url) is not None and parts.scheme in ("http", "https") and is_host(parts.netloc)
        )
    except ValueError:
        return False


def is_host(text: str) -> bool:
    """Whether ``text`` is a host, or a host and a port, that can be asked: no user, ASCII only."""
    try:
        parts = urlsplit(f"//{text}")
        whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        (parts.hostname or "").encode("idna")
    except ValueError:
        return False
    return whole and re.fullmatch(r"[A-Za-z0-9._-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?", text) is not None


def check_query(query: str) -> None:
    """Refuse a query that could not be sent as it is; does not show it.

    Raises:
        ConfigurationError: it is not percent-encoded.
    """
    if not _QUERY.fullmatch(query) or "#" in query:
        raise ConfigurationError("the query has characters that must be percent-encoded")


class _HTTPKeywords(ConnectionKeywords, total=False):
    headers: Mapping[str, str] | None
    token: str | None
    query: str | None
    urls: Mapping[str, str] | None
    max_redirects: int
    whole_object_limit: int


class HTTPLoadKeywords(LoadKeywords, _HTTPKeywords, total=False):
    """Options of ``HTTPStorageReader``."""
