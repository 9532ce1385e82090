"""Checkpoint URLs.

A location is a scheme, a bucket and a prefix. URLs stay strings all the way: ``pathlib`` folds
``s3://`` into ``s3:/`` and ``//`` into ``/``, and object keys are not paths. Nothing is percent-decoded
either: the prefix in the URL is the prefix of the keys, character by character.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from dcp_core.errors import InvalidLocationError

__all__ = ["NAME_ROOM", "Location", "scheme_of"]

#: Bytes of a key that are kept free below a prefix: a slash and the longest name of a checkpoint's objects
#: (``dcp_core.format.layout``), which are ASCII.
NAME_ROOM = 64

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<bucket>[^/]*)(?:/(?P<prefix>.*))?", re.DOTALL)
_FOLDED_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lives: every object of it has the key ``prefix + "/" + name``."""

    scheme: str
    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str | os.PathLike[str]) -> Location:
        """Parse ``scheme://bucket/prefix``; one trailing slash is dropped.

        Raises:
            InvalidLocationError: not such a URL, no bucket, or credentials inside the URL.
        """
        text = _as_text(url)
        match = _URL.fullmatch(text)
        if match is None:
            raise InvalidLocationError(_malformed(text))
        bucket = match["bucket"]
        if not bucket:
            raise InvalidLocationError(f"{_shown(text)} names no bucket: expected scheme://bucket/prefix")
        if ":" in bucket.partition("@")[0] and "@" in bucket:
            raise InvalidLocationError(
                "the URL carries credentials before '@'; pass them to the cloud's SDK instead"
            )
        prefix = (match["prefix"] or "").removesuffix("/")
        _check_characters(text, prefix)
        return cls(match["scheme"].lower(), bucket, prefix)

    def key(self, name: str) -> str:
        """The key of the object ``name`` of this checkpoint."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def child(self, name: str | os.PathLike[str]) -> Location:
        """The location ``name`` below this one.

        Raises:
            InvalidLocationError: ``name`` is empty, absolute, or climbs with ``..``.
        """
        text = _as_text(name)
        if _FOLDED_URL.match(text):
            raise InvalidLocationError(_malformed(text))
        if not text or text.startswith("/") or ".." in text.split("/"):
            raise InvalidLocationError(
                f"{_shown(text)} is not a name below {self.url!r}: "
                "use a full URL or a relative name without '..'"
            )
        text = text.removesuffix("/")
        _check_characters(text, text)
        return replace(self, prefix=self.key(text))

    def check_prefix(self, store: str, longest_key: int, unit: str = "bytes") -> None:
        """Refuse a prefix that leaves no room for object names within ``longest_key`` units of ``store``.

        Raises:
            InvalidLocationError: the prefix is too long.
        """
        size = len(self.prefix.encode()) if unit == "bytes" else len(self.prefix)
        most = longest_key - NAME_ROOM
        if size > most:
            raise InvalidLocationError(
                f"the prefix has {size} {unit}; at most {most} leave room for object names within the "
                f"{longest_key:,} {unit} that {store} allows a key"
            )

    @property
    def store_id(self) -> tuple[str, ...]:
        """What two locations share if one store serves both."""
        return (self.scheme, self.bucket)

    @property
    def url(self) -> str:
        """The URL this location was parsed from, without a trailing slash."""
        base = f"{self.scheme}://{self.bucket}"
        return f"{base}/{self.prefix}" if self.prefix else base

    def __str__(self) -> str:
        return self.url


def scheme_of(url: str | os.PathLike[str]) -> str | None:
    """The lower-case scheme of ``url``, or ``None`` when it is not a URL at all."""
    match = _URL.fullmatch(_as_text(url))
    return match["scheme"].lower() if match else None


def _as_text(url: str | os.PathLike[str]) -> str:
    text = os.fspath(url)
    if not isinstance(text, str):
        raise InvalidLocationError(f"a checkpoint URL is a str, not {type(url).__name__}")
    return text


def _shown(text: str) -> str:
    """``text`` for people, without a query: in URLs of the web that may be a signature."""
    head, mark, _ = text.partition("?")
    return repr(f"{head}?…" if mark else head)


def _malformed(text: str) -> str:
    hint = ""
    if _FOLDED_URL.match(text):
        hint = "; it looks like a URL that went through pathlib, which drops a slash: pass it as a str"
    return f"{_shown(text)} is not a checkpoint URL (scheme://bucket/prefix){hint}"


def _check_characters(text: str, prefix: str) -> None:
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in prefix):
        raise InvalidLocationError(f"{_shown(text)} has a control character in its prefix")
    try:
        prefix.encode()
    except UnicodeEncodeError as error:
        raise InvalidLocationError(f"{_shown(text)} cannot be encoded as UTF-8") from error
