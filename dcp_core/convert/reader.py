"""``torch.save`` files as checkpoints that ``dcp.load`` reads into any sharding."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from dcp_core.config import MIB
from dcp_core.convert.checkpoint import flattened
from dcp_core.convert.torch_file import TorchFileSource
from dcp_core.errors import CheckpointCorruptError, ConfigurationError
from dcp_core.runtime.tensor_memory import narrow
from dcp_core.seam.location import scheme_of
from dcp_core.seam.registry import known_schemes

__all__ = ["TorchSaveReader"]

#: Bytes that are read at a time, if no single tensor takes more.
_BATCH = 64 * MIB


class TorchSaveReader(StorageReader):
    """Loads a ``torch.save`` file at a path or URL, in the place of torch's ``BroadcastingTorchSaveReader``.

    With any planner, ``DynamicMetaLoadPlanner`` included, with and without a process group. Nothing is sent
    between ranks: each reads the file's pickle, and of its tensors what it needs.

    Args:
        checkpoint_id: path or URL of the file; ``dcp.load`` may name it instead.
        coordinator_rank: as torch's reader has it; no rank does more than the others here.
        **options: as for :class:`~dcp_core.CloudStorageReader`.
    """

    def __init__(
        self, checkpoint_id: str | os.PathLike[str] | None = None, coordinator_rank: int = 0, **options: Any
    ) -> None:
        self.checkpoint_id = checkpoint_id
        self.coordinator_rank = coordinator_rank
        self._options = options
        self._source: TorchFileSource | None = None
        self._values: dict[str, Any] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Go on with another file."""
        if checkpoint_id is not None:
            self.checkpoint_id = checkpoint_id
        self._close()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002
        """What is in the file.

        Raises:
            CheckpointNotFoundError: there is no such file.
            UntrustedDataError: it needs ``weights_only=False``.
        """
        if self.checkpoint_id is None:
            raise ConfigurationError(
                "no file: give TorchSaveReader a path or URL, or dcp.load a checkpoint_id"
            )
        self._close()
        self._source = TorchFileSource(self.checkpoint_id, self._options)
        self._values = {**self._source.state, **flattened(self._source.state)}
        entries = {name: _entry(value) for name, value in flattened(self._source.state).items()}
        return Metadata(entries, storage_data={})

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the file is open since its metadata was read."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the items of this rank; returns when all are in place.

        Raises:
            CheckpointCorruptError: the file lacks one, or has it in another shape.
        """
        try:
            tensors: list[tuple[ReadItem, torch.Tensor]] = []
            for item in plan.items:
                value = self._value(item)
                if item.type is LoadItemType.BYTE_IO:
                    planner.load_bytes(item, _saved(value))
                else:
                    tensors.append((item, _part(item, value)))
            for batch in _batches(tensors):
                self._place(batch, planner)
        finally:
            self._close()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _value(self, item: ReadItem) -> Any:
        name = item.storage_index.fqn
        if name not in self._values:
            raise CheckpointCorruptError(f"{self.checkpoint_id} has no {name!r}")
        return self._values[name]

    def _place(self, batch: Sequence[tuple[ReadItem, torch.Tensor]], planner: LoadPlanner) -> None:
        source = self._source
        assert source is not None
        blanks = [part for _, part in batch if source.is_blank(part)]
        values = iter(source.fetch(blanks))
        for item, part in batch:
            target = planner.resolve_tensor(item).detach()
            target.copy_(next(values) if source.is_blank(part) else part)
            planner.commit_tensor(item, target)

    def _close(self) -> None:
        source, self._source, self._values = self._source, None, {}
        if source is not None:
            source.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a file, or an installed backend serves this URL."""
        return scheme_of(checkpoint_id) in known_schemes() or os.path.isfile(checkpoint_id)


def _entry(value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if not isinstance(value, torch.Tensor):
        return BytesStorageMetadata()
    chunk = ChunkStorageMetadata(torch.Size([0] * value.dim()), value.size())
    return TensorStorageMetadata(TensorProperties.create_from_tensor(value), value.size(), [chunk])


def _saved(value: Any) -> io.BytesIO:
    data = io.BytesIO()
    torch.save(value, data)
    data.seek(0)
    return data


def _part(item: ReadItem, value: Any) -> torch.Tensor:
    """What an item reads of a tensor. Offsets are those in a chunk, and that of the chunk in the tensor."""
    name = item.storage_index.fqn
    if not isinstance(value, torch.Tensor):
        raise CheckpointCorruptError(f"{name!r} is a {type(value).__name__} in the file, no tensor")
    chunk = item.storage_index.offset or [0] * value.dim()
    if not len(chunk) == len(item.lengths) == value.dim():
        raise CheckpointCorruptError(f"{name!r} has shape {tuple(value.shape)} in the file")
    offsets = [origin + offset for origin, offset in zip(chunk, item.storage_offsets, strict=True)]
    ends = [offset + length for offset, length in zip(offsets, item.lengths, strict=True)]
    if any(end > size for end, size in zip(ends, value.shape, strict=True)):
        raise CheckpointCorruptError(
            f"{name!r} has shape {tuple(value.shape)} in the file: {tuple(ends)} is needed"
        )
    return narrow(value.detach(), offsets, item.lengths)


def _batches(
    tensors: Sequence[tuple[ReadItem, torch.Tensor]],
) -> Iterator[list[tuple[ReadItem, torch.Tensor]]]:
    batch: list[tuple[ReadItem, torch.Tensor]] = []
    size = 0
    for item, part in tensors:
        if batch and size + part.nbytes > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append((item, part))
        size += part.nbytes
    if batch:
        yield batch
