"""Tensors whose values come later: a state dict's place holders, and what stands in for them in the end."""

from __future__ import annotations

import abc
import mmap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from dcp_core.config import MIB
from dcp_core.format.frames import NO_RESERVE

__all__ = ["Progress", "Source", "Values", "address", "blanks_in", "made_blank", "with_values"]

#: Called with the bytes that are done, and those that there are.
Progress = Callable[[int, int], None]

#: Bytes of values that are read ahead: many small tensors cost few requests then.
_AHEAD = 32 * MIB
_ALIGNMENT = 64


class Source(abc.ABC):
    """What is converted.

    Attributes:
        state: the state dict. Its blanks have dtype and shape, and address space without memory.
        size: bytes of all blanks.
    """

    state: dict[str, Any]
    size: int

    @abc.abstractmethod
    def is_blank(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is to be had from :meth:`fetch`."""

    @abc.abstractmethod
    def fetch(self, blanks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Their values, in memory of their own."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""


def address(tensor: torch.Tensor) -> int:
    """Where the storage of ``tensor`` begins."""
    return tensor.untyped_storage().data_ptr()


def made_blank(kinds: Sequence[tuple[torch.dtype, tuple[int, ...]]]) -> list[torch.Tensor]:
    """Blanks of these dtypes and shapes, each with a storage of its own."""
    sizes = [torch.empty(shape, dtype=dtype, device="meta").nbytes for dtype, shape in kinds]
    total = sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)
    memory = mmap.mmap(-1, max(total, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    made, start = [], 0
    for (dtype, shape), size in zip(kinds, sizes, strict=True):
        if size == 0:
            made.append(torch.empty(shape, dtype=dtype))
            continue
        flat = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=start)
        made.append(flat.view(dtype).view(shape))
        start += -(-size // _ALIGNMENT) * _ALIGNMENT
    return made


def blanks_in(value: Any, source: Source) -> Iterable[torch.Tensor]:
    """The blanks in a nested value, in order."""
    if isinstance(value, torch.Tensor):
        if source.is_blank(value):
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from blanks_in(item, source)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from blanks_in(item, source)


class Values:
    """The values of blanks, read ahead in the order in which they will be asked for.

    Args:
        source: whose blanks they are.
        progress: told of the bytes that were handed out.
    """

    def __init__(self, source: Source, progress: Progress) -> None:
        self._source = source
        self._progress = progress
        self._order: list[torch.Tensor] = []
        self._places: dict[int, int] = {}
        self._ready: dict[int, torch.Tensor] = {}
        self._done = 0

    def expect(self, blanks: Iterable[torch.Tensor]) -> None:
        """Say in which order blanks will be asked for."""
        self._order = list(blanks)
        self._places = {id(blank): place for place, blank in reversed(list(enumerate(self._order)))}

    def take(self, blank: torch.Tensor) -> torch.Tensor:
        """The value of ``blank``, which is not kept here."""
        if id(blank) not in self._ready:
            batch = self._batch(blank)
            values = self._source.fetch(batch)
            self._ready = {id(one): value for one, value in zip(batch, values, strict=True)}
        self._done += blank.nbytes
        self._progress(min(self._done, self._source.size), self._source.size)
        return self._ready.pop(id(blank))

    def _batch(self, blank: torch.Tensor) -> list[torch.Tensor]:
        """``blank`` and those that come next."""
        batch, size, place = [blank], blank.nbytes, self._places.get(id(blank), len(self._order))
        for following in self._order[place + 1 :]:
            size += following.nbytes
            if size > _AHEAD:
                break
            if following is not blank:
                batch.append(following)
        return batch


def with_values(value: Any, values: Values, source: Source) -> Any:
    """``value`` with the values of its blanks, where there are any in it."""
    if isinstance(value, torch.Tensor):
        return values.take(value) if source.is_blank(value) else value
    if next(iter(blanks_in(value, source)), None) is None:
        return value
    if isinstance(value, dict):
        return {key: with_values(item, values, source) for key, item in value.items()}
    return type(value)(with_values(item, values, source) for item in value)
