"""Where the bytes of read items lie, in frames of this library and of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from dcp_core.errors import CheckpointCorruptError
from dcp_core.format.stored import Payload, StorageInfo, payload_of

__all__ = ["Catalog", "Source"]


@dataclass(slots=True)
class Source:
    """The stored side of one read item.

    Attributes:
        info: object, offset and length of the frame.
        payload: the elements inside the frame; ``None`` while that is unknown.
        dtype, shape: of the stored chunk; ``None`` for non-tensor items.
        registry: where the stream transforms of the frame are looked up; ``None`` is torch's.
    """

    info: StorageInfo
    payload: Payload | None
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] = ()
    registry: Any = None

    @property
    def start(self) -> int:
        """First byte of the elements in the object, or of the frame while those are unknown."""
        return self.info.offset + (self.payload.offset if self.payload is not None else 0)

    @property
    def elements_known(self) -> bool:
        """Whether parts of the elements can be asked for."""
        return self.payload is not None and self.payload.plain

    def with_elements_at(self, offset: int) -> Source:
        """This source, its frame's elements found at ``offset``."""
        assert self.dtype is not None
        size = math.prod(self.shape) * self.dtype.itemsize
        if offset + size > self.info.length:
            raise CheckpointCorruptError(
                f"a frame of {self.info.length} bytes cannot hold {size} bytes of elements",
                key=self.info.relative_path,
            )
        return replace(self, payload=Payload(offset, size, True, b""))


class Catalog:
    """Finds the source of each read item in a commit record."""

    def __init__(self, metadata: Metadata, registry: Any = None) -> None:
        self._metadata = metadata
        self._registry = registry
        self._chunks: dict[str, dict[Any, tuple[int, ...]]] = {}

    def source(self, item: ReadItem) -> Source:
        """The source of ``item``.

        Raises:
            CheckpointCorruptError: the record does not say where the item is, or contradicts itself.
        """
        info = self._metadata.storage_data.get(item.storage_index)
        if info is None:
            raise CheckpointCorruptError(
                f"the commit record says nothing of where {item.storage_index.fqn!r} "
                f"at {list(item.storage_index.offset or ())} is stored"
            )
        payload = payload_of(info)
        if item.type is LoadItemType.BYTE_IO:
            return Source(info, payload, registry=self._registry)
        entry = self._metadata.state_dict_metadata.get(item.storage_index.fqn)
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointCorruptError(f"{item.storage_index.fqn!r} is read as a tensor but is none")
        dtype, shape = entry.properties.dtype, self._shape(item.storage_index, entry)
        if payload is not None and payload.plain and payload.size != math.prod(shape) * dtype.itemsize:
            raise CheckpointCorruptError(
                f"the commit record gives {payload.size} bytes to {item.storage_index.fqn!r}, "
                f"a chunk of shape {shape} and {dtype}"
            )
        return Source(info, payload, dtype, shape, self._registry)

    def _shape(self, index: MetadataIndex, entry: TensorStorageMetadata) -> tuple[int, ...]:
        chunks: Sequence[Any] = entry.chunks
        hint = index.index
        if hint is not None and hint < len(chunks) and chunks[hint].offsets == index.offset:
            return tuple(chunks[hint].sizes)
        if index.fqn not in self._chunks:
            self._chunks[index.fqn] = {chunk.offsets: tuple(chunk.sizes) for chunk in chunks}
        try:
            return self._chunks[index.fqn][index.offset]
        except KeyError:
            raise CheckpointCorruptError(
                f"the commit record has no chunk of {index.fqn!r} at {list(index.offset or ())}"
            ) from None
