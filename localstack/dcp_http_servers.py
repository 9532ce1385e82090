"""A web server for a folder, with the habits of real ones to switch on and off.

::

    with WebServer(folder) as server:
        server.token = "secret"            # wants Authorization: Bearer secret
        server.ranges = False              # sends whole files only
        ...                                # ask server.url
        server.seen                        # what was asked, in order

Runs on aiohttp in a thread of its own. Keys are paths below the folder; ETags change with every write.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web
from dcp_connections import ServerLoop

_PIECE = 1 << 20
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Asked:
    """One request that came in."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class WebServer:
    """The server.

    Attributes:
        token: wanted as a bearer token; others get 401 without and 403 with another one.
        query: wanted as the query, byte for byte; others get 403.
        ranges: whether ranges are sent; without, the whole file is.
        etags: whether responses have an ETag.
        heads: whether HEAD is allowed; without, it gets 403, as with a presigned URL.
        lengths: whether responses say their length; without, they are chunked.
        encode: send gzip whatever the client accepts.
        wrong_range: bytes by which the range that is sent is off.
        cut_after: bytes of a body after which the connection is cut, for the next ``cuts`` responses.
        redirects: path prefix → the URL that takes its place.
        redirect_status: status of redirects.
        before: called with each request before it is looked at.
        seen: the requests, in order.
        connections: ports of the clients' ends.
        statuses: of the responses to the next requests, before anything else is looked at.
    """

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.folder = folder
        self.token: str | None = None
        self.query: str | None = None
        self.ranges = self.etags = self.heads = self.lengths = True
        self.encode = False
        self.wrong_range = 0
        self.cut_after = 0
        self.cuts = 0
        self.redirects: Mapping[str, str] = {}
        self.redirect_status = 302
        self.statuses: list[int] = []
        self.before: Callable[[Asked], object] = lambda _: None
        self.seen: list[Asked] = []
        self.connections: set[int] = set()
        self.port = 0
        self._tls = tls
        self._loop = ServerLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="web-server", daemon=True)

    @property
    def host(self) -> str:
        return f"localhost:{self.port}" if self._tls else f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}"

    def __enter__(self) -> WebServer:
        self._thread.start()
        self._await(self._start())
        return self

    def __exit__(self, *details: object) -> None:
        self._await(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, coroutine):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _start(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def _stop(self) -> None:
        await self._runner.cleanup()
        held = asyncio.all_tasks() - {asyncio.current_task()}
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await self._loop.abort_connections()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        asked = Asked(request.method, path, query, dict(request.headers))
        self.seen.append(asked)
        self.before(asked)
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername")[1])
        response = self._refusal(asked)
        if response is None:
            return await self._send(request, asked)
        asked.status = response.status
        return response

    def _refusal(self, asked: Asked) -> web.Response | None:
        for prefix, place in self.redirects.items():
            if asked.path.startswith(prefix):
                target = place + asked.path.removeprefix(prefix)
                return web.Response(status=self.redirect_status, headers={"Location": target})
        status = self.statuses.pop(0) if self.statuses else self._status(asked)
        return None if status == 200 else web.Response(status=status)

    def _status(self, asked: Asked) -> int:
        authorization = asked.headers.get("Authorization")
        if asked.method not in ("GET", "HEAD"):
            return 405
        if self.token is not None and authorization != f"Bearer {self.token}":
            return 401 if authorization is None else 403
        if (asked.method == "HEAD" and not self.heads) or self.query not in (None, asked.query):
            return 403
        return 200 if self._file(asked).is_file() else 404

    def _file(self, asked: Asked) -> Path:
        return self.folder / unquote(asked.path).lstrip("/")

    def _facts(self, asked: Asked) -> tuple[bytes, dict[str, str]]:
        data, facts = self._file(asked).read_bytes(), self._file(asked).stat()
        headers = {"Last-Modified": formatdate(facts.st_mtime, usegmt=True)}
        if self.etags:
            headers["ETag"] = f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"'
        if self.encode:
            headers["Content-Encoding"] = "gzip"
            data = gzip.compress(data, 1)
        return data, headers

    async def _send(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        data, headers = self._facts(asked)
        status, start, stop = 200, 0, len(data)
        if "If-Match" in asked.headers and asked.headers["If-Match"] != headers.get("ETag"):
            asked.status = 412
            return web.Response(status=412)
        wanted = _RANGE.fullmatch(asked.headers.get("Range", "")) if self.ranges else None
        if wanted is not None:
            status, start = 206, int(wanted[1]) + self.wrong_range
            stop = min(int(wanted[2]) + 1 + self.wrong_range, len(data))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            if start >= len(data):
                asked.status = 416
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        asked.status = status
        response = web.StreamResponse(status=status, headers=headers)
        if self.lengths:
            response.content_length = stop - start
        await response.prepare(request)
        if asked.method == "GET":
            with contextlib.suppress(ConnectionError):
                await self._body(request, response, asked, memoryview(data)[start:stop])
        return response

    async def _body(
        self, request: web.Request, response: web.StreamResponse, asked: Asked, data: memoryview
    ) -> None:
        cut = self.cuts > 0
        self.cuts -= cut
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            if cut and start + len(piece) > self.cut_after:
                await response.write(piece[: max(0, self.cut_after - start)])
                # what was written goes out before the connection is cut
                await asyncio.sleep(0.05)
                assert request.transport is not None
                request.transport.abort()
                return
            await response.write(piece)
            asked.sent += len(piece)
        await response.write_eof()
