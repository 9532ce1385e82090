"""What trainers keep in a checkpoint: tensors, which are sharded, and files, which are small.

Frameworks write a folder of DCP's, and beside it files of their own: epochs, schedules, random numbers. Here
these are items of the checkpoint too, so that one commit is for all, and no crash leaves new tensors beside
old files. A file is an item of bytes, under its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from dcp_core.integrations.checkpoint_ids import refuse_folded
from dcp_core.run.facts import gather_facts
from dcp_core.runtime.tensor_memory import tensor_bytes
from dcp_core.seam.location import scheme_of
from dcp_core.storage.reader import CloudStorageReader
from dcp_core.storage.writer import CloudStorageWriter

__all__ = ["is_remote", "load_training_state", "save_training_state"]


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a URL rather than a folder of this machine.

    Raises:
        InvalidLocationError: it was one, and lost a slash in ``pathlib``.
    """
    refuse_folded(path)
    return scheme_of(path) not in (None, "file")


def save_training_state(
    url: str,
    tensors: Mapping[str, Any],
    files: Mapping[str, bytes],
    options: Mapping[str, Any],
    *,
    step: int | None = None,
    metrics: Mapping[str, float] | None = None,
    group: dist.ProcessGroup | None = None,
    asynchronous: bool = False,
) -> Future[Any] | None:
    """Save at ``url``; all ranks together, as ``dcp.save``.

    Args:
        tensors: state dicts by name.
        files: contents by name; a name is of one rank, or has the same content on all.
        options: of saving and of the backend.
        step, metrics: what the commit record says of this save.
        group: ranks that talk to each other for the save, over the CPU; all of them by default.
        asynchronous: return once the state is copied.

    Returns:
        The save under way, if asynchronous.

    Raises:
        CheckpointException: of torch, with the errors of all ranks.
    """
    state = {**tensors, **{name: _item(content) for name, content in files.items()}}
    writer = CloudStorageWriter(url, **options)
    writer.facts = gather_facts(step or 0, metrics, None)
    if asynchronous:
        under_way = async_save(state, storage_writer=writer, process_group=group)
        # with torch's own stager, or with the writer as one that blocks, it is a future
        found: Future[Any] = getattr(under_way, "upload_completion", under_way)  # type: ignore[arg-type]
        found.add_done_callback(lambda _: writer.close())
        return found
    try:
        save(state, storage_writer=writer, process_group=group)
    finally:
        writer.close()
    return None


def load_training_state(
    url: str,
    tensors: dict[str, Any],
    wanted: Callable[[str], bool],
    options: Mapping[str, Any],
    *,
    partial: bool = False,
) -> dict[str, bytes]:
    """Load ``tensors`` in place; all ranks together, as ``dcp.load``.

    Args:
        tensors: state dicts by name, as they were saved.
        wanted: whether this rank wants the file of a name.
        options: of loading and of the backend.
        partial: leave tensors that the checkpoint lacks as they are.

    Returns:
        The contents of the files that are wanted and there, by name.

    Raises:
        CheckpointException: of torch, with the errors of all ranks.
    """
    planner = _WithFiles(wanted, allow_partial_load=partial)
    reader = CloudStorageReader(url, **options)
    try:
        load(tensors, storage_reader=reader, planner=planner)
    finally:
        reader.close()
    return {name: bytes(tensor_bytes(content)) for name, content in planner.files.items()}


def _item(content: bytes) -> torch.Tensor:
    # a copy: torch warns of tensors on memory that must not be written to
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else _room(0)


def _room(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu")


class _WithFiles(DefaultLoadPlanner):
    """Loads the files beside what it is asked for: how large they are is known from the commit record."""

    def __init__(self, wanted: Callable[[str], bool], **options: Any) -> None:
        super().__init__(**options)
        self._wanted = wanted
        self.files: dict[str, torch.Tensor] = {}

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        super().set_up_planner(state_dict, metadata, is_coordinator)
        assert metadata is not None
        for name, entry in metadata.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata) and self._wanted(name):
                self.files[name] = _room(entry.size.numel())
        self.state_dict.update(self.files)
