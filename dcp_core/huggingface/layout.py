"""What an export consists of: its files, and where in them each rank's items lie. Pure.

::

    plans of all ranks ── whole_files ──> model-<i>-of-<n>            tensors whole, of several ranks' chunks
                       ── rank_files  ──> shard-<r>-model-<i>-of-<n>  what each rank has
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from dcp_core.errors import (
    CheckpointIncompleteError,
    ConfigurationError,
    UnsupportedError,
    UnsupportedTensorError,
)
from dcp_core.format.tiling import chunk_fault
from dcp_core.huggingface.header import TensorSpec, build_header, dtype_name, file_metadata, written_order
from dcp_core.huggingface.names import file_name

__all__ = [
    "Chunk",
    "ExportFile",
    "PlacedTensor",
    "rank_files",
    "require_numbers",
    "require_tensors",
    "whole_files",
]


class Chunk(NamedTuple):
    """Elements of a tensor that one rank has: its ``item``-th planned one."""

    rank: int
    item: int
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]


class PlacedTensor(NamedTuple):
    """A tensor in a file, from byte ``start`` on, and what it is made of."""

    spec: TensorSpec
    start: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class ExportFile:
    """One file: its header, and the tensors behind it in their order."""

    name: str
    header: bytes
    tensors: tuple[PlacedTensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + self.payload

    @property
    def payload(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.spec.size for tensor in self.tensors)


@dataclass
class _Whole:
    """A tensor as its first planned item describes it, and the chunks found so far."""

    spec: TensorSpec
    chunks: list[Chunk] = field(default_factory=list)


def require_tensors(plan: SavePlan) -> None:
    """Make sure that safetensors can hold what a rank is to save.

    Raises:
        UnsupportedError: an item is no tensor.
        UnsupportedTensorError: it has no such dtype.
    """
    for item in plan.items:
        name = item.index.fqn
        if item.type is WriteItemType.BYTE_IO or item.tensor_data is None:
            raise UnsupportedError(
                f"{name!r} is no tensor, and safetensors holds tensors only: leave it out of the state "
                "dict, or save with CloudStorageWriter"
            )
        dtype = item.tensor_data.properties.dtype
        if dtype_name(dtype) is None:
            raise UnsupportedTensorError(f"{name!r} cannot be saved: safetensors has no {dtype}")


def whole_files(plans: Sequence[SavePlan], numbers: Mapping[str, int] | None) -> list[ExportFile]:
    """Files of whole tensors; ``numbers`` says which of them, from 1, each tensor goes to.

    Raises:
        ConfigurationError: it does not say so of a tensor.
        CheckpointIncompleteError: what ranks plan to save does not make up a tensor.
    """
    found: dict[str, _Whole] = {}
    for rank, position, item in _items(plans):
        name, data = item.index.fqn, item.tensor_data
        assert data is not None
        spec = TensorSpec(name, data.properties.dtype, tuple(data.size))
        whole = found.setdefault(name, _Whole(spec))
        if whole.spec != spec:
            raise CheckpointIncompleteError(
                f"{name!r} is planned as {_shown(whole.spec)} and as {_shown(spec)}, by rank {rank}"
            )
        whole.chunks.append(Chunk(rank, position, tuple(data.chunk.offsets), tuple(data.chunk.sizes)))
    for whole in found.values():
        _require_whole(whole)
    by_number = _grouped(list(found), numbers)
    count = _count(numbers)
    return [
        _file(file_name(number, count), {name: found[name] for name in names}, file_metadata())
        for number, names in by_number.items()
    ]


def rank_files(plans: Sequence[SavePlan], numbers: Mapping[str, int] | None) -> list[ExportFile]:
    """Files of what each rank has, which say where that lies in the whole tensors.

    Raises:
        ConfigurationError: as in :func:`whole_files`.
        UnsupportedError: a rank has several chunks of a tensor.
    """
    count = _count(numbers)
    files = []
    for rank, plan in enumerate(plans):
        found: dict[str, _Whole] = {}
        offsets: dict[str, tuple[int, ...]] = {}
        for _, position, item in _items([plan]):
            name, data = item.index.fqn, item.tensor_data
            assert data is not None
            if name in found:
                raise UnsupportedError(
                    f"rank {rank} has several parts of {name!r}, and a file has one tensor of a name: export "
                    "whole tensors with enable_consolidation=True"
                )
            shape = tuple(data.chunk.sizes)
            chunk = Chunk(rank, position, (0,) * len(shape), shape)
            found[name] = _Whole(TensorSpec(name, data.properties.dtype, shape), [chunk])
            offsets[name] = tuple(data.chunk.offsets)
        for number, names in _grouped(list(found), numbers).items():
            metadata = file_metadata({name: offsets[name] for name in names})
            name = file_name(number, count, rank + 1)
            files.append(_file(name, {each: found[each] for each in names}, metadata))
    return files


def _items(plans: Sequence[SavePlan]) -> Iterator[tuple[int, int, WriteItem]]:
    for rank, plan in enumerate(plans):
        for position, item in enumerate(plan.items):
            yield rank, position, item


def _grouped(names: Sequence[str], numbers: Mapping[str, int] | None) -> dict[int, list[str]]:
    """Names by the number of their file."""
    if numbers is None:
        return {1: list(names)} if names else {}
    found: dict[int, list[str]] = {}
    for name in names:
        number = numbers.get(name)
        if number is None:
            raise ConfigurationError(f"fqn_to_index_mapping does not say which file {name!r} goes to")
        found.setdefault(number, []).append(name)
    return dict(sorted(found.items()))


def require_numbers(numbers: Mapping[str, int]) -> None:
    """Make sure that files are numbered from 1.

    Raises:
        ConfigurationError: one is not.
    """
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 1:
            raise ConfigurationError(
                f"fqn_to_index_mapping: files count from 1, and {name!r} goes to {number!r}"
            )


def _count(numbers: Mapping[str, int] | None) -> int:
    """How many files there are by their names."""
    return max(numbers.values()) if numbers else 1


def _file(name: str, tensors: Mapping[str, _Whole], metadata: Mapping[str, str]) -> ExportFile:
    ordered = written_order(whole.spec for whole in tensors.values())
    header = build_header(ordered, metadata)
    placed, position = [], len(header)
    for spec in ordered:
        chunks = sorted(tensors[spec.name].chunks, key=lambda chunk: chunk.offsets)
        placed.append(PlacedTensor(spec, position, tuple(chunks)))
        position += spec.size
    return ExportFile(name, header, tuple(placed))


def _require_whole(whole: _Whole) -> None:
    chunks = [
        ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.lengths)) for chunk in whole.chunks
    ]
    fault = chunk_fault(whole.spec.shape, chunks)
    if fault is not None:
        raise CheckpointIncompleteError(
            f"the chunks of {whole.spec.name!r}, of shape {whole.spec.shape}, {fault}: did all ranks that "
            "have a part of it take part in the save?"
        )


def _shown(spec: TensorSpec) -> str:
    return f"{list(spec.shape)} of {spec.dtype}"
