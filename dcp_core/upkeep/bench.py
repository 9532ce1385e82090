"""Saving to and loading from a bucket of the user's own, measured.

Under ``torchrun`` every rank saves and loads tensors of its own, at once, as ranks of a training job do.
"""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from dcp_core.config import GIB, LoadOptions, SaveOptions
from dcp_core.errors import CheckpointCorruptError
from dcp_core.seam.location import Location
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.storage.reader import CloudStorageReader
from dcp_core.storage.writer import CloudStorageWriter

__all__ = ["Round", "Summary", "measure_bucket", "summary"]


@dataclass(frozen=True)
class Round:
    """One operation of all ranks.

    Attributes:
        operation: ``save`` or ``load``.
        size: bytes of all ranks' tensors.
        wall: seconds from the first rank's start to the last one's end.
        cpu: user and system CPU seconds of all ranks.
    """

    operation: str
    size: int
    wall: float
    cpu: float


@dataclass(frozen=True)
class Summary:
    """Medians over rounds: wall seconds, bytes a second, CPU seconds for each GiB."""

    wall: float
    rate: float
    cpu_per_gib: float


def summary(rounds: list[Round]) -> Summary:
    """The medians of rounds of one operation."""
    return Summary(
        statistics.median(one.wall for one in rounds),
        statistics.median(one.size / one.wall for one in rounds),
        statistics.median(one.cpu / one.size * GIB for one in rounds),
    )


def measure_bucket(
    url: str, *, size: int, tensor_size: int, rounds: int, options: Mapping[str, Any]
) -> Iterator[Round]:
    """Save and load below ``url``, ``rounds`` times; what was saved is deleted at the end.

    Args:
        url: where checkpoints may be written for the time being, in a folder with a name of its own.
        size: bytes of each rank's state, about: whole tensors, and one at least.
        tensor_size: bytes of each tensor of it.
        rounds: how often.
        options: options of writer and reader.

    Raises:
        CheckpointCorruptError: what was loaded is not what was saved.
        CloudCheckpointError: as saving and loading do.
    """
    with _ranks():
        base = CheckpointStore(url, SaveOptions, options)
        place = base.location.child(_agreed(f"dcp-cloud-bench-{secrets.token_hex(4)}"))
        state = _state(size, tensor_size)
        moved = sum(tensor.nbytes for tensor in state.values())
        loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        try:
            for number in range(rounds):
                here = place.child(str(number)).url
                writer = CloudStorageWriter(here, **options)
                yield _timed("save", moved, partial(save, state, storage_writer=writer))
                writer.close()
                reader = CloudStorageReader(here, **_shared(options))
                yield _timed("load", moved, partial(load, loaded, storage_reader=reader))
                reader.close()
                _compare(state, loaded, here)
        finally:
            if _rank() == 0:
                _remove(base, place)
            base.close()


@contextmanager
def _ranks() -> Iterator[None]:
    """The process group that torchrun prepared, if it did."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _agreed(name: str) -> str:
    """Rank 0's choice of a name, on every rank."""
    if not dist.is_initialized():
        return name
    names = [name]
    dist.broadcast_object_list(names)
    return names[0]


def _shared(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those that only writers have."""
    only = set(SaveOptions.__dataclass_fields__) - set(LoadOptions.__dataclass_fields__)
    return {name: value for name, value in options.items() if name not in only}


def _state(size: int, tensor_size: int) -> dict[str, torch.Tensor]:
    """Random bytes, which no link or store compresses; every rank has names and bytes of its own."""
    generator = torch.Generator().manual_seed(_rank())
    count = max(1, size // tensor_size)
    return {
        f"rank{_rank()}.{number}": torch.randint(
            -(1 << 62), 1 << 62, (tensor_size // 8,), dtype=torch.int64, generator=generator
        )
        for number in range(count)
    }


def _timed(operation: str, size: int, work: Callable[[], Any]) -> Round:
    if dist.is_initialized():
        dist.barrier()
    started, spent = time.perf_counter(), time.process_time()
    work()
    spent = time.process_time() - spent
    if not dist.is_initialized():
        return Round(operation, size, time.perf_counter() - started, spent)
    total = torch.tensor([spent, float(size)], dtype=torch.float64)
    dist.all_reduce(total)
    return Round(operation, int(total[1]), time.perf_counter() - started, float(total[0]))


def _compare(saved: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor], url: str) -> None:
    for name, tensor in loaded.items():
        if not torch.equal(tensor, saved[name]):
            raise CheckpointCorruptError(
                f"{name} was loaded from {url} with other bytes than it was saved with"
            )
        tensor.zero_()


def _remove(base: CheckpointStore[SaveOptions], place: Location) -> None:
    store = base.writable_store()
    prefix = place.key("")
    store.delete([info.key for info in store.list(prefix)])
    for unfinished in store.list_uploads(prefix):
        store.abort_upload(unfinished.upload)
