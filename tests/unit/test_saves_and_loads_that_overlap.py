"""Saves through one writer, and loads through one reader, that are under way at the same time.

Each has its own URL, id and data. What a thread has begun belongs to it, also where another one resets or
closes the writer, fails, or forks a child.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support import saves_in_memory
from support.forks import holds_in_a_child
from support.saves_in_memory import URL, failure, load, state
from support.stops import PlannedSave, Stop, in_another_thread, on_a_thread
from support.unreliable_store import Request, UnreliableStore, denied, is_data, is_record
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata

from dcp_core import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointIncompleteError,
    CloudStorageReader,
    CloudStorageWriter,
    ConfigurationError,
    PermissionDeniedError,
)
from dcp_core.format.metadata import decode_metadata
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectStore
from dcp_core.testing import MemoryBackend, MemoryStore
from dcp_core.testing.memory import MemoryOptions

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture
def store() -> UnreliableStore:
    for name in ("bucket", "other"):
        MemoryStore.create_bucket(name)
    return UnreliableStore(MemoryStore("bucket"))


@pytest.fixture
def writer(store: UnreliableStore) -> CloudStorageWriter:
    return saves_in_memory.writer(store)


@pytest.fixture
def reader(store: UnreliableStore) -> CloudStorageReader:
    return saves_in_memory.reader(store)


def save(writer: CloudStorageWriter, seed: float, name: str | None = None, **options: Any) -> Metadata:
    found = dcp.save(state(seed), storage_writer=writer, checkpoint_id=name, no_dist=True, **options)
    assert isinstance(found, Metadata)
    return found


def loaded(reader: CloudStorageReader, name: str | None = None) -> float:
    """The seed of what is loaded, once every byte of it is compared."""
    found: dict[str, Any] = {"weight": torch.zeros(1000), "step": None}
    dcp.load(found, storage_reader=reader, checkpoint_id=name, no_dist=True)
    seed = float(found["step"])
    assert torch.equal(found["weight"], state(seed)["weight"])
    return seed


def record(store: UnreliableStore, name: str = "") -> Metadata:
    key = f"run/{name}/.metadata" if name else "run/.metadata"
    return decode_metadata(store.store.get(key)[0], bucket="bucket", key=key)


class Opening(MemoryBackend):
    """Keeps the stores that it opens."""

    def __init__(self) -> None:
        self.opened: list[UnreliableStore] = []

    def open(self, location: Location, options: MemoryOptions, *, concurrency: int) -> ObjectStore:
        self.opened.append(UnreliableStore(MemoryStore(location.bucket)))
        return self.opened[-1]


def writer_of(backend: Opening) -> CloudStorageWriter:
    made: CloudStorageWriter = type("Writer", (CloudStorageWriter,), {"backend": backend})(URL)
    return made


def test_each_thread_saves_to_its_own_url(store: UnreliableStore, writer: CloudStorageWriter) -> None:
    """The first waits in the middle of its upload while the second goes from start to end."""
    store.fails("put", stop := Stop(), key=is_data)
    with on_a_thread(lambda: save(writer, 1, "first"), stop):
        save(writer, 2, "second")
    assert load(store, url=f"{URL}/first") == 1
    assert load(store, url=f"{URL}/second") == 2


def test_a_reset_leaves_the_saves_of_other_threads_alone(
    store: UnreliableStore, writer: CloudStorageWriter
) -> None:
    store.fails("put", stop := Stop(), key=is_record)
    with on_a_thread(lambda: save(writer, 1, "first"), stop):
        writer.reset("second")
        assert writer.checkpoint_id == f"{URL}/second"
    assert load(store, url=f"{URL}/first") == 1
    assert not any(info.key.startswith("run/second") for info in store.store.list(""))


def test_saves_of_two_threads_have_their_own_ids(store: UnreliableStore, writer: CloudStorageWriter) -> None:
    """In what dcp.save returns, and in what is stored."""
    store.fails("put", stop := Stop(), key=is_data)
    with on_a_thread(lambda: save(writer, 1, "first"), stop) as first:
        second = save(writer, 2, "second")
    metas = [found.storage_meta for found in (first.result(), second)]
    assert [meta.checkpoint_id for meta in metas if meta] == [f"{URL}/first", f"{URL}/second"]
    ids = [meta.save_id for meta in metas if meta]
    assert len(set(ids)) == 2
    stored = [record(store, name).storage_meta for name in ("first", "second")]
    assert [meta.save_id for meta in stored if meta] == ids


def test_a_thread_that_did_not_reset_goes_on_where_the_last_one_did(writer: CloudStorageWriter) -> None:
    in_another_thread(lambda: writer.reset("first"))
    assert writer.checkpoint_id == f"{URL}/first"
    writer.reset("mine")
    in_another_thread(lambda: writer.reset("last"))
    assert writer.checkpoint_id == f"{URL}/mine"
    assert in_another_thread(lambda: writer.checkpoint_id) == f"{URL}/last"


def test_names_are_relative_to_the_first_url_and_its_bucket() -> None:
    backend = Opening()
    writer = writer_of(backend)
    save(writer, 1, "memory://other/elsewhere")
    save(writer, 2, "below")
    assert writer.checkpoint_id == f"{URL}/below"
    assert load(MemoryStore("other"), url="memory://other/elsewhere") == 1
    assert load(MemoryStore("bucket"), url=f"{URL}/below") == 2


def test_names_are_relative_to_the_first_url_and_its_cloud() -> None:
    """A thread that was at another cloud comes back with the backend and the options of the first one."""
    writer = CloudStorageWriter("s3://bucket/run", part_size=5 << 20)
    first = writer.checkpoint.store_options
    writer.reset("gs://other/elsewhere")
    assert type(writer.checkpoint.store_options) is not type(first)
    assert writer.checkpoint.options.part_size == 5 << 20
    writer.reset("below")
    assert writer.checkpoint_id == "s3://bucket/run/below"
    assert writer.checkpoint.store_options == first


def test_a_failed_save_leaves_nothing_to_the_next(store: UnreliableStore, writer: CloudStorageWriter) -> None:
    """No id, no name of a data object, no record that it found."""
    failed = writer.storage_meta()
    store.fails("put", denied, key=is_record)
    store.fails("get", denied)
    with pytest.raises(dcp.CheckpointException) as caught:
        save(writer, 1)
    assert isinstance(failure(caught), PermissionDeniedError)
    store.store.delete([info.key for info in store.store.list("") if is_record(info.key)])
    left = {info.key for info in store.store.list("")}
    metadata = save(writer, 2)
    assert metadata.storage_meta is not None
    assert metadata.storage_meta.save_id != failed.save_id
    assert not left & {f"run/{info.relative_path}" for info in metadata.storage_data.values()}
    assert load(store) == 2


def test_a_save_that_was_left_in_planning_is_no_obstacle(
    store: UnreliableStore, writer: CloudStorageWriter
) -> None:
    """torch calls none of our methods once its planner has failed."""

    class Fails(DefaultSavePlanner):
        def create_local_plan(self) -> Any:
            raise ZeroDivisionError

    for attempt in range(2):
        with pytest.raises(dcp.CheckpointException):
            save(writer, 1, planner=Fails())
        save(writer, attempt)
        assert load(store) == attempt
    in_another_thread(lambda: save(writer, 3))
    assert load(store) == 3


def test_a_set_up_that_fails_ends_the_save_before(store: UnreliableStore) -> None:
    """What comes after it must not go to the checkpoint of the save before."""
    writer = saves_in_memory.writer(store, overwrite=False)
    before = PlannedSave(writer, state(1))
    before.set_up()
    before.prepare()
    save(saves_in_memory.writer(store), 2)
    with pytest.raises(CheckpointExistsError):
        PlannedSave(writer, state(3)).set_up()
    with pytest.raises(ConfigurationError, match="no save under way"):
        before.write()
    with pytest.raises(ConfigurationError, match="no save under way"):
        before.finish()
    assert load(store) == 2


def test_steps_may_be_taken_on_other_threads(store: UnreliableStore, writer: CloudStorageWriter) -> None:
    """As long as only one save is under way."""
    with ExitStack() as stack:
        for step in PlannedSave(writer, state(1)).steps:
            thread = stack.enter_context(ThreadPoolExecutor(1))
            thread.submit(step).result()
    assert load(store) == 1


def test_a_step_that_could_be_of_two_saves_is_refused(
    store: UnreliableStore, writer: CloudStorageWriter
) -> None:
    """A third thread cannot know which is meant; the two go on."""
    first, second = PlannedSave(writer, state(1)), PlannedSave(writer, state(2))
    first.set_up()
    first.prepare()

    def whole_second() -> None:
        writer.reset("second")
        for step in second.steps:
            step()

    store.fails("put", stop := Stop())
    with on_a_thread(whole_second, stop), pytest.raises(ConfigurationError, match="no save under way"):
        in_another_thread(first.write)
    first.write()
    first.finish()
    assert load(store) == 1
    assert load(store, url=f"{URL}/second") == 2


def test_metadata_that_saves_share_is_left_alone_until_the_commit(
    store: UnreliableStore, writer: CloudStorageWriter
) -> None:
    """Planners that cache plans hand out the same object again."""
    planner = cached()
    shared = save(writer, 1, "first", planner=planner)
    before = (shared.storage_data, shared.storage_meta)
    seen: list[bool] = []

    def looks(request: Request) -> Any:
        seen.append((shared.storage_data, shared.storage_meta) == before)
        return request.deliver()

    store.fails("put", looks, looks)
    assert save(writer, 2, "second", planner=planner) is shared
    assert seen == [True, True]
    assert shared.storage_meta is not None
    assert shared.storage_meta.checkpoint_id == f"{URL}/second"
    assert load(store, url=f"{URL}/first") == 1
    assert load(store, url=f"{URL}/second") == 2


def cached() -> DefaultSavePlanner:
    """A planner whose plans torch keeps for the next one of its kind, under a name that no other test has."""
    kind = type(f"Cached{id(object())}", (DefaultSavePlanner,), {})
    found: DefaultSavePlanner = kind(enable_plan_caching=True)
    return found


def test_metadata_of_a_save_that_failed_is_as_it_was(
    store: UnreliableStore, writer: CloudStorageWriter
) -> None:
    planner = cached()
    shared = save(writer, 1, "first", planner=planner)
    before = (shared.storage_data, shared.storage_meta)
    store.fails("put", denied, key=is_record)
    store.fails("get", denied)
    with pytest.raises(dcp.CheckpointException):
        save(writer, 2, "second", planner=planner)
    assert (shared.storage_data, shared.storage_meta) == before


def test_results_of_another_checkpoint_are_not_committed(
    store: UnreliableStore, writer: CloudStorageWriter
) -> None:
    """Where saves overlap on one process group, torch may gather results of the one for the other."""
    first, second = PlannedSave(writer, state(1)), PlannedSave(saves_in_memory.writer(store), state(2))
    second._writer.reset("second")
    for one in (first, second):
        one.set_up()
        one.prepare()
        one.write()
    first.results = second.results
    with pytest.raises(CheckpointIncompleteError, match=f"rank 0 wrote to {URL}/second"):
        first.finish()
    assert not any(is_record(info.key) for info in store.store.list(""))


@pytest.mark.parametrize(
    "ends",
    [CloudStorageWriter.close, lambda writer: writer.reset("memory://other/x")],
    ids=["close", "reset"],
)
def test_connections_stay_open_for_the_saves_that_use_them(
    ends: Callable[[CloudStorageWriter], None],
) -> None:
    """Their last user closes them."""
    backend = Opening()
    writer = writer_of(backend)
    save(writer, 1)
    backend.opened[0].fails("put", stop := Stop(), key=is_data)
    with on_a_thread(lambda: save(writer, 2), stop):
        ends(writer)
        assert [store.closed for store in backend.opened] == [False]
    assert backend.opened[0].closed
    assert load(MemoryStore("bucket")) == 2


def test_connections_that_nobody_uses_are_closed() -> None:
    backend = Opening()
    writer = writer_of(backend)
    save(writer, 1)
    assert [store.closed for store in backend.opened] == [False]
    save(writer, 2, "below")
    assert [store.closed for store in backend.opened] == [False], "the same bucket"
    save(writer, 3, "memory://other/x")
    assert [store.closed for store in backend.opened] == [True, False]
    writer.close()
    assert [store.closed for store in backend.opened] == [True, True]
    save(writer, 4)
    assert len(backend.opened) == 3


def test_a_reset_leaves_the_loads_of_other_threads_alone(
    store: UnreliableStore, writer: CloudStorageWriter, reader: CloudStorageReader
) -> None:
    save(writer, 1, "first")
    save(writer, 2, "second")
    store.fails("read_range", stop := Stop(), key=is_data)
    with on_a_thread(lambda: loaded(reader, "first"), stop) as first:
        reader.reset("second")
        assert reader.checkpoint_id == f"{URL}/second"
    assert first.result() == 1
    assert loaded(reader) == 2


def test_each_thread_loads_its_own_checkpoint(
    store: UnreliableStore, writer: CloudStorageWriter, reader: CloudStorageReader
) -> None:
    """Whether the other load is stopped between record and data, or in the middle of its data."""
    save(writer, 1, "first")
    save(writer, 2, "second")
    for kind in (is_record, is_data):
        verb = "get" if kind is is_record else "read_range"
        store.fails(verb, stop := Stop(), key=kind)
        with on_a_thread(lambda: loaded(reader, "first"), stop) as first:
            assert loaded(reader, "second") == 2
        assert first.result() == 1


def test_loads_have_ids_of_their_own(writer: CloudStorageWriter, reader: CloudStorageReader) -> None:
    save(writer, 1)
    metas = [reader.read_metadata().storage_meta, in_another_thread(reader.read_metadata).storage_meta]
    assert len({meta.load_id for meta in metas if meta is not None}) == 2


def test_one_load_may_be_read_by_many_threads(writer: CloudStorageWriter, reader: CloudStorageReader) -> None:
    """Each with a plan of its own, after one of them read the record."""
    tensors = {f"weight {number}": torch.full((300,), float(number)) for number in range(8)}
    dcp.save(tensors, storage_writer=writer, no_dist=True)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, True)
    found = {name: torch.zeros(300) for name in tensors}

    def read(name: str) -> None:
        planner = DefaultLoadPlanner()
        planner.set_up_planner({name: found[name]}, metadata, True)
        reader.read_data(planner.create_local_plan(), planner).wait()

    threads = [threading.Thread(target=read, args=(name,)) for name in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_record_that_was_read_elsewhere_is_not_called_replaced(
    store: UnreliableStore, writer: CloudStorageWriter, reader: CloudStorageReader
) -> None:
    """Whether it was is not known, and loading again would not help."""
    save(writer, 1)
    metadata = saves_in_memory.reader(store).read_metadata()
    store.store.delete([info.key for info in store.store.list("") if is_data(info.key)])
    found = state(0)
    planner = DefaultLoadPlanner()
    planner.set_up_planner(found, metadata, True)
    reader.set_up_storage_reader(metadata, True)
    with pytest.raises(CheckpointCorruptError, match="refers to an object that does not exist"):
        reader.read_data(planner.create_local_plan(), planner)


@forks
def test_a_forked_child_leaves_the_save_under_way_to_its_parent(
    store: UnreliableStore, writer: CloudStorageWriter
) -> None:
    """The child can save by itself, and the parent goes on."""
    under_way = PlannedSave(writer, state(1))
    under_way.set_up()
    under_way.prepare()

    def in_child() -> bool:
        with pytest.raises(ConfigurationError, match="no save under way"):
            under_way.write()
        save(writer, 2, "child")
        return load(store, url=f"{URL}/child") == 2

    assert holds_in_a_child(in_child)
    under_way.write()
    under_way.finish()
    assert load(store) == 1


@forks
def test_a_child_is_forked_while_a_connection_is_opened() -> None:
    """The thread that opens it is not there in the child, nor is what it has locked."""
    opening, go_on = threading.Event(), threading.Event()

    class Slow(Opening):
        def open(self, location: Location, options: MemoryOptions, *, concurrency: int) -> ObjectStore:
            if threading.current_thread() is not threading.main_thread():
                opening.set()
                assert go_on.wait(30)
            return super().open(location, options, concurrency=concurrency)

    writer = writer_of(Slow())
    thread = threading.Thread(target=functools.partial(save, writer, 1, "thread"))
    thread.start()
    assert opening.wait(30)
    try:
        assert holds_in_a_child(lambda: save(writer, 2, "child"))
    finally:
        go_on.set()
        thread.join(30)
    assert load(MemoryStore("bucket"), url=f"{URL}/thread") == 1
