"""One web server, through aiohttp. Reading only."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import aiohttp
from yarl import URL

from dcp_core.errors import (
    CheckpointCorruptError,
    ConfigurationError,
    ConflictError,
    ObjectNotFoundError,
    UnsupportedError,
)
from dcp_core.store import (
    Body,
    Condition,
    Limits,
    ObjectInfo,
    ObjectStore,
    Part,
    Upload,
    UploadInfo,
)
from dcp_http.answers import READ_BUFFER, HTTPRangeReader, follow, info_of
from dcp_http.error_table import mapped, refusal
from dcp_http.location import encoded
from dcp_http.loop import LoopThread
from dcp_http.options import HTTPOptions
from dcp_http.ranges import content_range, range_header, size_of_unsatisfied

__all__ = ["HTTPStore"]

_NOTHING = Limits(min_part_size=0, max_part_size=0, max_parts=0, max_object_size=0, max_put_size=0)
#: Answers to a HEAD after which a GET may fare better: presigned URLs are good for one method, and some
#: servers know only that one.
_TRY_GET = frozenset({400, 401, 403, 405, 501})


class HTTPStore(ObjectStore):
    """The objects below ``scheme://host``.

    Each call is one request and its redirects. aiohttp repeats one by itself only where a kept connection
    turns out to have been closed before it.

    Args:
        scheme: ``http`` or ``https``.
        host: with a port, where it is not the scheme's own.
        options: how to ask.
        query: sent with every request.
    """

    limits = _NOTHING

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
        answer = self._ask("HEAD", key, {}, lambda status: status == 200 or status in _TRY_GET)
        answer_size = answer.headers.get("Content-Length", "")
        self._loop.soon(answer.release)
        if answer.status != 200 or not answer_size.isdecimal():
            return self._head_by_get(key)
        return info_of(key, int(answer_size), answer.headers)

    def _head_by_get(self, key: str) -> ObjectInfo:
        """The facts that come with the first byte."""
        answer = self._ask(
            "GET", key, {"Range": range_header(0, 1)}, lambda status: status in (200, 206, 416)
        )
        self._loop.soon(answer.close)
        said = answer.headers.get("Content-Range", "")
        if answer.status == 200:
            return info_of(key, self._length(key, answer), answer.headers)
        found = content_range(said)
        size = size_of_unsatisfied(said) if found is None else found[2]
        if size is None:
            raise self._unsupported(key, "does not say how large the object is")
        return info_of(key, size, answer.headers)

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        answer = self._ask("GET", key, {}, lambda status: status == 200)
        with mapped("GET", self.bucket, key):
            data = self._loop.call(lambda _: answer.read())
        return data, info_of(key, len(data), answer.headers)

    @contextmanager
    def read_range(
        self, key: str, start: int, stop: int, *, version: str | None = None
    ) -> Iterator[HTTPRangeReader]:
        wanted = {"Range": range_header(start, stop)}
        # only strong validators may be compared on the server; the others are compared here
        if version is not None and version.startswith('"'):
            wanted["If-Match"] = version
        answer = self._ask("GET", key, wanted, lambda status: status in (200, 206))
        try:
            reader = self._reader(key, start, stop, answer)
            if version is not None and reader.info.version != version:
                raise ConflictError("GET: the object is another version", bucket=self.bucket, key=key)
        except BaseException:
            self._loop.soon(answer.close)
            raise
        try:
            yield reader
        finally:
            reader.close()

    def _reader(self, key: str, start: int, stop: int, answer: aiohttp.ClientResponse) -> HTTPRangeReader:
        if answer.status == 200:
            return self._whole(key, start, stop, answer)
        found = content_range(answer.headers.get("Content-Range", ""))
        if found is None or found[0] != start or found[1] != min(stop, found[2]):
            raise self._unsupported(key, "answers with another range than the one that was asked for")
        info = info_of(key, found[2], answer.headers)
        return HTTPRangeReader(info, answer, self._loop, self.bucket, expected=found[1] - start)

    def _whole(self, key: str, start: int, stop: int, answer: aiohttp.ClientResponse) -> HTTPRangeReader:
        """A range out of an answer that ignores it."""
        size, limit = self._length(key, answer), self._options.whole_object_limit
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
        return HTTPRangeReader(
            info_of(key, size, answer.headers),
            answer,
            self._loop,
            self.bucket,
            expected=expected,
            skip=start,
        )

    def _length(self, key: str, answer: aiohttp.ClientResponse) -> int:
        length = answer.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise self._unsupported(key, "cannot send ranges and does not say how large the object is")
        return int(length)

    def _ask(
        self, method: str, key: str, wanted: dict[str, str], accepts: Callable[[int], bool]
    ) -> aiohttp.ClientResponse:
        """An answer with an accepted status, its body as it is stored."""
        url, private = self._place(key)
        headers = {"Accept-Encoding": "identity", "Accept": "*/*", **wanted}

        async def ask(session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
            answer = await follow(
                session,
                method,
                url,
                headers=headers,
                private=private,
                limit=self._options.max_redirects,
            )
            self._loop.answers.add(answer)
            coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
            if accepts(answer.status) and coding in ("", "identity"):
                return answer
            answer.close()
            if not accepts(answer.status):
                raise refusal(method, answer.status, answer.headers, self.bucket, key)
            raise self._unsupported(
                key, f"sends the object encoded as {coding[:20]!r} although that was refused: switch that off"
            )

        with mapped(method, self.bucket, key):
            try:
                return self._loop.call(ask)
            except ConfigurationError as error:
                error.bucket, error.key = self.bucket, key
                raise

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

    def put(self, key: str, body: Body, condition: Condition | None = None) -> ObjectInfo:
        del body, condition
        self._refuse(key)

    def start_upload(self, key: str) -> Upload:
        self._refuse(key)

    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        del number, body
        self._refuse(upload.key)

    def finish_upload(self, upload: Upload, parts: Sequence[Part]) -> ObjectInfo:
        del parts
        self._refuse(upload.key)

    def abort_upload(self, upload: Upload) -> None:
        self._refuse(upload.key)

    def delete(self, keys: Sequence[str]) -> None:
        if keys:
            self._refuse(keys[0])

    def _refuse(self, key: str) -> NoReturn:
        raise UnsupportedError(
            "http:// and https:// are read-only: save to a bucket and serve that", bucket=self.bucket, key=key
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise UnsupportedError("http:// and https:// cannot list objects", bucket=self.bucket, key=prefix)

    def list_uploads(self, prefix: str) -> Iterator[UploadInfo]:
        raise UnsupportedError("http:// and https:// have no uploads", bucket=self.bucket, key=prefix)

    def close(self) -> None:
        self._loop.close()


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
                total=None, sock_connect=options.connect_timeout, sock_read=options.stall_timeout
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
