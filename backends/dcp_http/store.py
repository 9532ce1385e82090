"""One web server, through aiohttp. Reading only."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import aiohttp
from yarl import URL

from dcp_core.errors import (
    CheckpointCorruptError,
    ConfigurationError,
    ConflictError,
    ObjectNotFoundError,
    UnsupportedError,
)
from dcp_core.seam.store import ObjectInfo, ReadableStore
from dcp_core.transport.ranges import content_range, range_header, size_of_unsatisfied
from dcp_http.error_table import refusal_by_headers
from dcp_http.location import encoded
from dcp_http.loop import LoopThread
from dcp_http.options import HTTPOptions
from dcp_http.responses import ERRORS, READ_BUFFER, AiohttpRangeReader, follow, info_of

__all__ = ["HTTPStore"]

#: Responses to a HEAD after which a GET may fare better: presigned URLs are good for one method, and some
#: servers know only that one.
_TRY_GET = frozenset({400, 401, 403, 405, 501})


class HTTPStore(ReadableStore):
    """The objects below ``scheme://host``.

    Each call is one request and its redirects. aiohttp repeats one by itself only where a kept connection
    turns out to have been closed before it.

    Args:
        scheme: ``http`` or ``https``.
        host: with a port, where it is not the scheme's own.
        options: how to ask.
        query: sent with every request.
    """

    def __init__(self, scheme: str, host: str, options: HTTPOptions, *, query: str = "") -> None:
        self.bucket = host
        self._base = f"{scheme}://{host}/"
        self._options = options
        self._query = "&".join(part for part in (query, (options.query or "").removeprefix("?")) if part)
        self._private = dict(options.headers or {})
        if options.token is not None:
            self._private["Authorization"] = f"Bearer {options.token}"
        self._loop = LoopThread(_session_of(options))

    def head(self, key: str) -> ObjectInfo:
        response = self._request("HEAD", key, {}, lambda status: status == 200 or status in _TRY_GET)
        length = response.headers.get("Content-Length", "")
        self._loop.soon(response.release)
        if response.status != 200 or not length.isdecimal():
            return self._head_by_get(key)
        return info_of(key, int(length), response.headers)

    def _head_by_get(self, key: str) -> ObjectInfo:
        """The facts that come with the first byte."""
        response = self._request(
            "GET", key, {"Range": range_header(0, 1)}, lambda status: status in (200, 206, 416)
        )
        self._loop.soon(response.close)
        said = response.headers.get("Content-Range", "")
        if response.status == 200:
            return info_of(key, self._length(key, response), response.headers)
        found = content_range(said)
        size = size_of_unsatisfied(said) if found is None else found[2]
        if size is None:
            raise self._unsupported(key, "does not say how large the object is")
        return info_of(key, size, response.headers)

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        response = self._request("GET", key, {}, lambda status: status == 200)
        with ERRORS.translate("GET", self.bucket, key):
            data = self._loop.call(lambda _: response.read())
        return data, info_of(key, len(data), response.headers)

    @contextmanager
    def read_range(
        self, key: str, start: int, stop: int, *, version: str | None = None
    ) -> Iterator[AiohttpRangeReader]:
        wanted = {"Range": range_header(start, stop)}
        # only strong validators may be compared on the server; the others are compared here
        if version is not None and version.startswith('"'):
            wanted["If-Match"] = version
        response = self._request("GET", key, wanted, lambda status: status in (200, 206))
        try:
            reader = self._reader(key, start, stop, response)
            if version is not None and reader.info.version != version:
                raise ConflictError("GET: the object is another version", bucket=self.bucket, key=key)
        except BaseException:
            self._loop.soon(response.close)
            raise
        try:
            yield reader
        finally:
            reader.close()

    def _reader(
        self, key: str, start: int, stop: int, response: aiohttp.ClientResponse
    ) -> AiohttpRangeReader:
        if response.status == 200:
            return self._whole(key, start, stop, response)
        found = content_range(response.headers.get("Content-Range", ""))
        if found is None or found[0] != start or found[1] != min(stop, found[2]):
            raise self._unsupported(key, "sends another range than the one that was asked for")
        info = info_of(key, found[2], response.headers)
        return AiohttpRangeReader(info, response, self._loop, self.bucket, expected=found[1] - start)

    def _whole(self, key: str, start: int, stop: int, response: aiohttp.ClientResponse) -> AiohttpRangeReader:
        """A range out of a response that ignores it."""
        size, limit = self._length(key, response), self._options.whole_object_limit
        if size <= start:
            raise CheckpointCorruptError(
                f"GET: the object has {size} bytes and ends before the range that the record names",
                bucket=self.bucket,
                key=key,
            )
        if size > limit and (start, stop) != (0, size):
            raise self._unsupported(
                key,
                f"cannot send ranges, only all of the object's {size} bytes, which are more than "
                f"whole_object_limit={limit}: serve the checkpoint from a server that knows ranges, "
                "or raise the limit",
            )
        expected = min(stop, size) - start
        return AiohttpRangeReader(
            info_of(key, size, response.headers),
            response,
            self._loop,
            self.bucket,
            expected=expected,
            skip=start,
        )

    def _length(self, key: str, response: aiohttp.ClientResponse) -> int:
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise self._unsupported(key, "cannot send ranges and does not say how large the object is")
        return int(length)

    def _request(
        self, method: str, key: str, wanted: dict[str, str], accepts: Callable[[int], bool]
    ) -> aiohttp.ClientResponse:
        """A response with an accepted status, its body as it is stored."""
        url, private = self._place(key)
        headers = {"Accept-Encoding": "identity", "Accept": "*/*", **wanted}

        async def request(session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
            response = await follow(
                session,
                method,
                url,
                headers=headers,
                private=private,
                limit=self._options.max_redirects,
            )
            self._loop.responses.add(response)
            wrong = _not_the_object(response)
            if accepts(response.status) and wrong is None:
                return response
            response.close()
            if wrong is not None and accepts(response.status):
                raise self._unsupported(key, wrong)
            refusal = refusal_by_headers(response.status, response.headers)
            raise ERRORS.for_refusal(method, refusal, self.bucket, key)

        with ERRORS.translate(method, self.bucket, key):
            return self._loop.call(request)

    def _place(self, key: str) -> tuple[URL, dict[str, str]]:
        """The URL of an object, and the headers that only its host may see."""
        if self._options.urls is not None:
            return URL(self._presigned(key, self._options.urls), encoded=True), {}
        query = f"?{self._query}" if self._query else ""
        return URL(f"{self._base}{encoded(key)}{query}", encoded=True), self._private

    def _presigned(self, key: str, urls: Mapping[str, str]) -> str:
        name = key
        while name not in urls:
            _, slash, name = name.partition("/")
            if not slash:
                raise ObjectNotFoundError("urls= has no URL for this object", bucket=self.bucket, key=key)
        return urls[name]

    def _unsupported(self, key: str, what: str) -> UnsupportedError:
        return UnsupportedError(f"GET: the server {what}", bucket=self.bucket, key=key)

    def close(self) -> None:
        self._loop.close()


def _not_the_object(response: aiohttp.ClientResponse) -> str | None:
    """What an accepted response has in place of the object's bytes."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        return f"sends the object encoded as {coding[:20]!r} although that was refused: switch that off"
    if response.status < 300 and response.content_type == "text/html":
        return "sends a web page in place of the object: a login, or its page for what it does not have"
    return None


def _session_of(options: HTTPOptions) -> Callable[[], aiohttp.ClientSession]:
    """Makes the session, in its loop; refers to nothing that refers to the loop."""
    trust = _trust(options)

    def session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # the callers are bounded; a limit of its own would let one wait for ever behind open ranges
            connector=aiohttp.TCPConnector(limit=0, ssl=trust),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            # it would read ~/.netrc for every request, and refuse a token beside an entry in it
            trust_env=False,
            read_bufsize=READ_BUFFER,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=options.connect_seconds, sock_read=options.stall_timeout
            ),
        )

    return session


def _trust(options: HTTPOptions) -> ssl.SSLContext | bool:
    if not options.verify_tls:
        return False
    if options.ca_bundle is None:
        return True
    try:
        return ssl.create_default_context(cafile=options.ca_bundle)
    except OSError as error:
        raise ConfigurationError(f"ca_bundle {options.ca_bundle!r} is no file of certificates") from error
