"""A checkpoint URL together with its options: what a writer and a reader have in common.

Picklable: it holds the URL and the options, and opens the bucket on first use in each process. A forked
child opens its own connections and leaves those of its parent alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from dcp_core.config import TransferOptions, build_options
from dcp_core.location import Location, scheme_of
from dcp_core.registry import Backend, find_backend
from dcp_core.store import ObjectStore

__all__ = ["Endpoint"]

_Options = TypeVar("_Options", bound=TransferOptions)


class Endpoint(Generic[_Options]):
    """The base URL of a writer or reader, its current checkpoint, and the store behind it.

    Args:
        url: checkpoint URL, or the URL that names given to :meth:`move` are relative to.
        options_type: option class of the core, for saving or loading.
        given: keyword options; those that ``options_type`` does not have are the backend's.
        backend: the backend, where a class is bound to one; found by the URL's scheme otherwise.

    Raises:
        ConfigurationError: the URL, its scheme or an option is wrong.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        options_type: type[_Options],
        given: Mapping[str, Any],
        backend: Backend | None = None,
    ) -> None:
        self._options_type = options_type
        self._given = dict(given)
        self._bound = backend is not None
        self._backend = backend or _backend_of(url)
        self.options, self.store_options = self._split()
        self._base = self._backend.locate(os.fspath(url))
        self.location: Location = self._base
        self._lock = threading.Lock()
        self._store: ObjectStore | None = None
        self._store_pid = 0

    def _split(self) -> tuple[_Options, Any]:
        options, store_options = build_options(self._given, self._options_type, self._backend.options_type)
        return options, store_options

    @property
    def read_only(self) -> bool:
        """Whether nothing can be saved here."""
        return bool(getattr(self._backend, "read_only", False))

    def move(self, checkpoint_id: str | os.PathLike[str]) -> None:
        """Go on at another checkpoint: a full URL, or a name relative to the URL given at the start."""
        if scheme_of(checkpoint_id) is None:
            self.location = self._base.child(checkpoint_id)
            return
        backend = self._backend if self._bound else _backend_of(checkpoint_id)
        location = backend.locate(os.fspath(checkpoint_id))
        if location.store_id != self.location.store_id:
            self.close()
            self._backend = backend
            self.options, self.store_options = self._split()
        self.location = location

    def store(self) -> ObjectStore:
        """The bucket, opened on first use in this process."""
        with self._lock:
            if self._store is None or self._store_pid != os.getpid():
                self._store = self._backend.open(
                    self.location, self.store_options, concurrency=self.options.concurrency
                )
                self._store_pid = os.getpid()
            return self._store

    def close(self) -> None:
        """Close the connections of this process; the next use opens new ones."""
        with self._lock:
            if self._store is not None and self._store_pid == os.getpid():
                self._store.close()
            self._store = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"]
        state["_store"] = None
        state["_store_pid"] = 0
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _backend_of(url: str | os.PathLike[str]) -> Backend:
    scheme = scheme_of(url)
    # parsing says what is wrong with a URL that has no scheme
    return find_backend(scheme if scheme is not None else Location.parse(url).scheme)
