"""Checkpoint URLs of the web."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from dcp_core.errors import ConfigurationError, InvalidLocationError
from dcp_core.seam.location import Location
from dcp_http.options import check_query, is_host

__all__ = ["HTTPLocation", "encoded"]


@dataclass(frozen=True)
class HTTPLocation(Location):
    """A host as the bucket, and a path as the prefix.

    Unlike those of buckets these URLs are URLs: ``%20`` in one is a space of the key, and what follows
    ``?`` is no part of the key but goes with every request, and is never shown.
    """

    query: str = field(default="", repr=False)

    @classmethod
    def parse_url(cls, url: str) -> HTTPLocation:
        """Parse ``http[s]://host[:port]/path[?query]``.

        Raises:
            InvalidLocationError: not such a URL, or credentials or a fragment inside it.
        """
        plain, _, query = url.partition("?")
        found = Location.parse(plain)
        if "@" in found.bucket:
            raise InvalidLocationError(
                "the URL carries credentials before '@'; pass them as headers= or token= instead"
            )
        if "#" in url:
            raise InvalidLocationError(f"{plain!r}: a fragment is never sent; write '#' in a key as '%23'")
        if not is_host(found.bucket):
            raise InvalidLocationError(f"{found.bucket!r} is not a host, or a host and a port, in ASCII")
        try:
            check_query(query)
            prefix = unquote(found.prefix, errors="strict")
        except (ConfigurationError, UnicodeDecodeError) as error:
            raise InvalidLocationError(f"{plain!r} or its query is not percent-encoded UTF-8") from error
        return cls(found.scheme, found.bucket.lower(), prefix, query)

    @property
    def store_id(self) -> tuple[str, ...]:
        return (*super().store_id, self.query)

    @property
    def url(self) -> str:
        """The URL without its query."""
        base = f"{self.scheme}://{self.bucket}"
        return f"{base}/{encoded(self.prefix)}" if self.prefix else base


def encoded(key: str) -> str:
    """``key`` as the path of a URL: every character that could mean something else is encoded."""
    return quote(key, safe="/~")
