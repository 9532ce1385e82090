"""The SDK's client of a store, opened on first use and again when its credentials turn out to be stale.

Opening a client is where an SDK looks for credentials, and some keep for ever what they found, or did not
find, at that time. So a client is opened inside the first request, which is tried again like any other, and
one whose credentials the store refuses is replaced once by one that looks for them anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

__all__ = ["PATIENCE", "Client", "Clients"]

logger = logging.getLogger("dcp_core")

#: Seconds for which credentials are looked for again after a provider that is configured failed to give any.
PATIENCE = 60.0


class Client(Protocol):
    """What is opened here."""

    @property
    def credentials(self) -> object:
        """What it signs with; equal to that of another client if trying that one too would be in vain."""

    def close(self) -> object: ...


_C = TypeVar("_C", bound=Client)


class Clients(Generic[_C]):
    """The present client of one store. Thread-safe; one thread opens it while the others wait.

    Args:
        opens: opens a client.
    """

    def __init__(self, opens: Callable[[], _C]) -> None:
        self._opens = opens
        self._lock = threading.Lock()
        self._client: _C | None = None
        #: Whether the present client replaces one that was refused, and nothing has succeeded since.
        self._on_trial = False
        self._failing_since: float | None = None

    def get(self) -> _C:
        """The present client."""
        with self._lock:
            if self._client is None:
                self._client = self._opens()
            return self._client

    def succeeded(self, client: _C) -> None:
        """Note that ``client`` did what was asked."""
        if self._on_trial or self._failing_since is not None:
            with self._lock:
                if client is self._client:
                    self._on_trial = False
                    self._failing_since = None

    def refused(self, client: _C | None) -> bool:
        """Replace ``client``, whose credentials the store refuses; whether to try the new one."""
        with self._lock:
            if client is None or client is not self._client:
                return True  # another thread was told before
            self._client = None
            self._on_trial = not self._on_trial and self._opens_another(client)
            return self._on_trial

    def _opens_another(self, client: _C) -> bool:
        try:
            self._client = self._opens()
        # it is opened again in the next request, which tells what is wrong
        except Exception:
            logger.info("could not look for other credentials", exc_info=True)
            return True
        return self._client.credentials != client.credentials

    def unavailable(self) -> bool:
        """Note that a provider gave no credentials; whether to ask it again."""
        with self._lock:
            now = time.monotonic()
            if self._failing_since is None:
                self._failing_since = now
            patient = now - self._failing_since < PATIENCE
            if not patient:
                self._failing_since = None
            return patient

    def close(self) -> None:
        """Close the present client."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None
