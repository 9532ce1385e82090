"""Responses of a web server: followed to where they are, checked, and received into memory.

aiohttp's parser hands the body out in chunks of up to 256 KiB, each a ``bytes`` of its own. They are never
joined: each is copied once, into the target. That copy is the price of this client, which the backends on
blocking sockets do not pay. What has arrived and was not asked for yet is bounded by ``READ_BUFFER``: aiohttp
stops reading from the socket at twice that, and the server is held back by TCP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from dcp_core.errors import ConfigurationError, TransientError
from dcp_core.seam.store import ObjectInfo
from dcp_core.transport.responses import parse_date
from dcp_http.error_table import HTTPErrors
from dcp_http.loop import LoopThread

__all__ = ["ERRORS", "READ_BUFFER", "AiohttpRangeReader", "follow", "info_of"]

READ_BUFFER = 512 * 1024
ERRORS = HTTPErrors()
_SENDABLE = re.compile(r"[!-~]*")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


async def follow(
    session: aiohttp.ClientSession,
    method: str,
    url: URL,
    *,
    headers: Mapping[str, str],
    private: Mapping[str, str],
    limit: int,
) -> aiohttp.ClientResponse:
    """The response at the end of at most ``limit`` redirects; ``private`` headers stay with the first host.

    Raises:
        ConfigurationError: too many redirects, or one that nobody should follow.
    """
    origin, followed = url.origin(), 0
    while True:
        sent = {**headers, **private} if url.origin() == origin else headers
        response = await session.request(
            method, url, headers=sent, allow_redirects=False, proxy=_proxy_of(url)
        )
        place = response.headers.get("Location")
        if response.status not in _REDIRECTS or place is None:
            return response
        response.release()
        if followed == limit:
            raise ConfigurationError(
                f"{method}: redirected more than {limit} times, last by {url.host}; see max_redirects="
            )
        url, followed = _next(url, place), followed + 1


def _proxy_of(url: URL) -> str | None:
    """The proxy that the environment names for ``url``."""
    proxy = getproxies().get(url.scheme)
    return proxy if proxy and not proxy_bypass(url.host or "") else None


def _next(url: URL, place: str) -> URL:
    try:
        # as it is, where it can be: quoting it again could break a signature
        target = url.join(URL(place, encoded=_SENDABLE.fullmatch(place) is not None))
        target.origin()
    except ValueError:
        # its text has the place, which may be signed
        raise ConfigurationError(f"{url.host} redirects to something that is not a URL") from None
    if target.scheme not in ("http", "https") or (url.scheme == "https" and target.scheme == "http"):
        raise ConfigurationError(
            f"{url.host} redirects from {url.scheme}:// to {target.scheme}:// at {target.host}: refused"
        )
    return target


def info_of(key: str, size: int, headers: Mapping[str, str]) -> ObjectInfo:
    """Facts about an object from the headers of a response.

    The version is the ETag; from a server that has none, the time of the last change, and the size.
    """
    changed = headers.get("Last-Modified", "")
    return ObjectInfo(key, size, headers.get("ETag") or f"{changed} {size}", parse_date(changed))


class AiohttpRangeReader:
    """The next ``expected`` bytes of a response's body, after ``skip`` bytes that nobody needs."""

    def __init__(
        self,
        info: ObjectInfo,
        response: aiohttp.ClientResponse,
        loop: LoopThread,
        bucket: str,
        *,
        expected: int,
        skip: int = 0,
    ) -> None:
        self.info = info
        self._response = response
        self._loop = loop
        self._bucket = bucket
        self._left = expected
        self._skip = skip
        self._chunk = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``, or what of it the range still has; 0 at the end."""
        view = buffer[: self._left]
        if view.nbytes == 0:
            return 0
        with ERRORS.translate("GET", self._bucket, self.info.key):
            count = self._loop.call(lambda _: self._fill(view))
        if count < view.nbytes:
            raise TransientError(
                f"GET: the response ended {self._left - count} bytes early",
                bucket=self._bucket,
                key=self.info.key,
            )
        self._left -= count
        return count

    async def _fill(self, view: memoryview) -> int:
        count = 0
        while count < view.nbytes and await self._has_chunk():
            taken = min(view.nbytes - count, self._chunk.nbytes)
            view[count : count + taken] = self._chunk[:taken]
            self._chunk = self._chunk[taken:]
            count += taken
        return count

    async def _has_chunk(self) -> bool:
        """Whether there is a byte to take: waits for one."""
        while not self._chunk.nbytes:
            data, border = await self._response.content.readchunk()
            if not data and not border:
                return False
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            self._chunk = memoryview(data)[skipped:]
        return True

    def close(self) -> None:
        """Give the connection back if everything was read, else drop it."""
        self._chunk = memoryview(b"")
        self._loop.soon(self._response.close if self._left else self._response.release)
