"""A checkpoint URL together with its options: what a writer and a reader have in common.

Picklable: it holds the URL and the options, and opens the bucket on first use in each process.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from dcp_core.config import LoadOptions, SaveOptions, TransferOptions, build_options
from dcp_core.errors import UnsupportedError
from dcp_core.seam.backend import Backend
from dcp_core.seam.location import Location, scheme_of
from dcp_core.seam.registry import find_backend
from dcp_core.seam.store import ObjectStore, ReadableStore
from dcp_core.storage.connections import Connections

__all__ = ["CheckpointStore", "split_options"]

_Options = TypeVar("_Options", bound=TransferOptions)


class CheckpointStore(Generic[_Options]):
    """One checkpoint's URL, the options that hold there, and the store behind it. Does not change.

    Args:
        url: checkpoint URL.
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
        self._bound = backend
        self._connections = Connections()
        self._root = self
        self._settle(backend or _backend_of(url), os.fspath(url))

    def _settle(self, backend: Backend, url: str) -> None:
        self._backend = backend
        self.options, self.store_options = build_options(
            self._given, self._options_type, backend.options_type
        )
        self.location: Location = backend.locate(url)

    def at(self, checkpoint_id: str | os.PathLike[str]) -> CheckpointStore[_Options]:
        """Another checkpoint with the same options: a full URL, or a name relative to the URL given at the
        start. Connections are shared; those to other stores are closed once nobody uses them."""
        other = copy.copy(self._root)
        if scheme_of(checkpoint_id) is None:
            other.location = self._root.location.child(checkpoint_id)
        else:
            other._settle(self._bound or _backend_of(checkpoint_id), os.fspath(checkpoint_id))
        self._connections.close(besides=other.location.store_id)
        return other

    @property
    def read_only(self) -> bool:
        """Whether nothing can be saved here."""
        return self._backend.read_only

    def store(self) -> ReadableStore:
        """The store, opened on first use in this process, for whoever calls :meth:`close` at the end."""
        return self._connections.store(self.location.store_id, self._open)

    def writable_store(self) -> ObjectStore:
        """The store, for saving and listing.

        Raises:
            UnsupportedError: stores of this kind can only be read.
        """
        return self._writable(self.store())

    @contextmanager
    def use(self) -> Iterator[ReadableStore]:
        """The store, which stays open within the context even if another thread calls :meth:`close`."""
        with self._connections.use(self.location.store_id, self._open) as store:
            yield store

    @contextmanager
    def use_writable(self) -> Iterator[ObjectStore]:
        """The same for saving; raises like :meth:`writable_store`."""
        with self.use() as store:
            yield self._writable(store)

    def _open(self) -> ReadableStore:
        return self._backend.open(self.location, self.store_options, concurrency=self.options.concurrency)

    def _writable(self, store: ReadableStore) -> ObjectStore:
        if not isinstance(store, ObjectStore):
            raise UnsupportedError(
                f"{self.location} is read-only: {self.location.scheme}:// URLs can only be loaded from"
            )
        return store

    def close(self) -> None:
        """Close the connections of this process, once nobody uses them; the next use opens new ones."""
        self._connections.close()


def split_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of ``given`` that a writer takes, and those that a reader takes; a backend's are both's."""
    saving, loading = _names(SaveOptions), _names(LoadOptions)
    return (
        {name: given[name] for name in given if name not in loading - saving},
        {name: given[name] for name in given if name not in saving - loading},
    )


def _names(kind: type[TransferOptions]) -> set[str]:
    """Names of options, those of before among them."""
    return {*kind.__dataclass_fields__, *kind.RENAMED} - {"RENAMED"}


def _backend_of(url: str | os.PathLike[str]) -> Backend:
    scheme = scheme_of(url)
    # parsing says what is wrong with a URL that has no scheme
    return find_backend(scheme if scheme is not None else Location.parse(url).scheme)
