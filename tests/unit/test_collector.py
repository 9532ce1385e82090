"""What is done to Python's collector ends with the save or load, however that ends."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dcp_core import CloudStorageReader, CloudStorageWriter
from dcp_core.collector import SettledObjects, collector_paused
from dcp_core.testing import MemoryBackend, MemoryStore

STATE = {"weight": torch.ones(100)}


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    yield
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def writer() -> CloudStorageWriter:
    made = CloudStorageWriter.__new__(CloudStorageWriter)
    made._set_up("memory://collector/run", {}, MemoryBackend())
    return made


def reader() -> CloudStorageReader:
    made = CloudStorageReader.__new__(CloudStorageReader)
    made._set_up("memory://collector/run", {}, MemoryBackend())
    return made


def test_paused_and_goes_on() -> None:
    def fail() -> None:
        with collector_paused():
            with collector_paused():
                assert not gc.isenabled()
            assert not gc.isenabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        settled = SettledObjects()
        assert gc.get_freeze_count() == 0
        settled.end()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_new_garbage_is_collected() -> None:
    settled = SettledObjects()
    assert gc.get_freeze_count() > 10_000
    new = weakref.ref(Cycle())
    gc.collect()
    assert new() is None
    settled.end()
    settled.end()


def test_young_garbage_is_collected_first() -> None:
    old = weakref.ref(Cycle())
    settled = SettledObjects()
    assert old() is None
    settled.end()


def test_it_lasts_until_the_last_one_ends() -> None:
    first, second = SettledObjects(), SettledObjects()
    first.end()
    assert gc.get_freeze_count()
    del second
    assert not gc.get_freeze_count()


def test_what_somebody_else_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        SettledObjects().end()
        assert gc.get_freeze_count() > count / 2
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("kept", [False, True])
def test_a_save_and_a_load(kept: bool) -> None:
    """Torch plans in between; and the writer may be kept for the next save."""
    MemoryStore.create_bucket("collector")
    seen: list[int] = []

    class Saves(dcp.DefaultSavePlanner):
        def create_local_plan(self) -> Any:
            seen.append(gc.get_freeze_count())
            return super().create_local_plan()

    class Loads(dcp.DefaultLoadPlanner):
        def create_local_plan(self) -> Any:
            seen.append(gc.get_freeze_count())
            return super().create_local_plan()

    saves, loads = writer(), reader()
    for _ in range(1 + kept):
        dcp.save(STATE, storage_writer=saves, planner=Saves())
        assert gc.get_freeze_count() == 0
        dcp.load({"weight": torch.zeros(100)}, storage_reader=loads, planner=Loads())
        assert gc.get_freeze_count() == 0
    assert len(seen) == 2 * (1 + kept)
    assert all(seen)


def test_planning_that_fails() -> None:
    """No method of ours is called afterwards: it ends with the writer or reader, or with their next use."""
    MemoryStore.create_bucket("collector")

    class Saves(dcp.DefaultSavePlanner):
        def create_local_plan(self) -> Any:
            raise ZeroDivisionError

    class Loads(dcp.DefaultLoadPlanner):
        def create_local_plan(self) -> Any:
            raise ZeroDivisionError

    saves, loads = writer(), reader()
    dcp.save(STATE, storage_writer=saves)
    with pytest.raises(dcp.CheckpointException):
        dcp.save(STATE, storage_writer=saves, planner=Saves())
    with pytest.raises(dcp.CheckpointException):
        dcp.load(dict(STATE), storage_reader=loads, planner=Loads())
    assert gc.get_freeze_count()
    saves.reset()
    dcp.load(dict(STATE), storage_reader=loads)
