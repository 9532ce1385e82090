"""What a conversion reads from and writes to."""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence

__all__ = ["Path", "RangeFile", "Sink"]

Path = str | os.PathLike[str]


class RangeFile(abc.ABC):
    """A file that stays as it was when it was opened."""

    name: str
    size: int

    @abc.abstractmethod
    def read_into(self, ranges: Sequence[tuple[int, memoryview]]) -> None:
        """Fill each view with the bytes that begin at its offset.

        Raises:
            CheckpointReplacedError: the file has changed since it was opened.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of it."""


class Sink(abc.ABC):
    """Where a file is written to. It is there once it is whole, or not at all."""

    @abc.abstractmethod
    def write(self, data: bytes | memoryview, /) -> int:
        """Append ``data``, which is not kept."""

    def flush(self) -> None:  # noqa: B027  # torch's writer calls it; a file is seen when it is whole
        """Nothing."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Make the file of what was written."""

    @abc.abstractmethod
    def abort(self, reason: BaseException) -> None:
        """Leave nothing."""
