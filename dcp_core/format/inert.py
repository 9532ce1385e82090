"""What a pickle is read into: values that do nothing by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Kind", "MalformedPickleError", "Members", "Node", "Pairs"]


class MalformedPickleError(Exception):
    """The stream is damaged, or does what a record has no use for."""


class Kind:
    """What a global stands for.

    Args:
        name: for messages.
        build: makes the value of an object from the state that a BUILD gives.
        call: makes the value of a call from its arguments; it is made once for equal integers.
        made: the type of the values that ``build`` makes.
    """

    __slots__ = ("build", "call", "made", "name")

    def __init__(
        self,
        name: str,
        *,
        build: Callable[[Any], Any] | None = None,
        call: Callable[[tuple[Any, ...]], Any] | None = None,
        made: type | None = None,
    ) -> None:
        self.name = name
        self.build = build
        self.call = call
        self.made = made


class Node:
    """An object of the stream; ``value`` is ``None`` until it was built."""

    __slots__ = ("kind", "value")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.value: Any = None


class Pairs(list[Any]):
    """A dict: keys and values in turn, in the stream's order."""

    __slots__ = ()


class Members(list[Any]):
    """A set, with whatever is in it twice."""

    __slots__ = ()
