"""A reverse proxy that counts requests and bytes, and breaks them on demand.

Put in front of a server of S3's, Google's or Azure's it shows what a client really sends, and does what
networks and stores do to clients; ``dcp_faults.py`` lists what. Requests pass unchanged, ``Host`` header
included, so that signatures hold upstream.

::

    with FaultProxy(server.endpoint) as proxy:
        proxy.add(Fault("error", method="PUT", status=503, code="SlowDown", times=2))
        ...                                     # work against proxy.endpoint
        proxy.requests                          # what was asked, in order
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from dcp_connections import ServerLoop, bound, end_connection
from dcp_faults import Fault, Seen, error_body
from dcp_relay import Broken, Relay, Whole, WholeResponse

__all__ = ["Fault", "FaultProxy", "Seen"]

_LIMIT = 60.0
#: Seconds between two looks at what is under way.
_LOOK = 0.01


class _Case(NamedTuple):
    """A request to be broken."""

    request: web.Request
    seen: Seen
    fault: Fault


_Way = Callable[[_Case], Awaitable[web.StreamResponse]]


@dataclass
class _Held:
    """A request that waits for ``release()``: it sets ``dropped``, and ``ended`` tells the status then."""

    dropped: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


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
        self._relay = Relay(upstream, rate)
        self._latency = latency
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._loop = ServerLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._site: web.SockSite | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._kept: list[Whole] = []
        self._overtaken: list[Whole] = []
        self._held: list[_Held] = []
        self._holding = asyncio.Event()
        self._passing = 0
        self._defects: list[Exception] = []
        self._ways: dict[str, _Way] = {
            **{"error": self._refuse, "page": self._show_page, "refuse": self._vanish},
            **{"delay": self._delay, "late": self._late, "lose_response": self._lose},
            **{"twice": self._twice, "twice_together": self._twice, "again": self._again},
            **{"postpone": self._postpone, "overtake": self._postpone, "hold": self._hold},
            **{"shorten_response": self._alter, "strip_response": self._alter},
        }

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, *faults: Fault) -> None:
        """Break matching requests from now on. A fault that was added before counts from 0 again."""
        with self._lock:
            for fault in faults:
                fault.reset()
            self._faults += faults

    def clear(self) -> None:
        """Break nothing any more, and forget what was seen; what is kept or held stays so."""
        with self._lock:
            self._faults = []
            self.requests = []
        self._await(self._open_port())

    def operations(self) -> list[str]:
        """The operations asked for, in order."""
        return [seen.operation for seen in self.requests]

    def deliver(self) -> list[int]:
        """Have the requests that were kept back done now, in order; returns their statuses."""
        return self._await(self._deliver())

    def wait_held(self, seconds: float) -> bool:
        """Whether a request is held, or comes to be in so many seconds."""
        return self._await(self._wait_held(seconds), seconds + _LIMIT)

    def release(self, *, drop: bool = False) -> list[int]:
        """Pass on the requests that are held, whose clients may be gone, or break their connections.

        Returns:
            Their statuses once they are done; 0 for what did not arrive.
        """
        return self._await(self._release(drop))

    def settle(self, seconds: float = _LIMIT) -> bool:
        """Whether all that came is done within so many seconds: what clients gave up is done all the same."""
        return self._await(self._settle(seconds), seconds + _LIMIT)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._await(self._start())
        return self

    def __exit__(self, *details: object) -> None:
        self._await(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._defects:
            raise RuntimeError("the fault proxy itself failed") from self._defects[0]

    def _await(self, coroutine: Coroutine[Any, Any, Any], limit: float = _LIMIT) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(limit)

    async def _start(self) -> None:
        await self._relay.open()
        application = web.Application(client_max_size=0)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, auto_decompress=False, shutdown_timeout=0.1)
        await self._runner.setup()
        # bound for as long as the proxy runs: the port is nobody else's while it is closed
        self._reserved = bound(0)
        self.port = self._reserved.getsockname()[1]
        await self._open_port()

    async def _open_port(self) -> None:
        if self._site is None:
            self._site = web.SockSite(self._runner, bound(self.port), backlog=512)
            await self._site.start()

    async def _close_port(self) -> None:
        if self._site is not None:
            site, self._site = self._site, None
            await site.stop()
        server = self._runner.server
        assert server is not None
        for connection in server.connections:
            end_connection(connection.transport)

    async def _stop(self) -> None:
        await self._runner.cleanup()
        # requests that a fault still holds back
        held = asyncio.all_tasks() - {asyncio.current_task()}
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await self._relay.close()
        await self._loop.abort_connections()
        self._reserved.close()

    def _choose(self, seen: Seen) -> Fault | None:
        with self._lock:
            self.requests.append(seen)
            found = next((fault for fault in self._faults if fault.breaks(seen)), None)
            seen.fault = found.kind if found is not None else None
            return found

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = urlsplit(request.raw_path)
        seen = Seen(request.method, raw.path, raw.query, dict(request.headers))
        fault = self._choose(seen)
        self._passing += 1
        try:
            await asyncio.sleep(self._latency)
            return await self._respond(request, seen, fault)
        except Broken as end:
            end_connection(request.transport, in_order=end.in_order)
        # the client has gone
        except (ConnectionError, aiohttp.ClientError):
            end_connection(request.transport)
        # a response that nobody ordered must not pass for the store's
        except Exception as error:
            self._defects.append(error)
            raise
        finally:
            self._passing -= 1
        return web.Response()

    async def _respond(self, request: web.Request, seen: Seen, fault: Fault | None) -> web.StreamResponse:
        if fault is not None and fault.kind in self._ways:
            return await self._ways[fault.kind](_Case(request, seen, fault))
        if any(urlsplit(one.raw_path).path == seen.path for one in self._overtaken):
            return await self._overtake(request, seen)
        return await self._relay.pass_on(request, seen, fault)

    async def _receive(self, case: _Case) -> Whole:
        return await self._relay.receive(case.request, case.seen)

    async def _done(self, case: _Case) -> WholeResponse:
        return await self._relay.send(await self._receive(case))

    async def _refuse(self, case: _Case) -> web.Response:
        body, headers = error_body(case.seen, case.fault)
        return await self._instead(case, body, headers)

    async def _show_page(self, case: _Case) -> web.Response:
        return await self._instead(case, case.fault.body, {"Content-Type": case.fault.content_type})

    async def _instead(self, case: _Case, body: str, headers: dict[str, str]) -> web.Response:
        """A response in the store's place."""
        whole = await self._receive(case)
        if case.fault.done:
            await self._relay.send(whole)
        await asyncio.sleep(case.fault.seconds)
        case.seen.status = case.fault.status
        content = b"" if case.seen.method == "HEAD" else body.encode()
        return web.Response(status=case.fault.status, headers=headers, body=content)

    async def _vanish(self, case: _Case) -> web.Response:
        await self._close_port()
        if case.fault.seconds:
            self._later(case.fault.seconds)
        raise Broken

    def _later(self, seconds: float) -> None:
        """Open the port again after so many seconds."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            await self._open_port()

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _delay(self, case: _Case) -> web.StreamResponse:
        await asyncio.sleep(case.fault.seconds)
        return await self._relay.pass_on(case.request, case.seen, None)

    async def _late(self, case: _Case) -> web.Response:
        response = await self._done(case)
        case.seen.status = response.status
        await asyncio.sleep(case.fault.seconds)
        return response.to(case.seen)

    async def _lose(self, case: _Case) -> web.Response:
        case.seen.status = (await self._done(case)).status
        raise Broken

    async def _alter(self, case: _Case) -> web.Response:
        response = await self._done(case)
        if case.fault.kind == "shorten_response":
            return response.shortened(case.fault.place(len(response.body))).to(case.seen)
        return response.without(case.fault.without).to(case.seen)

    async def _twice(self, case: _Case) -> web.Response:
        whole = await self._receive(case)
        if case.fault.kind == "twice":
            await self._relay.send(whole)
            return (await self._relay.send(whole)).to(case.seen)
        found = [await one for one in asyncio.as_completed([self._relay.send(whole) for _ in range(2)])]
        return found[-1].to(case.seen)

    async def _again(self, case: _Case) -> web.Response:
        whole = await self._receive(case)
        response = await self._relay.send(whole)
        self._kept.append(whole)
        return response.to(case.seen)

    async def _postpone(self, case: _Case) -> web.Response:
        kept = self._overtaken if case.fault.kind == "overtake" else self._kept
        kept.append(await self._receive(case))
        raise Broken

    async def _overtake(self, request: web.Request, seen: Seen) -> web.Response:
        """Do a request, and then those before it for the same key; the client waits for all of it."""
        response = await self._relay.send(await self._relay.receive(request, seen))
        late = [one for one in self._overtaken if urlsplit(one.raw_path).path == seen.path]
        self._overtaken = [one for one in self._overtaken if one not in late]
        for one in late:
            await self._relay.send(one)
        return response.to(seen)

    async def _deliver(self) -> list[int]:
        kept, self._kept, self._overtaken = [*self._kept, *self._overtaken], [], []
        return [(await self._relay.send(whole)).status for whole in kept]

    async def _hold(self, case: _Case) -> web.Response:
        whole = await self._receive(case)
        held = _Held()
        self._held.append(held)
        self._holding.set()
        case.seen.status = 0
        try:
            if await held.dropped:
                raise Broken
            response = await self._relay.send(whole)
            case.seen.status = response.status
            return response.to(case.seen)
        finally:
            if not held.ended.done():
                held.ended.set_result(case.seen.status)

    async def _wait_held(self, seconds: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._holding.wait(), seconds)
        return self._holding.is_set()

    async def _settle(self, seconds: float) -> bool:
        until = self._loop.time() + seconds
        while self._passing and self._loop.time() < until:
            await asyncio.sleep(_LOOK)
        return not self._passing

    async def _release(self, drop: bool) -> list[int]:
        held, self._held = self._held, []
        self._holding.clear()
        for one in held:
            one.dropped.set_result(drop)
        return [await one.ended for one in held]
