"""DCP checkpoints and what else DCP reads and writes, a tensor at a time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter

from dcp_core.convert.blanks import Progress, Source, Values, address, made_blank, with_values
from dcp_core.convert.nest import nested
from dcp_core.errors import UnsupportedTensorError
from dcp_core.runtime.tensor_memory import cpu_buffer
from dcp_core.save.plan import write_order

__all__ = ["CheckpointSource", "flattened", "save_checkpoint"]


class CheckpointSource(Source):
    """A checkpoint that ``reader`` reads: objects at once, tensors when they are asked for.

    Raises:
        CloudCheckpointError: as the reader does.
    """

    def __init__(self, reader: StorageReader) -> None:
        self._reader = reader
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._metadata: Metadata = self._reader.read_metadata()
        entries = self._metadata.state_dict_metadata
        tensors = {name: one for name, one in entries.items() if isinstance(one, TensorStorageMetadata)}
        blanks = dict(zip(tensors, _blanks(tensors), strict=True))
        self._names = {address(blank): name for name, blank in blanks.items() if blank.nbytes}
        self.size = sum(blank.nbytes for blank in blanks.values())
        objects = {name: None for name in entries if name not in tensors}
        found = self._read(dict(objects)) if objects else {}
        values = {name: blanks[name] if name in blanks else found[name] for name in entries}
        self.state = nested(values, self._metadata.planner_data)

    def is_blank(self, tensor: torch.Tensor) -> bool:
        return address(tensor) in self._names

    def fetch(self, blanks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        names = [self._names[address(blank)] for blank in blanks]
        wanted = {
            name: cpu_buffer(one.nbytes).view(one.dtype).view(one.shape)
            for name, one in zip(names, blanks, strict=True)
        }
        found = self._read(wanted)
        return [found[name] for name in names]

    def _read(self, state: dict[str, Any]) -> dict[str, Any]:
        reader, planner = self._reader, DefaultLoadPlanner(False, False)
        planner.set_up_planner(state, self._metadata, is_coordinator=True)
        reader.set_up_storage_reader(self._metadata, True)
        (plan,) = planner.create_global_plan([reader.prepare_local_plan(planner.create_local_plan())])
        (plan,) = reader.prepare_global_plan([plan])
        reader.read_data(planner.finish_plan(plan), planner).wait()
        found: dict[str, Any] = planner.state_dict
        return found

    def close(self) -> None:
        close = getattr(self._reader, "close", None)
        if close is not None:
            close()


def _blanks(tensors: dict[str, TensorStorageMetadata]) -> list[torch.Tensor]:
    try:
        return made_blank([(one.properties.dtype, tuple(one.size)) for one in tensors.values()])
    # quantized dtypes and the like
    except RuntimeError as error:
        raise UnsupportedTensorError(f"a tensor cannot be converted: {error}") from error


def flattened(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` by the names that torch's planner gives to its items."""
    planner = DefaultSavePlanner()
    planner.set_up_planner(state, None, True)
    found: dict[str, Any] = planner.state_dict
    return found


class _Filling(DefaultSavePlanner):
    """Plans with blanks, and hands out their values."""

    def __init__(self, source: Source, progress: Progress) -> None:
        super().__init__()
        self._source = source
        self._values = Values(source, progress)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        plan = super().finish_plan(new_plan)
        self._values.expect(self._blanks(write_order(plan.items)))
        return plan

    def _blanks(self, items: Iterable[WriteItem]) -> Iterable[torch.Tensor]:
        for item in items:
            found = super().lookup_object(item.index)
            if isinstance(found, torch.Tensor) and self._source.is_blank(found):
                yield found

    def lookup_object(self, index: MetadataIndex) -> Any:
        found = super().lookup_object(index)
        if isinstance(found, torch.Tensor) and self._source.is_blank(found):
            return self._values.take(found)
        return found

    def transform_object(self, write_item: WriteItem, object: Any) -> torch.Tensor | io.BytesIO:
        if write_item.type is WriteItemType.BYTE_IO:
            object = with_values(object, self._values, self._source)
        transformed: torch.Tensor | io.BytesIO = super().transform_object(write_item, object)
        return transformed


def save_checkpoint(source: Source, writer: StorageWriter, progress: Progress) -> None:
    """Save the state of ``source`` with ``writer``, from this process alone.

    Raises:
        CheckpointException: it failed.
    """
    with warnings.catch_warnings():
        # that a single process saves is what is wanted
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        save(source.state, storage_writer=writer, planner=_Filling(source, progress), no_dist=True)
