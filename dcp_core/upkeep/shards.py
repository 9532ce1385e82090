"""Shares of the work that one machine is too small for. Pure.

Every process plans the same tasks and takes its share, so that any scheduler can start them, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from dcp_core.errors import ConfigurationError

__all__ = ["WHOLE", "Shard"]

_T = TypeVar("_T")

#: Characters: a million machines.
_LONGEST = len("1000000/1000000")


@dataclass(frozen=True)
class Shard:
    """Share ``number``, from 1, of ``count``."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The share that ``text`` says, such as ``2/8``.

        Raises:
            ConfigurationError: it says none.
        """
        number, _, count = text.partition("/")
        is_pair = len(text) <= _LONGEST and number.isdecimal() and count.isdecimal()
        if not (is_pair and 1 <= int(number) <= int(count)):
            raise ConfigurationError(f"a shard is its number and their count, such as 1/8, not {text!r}")
        return cls(int(number), int(count))

    @property
    def is_first(self) -> bool:
        """Whether it is the one that does what is done once."""
        return self.number == 1

    def of(self, tasks: Sequence[_T]) -> list[_T]:
        """This share of ``tasks``."""
        return list(tasks[self.number - 1 :: self.count])

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


#: All of it.
WHOLE = Shard(1, 1)
