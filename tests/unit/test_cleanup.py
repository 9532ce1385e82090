"""What failed saves left goes; what a record refers to, or a save that is running may commit, stays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from support.saves_in_memory import failure, load, save, without_waiting
from support.stops import Stop, on_a_thread
from support.unreliable_store import Request, UnreliableStore, is_data, is_record, reliable

from dcp_core.errors import (
    CheckpointIncompleteError,
    ConfigurationError,
    ObjectNotFoundError,
    TransientError,
)
from dcp_core.format.layout import data_name, new_token
from dcp_core.format.metadata import decode_metadata, encode_metadata
from dcp_core.format.stored import FACTS
from dcp_core.seam.location import Location
from dcp_core.testing import MemoryStore, body_of
from dcp_core.upkeep import leftovers
from dcp_core.upkeep.leftovers import Cleanup, Finding, Found, LeftAlone

LIMIT = timedelta(hours=24)
#: Of a save that goes in several parts.
IN_PARTS: dict[str, Any] = {"size": 60_000, "part_size": 1024}


class Calendar:
    """Dates what is written to the bucket."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.now

    def passes(self, time: timedelta = 2 * LIMIT) -> None:
        """What is there by now is older than the limit."""
        self.now += time


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def store(calendar: Calendar) -> UnreliableStore:
    MemoryStore.create_bucket("bucket", clock=calendar)
    return UnreliableStore(MemoryStore("bucket"))


def cleanup(store: UnreliableStore, calendar: Calendar, prefix: str = "", **options: Any) -> Cleanup:
    return Cleanup(store, Location("memory", "bucket", prefix), LIMIT, now=calendar.now, **options)


def leave(store: UnreliableStore, folder: str, count: int = 1) -> set[str]:
    """Data objects of a save that came to nothing; returns their keys."""
    keys = {f"{folder}/{data_name(0, number, new_token())}" for number in range(count)}
    for key in keys:
        store.store.put(key, body_of(b"left"))
    return keys


def keys(store: UnreliableStore) -> set[str]:
    return {info.key for info in store.store.list("")}


def found_keys(findings: Iterable[Finding]) -> set[str]:
    return {
        key
        for found in findings
        if isinstance(found, Found)
        for key in (*(info.key for info in found.objects), *(info.upload.key for info in found.uploads))
    }


def remove_all(cleaning: Cleanup, findings: Iterable[Finding] | None = None) -> list[Finding]:
    """Remove what is found, or was; returns what became of it."""
    found = list(cleaning.find() if findings is None else findings)
    removed: list[Finding] = [one for one in found if isinstance(one, LeftAlone)]
    for one in found:
        removed += cleaning.remove(one) if isinstance(one, Found) else ()
    return removed


def test_leftovers_go_and_nothing_else(store: UnreliableStore, calendar: Calendar) -> None:
    """Anywhere below; and whoever looks at one folder finds those of that folder."""
    save(store, 1, url="memory://bucket/run/step-1")
    others = {"run/step-1/notes.txt", "run/step-1/__0_0.distcp", "run/step-1/__0_0.0123.distcp", "run/left"}
    for key in others:
        store.store.put(key, body_of(b"not ours"))
    upload = store.store.start_upload(f"run/step-3/{data_name(0, 0, new_token())}")
    kept = store.store.start_upload("run/step-3/model.bin")
    before = keys(store)
    left = leave(store, "run/step-1", 2) | leave(store, "run/step-2", 3) | leave(store, "other")
    calendar.passes()
    assert found_keys(cleanup(store, calendar, "run/step-2").find()) == {
        key for key in left if key.startswith("run/step-2/")
    }
    assert found_keys(cleanup(store, calendar).find()) == left | {upload.key}
    assert found_keys(remove_all(cleanup(store, calendar))) == left | {upload.key}
    assert keys(store) == before
    assert [info.upload for info in store.store.list_uploads("")] == [kept]
    assert load(store, url="memory://bucket/run/step-1") == 1
    assert not list(cleanup(store, calendar).find())


def test_what_is_young_stays(store: UnreliableStore, calendar: Calendar) -> None:
    """Whatever has no record may get one yet."""
    left = leave(store, "run", 3)
    store.store.start_upload(f"run/{data_name(0, 0, new_token())}")
    calendar.passes(LIMIT)
    assert not list(cleanup(store, calendar).find())
    calendar.passes(timedelta(seconds=1))
    assert found_keys(cleanup(store, calendar).find()) > left


def test_a_finding_is_not_yet_a_removal(store: UnreliableStore, calendar: Calendar) -> None:
    left = leave(store, "run", 3)
    calendar.passes()
    assert found_keys(cleanup(store, calendar).find()) == left
    assert keys(store) == left
    assert not store.count("delete")


def test_a_save_longer_than_the_limit_is_left_alone_while_it_goes_on(
    store: UnreliableStore, calendar: Calendar
) -> None:
    """Its first objects are old, and its last one is not, or an upload of it."""
    first = leave(store, "run", 2)
    calendar.passes()
    last = leave(store, "run")
    (alone,) = cleanup(store, calendar).find()
    assert isinstance(alone, LeftAlone)
    assert (alone.folder, alone.key) == ("run/", None)
    assert "a save may be running: 1 objects or uploads" in alone.reason
    store.store.delete(list(last))
    upload = store.store.start_upload(f"run/{data_name(1, 0, new_token())}")
    assert isinstance(*cleanup(store, calendar).find(), LeftAlone)
    store.store.abort_upload(upload)
    assert found_keys(cleanup(store, calendar).find()) == first


def test_a_stalled_save_fails_rather_than_commit_what_is_gone(
    monkeypatch: pytest.MonkeyPatch, store: UnreliableStore, calendar: Calendar
) -> None:
    """All that it has uploaded is older than the limit: its upload is aborted before an object is deleted."""
    without_waiting(monkeypatch)
    store.fails("finish_upload", stop := Stop())
    failed: list[BaseException] = []

    def stalls() -> None:
        with pytest.raises(dcp.CheckpointException) as caught:
            save(store, 1, **IN_PARTS)
        failed.append(failure(caught))

    with on_a_thread(stalls, stop):
        leave(store, "run")
        calendar.passes()
        cleaner = UnreliableStore(store.store)
        cleaning = cleanup(cleaner, calendar)
        # the uploads of the folder go with its objects
        objects = [one for one in cleaning.find() if isinstance(one, Found) and one.objects]
        removed = remove_all(cleaning, objects)
        verbs = [verb for verb, _ in cleaner.sent if verb in ("abort_upload", "delete")]
        assert verbs == ["abort_upload", "delete"]
        assert len(found_keys(removed)) == 2
    assert isinstance(failed[0], CheckpointIncompleteError)
    assert not keys(store)


def test_a_commit_between_finding_and_removing_keeps_the_data(
    store: UnreliableStore, calendar: Calendar
) -> None:
    """A save that took longer than the limit."""
    store.fails("put", stop := Stop(), key=is_record)
    cleaner = UnreliableStore(store.store)
    with on_a_thread(lambda: save(store, 1), stop):
        left = leave(store, "run")
        calendar.passes()
        cleaning = cleanup(cleaner, calendar)
        found = list(cleaning.find())
        assert len(found_keys(found)) == 2
    assert found_keys(remove_all(cleaning, found)) == left
    assert load(store) == 1


def test_a_commit_while_uploads_are_aborted_keeps_the_data(
    store: UnreliableStore, calendar: Calendar
) -> None:
    """A save that took longer than the limit commits just before the last upload beside it is aborted."""
    store.fails("put", stop := Stop(), key=is_record)
    cleaner = UnreliableStore(store.store)
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(save, store, 1)
        stop.wait()
        left = leave(store, "run")
        store.store.start_upload(f"run/{data_name(1, 0, new_token())}")
        calendar.passes()

        def too_late(request: Request) -> Any:
            stop.go_on()
            saving.result()
            return request.deliver()

        cleaner.fails("abort_upload", too_late)
        cleaning = cleanup(cleaner, calendar)
        remove_all(cleaning, [one for one in cleaning.find() if isinstance(one, Found) and one.objects])
    assert load(store) == 1
    assert not left & keys(store)


def test_a_commit_between_two_batches_keeps_the_rest(
    monkeypatch: pytest.MonkeyPatch, store: UnreliableStore, calendar: Calendar
) -> None:
    """Deleting takes longer than an examination holds for. The save's own objects happen to come last."""
    monkeypatch.setattr(leftovers, "_BATCH", 1)
    monkeypatch.setattr(leftovers, "_HOLDS_FOR", -1.0)
    token = "0" * 16
    left = [f"run/{data_name(0, number, token)}" for number in range(3)]
    monkeypatch.setattr("dcp_core.storage.writer.new_token", lambda: "f" * 16)
    store.fails("put", stop := Stop(), key=is_record)
    for key in left:
        store.store.put(key, body_of(b"left"))
    cleaner = UnreliableStore(store.store)
    with on_a_thread(lambda: save(store, 1), stop):
        calendar.passes()
        cleaning = cleanup(cleaner, calendar)
        (found,) = cleaning.find()
        assert isinstance(found, Found)
        assert len(found.objects) == 4
        removing = cleaning.remove(found)
        first = next(removing)
    rest = list(removing)
    assert found_keys([first, *rest]) == set(left)
    assert load(store) == 1


def test_two_clean_ups_at_once(store: UnreliableStore, calendar: Calendar) -> None:
    """What is gone already is no error, and nothing else goes."""
    save(store, 1)
    before = keys(store)
    leave(store, "run", 50)
    leave(store, "other", 50)
    upload = store.store.start_upload(f"run/{data_name(9, 0, new_token())}")
    calendar.passes()
    cleanings = [cleanup(store, calendar) for _ in range(4)]
    found = [list(cleaning.find()) for cleaning in cleanings]
    with ThreadPoolExecutor(4) as pool:
        removed = list(pool.map(remove_all, cleanings, found))
    assert all(isinstance(one, Found) for ones in removed for one in ones)
    assert upload.key in set().union(*map(found_keys, removed))
    assert keys(store) == before
    assert load(store) == 1


@pytest.mark.parametrize("name", [".metadata", "__3.metadata"])
def test_beside_an_unreadable_record_all_stays(store: UnreliableStore, calendar: Calendar, name: str) -> None:
    """It may name anything."""
    left = leave(store, "run", 2)
    elsewhere = leave(store, "other")
    store.store.put(f"run/{name}", body_of(b"damaged"))
    calendar.passes()
    before = keys(store)
    findings = list(cleanup(store, calendar).find())
    assert found_keys(findings) == elsewhere
    (alone,) = [one for one in findings if isinstance(one, LeftAlone)]
    assert (alone.folder, alone.key) == ("run/", f"run/{name}")
    assert "the commit record is not readable" in alone.reason
    remove_all(cleanup(store, calendar))
    assert keys(store) == before - elsewhere
    assert left < keys(store)


@pytest.mark.parametrize("newer", ["record", "item"])
def test_beside_a_newer_release_s_record_all_stays(
    store: UnreliableStore, calendar: Calendar, newer: str
) -> None:
    """It may refer to objects in a way that this release does not know."""
    save(store, 1)
    metadata = read_record(store)
    holder = metadata if newer == "record" else next(iter(metadata.storage_data.values()))
    setattr(holder, FACTS, (2, "something new"))
    store.store.put("run/.metadata", body_of(encode_metadata(metadata)))
    leave(store, "run", 2)
    calendar.passes()
    before = keys(store)
    (alone,) = remove_all(cleanup(store, calendar))
    assert isinstance(alone, LeftAlone)
    assert "a newer release" in alone.reason
    assert keys(store) == before


def read_record(store: UnreliableStore, key: str = "run/.metadata") -> Any:
    return decode_metadata(store.store.get(key)[0], bucket="bucket", key=key)


def test_records_of_single_ranks_keep_their_data(store: UnreliableStore, calendar: Calendar) -> None:
    """Of saves without collectives, and beside a record for all ranks."""
    for rank in range(3):
        save(store, rank)
        store.store.put(f"run/__{rank}.metadata", body_of(store.store.get("run/.metadata")[0]))
        store.store.delete(["run/.metadata"])
    before = keys(store)
    assert sum(map(is_data, before)) == 3
    left = leave(store, "run", 2)
    calendar.passes()
    assert found_keys(remove_all(cleanup(store, calendar))) == left
    assert keys(store) == before


def test_where_the_record_vanishes_all_stays(store: UnreliableStore, calendar: Calendar) -> None:
    """Whoever deletes a record is at work there; also if it was there when something was found."""
    save(store, 1)
    store.store.put("run/__0.metadata", body_of(store.store.get("run/.metadata")[0]))
    leave(store, "run", 2)
    calendar.passes()
    before = keys(store)

    def gone(request: Request) -> Any:
        raise ObjectNotFoundError("the object does not exist", key=request.key)

    for faults in ([gone], [reliable, gone]):
        store.fails("get", *faults, key=lambda key: key == "run/__0.metadata")
        (alone,) = cleanup(store, calendar).find()
        assert isinstance(alone, LeftAlone)
        assert (alone.folder, alone.key) == ("run/", "run/__0.metadata")
    cleaning = cleanup(store, calendar)
    found = list(cleaning.find())
    assert len(found_keys(found)) == 2
    store.store.delete(["run/.metadata"])
    (alone,) = remove_all(cleaning, found)
    assert isinstance(alone, LeftAlone)
    assert (alone.key, alone.reason) == ("run/.metadata", "its commit record has just been deleted")
    assert keys(store) == before - {"run/.metadata"}


def breaks_after(count: int) -> Callable[[Request], Any]:
    """A listing of which so many entries come."""

    def breaks(request: Request) -> Any:
        def entries() -> Iterator[Any]:
            yield from itertools.islice(request.deliver(), count)
            raise TransientError("the connection broke")

        return entries()

    return breaks


def test_a_broken_listing_goes_on(store: UnreliableStore, calendar: Calendar) -> None:
    """Where it broke: nothing is found twice, and nothing left out."""
    left = set().union(*(leave(store, f"run/step-{number}", 3) for number in range(5)))
    uploads = {f"run/step-{number}/{data_name(1, 0, new_token())}" for number in range(5)}
    for key in sorted(uploads):
        store.store.start_upload(key)
    calendar.passes()
    for verb in ("list", "list_uploads"):
        store.fails(verb, *map(breaks_after, (0, 2, 2, 9)), key=lambda key: key == "")
    options = {"progress": (seen := list[int]()).append}
    findings = list(cleanup(store, calendar, **options).find())
    assert found_keys(findings) == left | uploads
    assert sum(len(one.objects) + len(one.uploads) for one in findings if isinstance(one, Found)) == 20
    assert seen == list(range(1, 16))


def test_thousands_of_checkpoints_are_streamed(store: UnreliableStore, calendar: Calendar) -> None:
    """Findings come while the listing goes on, and one that is whole costs one request."""
    save(store, 1)
    data, record = sorted(keys(store), key=is_record)
    for number in range(2000):
        for key in (data, record):
            store.store.put(key.replace("run/", f"runs/{number:04}/"), body_of(store.store.get(key)[0]))
    left = leave(store, "runs/0100") | leave(store, "runs/1900")
    calendar.passes()
    seen = [0]
    cleaning = cleanup(store, calendar, progress=seen.append)
    store.sent.clear()
    findings = cleaning.find()
    first = next(findings)
    assert isinstance(first, Found)
    assert first.folder == "runs/0100/"
    assert seen[-1] < 500
    assert found_keys([first, *findings]) == left
    assert seen[-1] == 4004
    assert store.count("list") + store.count("list_uploads") == 2 + 2 * 2
    assert store.count("get") <= 2001 + 2 * 2


@pytest.mark.parametrize("older_than", [timedelta(seconds=-1), timedelta.max])
def test_an_impossible_limit_is_refused(store: UnreliableStore, older_than: timedelta) -> None:
    """One that would count what is to come as old, and one from before all dates."""
    with pytest.raises(ConfigurationError, match="older_than"):
        Cleanup(store, Location("memory", "bucket", ""), older_than)
