"""HTTP's ranges, which include their end, and the seam's, which do not: only this module knows both."""

from __future__ import annotations

import re

__all__ = ["content_range", "range_header", "size_of_unsatisfied"]

#: https://www.rfc-editor.org/rfc/rfc9110#name-content-range
#: Azure's emulator says "0--1/0" of an empty object.
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(-?\d+)/(\d+)")
_UNSATISFIED = re.compile(r"bytes \*/(\d+)")


def range_header(start: int, stop: int) -> str:
    """The ``Range`` header for ``[start, stop)``."""
    return f"bytes={start}-{stop - 1}"


def content_range(header: str) -> tuple[int, int, int] | None:
    """Start, exclusive stop and size of the object in a ``Content-Range``; ``None`` if it does not say."""
    match = _CONTENT_RANGE.fullmatch(header.strip())
    return None if match is None else (int(match[1]), int(match[2]) + 1, int(match[3]))


def size_of_unsatisfied(header: str) -> int | None:
    """Size of the object in the ``Content-Range`` of a 416."""
    match = _UNSATISFIED.fullmatch(header.strip())
    return None if match is None else int(match[1])
