"""Successful responses, checked where they enter.

What responds at an endpoint is not always the store: a console's port, a login page, a proxy that strips
headers or serves a page of its own. Such a response is one error that says which request got it, rather than
a ``KeyError`` where something in it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from dcp_core.errors import CheckpointCorruptError, UnsupportedError
from dcp_core.transport.ranges import content_range

__all__ = ["StoreResponse", "parse_date"]


@dataclass(frozen=True)
class StoreResponse:
    """A response of a store, and what errors about it name.

    Attributes:
        api: whose API is expected, such as "S3".
        operation: name of the request.
        headers: find names in lower case.
        raw: the body, as the backend's SDK hands it over.
    """

    api: str
    operation: str
    bucket: str
    key: str | None
    headers: Mapping[str, str]
    raw: Any = None

    def unexpected(self, what: str) -> UnsupportedError:
        """The error for a response that ``what``."""
        return UnsupportedError(
            f"{self.operation}: the response {what}: the endpoint is not {self.api}'s API, or something on "
            "the way changes responses",
            bucket=self.bucket,
            key=self.key,
        )

    def field(self, name: str, among: Mapping[str, Any] | None = None) -> Any:
        """An element that the API promises: of ``raw``, or of an entry in it."""
        value = (self.raw if among is None else among).get(name)
        if value is None or value == "":
            raise self.unexpected(f"has no {name}")
        return value

    def header(self, name: str) -> str:
        """A header that the API promises."""
        value = self.headers.get(name)
        if not value:
            raise self.unexpected(f"has no {name.title()} header")
        return str(value)

    @property
    def length(self) -> int:
        """Bytes of the body."""
        value = self.header("content-length")
        if not value.isdecimal():
            raise self.unexpected(f"has the Content-Length {value[:40]!r}")
        return int(value)

    @property
    def modified(self) -> datetime | None:
        """When the object was last changed, if the response says so."""
        return parse_date(self.headers.get("last-modified", ""))

    def object_size(self, start: int, stop: int) -> int:
        """Size of the object of which this response has ``[start, stop)``, or what there is of that.

        Raises:
            UnsupportedError: the range was ignored, or another one came.
            CheckpointCorruptError: the object ends before ``start``.
        """
        said = self.headers.get("content-range")
        if said is None and start != 0:
            raise UnsupportedError(
                f"{self.operation}: the store ignores the Range header and sent the whole object",
                bucket=self.bucket,
                key=self.key,
            )
        size = self.length if said is None else self._size_in(said, start, stop)
        if size <= start:
            # a 416 where the protocol is kept; emulators send an empty object whole
            raise CheckpointCorruptError(
                f"{self.operation}: the object has {size} bytes, the range starts at {start}",
                bucket=self.bucket,
                key=self.key,
            )
        return size

    def _size_in(self, said: str, start: int, stop: int) -> int:
        """The object's size in a ``Content-Range``, which is that of the range asked for."""
        found = content_range(said)
        if found is None or found[:2] != (start, min(stop, found[2])) or found[1] - start != self.length:
            raise self.unexpected(f"has another range than the one asked for ({said[:60]!r})")
        return found[2]


def parse_date(text: str) -> datetime | None:
    """A date of HTTP; ``None`` for what is none, or has no time zone."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return date if date.tzinfo is not None else None
