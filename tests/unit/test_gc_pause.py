"""What is done to Python's collector ends with the save or load, however that ends."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support import saves_in_memory
from support.forks import holds_in_a_child

from dcp_core import CloudStorageReader, CloudStorageWriter
from dcp_core.runtime import gc_pause
from dcp_core.runtime.gc_pause import FrozenHeap, gc_paused
from dcp_core.testing import MemoryStore

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
    gc_pause._settled.clear()
    gc.unfreeze()
    gc_pause._frozen = False
    assert gc.isenabled()
    assert not frozen()
    yield
    assert gc.isenabled()
    assert not frozen()


def writer(**options: Any) -> CloudStorageWriter:
    return saves_in_memory.writer(MemoryStore("collector"), "memory://collector/run", **options)


def reader() -> CloudStorageReader:
    return saves_in_memory.reader(MemoryStore("collector"), "memory://collector/run")


def test_paused_and_goes_on() -> None:
    def fail() -> None:
        with gc_paused():
            with gc_paused():
                assert not gc.isenabled()
            assert not gc.isenabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with gc_paused():
            pass
        settled = FrozenHeap()
        assert not frozen()
        settled.end()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_new_garbage_is_collected() -> None:
    settled = FrozenHeap()
    assert frozen()
    new = weakref.ref(Cycle())
    gc.collect()
    assert new() is None
    settled.end()
    settled.end()


def test_young_garbage_is_collected_first() -> None:
    old = weakref.ref(Cycle())
    settled = FrozenHeap()
    assert old() is None
    settled.end()


def test_it_lasts_until_the_last_one_ends() -> None:
    first, second = FrozenHeap(), FrozenHeap()
    first.end()
    assert frozen()
    with second:
        assert frozen()
    assert not frozen()


def test_what_somebody_else_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        FrozenHeap().end()
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
    MemoryStore.create_bucket("collector")

    class Saves(dcp.DefaultSavePlanner):
        def create_local_plan(self) -> Any:
            raise ZeroDivisionError

    class Loads(dcp.DefaultLoadPlanner):
        def create_local_plan(self) -> Any:
            raise ZeroDivisionError

    saves, loads = writer(), reader()
    dcp.save(STATE, storage_writer=saves)
    monkeypatch.setattr(gc_pause, "_PLANNING", 0.2)
    with pytest.raises(dcp.CheckpointException):
        dcp.save(STATE, storage_writer=saves, planner=Saves())
    with pytest.raises(dcp.CheckpointException):
        dcp.load(dict(STATE), storage_reader=loads, planner=Loads())
    thawed_within(60)


def thawed_within(seconds: float) -> None:
    until = time.monotonic() + seconds
    while frozen():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_transfer_may_take_longer_than_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_pause, "_PLANNING", 0.05)
    settled, late = FrozenHeap(), FrozenHeap()
    with settled:
        # that one is over
        while late._number in gc_pause._settled:
            time.sleep(0.02)
        assert frozen()
    assert not frozen()


class Interrupted(Exception):
    """What a signal's handler raises, as Ctrl-C and launchers have it."""


@contextmanager
def interrupted_soon() -> Iterator[None]:
    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def make_objects() -> None:
    """For a minute, and in C: whatever Python function runs meanwhile is one that a collection calls."""
    text = json.dumps([{"list": [number], "dict": {"list": []}} for number in range(20_000)])
    until = time.monotonic() + 60
    while time.monotonic() < until:
        json.loads(text)


def test_no_interrupt_is_lost(request: pytest.FixtureRequest) -> None:
    """Python delivers one in the next Python function, and passes over what comes out of the collector's."""
    # hypothesis has one of its own, which loses them
    for callback in list(gc.callbacks):
        gc.callbacks.remove(callback)
        request.addfinalizer(partial(gc.callbacks.append, callback))
    for _ in range(10):
        with FrozenHeap(), interrupted_soon(), pytest.raises(Interrupted):
            make_objects()


def test_no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_pause, "_PLANNING", 600.0)
    for _ in range(3):
        with FrozenHeap():
            pass
    for thread in threading.enumerate():
        if thread.name == "dcp-cloud-planning":
            thread.join(20)
            assert not thread.is_alive()


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
            with FrozenHeap():
                kept = [Cycle() for _ in range(100)]
            del kept
            gc.collect(0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not gc_pause._settled


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_forked_meanwhile_has_its_own_collector() -> None:
    """What the threads of the parent have under way does not go on in the child: nobody would end it."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with gc_pause._lock:
            held.set()
            over.wait(20)

    with FrozenHeap(), gc_paused():
        # another thread is at it, and is not there in the child to let go of the lock
        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(20)
        in_order = holds_in_a_child(as_without_saves)
        over.set()
        holder.join(20)
        assert not gc.isenabled()
        assert frozen()
    assert in_order


def as_without_saves() -> bool:
    """Whether the collector is as it is where nothing is under way, and can be paused again."""
    as_it_is = gc.isenabled() and not frozen()
    with gc_paused():
        as_it_is &= not gc.isenabled()
    with FrozenHeap():
        as_it_is &= bool(frozen())
    return as_it_is and gc.isenabled() and not frozen()
