"""The stores that a writer or reader has open in this process, and who is using them.

A store is opened on first use, shared by everybody who works on the same bucket, and closed once nobody uses
it any more: closing a writer, or turning it to another bucket, does not cut the connections of a save that
another thread has under way.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dcp_core.seam.store import ReadableStore

__all__ = ["Connections"]

StoreId = tuple[str, ...]


@dataclass(eq=False)
class _Open:
    store: ReadableStore
    users: int = 0
    #: Nobody else may begin to use it; its last user closes it.
    retired: bool = False


class Connections:
    """Open stores by identity. Pickled and in a forked child it is empty: each process opens its own."""

    def __init__(self) -> None:
        self._forget()
        _all.add(self)

    def _forget(self) -> None:
        # in a forked child: another thread of the parent may have held the lock, and the connections are
        # the parent's
        self._lock = threading.Lock()
        self._stores: dict[StoreId, _Open] = {}

    def store(self, store_id: StoreId, opening: Callable[[], ReadableStore]) -> ReadableStore:
        """The store, opened if need be, for whoever closes the connections itself."""
        with self._lock:
            return self._find(store_id, opening).store

    @contextmanager
    def use(self, store_id: StoreId, opening: Callable[[], ReadableStore]) -> Iterator[ReadableStore]:
        """The store, opened if need be, and open until the end of the context whatever others close."""
        with self._lock:
            found = self._find(store_id, opening)
            found.users += 1
        try:
            yield found.store
        finally:
            with self._lock:
                found.users -= 1
                last = found.retired and not found.users
            if last:
                found.store.close()

    def _find(self, store_id: StoreId, opening: Callable[[], ReadableStore]) -> _Open:
        if store_id not in self._stores:
            self._stores[store_id] = _Open(opening())
        return self._stores[store_id]

    def close(self, *, besides: StoreId | None = None) -> None:
        """Close all stores but ``besides``; one in use is closed by its last user. The next use opens a new
        one."""
        with self._lock:
            retired = [self._stores.pop(store_id) for store_id in list(self._stores) if store_id != besides]
            for one in retired:
                one.retired = True
            idle = [one.store for one in retired if not one.users]
        for store in idle:
            store.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Connections, ()


_all: weakref.WeakSet[Connections] = weakref.WeakSet()


def _forget_all() -> None:
    for connections in list(_all):
        connections._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
