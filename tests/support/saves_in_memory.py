"""Saves to and loads from a store in this process, through the writer and the reader that everybody uses."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dcp_core import CloudStorageReader, CloudStorageWriter
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectStore
from dcp_core.testing import MemoryBackend
from dcp_core.testing.memory import MemoryOptions
from dcp_core.transfer import Transfer
from support.clocks import DrivenClock

__all__ = ["URL", "failure", "load", "reader", "save", "state", "without_waiting", "writer"]

URL = "memory://bucket/run"


class _OneStore(MemoryBackend):
    """Every URL leads to one store."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def open(self, location: Location, options: MemoryOptions, *, concurrency: int) -> ObjectStore:
        del location, options, concurrency
        return self.store


def writer(store: ObjectStore, url: str = URL, **options: Any) -> CloudStorageWriter:
    kind = type("Writer", (CloudStorageWriter,), {"backend": _OneStore(store)})
    made: CloudStorageWriter = kind(url, **options)
    return made


def reader(store: ObjectStore, url: str = URL, **options: Any) -> CloudStorageReader:
    kind = type("Reader", (CloudStorageReader,), {"backend": _OneStore(store)})
    made: CloudStorageReader = kind(url, **options)
    return made


def state(seed: float, size: int = 1000) -> dict[str, Any]:
    """A tensor of ``size`` float32, and an object."""
    return {"weight": torch.arange(size, dtype=torch.float32) + seed, "step": seed}


def save(store: ObjectStore, seed: float, *, size: int = 1000, url: str = URL, **options: Any) -> Any:
    """Save what ``seed`` makes; returns what ``dcp.save`` does."""
    return dcp.save(state(seed, size), storage_writer=writer(store, url, **options), no_dist=True)


def load(store: ObjectStore, *, size: int = 1000, url: str = URL, **options: Any) -> float:
    """The seed of the checkpoint that is there, once every byte of it is compared."""
    found: dict[str, Any] = {"weight": torch.zeros(size), "step": None}
    dcp.load(found, storage_reader=reader(store, url, **options), no_dist=True)
    seed = found["step"]
    assert torch.equal(found["weight"], state(seed, size)["weight"])
    return float(seed)


def failure(caught: pytest.ExceptionInfo[BaseException]) -> BaseException:
    """What the one rank failed with."""
    assert isinstance(caught.value, dcp.CheckpointException)
    ((error, _),) = caught.value.failures.values()
    return error


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> DrivenClock:
    """Saves and loads that wait for nothing between two attempts; the clock counts what they would have."""
    clock = DrivenClock()
    for module in ("writer", "reader"):
        monkeypatch.setattr(f"dcp_core.storage.{module}.Transfer", functools.partial(Transfer, clock=clock))
    return clock
