"""What commands print: lines, tables, JSON, progress.

Results go to standard output; progress goes to standard error, as a bar on a terminal and as a line now and
then elsewhere. With ``--json`` standard output has nothing but JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dcp_core.config import MIB

__all__ = ["Counting", "Transferring", "console", "mib", "print_json", "print_line", "printable"]

#: Seconds between two lines of progress.
_LINE_EVERY = 10.0


#: Columns of what is no terminal: names are cut short for people only.
_WIDE = 10_000


def console() -> Console:
    """Standard output, for tables."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, markup=False, width=None if narrow else _WIDE)


def printable(text: str) -> str:
    """``text`` with whatever could steer a terminal spelled out: names come from a bucket."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def print_line(text: str) -> None:
    """One line, at once: who follows a long command sees it."""
    print(printable(text), flush=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document; on one line with ``indent=None``."""
    print(json.dumps(value, indent=indent), flush=True)


def mib(size: int) -> str:
    """Bytes for reading."""
    return f"{size / MIB:.1f} MiB"


class _Shown:
    """Progress: a bar on a terminal, lines elsewhere."""

    def __init__(self, what: str, *columns: Any) -> None:
        self._what = what
        self._stack = ExitStack()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._told_at = time.monotonic()
        if sys.stderr.isatty():
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Any:
        if self._bar is not None:
            self._stack.enter_context(self._bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _show(self, done: int, total: int | None, line: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._told_at >= _LINE_EVERY:
            self._told_at = time.monotonic()
            print(f"{self._what}: {line}", file=sys.stderr, flush=True)


class Transferring(_Shown):
    """Bytes done, of a known number."""

    def __init__(self, what: str) -> None:
        columns = (
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        super().__init__(what, TextColumn("{task.description}"), *columns)

    def __call__(self, done: int, total: int) -> None:
        self._show(done, total, f"{mib(done)} of {mib(total)}")


class Counting(_Shown):
    """Things seen, of an unknown number."""

    def __init__(self, what: str) -> None:
        super().__init__(what, SpinnerColumn(), TextColumn("{task.description}: {task.completed}"))

    def __call__(self, done: int) -> None:
        self._show(done, None, str(done))
