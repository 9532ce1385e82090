"""Work that goes on one request at a time, as a test decides.

Each piece of work runs in a thread of its own, and waits at every request until it is told what becomes of
it. One thread runs at a time, so that what happens is what the test says, in its order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from dcp_core.testing import MemoryStore
from support.unreliable_store import Fault, Request, UnreliableStore

__all__ = ["Killed", "Stepped", "killed", "killed_afterwards", "served"]

#: Seconds after which a thread that should have come to its next request hangs.
_LIMIT = 60.0


class Killed(BaseException):
    """The process is dead: nothing of it runs any more, and nothing is sent."""


def served(request: Request) -> Any:
    """The request and its response get through."""
    return request.deliver()


def killed(request: Request) -> Any:
    """The request is not done: the process dies before it."""
    raise Killed


def killed_afterwards(request: Request) -> Any:
    """The request is done, and the process dies before it hears of it."""
    request.arrives()
    raise Killed


class Stepped(UnreliableStore):
    """``work(store)`` in a thread of its own, and the store that it works on.

    Attributes:
        error: what the work ended with, if that was an error.
        dead: whether its process was killed.
        waits_with: the request that it waits with; ``None`` once it is over.
    """

    def __init__(self, store: MemoryStore, work: Callable[[UnreliableStore], object]) -> None:
        super().__init__(store)
        self.error: BaseException | None = None
        self.waits_with: Request | None = None
        self._work = work
        self._over = self.dead = False
        self._decided: Fault | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._settle()

    def step(self, fault: Fault = served) -> None:
        """Decide about the request that it waits with, and let it run to the next one, or to its end."""
        with self._changed:
            assert self.waits_with is not None
            self.waits_with = None
            self._decided = fault
            self._changed.notify_all()
        self._settle()

    def _settle(self) -> None:
        with self._changed:
            settled = self._changed.wait_for(lambda: self._over or self.waits_with is not None, _LIMIT)
        assert settled, "it hangs"
        if self._over:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._work(self)
        # the test looks at it
        except BaseException as error:  # noqa: BLE001
            self.error = error
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _send(self, verb: str, key: str, deliver: Callable[[], Any]) -> Any:
        if self.dead:
            raise Killed
        request = Request(verb, key, deliver)
        with self._changed:
            self.waits_with = request
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._decided is not None)
            fault, self._decided = self._decided, None
        assert fault is not None
        try:
            return fault(request)
        except Killed:
            self.dead = True
            raise
