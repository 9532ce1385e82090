"""A few values of a tensor, and what all of them are like, by range reads in bounded memory."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dcp_core.errors import ConfigurationError, UnsupportedTensorError
from dcp_core.tools.elements import Elements, batches, boxes, first_boxes
from dcp_core.tools.places import Opened

__all__ = ["Head", "Statistics", "head"]

Progress = Callable[[int, int], None]


@dataclass
class Statistics:
    """What all elements of a tensor are like; complex ones by their absolute values.

    Attributes:
        elements: how many there are.
        nan, infinite, zero: how many of them are that.
        least, most, mean: of the finite ones; ``None`` if there are none.
        deviation: their standard deviation, of the whole population.
    """

    elements: int = 0
    nan: int = 0
    infinite: int = 0
    zero: int = 0
    least: float | None = None
    most: float | None = None
    mean: float | None = None
    _squares: float = 0.0

    @property
    def _finite(self) -> int:
        return self.elements - self.nan - self.infinite

    @property
    def deviation(self) -> float | None:
        return math.sqrt(self._squares / self._finite) if self.mean is not None else None

    def add(self, values: torch.Tensor) -> None:
        """Count elements of any dtype in."""
        numbers = (values.abs() if values.is_complex() else values).to(torch.float64).flatten()
        before = self._finite
        self.elements += numbers.numel()
        self.nan += int(numbers.isnan().sum())
        self.infinite += int(numbers.isinf().sum())
        self.zero += int((numbers == 0).sum())
        finite = numbers[numbers.isfinite()]
        if finite.numel():
            self._merge(before, finite)

    def _merge(self, before: int, finite: torch.Tensor) -> None:
        """Chan, Golub and LeVeque: the moments of two sets from those of each, without cancellation."""
        mean, count = float(finite.mean()), finite.numel()
        self._squares += float((finite - mean).square().sum())
        least, most = float(finite.min()), float(finite.max())
        if self.mean is None or self.least is None or self.most is None:
            self.mean, self.least, self.most = mean, least, most
            return
        distance, together = mean - self.mean, before + count
        self._squares += distance**2 * before * count / together
        self.mean += distance * count / together
        self.least, self.most = min(self.least, least), max(self.most, most)


@dataclass(frozen=True)
class Head:
    """The beginning of a tensor, or an object.

    Attributes:
        dtype, shape: of the tensor; ``None`` for an object.
        values: the first elements, as Python's numbers; the object itself.
        statistics: of all elements, if they were asked for.
    """

    name: str
    dtype: str | None
    shape: tuple[int, ...] | None
    values: Any
    statistics: Statistics | None = None


def head(
    opened: Opened, name: str, count: int, *, statistics: bool = True, progress: Progress | None = None
) -> Head:
    """Look at the item ``name`` of a checkpoint.

    Args:
        count: elements to show.
        statistics: read all elements for their statistics, not only the first.
        progress: told of bytes read and bytes to read.

    Raises:
        ConfigurationError: there is no such item.
        UnsupportedTensorError: elements of its dtype are no numbers.
        UntrustedDataError: it is an object that could run code.
    """
    entry = opened.metadata.state_dict_metadata.get(name)
    if entry is None:
        raise ConfigurationError(_unknown(name, opened.metadata))
    elements = Elements(opened)
    if not isinstance(entry, TensorStorageMetadata):
        return Head(name, None, None, elements.value(name))
    dtype = str(entry.properties.dtype).removeprefix("torch.")
    try:
        first = elements.read(list(first_boxes(name, entry, count)))
        values = [_number(one) for box in first for one in box.flatten()]
        found = _statistics(elements, name, entry, progress or _untold) if statistics else None
    # what torch says of dtypes that it cannot convert
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedTensorError(f"{name!r} has elements of {dtype}, which are no numbers") from error
    return Head(name, dtype, tuple(entry.size), values, found)


def _statistics(
    elements: Elements, name: str, entry: TensorStorageMetadata, progress: Progress
) -> Statistics:
    found, done = Statistics(), 0
    total = math.prod(entry.size) * entry.properties.dtype.itemsize
    for batch in batches(boxes(name, entry)):
        progress(done, total)
        for values in elements.read(batch):
            found.add(values)
            done += values.nbytes
    return found


def _number(element: torch.Tensor) -> Any:
    small = element.dtype.is_floating_point and element.dtype.itemsize == 1
    return (element.float() if small else element).item()


def _unknown(name: str, metadata: Metadata) -> str:
    close = difflib.get_close_matches(name, metadata.state_dict_metadata, 3, 0.5)
    hint = f": is it {' or '.join(map(repr, close))}?" if close else "; `dcp-cloud show` lists all"
    return f"the checkpoint has no {name!r}{hint}"


def _untold(done: int, total: int) -> None:
    """No one asked for progress."""
