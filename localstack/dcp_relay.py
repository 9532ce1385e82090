"""How requests get from the fault proxy to the server, and responses back.

:meth:`Relay.pass_on` passes streams on, which a fault may break; :meth:`Relay.receive` and
:meth:`Relay.send` take a request whole and have it done later, or more than once.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import aiohttp
from aiohttp import web
from dcp_faults import Fault, Seen, flipped
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

__all__ = ["Broken", "Relay", "Whole", "WholeResponse"]

_CHUNK = 64 * 1024
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "upgrade"}
#: Seconds in which what was written has gone out, before the connection is reset.
_FLUSH = 0.05

#: What a fault does before some bytes of a body: other bytes, or the end of the connection.
_Action = Callable[[bytes], Awaitable[bytes]]

_Body = AsyncIterator[bytes] | io.BytesIO


class Broken(Exception):
    """The client's connection is to end: reset, or ``in_order``."""

    def __init__(self, *, in_order: bool = False) -> None:
        super().__init__()
        self.in_order = in_order


@dataclass(frozen=True)
class Whole:
    """A request with its body."""

    method: str
    raw_path: str
    headers: CIMultiDict[str]
    body: bytes


@dataclass(frozen=True)
class WholeResponse:
    """A response with its body."""

    status: int
    reason: str | None
    headers: CIMultiDict[str]
    body: bytes

    def without(self, names: tuple[str, ...]) -> WholeResponse:
        """The same without some headers."""
        headers = self.headers.copy()
        for name in names:
            headers.popall(name, None)
        return replace(self, headers=headers)

    def shortened(self, length: int) -> WholeResponse:
        """The start of it, which looks whole."""
        body = self.body[:length]
        headers = self.headers.copy()
        headers["Content-Length"] = str(len(body))
        return replace(self, headers=headers, body=body)

    def to(self, seen: Seen) -> web.Response:
        """As the response to a request."""
        seen.status, seen.bytes_out = self.status, len(self.body)
        return web.Response(status=self.status, reason=self.reason, headers=self.headers, body=self.body)


class Relay:
    """The way to a server.

    Args:
        upstream: endpoint of the server.
        rate: bytes a second of each stream; 0 is as fast as it goes.
    """

    def __init__(self, upstream: str, rate: float) -> None:
        self._upstream = upstream
        self._rate = rate

    async def open(self) -> None:
        self._client = aiohttp.ClientSession(
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def close(self) -> None:
        await self._client.close()

    async def receive(self, request: web.Request, seen: Seen) -> Whole:
        """All of a request."""
        body = await request.read()
        seen.bytes_in = len(body)
        return Whole(request.method, request.raw_path, _kept(request.headers), body)

    async def send(self, whole: Whole) -> WholeResponse:
        """Have a request done.

        Raises:
            Broken: the server broke the connection.
        """
        body = io.BytesIO(whole.body) if whole.body else None
        async with self._asked(whole.method, whole.raw_path, whole.headers, body) as found:
            return WholeResponse(found.status, found.reason, _kept(found.headers), await found.read())

    async def pass_on(self, request: web.Request, seen: Seen, fault: Fault | None) -> web.StreamResponse:
        """Pass a request and its response on, as they come.

        Raises:
            Broken: the fault says so, or the server broke the connection.
        """
        act = _request_action(fault)
        if act is not None and not request.body_exists:
            await act(b"")
        body = self._request_body(request, seen, fault) if request.body_exists else None
        async with self._asked(request.method, request.raw_path, _kept(request.headers), body) as found:
            seen.status = found.status
            return await self._respond(request, found, seen, fault)

    @contextlib.asynccontextmanager
    async def _asked(
        self,
        method: str,
        raw_path: str,
        headers: CIMultiDict[str],
        body: AsyncIterator[bytes] | io.BytesIO | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._client.request(
                method,
                URL(self._upstream + raw_path, encoded=True),
                headers=headers,
                data=body,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                allow_redirects=False,
            ) as found:
                yield found
        except aiohttp.ClientError as error:
            raise Broken from error

    async def _request_body(
        self, request: web.Request, seen: Seen, fault: Fault | None
    ) -> AsyncIterator[bytes]:
        act = _request_action(fault)
        at = fault.place(request.content_length) if fault is not None else 0
        async for piece in _pieces(request.content, act, at):
            seen.bytes_in += len(piece)
            await self._pace(len(piece))
            yield piece

    async def _respond(
        self, request: web.Request, found: aiohttp.ClientResponse, seen: Seen, fault: Fault | None
    ) -> web.StreamResponse:
        act = _response_action(fault)
        empty = request.method == "HEAD" or found.content_length == 0
        if act is not None and empty:
            await act(b"")
        response = web.StreamResponse(status=found.status, reason=found.reason, headers=_kept(found.headers))
        await response.prepare(request)
        at = fault.place(found.content_length) if fault is not None else 0
        async for piece in _pieces(found.content, act, at):
            # before they are sent: the client may look at the count as soon as it has them
            seen.bytes_out += len(piece)
            await response.write(piece)
            await self._pace(len(piece))
        with contextlib.suppress(ConnectionError):
            await response.write_eof()
        return response

    async def _pace(self, count: int) -> None:
        if self._rate:
            await asyncio.sleep(count / self._rate)


def _kept(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers that are not about the connection."""
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP)


async def _pieces(content: aiohttp.StreamReader, act: _Action | None, at: int) -> AsyncIterator[bytes]:
    """The bytes of a body, where ``act`` comes between those before ``at`` and the others."""
    passed = 0
    async for chunk in content.iter_chunked(_CHUNK):
        start, passed = passed, passed + len(chunk)
        if act is None or not start <= at < passed:
            yield chunk
            continue
        if at > start:
            yield chunk[: at - start]
        yield await act(chunk[at - start :])


def _request_action(fault: Fault | None) -> _Action | None:
    actions: dict[str, Callable[[Fault], _Action]] = {
        "reset_request": _resetting,
        "flip_request": _flipping,
        "stall_request": _stalling,
    }
    return actions[fault.kind](fault) if fault is not None and fault.kind in actions else None


def _response_action(fault: Fault | None) -> _Action | None:
    actions: dict[str, Callable[[Fault], _Action]] = {
        "reset_response": _resetting,
        "truncate_response": _resetting,
        "flip_response": _flipping,
        "stall": _stalling,
    }
    return actions[fault.kind](fault) if fault is not None and fault.kind in actions else None


def _resetting(fault: Fault) -> _Action:
    async def act(rest: bytes) -> bytes:
        del rest
        await asyncio.sleep(_FLUSH)
        raise Broken(in_order=fault.kind == "truncate_response")

    return act


def _flipping(fault: Fault) -> _Action:
    del fault

    async def act(rest: bytes) -> bytes:
        return flipped(rest, 0)

    return act


def _stalling(fault: Fault) -> _Action:
    async def act(rest: bytes) -> bytes:
        await asyncio.sleep(fault.seconds)
        return rest

    return act
