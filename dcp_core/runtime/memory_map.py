"""Memory of this process that can be read and not written, such as a file mapped for reading.

Writing there ends the process. Nothing in torch tells: a tensor made of ``numpy.memmap(..., mode="r")`` looks
like any other.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

__all__ = ["ReadOnlyMemory"]

#: Linux's list of mappings, ``start-stop permissions …`` a line; see proc_pid_maps(5). Others have none.
_MAPS = Path("/proc/self/maps")


class ReadOnlyMemory:
    """The mappings of this process, as they were at the first question or when the answer was last yes."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] | None = None

    def holds(self, start: int, stop: int) -> bool:
        """Whether a byte of ``[start, stop)`` cannot be written."""
        if self._spans is None:
            self._spans = _read_only_spans()
        if not _meets(self._spans, start, stop):
            return False
        # what was mapped there may have made room for something else
        self._spans = _read_only_spans()
        return _meets(self._spans, start, stop)


def _meets(spans: list[tuple[int, int]], start: int, stop: int) -> bool:
    """Whether one of ``spans``, which are sorted, has a byte of ``[start, stop)``."""
    index = bisect_right(spans, (start, 1 << 64))
    before = index > 0 and spans[index - 1][1] > start
    return before or (index < len(spans) and spans[index][0] < stop)


def _read_only_spans() -> list[tuple[int, int]]:
    try:
        lines = _MAPS.read_text(errors="replace").splitlines()
    except OSError:
        return []
    spans = []
    for line in lines:
        addresses, permissions = line.split(" ", 2)[:2]
        if permissions[1] != "w":
            start, stop = addresses.split("-")
            spans.append((int(start, 16), int(stop, 16)))
    return spans
