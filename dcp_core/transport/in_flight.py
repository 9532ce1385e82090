"""Requests under way, and how another thread ends one.

A thread that waits for a socket can be woken by shutting the connection down. The connection pools of
:mod:`dcp_core.transport.pools` say which socket a request uses; a client with an event loop says how it
cancels one. Whoever makes the request needs to know nothing of either.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["InFlight", "cancellable", "on_socket"]

_thread = threading.local()


class InFlight:
    """One request, for as long as the context lasts, of the thread that enters it.

    Args:
        check: called before bytes are sent; what it raises ends the request.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._cancel: Callable[[], object] | None = None
        self._cut = False

    def __enter__(self) -> InFlight:
        self._outer = getattr(_thread, "request", None)
        _thread.request = self
        return self

    def __exit__(self, *details: object) -> None:
        _thread.request = self._outer
        # the connection may serve another request from here on
        with self._lock:
            self._socket = self._cancel = None

    def cut(self) -> None:
        """End the request from another thread: where it waits, it fails at once."""
        with self._lock:
            self._cut = True
            if self._socket is not None:
                _shut(self._socket)
            if self._cancel is not None:
                self._cancel()

    def use(self, connection: socket.socket) -> None:
        """From now on the request waits for ``connection``."""
        self.check()
        if connection is not self._socket:
            with self._lock:
                self._socket = connection
                if self._cut:
                    _shut(connection)

    def cancel_with(self, cancel: Callable[[], object] | None) -> None:
        """From now on ``cancel`` ends the request."""
        with self._lock:
            self._cancel = cancel
            if self._cut and cancel is not None:
                cancel()


def _shut(connection: socket.socket) -> None:
    # The base class's method: SSLSocket.shutdown drops the TLS layer first, and the thread that sends would
    # go on in clear text until the connection is down.
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def on_socket(connection: socket.socket) -> None:
    """Say that this thread's request, if there is one, is about to use ``connection``."""
    request: InFlight | None = getattr(_thread, "request", None)
    if request is not None:
        request.use(connection)


@contextmanager
def cancellable(cancel: Callable[[], object]) -> Iterator[None]:
    """Let ``cancel`` end this thread's request, if there is one, for as long as the context lasts."""
    request: InFlight | None = getattr(_thread, "request", None)
    if request is None:
        yield
        return
    request.check()
    request.cancel_with(cancel)
    try:
        yield
    finally:
        request.cancel_with(None)
