"""An event loop on a thread of its own, for callers that block.

The thread starts with the first call and ends with :meth:`LoopThread.close`, when nobody holds the object
any more, or with the interpreter.

A forked child has no such thread, but a copy of the loop, which shares its epoll descriptor with the parent:
closing anything in the child would take the parent's sockets out of it. So the copy is left as it is, and the
child makes a new one (``dcp_core.endpoint`` opens a store a process).
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

__all__ = ["LoopThread"]

_R = TypeVar("_R")
#: Seconds for connections to say goodbye.
_GOODBYE = 5.0


class LoopThread:
    """Runs coroutines for threads that wait for their results.

    Args:
        open_session: makes the session; called in the loop.
    """

    def __init__(self, open_session: Callable[[], aiohttp.ClientSession]) -> None:
        self._open_session = open_session
        # entered again where a call starts the loop
        self._lock = threading.RLock()
        self._closed = False
        #: Answers whose bodies may be open; only the loop's thread touches this.
        self.answers: weakref.WeakSet[aiohttp.ClientResponse] = weakref.WeakSet()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: aiohttp.ClientSession | None = None

    def call(self, work: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, _R]]) -> _R:
        """Run ``work`` in the loop and wait for its result; an interrupt here ends it there."""
        with self._lock:
            # under the lock, so that it comes before the loop's end and is ended by it: see close
            loop, session = self._started()
            future = asyncio.run_coroutine_threadsafe(work(session), loop)
        try:
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
            self._closed = True
            if self._loop is not None:
                self._finalizer()
                self._loop = self._session = None

    def _started(self) -> tuple[asyncio.AbstractEventLoop, aiohttp.ClientSession]:
        with self._lock:
            if self._closed:
                raise ConfigurationError("the store was closed")
            if self._loop is None or self._session is None:
                self._loop, self._session = self._start()
            return self._loop, self._session

    def _start(self) -> tuple[asyncio.AbstractEventLoop, aiohttp.ClientSession]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_run, args=(loop,), name="dcp-cloud-http", daemon=True)
        thread.start()
        session = asyncio.run_coroutine_threadsafe(_in_loop(self._open_session), loop).result()
        self._finalizer = weakref.finalize(self, _end, loop, thread, session, self.answers, os.getpid())
        return loop, session


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
    answers: weakref.WeakSet[aiohttp.ClientResponse],
    pid: int,
) -> None:
    if os.getpid() != pid:
        for shared in (loop, session, session.connector):
            # never freed: see the module's docstring
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(shared))
        return
    with contextlib.suppress(RuntimeError):  # it has ended already
        loop.call_soon_threadsafe(lambda: loop.create_task(_stop(loop, session, answers)))
    # the collector may have come to this object in the loop's own thread
    if threading.current_thread() is not thread:
        thread.join(_GOODBYE)


async def _stop(
    loop: asyncio.AbstractEventLoop,
    session: aiohttp.ClientSession,
    answers: weakref.WeakSet[aiohttp.ClientResponse],
) -> None:
    try:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), _GOODBYE / 2)
        # the session forgets the connections of open answers
        for answer in list(answers):
            answer.close()
        await session.close()
        # transports close in the loop's next turn
        await asyncio.sleep(0)
        # without a resolver's threads there is nothing to end; late in an interpreter's life no thread starts
        with contextlib.suppress(RuntimeError):
            await loop.shutdown_default_executor()
    finally:
        loop.stop()
