"""An event loop on a thread of its own, for callers that block.

The thread starts with the object, for late in a program's life none can be started (since Python 3.12 none
once the interpreter shuts down). It ends with :meth:`LoopThread.close`, when nobody holds the object any
more, or with the interpreter.

A forked child has no such thread, but a copy of the loop, which shares its epoll descriptor with the parent:
closing anything in the child would take the parent's sockets out of it. So the copy is left as it is, and the
child makes a new one (``dcp_core.storage.checkpoint_store`` opens a store a process).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import aiohttp

from dcp_core.errors import ConfigurationError
from dcp_core.transport.in_flight import cancellable

__all__ = ["LoopThread"]

_R = TypeVar("_R")
#: Seconds for connections to say goodbye; a loop that is alive takes a moment.
_CLOSE_TIMEOUT = 20.0


class LoopThread:
    """Runs coroutines for threads that wait for their results.

    Args:
        open_session: makes the session; called in the loop.

    Raises:
        ConfigurationError: no thread can be started.
    """

    def __init__(self, open_session: Callable[[], aiohttp.ClientSession]) -> None:
        self._lock = threading.Lock()
        #: Responses whose bodies may be open; only the loop's thread touches this.
        self.responses: weakref.WeakSet[aiohttp.ClientResponse] = weakref.WeakSet()
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_run, args=(loop,), name="dcp-cloud-http", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            loop.close()
            raise ConfigurationError(
                f"no thread can be started ({error}): load before the program ends, or raise the limit on "
                "its threads"
            ) from error
        self._session = asyncio.run_coroutine_threadsafe(_in_loop(open_session), loop).result()
        self._loop: asyncio.AbstractEventLoop | None = loop
        self._finalizer = weakref.finalize(
            self, _end, loop, thread, self._session, self.responses, os.getpid()
        )

    def call(self, work: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, _R]]) -> _R:
        """Run ``work`` in the loop and wait for its result; an interrupt here ends it there."""
        with self._lock:
            # under the lock, so that it comes before the loop's end and is ended by it: see close
            if self._loop is None:
                raise ConfigurationError("the store was closed")
            future = asyncio.run_coroutine_threadsafe(work(self._session), self._loop)
        try:
            with cancellable(future.cancel):
                return future.result()
        except BaseException:
            future.cancel()
            raise

    def soon(self, work: Callable[[], object]) -> None:
        """Run ``work`` in the loop without waiting for it; here, once the loop has ended."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(work)
                return
        work()

    def close(self) -> None:
        """End the loop, its connections and all calls under way; a second time is no error."""
        with self._lock:
            if self._loop is not None:
                self._finalizer()
                self._loop = None


async def _in_loop(work: Callable[[], _R]) -> _R:
    return work()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()


def _end(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    session: aiohttp.ClientSession,
    responses: weakref.WeakSet[aiohttp.ClientResponse],
    pid: int,
) -> None:
    if os.getpid() != pid:
        for shared in (loop, session, session.connector):
            # never freed: see the module's docstring
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(shared))
        return
    with contextlib.suppress(RuntimeError):  # it has ended already
        loop.call_soon_threadsafe(lambda: loop.create_task(_stop(loop, session, responses)))
    # the collector may have come to this object in the loop's own thread
    if threading.current_thread() is not thread:
        thread.join(_CLOSE_TIMEOUT)


async def _stop(
    loop: asyncio.AbstractEventLoop,
    session: aiohttp.ClientSession,
    responses: weakref.WeakSet[aiohttp.ClientResponse],
) -> None:
    try:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), _CLOSE_TIMEOUT / 2)
        # the session forgets the connections of open responses
        for response in list(responses):
            response.close()
        await session.close()
        # transports close in the loop's next turn
        await asyncio.sleep(0)
        # without a resolver's threads there is nothing to end; late in an interpreter's life no thread starts
        with contextlib.suppress(RuntimeError):
            await loop.shutdown_default_executor()
    finally:
        loop.stop()
