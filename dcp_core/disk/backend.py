"""From a path to the store of its folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from dcp_core.disk.store import DiskStore
from dcp_core.errors import InvalidLocationError
from dcp_core.seam.backend import Backend
from dcp_core.seam.location import Location

__all__ = ["DiskBackend", "DiskOptions"]

_SCHEME = "file"


@dataclass(frozen=True)
class DiskOptions:
    """A folder has no options."""


class DiskBackend(Backend):
    """Paths and ``file://`` URLs. The folder is the bucket: checkpoints lie at its root."""

    options_type: type[Any] = DiskOptions

    def locate(self, url: str) -> Location:
        path = url.removeprefix(f"{_SCHEME}://")
        is_relative_url = path != url and not path.startswith("/")
        is_file = os.path.exists(path) and not os.path.isdir(path)
        if not path or "\0" in path or is_relative_url or is_file:
            raise InvalidLocationError(f"{url!r} is no path of a folder")
        return Location(_SCHEME, os.path.abspath(path), "")

    def open(self, location: Location, options: DiskOptions, *, concurrency: int) -> DiskStore:
        del options, concurrency
        return DiskStore(location.bucket)
