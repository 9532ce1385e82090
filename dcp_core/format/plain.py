"""Plain data out of a commit record: what planners and newer releases leave in it."""

from __future__ import annotations

import pathlib
from typing import Any

import torch

from dcp_core.format.inert import MalformedPickleError, Members, Pairs

__all__ = ["PlainData"]

_SCALARS = (
    type(None),
    bool,
    int,
    float,
    str,
    bytes,
    torch.Size,
    torch.dtype,
    torch.layout,
    pathlib.PurePosixPath,
)
_KEYS = frozenset((type(None), bool, int, float, str, bytes))
_SCALAR_KINDS = frozenset((*_SCALARS, pathlib.PurePosixPath))
_ATOMS = frozenset((str, int))
_DEEPEST = 32


class PlainData:
    """Copies what was read into plain containers, in no more steps than the record has bytes.

    A record can refer to one container many times over, so that a few bytes stand for more than any memory
    holds.
    """

    def __init__(self, steps: int) -> None:
        self._left = steps

    def mapping(self, pairs: Pairs) -> dict[Any, Any]:
        """A dict; most have a path of names and numbers for each item."""
        self._left -= len(pairs)
        keys, found = self._hashable(pairs[::2]), []
        for value in pairs[1::2]:
            if type(value) is tuple and len(value) <= self._left and _ATOMS.issuperset(map(type, value)):
                self._left -= len(value)
                found.append(value)
            else:
                found.append(self.of(value, 1))
        return dict(zip(keys, found, strict=True))

    def of(self, value: Any, depth: int = 0) -> Any:
        """``value`` as numbers, text, bytes, and tuples, lists, sets and dicts of such.

        Raises:
            MalformedPickleError: it holds something else, itself, or too much.
        """
        kind = type(value)
        if kind in _SCALAR_KINDS:
            return value
        if kind not in (tuple, list, Pairs, Members):
            raise MalformedPickleError(f"it holds a {kind.__name__} where plain data belongs")
        self._left -= len(value)
        if self._left < 0 or depth > _DEEPEST:
            raise MalformedPickleError("it says more than its size allows")
        if kind is Pairs:
            keys = self._hashable(value[::2])
            return dict(zip(keys, (self.of(each, depth + 1) for each in value[1::2]), strict=True))
        if kind is Members:
            return set(self._hashable(value))
        return kind(self.of(each, depth + 1) for each in value)

    def _hashable(self, values: list[Any]) -> list[Any]:
        for value in values:
            if type(value) not in _KEYS:
                raise MalformedPickleError(f"it has a key that is a {type(value).__name__}")
        return values
