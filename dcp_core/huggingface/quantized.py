"""Block-scaled float8 weights, loaded as what they stand for.

::

    w.weight             float8, rows × columns
    w.weight_scale_inv   one factor for each block of 128 × 128 elements or so

    QuantizedHuggingFaceStorageReader.read_items
    ├── factors of what the plan reads, which are few     into memory
    ├── tensors that are not scaled                       as ever
    └── scaled ones, cut into bands of rows               into a buffer each, and on into the tensor
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from dcp_core.errors import CheckpointCorruptError, ConfigurationError, UnsupportedTensorError
from dcp_core.huggingface.names import CONFIG
from dcp_core.huggingface.reader import HuggingFaceStorageReader
from dcp_core.load.fetch import RankReader
from dcp_core.runtime.tensor_memory import cpu_buffer

__all__ = ["QuantizedHuggingFaceStorageReader"]

_WEIGHT, _SCALE = ".weight", ".weight_scale_inv"
#: Rows and columns of a block, where nothing says otherwise.
_BLOCK = (128, 128)
#: Elements that are made at a time of stored ones.
_PIECE = 1 << 20


class QuantizedHuggingFaceStorageReader(HuggingFaceStorageReader):
    """Loads models whose weights are block-scaled float8, as what they stand for.

    A weight ``….weight`` with factors ``….weight_scale_inv`` is loaded as ``weight × factor``, calculated in
    float32, and turned into ``target_dtype`` and then into the dtype of the tensor it goes into: bit for bit
    as torch's reader of this name does. Everything else loads as by :class:`HuggingFaceStorageReader`.

    Args:
        path: ``scheme://bucket/prefix`` of the folder.
        thread_count: as torch's reader has it; ``concurrency`` says here how many requests are in flight.
        target_dtype: of the values, before they go into the tensor.
        block_size: rows and columns of a block, one number or two; ``None`` is what ``config.json`` says as
            ``weight_block_size``, or 128.
        **options: as for :class:`~dcp_core.CloudStorageReader`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        thread_count: int = 1,
        target_dtype: torch.dtype = torch.float32,
        block_size: int | Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(path, thread_count, **options)
        self.target_dtype = target_dtype
        self.block_size = None if block_size is None else _block_of(block_size)

    def read_items(
        self, reader: RankReader, plan: LoadPlan, planner: LoadPlanner, metadata: Metadata
    ) -> None:
        """Fetch the items of a plan, scaled ones a few rows at a time."""
        scaled = [item for item in plan.items if _scale_of(item, metadata) is not None]
        if not scaled:
            reader.read(plan, planner, metadata)
            return
        reader.prove(plan, planner, metadata)
        block = self.block_size or _block_in(reader.small(CONFIG))
        weights = [_weight(item, metadata, block) for item in scaled]
        factors = _Buffers()
        reader.fetch(LoadPlan([weight.factors for weight in weights]), factors, metadata)
        numbers = set(map(id, scaled))
        rest = [item for item in plan.items if id(item) not in numbers]
        if rest:
            reader.fetch(replace(plan, items=rest), planner, metadata)
        bands = _Bands(planner, weights, factors, self.target_dtype)
        options = reader.options
        # each request has two items open at most, and one more is between requests
        size = options.memory_limit // (4 * options.concurrency + 2)
        reader.fetch(LoadPlan(bands.cut(size)), bands, metadata)


@dataclass(eq=False)
class _Weight:
    """A planned read of a scaled weight.

    Attributes:
        read: what the planner wants.
        factors: the read of the factors that it needs.
        begin: row and column of the weight that ``read`` begins with.
        block: rows and columns of a block.
        dtype: of the stored elements.
        target: the planner's tensor, once it was asked for.
        left: bands that are still to come.
    """

    read: ReadItem
    factors: ReadItem
    begin: tuple[int, int]
    block: tuple[int, int]
    dtype: torch.dtype
    target: torch.Tensor | None = None
    left: int = 0

    def values(self, stored: torch.Tensor, first: int, factors: torch.Tensor) -> torch.Tensor:
        """What ``stored`` rows stand for, in float32; ``first`` is the first one's number in the read."""
        rows = self._blocks(0, first, stored.shape[0])
        columns = self._blocks(1, 0, stored.shape[1])
        return stored.to(torch.float32) * factors[rows][:, columns]

    def _blocks(self, dim: int, first: int, count: int) -> torch.Tensor:
        """Of ``count`` rows or columns, the numbers of their blocks among those of the factors."""
        begin, edge = self.begin[dim], self.block[dim]
        numbers = torch.arange(begin + first, begin + first + count, device="cpu")
        return numbers // edge - begin // edge


def _block_of(size: Any) -> tuple[int, int]:
    found = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(found) != 2 or not all(type(each) is int and each > 0 for each in found):
        raise ConfigurationError(f"block_size must be one or two positive numbers, got {size!r}")
    return found


def _block_in(config: bytes | None) -> tuple[int, int]:
    """The size of blocks that ``config.json`` names."""
    if config is None:
        return _BLOCK
    try:
        found = json.loads(config)["quantization_config"]["weight_block_size"]
    except (ValueError, RecursionError) as error:
        raise CheckpointCorruptError(f"{CONFIG} is no JSON: {str(error)[:200]}", key=CONFIG) from error
    except (KeyError, TypeError):
        return _BLOCK
    try:
        return _BLOCK if found is None else _block_of(found)
    except (ConfigurationError, TypeError) as error:
        raise CheckpointCorruptError(f"{CONFIG} has no such weight_block_size: {found!r}") from error


def _scale_of(item: ReadItem, metadata: Metadata) -> str | None:
    """The name of the factors of what is read, if it is scaled."""
    name = item.storage_index.fqn
    if item.type is not LoadItemType.TENSOR or not name.endswith(_WEIGHT):
        return None
    scale = name.removesuffix(_WEIGHT) + _SCALE
    return scale if scale in metadata.state_dict_metadata else None


def _weight(item: ReadItem, metadata: Metadata, block: tuple[int, int]) -> _Weight:
    """The read of a scaled weight."""
    name, scale = item.storage_index.fqn, _scale_of(item, metadata)
    assert scale is not None
    weight, factors = metadata.state_dict_metadata[name], metadata.state_dict_metadata[scale]
    assert isinstance(weight, TensorStorageMetadata)
    assert isinstance(factors, TensorStorageMetadata)
    if len(weight.size) != 2:
        raise UnsupportedTensorError(f"{name!r} has factors and {len(weight.size)} dimensions: 2 are known")
    blocks = tuple(-(-length // edge) for length, edge in zip(weight.size, block, strict=True))
    if tuple(factors.size) != blocks or len(factors.chunks) != 1:
        raise CheckpointCorruptError(
            f"{scale!r} has the shape {list(factors.size)}, and {name!r} of {list(weight.size)} needs "
            f"{list(blocks)}, in one file, for blocks of {list(block)}"
        )
    origin = item.storage_index.offset or (0, 0)
    begin = tuple(a + b for a, b in zip(origin, item.storage_offsets, strict=True))
    low = [first // edge for first, edge in zip(begin, block, strict=True)]
    high = [-(-(first + n) // edge) for first, n, edge in zip(begin, item.lengths, block, strict=True)]
    index, start = MetadataIndex(scale, torch.Size((0, 0))), torch.Size((0, 0))
    lengths = torch.Size(b - a for a, b in zip(low, high, strict=True))
    read = ReadItem(LoadItemType.TENSOR, index, start, index, torch.Size(low), lengths)
    return _Weight(item, read, (begin[0], begin[1]), block, weight.properties.dtype)


class _Inner(LoadPlanner):
    """A planner for reads of this module's own making."""

    def set_up_planner(self, *_: Any, **__: Any) -> None:
        raise AssertionError("a plan is there already")

    create_local_plan = create_global_plan = finish_plan = load_bytes = set_up_planner  # type: ignore[assignment]


class _Buffers(_Inner):
    """Reads into memory, and keeps it by the read."""

    def __init__(self) -> None:
        self._found: dict[int, torch.Tensor] = {}

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        size = math.prod(read_item.lengths) * torch.float32.itemsize
        return cpu_buffer(size).view(torch.float32).view(read_item.lengths)

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        self._found[id(read_item)] = tensor

    def of(self, read_item: ReadItem) -> torch.Tensor:
        """What a read brought."""
        return self._found[id(read_item)]


class _Bands(_Inner):
    """Reads bands of rows of weights, and turns them into the planner's tensors."""

    def __init__(
        self, planner: LoadPlanner, weights: Sequence[_Weight], factors: _Buffers, dtype: torch.dtype
    ) -> None:
        self._planner = planner
        self._weights = weights
        self._factors = factors
        self._dtype = dtype
        #: the weight of a band, and its first row there
        self._of: dict[int, tuple[_Weight, int]] = {}

    def cut(self, size: int) -> list[ReadItem]:
        """All bands, of about ``size`` elements each."""
        return [band for weight in self._weights for band in self._cut(weight, size)]

    def _cut(self, weight: _Weight, size: int) -> Iterator[ReadItem]:
        read = weight.read
        rows, columns = read.lengths
        step = max(1, size // max(1, columns))
        starts = range(0, rows, step) if rows else (0,)
        weight.left = len(starts)
        for start in starts:
            band = replace(
                read,
                storage_offsets=torch.Size((read.storage_offsets[0] + start, read.storage_offsets[1])),
                lengths=torch.Size((min(step, rows - start), columns)),
            )
            self._of[id(band)] = weight, start
            yield band

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """A buffer for a band, as it is stored."""
        weight, _ = self._of[id(read_item)]
        size = math.prod(read_item.lengths) * weight.dtype.itemsize
        return cpu_buffer(size).view(weight.dtype).view(read_item.lengths)

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Turn a band into rows of the planner's tensor."""
        weight, start = self._of.pop(id(read_item))
        if weight.target is None:
            weight.target = self._target(weight.read)
        factors, target = self._factors.of(weight.factors), weight.target.detach()
        step = max(1, _PIECE // max(1, tensor.shape[1]))
        with torch.no_grad():
            for first in range(0, tensor.shape[0], step):
                values = weight.values(tensor[first : first + step], start + first, factors)
                rows = target.narrow(0, start + first, values.shape[0])
                rows.copy_(values.to(self._dtype))
        weight.left -= 1
        if not weight.left:
            self._planner.commit_tensor(weight.read, target)
            weight.target = None

    def _target(self, read: ReadItem) -> torch.Tensor:
        target = self._planner.resolve_tensor(read)
        if tuple(target.shape) != tuple(read.lengths):
            raise CheckpointCorruptError(
                f"{read.dest_index.fqn!r}: the planner gave a tensor of shape {tuple(target.shape)} "
                f"for a read of {tuple(read.lengths)}"
            )
        return target
