"""From a checkpoint URL to the store behind it: what an entry point of a backend names."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from dcp_core.seam.location import Location
from dcp_core.seam.store import ReadableStore

__all__ = ["Backend"]


class Backend(abc.ABC):
    """One kind of store, for one or more URL schemes."""

    #: Dataclass of the backend's own options; every field has a default.
    options_type: type[Any]
    #: Whether its stores cannot be written; writers then refuse its URLs at once. Otherwise :meth:`open`
    #: returns an :class:`~dcp_core.seam.store.ObjectStore`.
    read_only: ClassVar[bool] = False

    @abc.abstractmethod
    def locate(self, url: str) -> Location:
        """Parse a URL of this backend's schemes, with the cloud's own naming rules.

        Raises:
            InvalidLocationError: the URL cannot name a checkpoint there.
        """

    @abc.abstractmethod
    def open(self, location: Location, options: Any, *, concurrency: int) -> ReadableStore:
        """Open the bucket of ``location`` for up to ``concurrency`` requests at a time.

        Raises:
            MissingExtraError: the SDK is not installed.
        """
