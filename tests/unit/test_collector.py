"""What is done to Python's collector ends with the save or load, however that ends."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dcp_core import CloudStorageReader, CloudStorageWriter, collector
from dcp_core.collector import SettledObjects, collector_paused
from dcp_core.testing import MemoryBackend, MemoryStore

STATE = {"weight": torch.ones(100)}


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


def frozen() -> int:
    """Objects set aside, but for the few that Python itself may set aside."""
    count = gc.get_freeze_count()
    return count if count > 10_000 else 0


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    # what saves and loads of other tests left behind when they failed, as they were meant to
    collector._settled.update(dict.fromkeys(collector._settled, 0.0))
    gc.collect()
    assert gc.isenabled()
    assert not frozen()
    yield
    assert gc.isenabled()
    assert not frozen()


def writer(**options: Any) -> CloudStorageWriter:
    made = CloudStorageWriter.__new__(CloudStorageWriter)
    made._set_up("memory://collector/run", options, MemoryBackend())
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
        assert not frozen()
        settled.end()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_new_garbage_is_collected() -> None:
    settled = SettledObjects()
    assert frozen()
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
    assert frozen()
    with second:
        assert frozen()
    assert not frozen()


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
            seen.append(frozen())
            return super().create_local_plan()

    class Loads(dcp.DefaultLoadPlanner):
        def create_local_plan(self) -> Any:
            seen.append(frozen())
            return super().create_local_plan()

    saves, loads = writer(), reader()
    for _ in range(1 + kept):
        dcp.save(STATE, storage_writer=saves, planner=Saves())
        assert not frozen()
        dcp.load({"weight": torch.zeros(100)}, storage_reader=loads, planner=Loads())
        assert not frozen()
    assert len(seen) == 2 * (1 + kept)
    assert all(seen)


def test_planning_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """No method of ours is called afterwards, and writer, reader and traceback may be kept."""
    monkeypatch.setattr(collector, "_PLANNING", 0.2)
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
    assert frozen()
    time.sleep(0.3)
    gc.collect(0)
    assert not frozen()


def test_a_transfer_may_take_longer_than_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_PLANNING", 0.0)
    settled = SettledObjects()
    with settled:
        time.sleep(0.01)
        gc.collect()
        assert frozen()
    assert not frozen()


def test_a_save_that_is_refused() -> None:
    MemoryStore.create_bucket("collector")
    dcp.save(STATE, storage_writer=writer())
    refused = writer(overwrite=False)
    with pytest.raises(dcp.CheckpointException):
        dcp.save(STATE, storage_writer=refused)
    assert not frozen()


def test_a_transfer_that_fails() -> None:
    MemoryStore.create_bucket("collector")

    class Saves(dcp.DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            raise ZeroDivisionError

    class Loads(dcp.DefaultLoadPlanner):
        def resolve_tensor(self, read_item: Any) -> Any:
            raise ZeroDivisionError

    with pytest.raises(dcp.CheckpointException):
        dcp.save(STATE, storage_writer=writer(), planner=Saves())
    assert not frozen()
    dcp.save(STATE, storage_writer=writer())
    with pytest.raises(dcp.CheckpointException):
        dcp.load(dict(STATE), storage_reader=reader(), planner=Loads())
    assert not frozen()


def test_threads_that_start_and_end_at_will() -> None:
    """With collections all the while, in every thread."""
    stop = time.monotonic() + 1

    def work() -> None:
        while time.monotonic() < stop:
            with SettledObjects():
                kept = [Cycle() for _ in range(100)]
            del kept
            gc.collect(0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not collector._settled
