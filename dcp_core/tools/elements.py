"""Elements of tensors by range reads: boxes of a checkpoint's tensors, in memory of a size that is known.

::

    boxes         a tensor cut into boxes of a few MiB, along the chunks it is stored in     pure
    Elements      boxes and objects read, through the same engine as a load
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from dcp_core.config import MIB
from dcp_core.errors import CheckpointCorruptError, UnsupportedTensorError
from dcp_core.load.decode import load_restricted, refuse_code
from dcp_core.load.fetch import RankReader
from dcp_core.load.plan import boxes_of
from dcp_core.load.source import Catalog
from dcp_core.runtime.tensor_memory import cpu_buffer, narrow
from dcp_core.tools.places import Opened

__all__ = ["BATCH", "Elements", "Wanted", "batches", "boxes", "first_boxes"]

#: Bytes of one box, about.
_BOX = 8 * MIB
#: Their scales lie in the pickle of the frame.
_QUANTIZED = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4)
#: Bytes that are read together.
BATCH = 64 * MIB


class Wanted(NamedTuple):
    """A box of a tensor: where it begins and how far it goes in each dimension."""

    name: str
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    size: int


def boxes(name: str, entry: TensorStorageMetadata, size: int = _BOX) -> Iterator[Wanted]:
    """All elements of a tensor once, in boxes of ``size`` bytes at most, chunk by chunk."""
    itemsize = entry.properties.dtype.itemsize
    step = max(1, size // itemsize)
    for chunk in entry.chunks:
        sizes, count = tuple(chunk.sizes), math.prod(chunk.sizes)
        for first in range(0, count, step):
            for box in boxes_of(sizes, first, min(count, first + step)):
                offsets = tuple(map(sum, zip(chunk.offsets, box.offsets, strict=True)))
                yield Wanted(name, offsets, box.lengths, math.prod(box.lengths) * itemsize)


def first_boxes(name: str, entry: TensorStorageMetadata, count: int) -> Iterator[Wanted]:
    """The first ``count`` elements of a tensor, in C order."""
    itemsize, total = entry.properties.dtype.itemsize, math.prod(entry.size)
    for box in boxes_of(tuple(entry.size), 0, min(count, total)):
        yield Wanted(name, box.offsets, box.lengths, math.prod(box.lengths) * itemsize)


def batches(wanted: Iterator[Wanted], size: int = BATCH) -> Iterator[list[Wanted]]:
    """Boxes in lists of ``size`` bytes at most, or of one that is larger."""
    batch: list[Wanted] = []
    held = 0
    for one in wanted:
        if batch and held + one.size > size:
            yield batch
            batch, held = [], 0
        batch.append(one)
        held += one.size
    if batch:
        yield batch


class Elements:
    """Reads elements of a checkpoint's tensors, and its objects."""

    def __init__(self, opened: Opened) -> None:
        self._metadata: Metadata = opened.metadata
        self._reader = RankReader(opened.store, opened.location, opened.options, opened.transfer)

    def read(self, wanted: Sequence[Wanted]) -> list[torch.Tensor]:
        """The elements of each box, as a contiguous tensor.

        Raises:
            CheckpointCorruptError: the data is not what was saved, or the record lacks a part of it.
            UnsupportedTensorError: they are of a dtype that cannot be read so.
        """
        planner = _Boxes()
        items: list[ReadItem] = []
        for name, group in itertools.groupby(enumerate(wanted), key=lambda one: one[1].name):
            items += self._items(planner, name, list(group))
        self._reader.read(LoadPlan(items), planner, self._metadata)
        return [planner.targets[number] for number in range(len(wanted))]

    def _items(self, planner: _Boxes, name: str, group: list[tuple[int, Wanted]]) -> list[ReadItem]:
        entry = self._metadata.state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata)
        dtype = entry.properties.dtype
        chunks = []
        for number, box in group:
            planner.targets[number] = _blank(name, dtype, box)
            chunks.append(ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.lengths)))
        found = create_read_items_for_chunk_list(name, entry, chunks)
        wanted = sum(math.prod(box.lengths) for _, box in group)
        if sum(math.prod(item.lengths) for item in found) != wanted:
            raise CheckpointCorruptError(f"the commit record lacks a part of {name!r}")
        # the planner finds the target by the number of the box; a group's are adjacent
        return [_numbered(item, group[0][0]) for item in found]

    def value(self, name: str) -> Any:
        """An object of the checkpoint.

        Raises:
            UntrustedDataError: loading it could run code.
        """
        item, frame = self._object(name)
        refuse_code(item, Catalog(self._metadata).source(item), frame)
        return load_restricted(frame)

    def frame(self, name: str) -> bytes:
        """An object of the checkpoint as it was saved, in bytes."""
        return self._object(name)[1].getvalue()

    def _object(self, name: str) -> tuple[ReadItem, io.BytesIO]:
        planner = _Boxes()
        index = MetadataIndex(name)
        nowhere = torch.Size([0])
        item = ReadItem(LoadItemType.BYTE_IO, index, nowhere, index, nowhere, torch.Size([1]))
        self._reader.read(LoadPlan([item]), planner, self._metadata)
        return item, planner.objects[name]


def _blank(name: str, dtype: torch.dtype, box: Wanted) -> torch.Tensor:
    if dtype in _QUANTIZED:
        raise UnsupportedTensorError(f"{name!r} has elements of {dtype}, which say nothing by themselves")
    return cpu_buffer(box.size).view(dtype).view(box.lengths)


def _numbered(item: ReadItem, first: int) -> ReadItem:
    dest = item.dest_index
    assert dest.index is not None
    return replace(item, dest_index=MetadataIndex(dest.fqn, dest.offset, first + dest.index))


class _Boxes(LoadPlanner):
    """Places what is read in the tensors of boxes, by their numbers."""

    def __init__(self) -> None:
        self.targets: dict[int, torch.Tensor] = {}
        self.objects: dict[str, io.BytesIO] = {}

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def create_local_plan(self) -> LoadPlan:
        raise NotImplementedError

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.objects[read_item.dest_index.fqn] = value

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        number = read_item.dest_index.index
        assert number is not None
        return narrow(self.targets[number], read_item.dest_offsets, read_item.lengths)

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """It was read into its place."""
