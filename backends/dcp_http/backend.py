"""What the entry points ``http`` and ``https`` name."""

from __future__ import annotations

from typing import Any

from dcp_core.seam.backend import Backend
from dcp_core.seam.location import Location
from dcp_core.seam.store import ReadableStore
from dcp_http.location import HTTPLocation
from dcp_http.options import HTTPOptions
from dcp_http.store import HTTPStore

__all__ = ["HTTPBackend"]


class HTTPBackend(Backend):
    """Web servers. Writers refuse their URLs at once."""

    options_type: type[Any] = HTTPOptions
    read_only = True

    def locate(self, url: str) -> HTTPLocation:
        """Parse ``http[s]://host[:port]/path[?query]``.

        Raises:
            InvalidLocationError: not such a URL, or credentials or a fragment inside it.
        """
        return HTTPLocation.parse_url(url)

    def open(self, location: Location, options: HTTPOptions, *, concurrency: int) -> ReadableStore:
        """Open the host of ``location``."""
        del concurrency  # the callers bound it, and connections are made as they are needed
        query = location.query if isinstance(location, HTTPLocation) else ""
        return HTTPStore(location.scheme, location.bucket, options, query=query)
