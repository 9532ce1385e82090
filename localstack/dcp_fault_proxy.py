"""A reverse proxy that counts requests and bytes, and breaks them on demand.

Put in front of a server of S3's, Google's or Azure's it shows what a client really sends, and does what
networks and stores do to clients: 503s, resets, truncated or damaged bodies, lost answers, stalls, slow
links. Requests pass unchanged, ``Host`` header included, so that signatures hold upstream.

::

    with FaultProxy(server.endpoint) as proxy:
        proxy.add(Fault("error", method="PUT", status=503, code="SlowDown", times=2))
        ...                                     # work against proxy.endpoint
        proxy.requests                          # what was asked, in order
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

import aiohttp
from aiohttp import web
from dcp_connections import abort_connections
from yarl import URL

Kind = Literal[
    "error",  # answer with `status` and error `code`, as each cloud has it, without asking upstream
    "reset_request",  # break the connection after `after` bytes of the request's body
    "reset_response",  # break the connection after `after` bytes of the answer's body
    "flip_response",  # damage the byte at `after` of the answer's body
    "flip_request",  # damage the byte at `after` of the request's body
    "lose_response",  # let upstream do it, then break the connection without an answer
    "stall",  # send nothing for `seconds` after `after` bytes of the answer's body
    "delay",  # wait `seconds` before asking upstream
]

_CHUNK = 64 * 1024
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "upgrade"}


@dataclass
class Fault:
    """What to break: the first ``times`` matching requests after ``skip`` others."""

    kind: Kind
    method: str | None = None
    path: str = ""
    query: str = ""
    operation: str | None = None
    skip: int = 0
    times: int = 1
    after: int = 0
    seconds: float = 0.0
    status: int = 503
    code: str = "SlowDown"
    hits: int = 0

    def matches(self, request: Seen) -> bool:
        return (
            self.method in (None, request.method)
            and self.operation in (None, request.operation)
            and re.search(self.path, request.path) is not None
            and re.search(self.query, request.query) is not None
        )


@dataclass
class Seen:
    """One request that came by."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    fault: str | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def operation(self) -> str:
        """The S3 operation, by method and query; Google's XML API has the same ones.

        Of Google's JSON API there are lists and batches of deletes. Azure's operations have the names of
        those that stand for them in S3.
        """
        if any(name.lower() == "x-ms-version" for name in self.headers):
            return _azure_operation(self)
        if self.path.startswith("/batch/storage/"):
            return "DeleteObjects"
        if self.path.startswith("/storage/"):
            return "ListObjectsV2"
        query = dict(parse_qsl(self.query, keep_blank_values=True))
        upload, key = "uploadId" in query or "uploads" in query, self.path.strip("/").count("/") > 0
        names = {
            ("PUT", False): "PutObject",
            ("PUT", True): "UploadPart",
            ("POST", False): "DeleteObjects",
            ("POST", True): "CompleteMultipartUpload" if "uploadId" in query else "CreateMultipartUpload",
            ("GET", False): "GetObject" if key else "ListObjectsV2",
            ("GET", True): "ListMultipartUploads",
            ("HEAD", False): "HeadObject",
            ("DELETE", False): "DeleteObject",
            ("DELETE", True): "AbortMultipartUpload",
        }
        return names.get((self.method, upload), self.method)


def _azure_operation(seen: Seen) -> str:
    """S3's name for what dcp_azure does by a request to Azure."""
    query = dict(parse_qsl(seen.query))
    names = {
        ("PUT", None): "PutObject",
        ("PUT", "block"): "UploadPart",
        ("PUT", "blocklist"): "CompleteMultipartUpload",
        ("POST", "batch"): "DeleteObjects",
        ("GET", None): "GetObject",
        ("GET", "list"): "ListObjectsV2",
        ("GET", "blocklist"): "ListMultipartUploads",
        ("HEAD", None): "HeadObject",
        ("DELETE", None): "DeleteObject",
    }
    name = names.get((seen.method, query.get("comp")), seen.method)
    # the block that shows that an upload was started has the number 0
    if name == "UploadPart" and base64.b64decode(query["blockid"]).endswith(b"-00000"):
        return "CreateMultipartUpload"
    # an abort makes an empty blob with this metadata of the upload, and deletes it
    if name == "CompleteMultipartUpload" and "x-ms-meta-dcpabandoned" in map(str.lower, seen.headers):
        return "AbortMultipartUpload"
    return name


class FaultProxy:
    """The proxy, on a thread of its own.

    Args:
        upstream: endpoint to pass requests on to.
        rate: bytes a second of each connection, each way; 0 is as fast as it goes.
        latency: seconds before each request is passed on.
    """

    def __init__(self, upstream: str, *, rate: float = 0.0, latency: float = 0.0) -> None:
        self.requests: list[Seen] = []
        self.port = 0
        self._upstream = upstream
        self._rate = rate
        self._latency = latency
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, *faults: Fault) -> None:
        """Break matching requests from now on. A fault that was added before counts from 0 again."""
        with self._lock:
            for fault in faults:
                fault.hits = 0
            self._faults += faults

    def clear(self) -> None:
        """Break nothing any more, and forget what was seen."""
        with self._lock:
            self._faults = []
            self.requests = []

    def operations(self) -> list[str]:
        """The operations asked for, in order."""
        return [seen.operation for seen in self.requests]

    def __enter__(self) -> FaultProxy:
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
        self._client = aiohttp.ClientSession(
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(limit=0),
        )
        application = web.Application(client_max_size=0)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, auto_decompress=False, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._client.close()
        # requests that a fault still holds back
        held = asyncio.all_tasks() - {asyncio.current_task()}
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await abort_connections()

    def _choose(self, seen: Seen) -> Fault | None:
        with self._lock:
            self.requests.append(seen)
            for fault in self._faults:
                if fault.matches(seen):
                    fault.hits += 1
                    if fault.skip < fault.hits <= fault.skip + fault.times:
                        seen.fault = fault.kind
                        return fault
        return None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = urlsplit(request.raw_path)
        seen = Seen(request.method, raw.path, raw.query, dict(request.headers))
        fault = self._choose(seen)
        if self._latency:
            await asyncio.sleep(self._latency)
        if fault is not None and fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
        if fault is not None and fault.kind == "error":
            return await self._refuse(request, seen, fault)
        try:
            return await self._pass(request, seen, fault)
        except _Broken:
            # the client may have gone first
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

    async def _refuse(self, request: web.Request, seen: Seen, fault: Fault) -> web.Response:
        async for chunk in request.content.iter_chunked(_CHUNK):
            seen.bytes_in += len(chunk)
        seen.status = fault.status
        body = f"<Error><Code>{fault.code}</Code><Message>made by the fault proxy</Message></Error>"
        return web.Response(
            status=fault.status,
            headers={"x-ms-error-code": fault.code},
            body=b"" if request.method == "HEAD" else body.encode(),
            content_type="application/xml",
        )

    async def _pass(self, request: web.Request, seen: Seen, fault: Fault | None) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        has_body = int(request.headers.get("Content-Length", 0)) > 0
        try:
            async with self._client.request(
                request.method,
                URL(self._upstream + request.raw_path, encoded=True),
                headers=headers,
                data=self._request_body(request, seen, fault) if has_body else None,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                allow_redirects=False,
            ) as answer:
                seen.status = answer.status
                if fault is not None and fault.kind == "lose_response":
                    await answer.read()
                    raise _Broken
                return await self._answer(request, answer, seen, fault)
        except aiohttp.ClientError as error:
            raise _Broken from error

    async def _request_body(
        self, request: web.Request, seen: Seen, fault: Fault | None
    ) -> AsyncIterator[bytes]:
        async for chunk in request.content.iter_chunked(_CHUNK):
            start, seen.bytes_in = seen.bytes_in, seen.bytes_in + len(chunk)
            if fault is not None and fault.kind == "reset_request" and seen.bytes_in > fault.after:
                raise _Broken
            if fault is not None and fault.kind == "flip_request":
                chunk = _flipped(chunk, fault.after - start)  # noqa: PLW2901
            await self._pace(len(chunk))
            yield chunk

    async def _answer(
        self, request: web.Request, answer: aiohttp.ClientResponse, seen: Seen, fault: Fault | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                response.headers.add(name, value)
        await response.prepare(request)
        async for chunk in answer.content.iter_chunked(_CHUNK):
            for piece in self._broken(chunk, seen, fault):
                await response.write(piece)
                seen.bytes_out += len(piece)
                await self._pace(len(piece))
            if fault is not None and seen.bytes_out >= fault.after:
                if fault.kind == "reset_response":
                    # what was written goes out before the connection is cut
                    await asyncio.sleep(0.05)
                    raise _Broken
                if fault.kind == "stall":
                    await asyncio.sleep(fault.seconds)
        with contextlib.suppress(ConnectionError):
            await response.write_eof()
        return response

    @staticmethod
    def _broken(chunk: bytes, seen: Seen, fault: Fault | None) -> Iterator[bytes]:
        if fault is None:
            yield chunk
        elif fault.kind == "reset_response":
            yield chunk[: max(0, fault.after - seen.bytes_out)]
        elif fault.kind == "flip_response":
            yield _flipped(chunk, fault.after - seen.bytes_out)
        else:
            yield chunk

    async def _pace(self, count: int) -> None:
        if self._rate:
            await asyncio.sleep(count / self._rate)


class _Broken(Exception):
    """The connection is to be cut."""


def _flipped(chunk: bytes, at: int) -> bytes:
    if not 0 <= at < len(chunk):
        return chunk
    return chunk[:at] + bytes([chunk[at] ^ 0xFF]) + chunk[at + 1 :]
