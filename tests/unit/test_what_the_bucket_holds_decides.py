"""Saves over a network that loses, repeats and delays: what they report is what the bucket holds.

The commit is one conditional request, and a data object has its save's own name. Whatever becomes of their
responses, a save that reports success is there, one that reports a failure has left what was there before as
it was, and nothing is deleted that a record may refer to, now or later.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from support.saves_in_memory import failure, load, save, without_waiting
from support.unreliable_store import (
    ContentVersions,
    Fault,
    Request,
    UnreliableStore,
    always,
    denied,
    forbidden,
    is_data,
    is_record,
    lost,
    page,
    refused,
    reliable,
    times,
    unanswered,
)

from dcp_core import (
    CheckpointIncompleteError,
    CommitUncertainError,
    ConflictError,
    PermissionDeniedError,
    TransientError,
    UnsupportedError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.format.metadata import decode_metadata, encode_metadata
from dcp_core.save import objects
from dcp_core.seam.store import Body
from dcp_core.testing import MemoryStore

RECORD = "run/.metadata"
#: Elements of a tensor that goes in several parts, with ``IN_PARTS``.
LARGE = 60_000
IN_PARTS: dict[str, Any] = {"size": LARGE, "part_size": 1024}
#: How to save an object whole and in parts, and the request that stores it.
WAYS = [pytest.param({}, "put", id="whole"), pytest.param(IN_PARTS, "finish_upload", id="in parts")]

overwriting = pytest.mark.parametrize("overwriting", [False, True], ids=["first", "overwriting"])


@pytest.fixture(
    params=[MemoryStore, ContentVersions], ids=["versions of writes", "versions of contents"], autouse=True
)
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> UnreliableStore:
    """An empty bucket; saves and loads wait for nothing."""
    without_waiting(monkeypatch)
    monkeypatch.setattr(objects, "_SETTLING", 0.0)
    MemoryStore.create_bucket("bucket")
    return UnreliableStore(request.param("bucket"))


def data_in(store: UnreliableStore) -> set[str]:
    """Keys of all data objects that are there."""
    return {info.key for info in store.store.list("") if is_data(info.key)}


def referred_to(store: UnreliableStore) -> set[str]:
    """Keys of the data objects that the commit record refers to."""
    data, _ = store.store.get(RECORD)
    found = decode_metadata(data, bucket="bucket", key=RECORD)
    return {f"run/{info.relative_path}" for info in found.storage_data.values()}


def write(store: UnreliableStore, key: str, data: bytes) -> None:
    """What somebody else writes."""
    store.store.put(key, Body([data], crc32c(data)))


def uploads(store: UnreliableStore) -> list[str]:
    return [info.upload.key for info in store.store.list_uploads("")]


def fails(kind: type[BaseException], store: UnreliableStore, seed: float, **options: Any) -> Any:
    """The error, of exactly this kind, that the save of ``seed`` fails with."""
    with pytest.raises(dcp.CheckpointException) as caught:
        save(store, seed, **options)
    error = failure(caught)
    assert type(error) is kind, repr(error)
    return error


def assert_holds(store: UnreliableStore, seed: float, *, besides: Iterable[str] = (), **options: Any) -> None:
    """The checkpoint of ``seed`` is there and whole; so is its data, and of other data nothing but
    ``besides``."""
    store.works_again()
    assert load(store, **{name: value for name, value in options.items() if name == "size"}) == seed
    assert data_in(store) == referred_to(store) | set(besides)


def assert_as_before(store: UnreliableStore, overwriting: bool, *, besides: Iterable[str] = ()) -> None:
    """The checkpoint of 1 is there if there was one, and ``besides``."""
    if overwriting:
        assert_holds(store, 1, besides=besides)
    else:
        assert [info.key for info in store.store.list("")] == sorted(besides)


def and_then(work: Callable[[], Any], fault: Fault) -> Fault:
    """First ``work`` is done, then ``fault`` comes."""

    def both(request: Request) -> Any:
        work()
        return fault(request)

    return both


def another_save(store: UnreliableStore, seed: float, **options: Any) -> Callable[[], Any]:
    """A save from elsewhere, over a network without faults."""
    return lambda: save(store.store, seed, **options)


FAULTS: dict[str, Callable[[], list[Fault | Iterator[Fault]]]] = {
    "twice": lambda: [times(2)],
    "three times": lambda: [times(3)],
    "unanswered": lambda: [unanswered],
    "never answered": lambda: [always(unanswered)],
    "lost, then twice": lambda: [lost, times(2)],
    "denied": lambda: [denied],
    "page": lambda: [page],
    "refused": lambda: [refused],
}


@pytest.mark.parametrize("fault", FAULTS)
@overwriting
def test_a_commit_that_was_done_is_a_success(store: UnreliableStore, overwriting: bool, fault: str) -> None:
    """Whatever the responses say. What the old record referred to is gone."""
    if overwriting:
        save(store, 1)
    store.fails("put", *FAULTS[fault](), key=is_record)
    metadata = save(store, 2)
    assert {f"run/{info.relative_path}" for info in metadata.storage_data.values()} == data_in(store)
    assert_holds(store, 2)


@overwriting
def test_a_commit_that_may_come_yet_keeps_its_data(store: UnreliableStore, overwriting: bool) -> None:
    if overwriting:
        save(store, 1)
    before = data_in(store)
    late = store.holds("put", key=is_record)
    error = fails(CommitUncertainError, store, 2)
    assert error.key == RECORD
    assert "a request that is still on its way may write this one" in error.message
    assert_as_before(store, overwriting, besides=data_in(store) - before)
    assert late.deliver() > 1
    assert_holds(store, 2, besides=before)


@overwriting
def test_a_commit_that_nobody_can_tell_of_is_uncertain(store: UnreliableStore, overwriting: bool) -> None:
    """It was done, and the bucket cannot be asked."""
    if overwriting:
        save(store, 1)
    before = data_in(store)
    # the old record is read before the commit
    store.fails("get", *[reliable] * overwriting, always(lost))
    store.fails("put", always(unanswered), key=is_record)
    error = fails(CommitUncertainError, store, 2)
    assert "What the bucket holds could not be read either" in error.message
    assert isinstance(error.__cause__, TransientError)
    assert_holds(store, 2, besides=before)


@overwriting
def test_a_late_commit_does_not_undo_a_later_save(store: UnreliableStore, overwriting: bool) -> None:
    if overwriting:
        save(store, 1)
    late = store.holds("put", key=is_record)
    fails(CommitUncertainError, store, 2)
    kept = data_in(store) - (referred_to(store) if overwriting else set())
    store.works_again()
    save(store, 3)
    assert late.deliver() > 1
    assert_holds(store, 3, besides=kept)


@overwriting
def test_a_save_that_lost_removes_its_own_data_only(store: UnreliableStore, overwriting: bool) -> None:
    """Another save commits at the last moment."""
    if overwriting:
        save(store, 1)
    store.fails("put", and_then(another_save(store, 3), reliable), key=is_record)
    error = fails(ConflictError, store, 2)
    assert "another save committed a checkpoint" in error.message
    assert_holds(store, 3)


@overwriting
def test_a_save_that_lost_after_its_responses_did(store: UnreliableStore, overwriting: bool) -> None:
    """None of its commits arrived, and now none can be done any more."""
    if overwriting:
        save(store, 1)
    store.fails("put", and_then(another_save(store, 3), lost), always(lost), key=is_record)
    error = fails(ConflictError, store, 2)
    assert "another save committed a checkpoint" in error.message
    assert_holds(store, 3)


@overwriting
def test_a_save_that_was_replaced_before_it_heard_of_its_commit(
    store: UnreliableStore, overwriting: bool
) -> None:
    """Its commit was done, and a save after it replaced it. Of its data nothing is left."""
    if overwriting:
        save(store, 1)
    replaced = set[str]()

    def then_replaced(request: Request) -> Any:
        request.deliver()
        replaced.update(referred_to(store))
        save(store.store, 3)
        raise TransientError("the connection broke before the response")

    store.fails("put", then_replaced, key=is_record)
    fails(ConflictError, store, 2)
    assert replaced
    # the data of 1, where there was any, belonged to the record that 2 replaced: 2 does not know that it did
    left = data_in(store) - referred_to(store)
    assert not left & replaced
    assert len(left) == overwriting
    assert_holds(store, 3, besides=left)


def test_a_winner_that_is_no_record_is_left_alone(
    store: UnreliableStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be read what it refers to: nothing is deleted."""
    garbage = b"not a commit record"

    store.fails("put", and_then(lambda: write(store, RECORD, garbage), reliable), key=is_record)
    with caplog.at_level(logging.WARNING, "dcp_core"):
        fails(ConflictError, store, 2)
    assert store.store.get(RECORD)[0] == garbage
    assert len(data_in(store)) == 1
    assert "stays behind" in caplog.text
    assert not store.count("delete")


def test_data_that_the_winner_refers_to_stays(store: UnreliableStore) -> None:
    """Somebody copied the record of this save, and their copy came first."""

    def copied(request: Request) -> Any:
        request.deliver()
        metadata = decode_metadata(store.store.get(RECORD)[0], bucket="bucket", key=RECORD)
        assert metadata.storage_meta is not None
        metadata.storage_meta.save_id = "a copy"
        write(store, RECORD, encode_metadata(metadata))
        return refused(request)

    store.fails("put", copied, key=is_record)
    fails(ConflictError, store, 2)
    assert len(data_in(store)) == 1
    assert_holds(store, 2)


def test_a_record_that_was_removed_is_a_conflict(store: UnreliableStore) -> None:
    """A save that was to replace it does not bring it back. A late request could still be done if the old
    version were: the data stays."""
    save(store, 1)
    before = data_in(store)
    store.fails("put", and_then(lambda: store.store.delete([RECORD]), reliable), key=is_record)
    error = fails(ConflictError, store, 2)
    assert "was removed while this save" in error.message
    assert not any(is_record(info.key) for info in store.store.list(""))
    assert before < data_in(store)


@overwriting
def test_a_store_whose_conditions_never_hold(store: UnreliableStore, overwriting: bool) -> None:
    """It is told apart from a conflict by what the bucket holds; the error names the way out."""
    if overwriting:
        save(store, 1)
    before = data_in(store)
    store.sent.clear()

    def never(request: Request) -> Any:
        raise ConflictError("the condition does not hold")

    store.fails("put", always(never), key=is_record)
    error = fails(UnsupportedError, store, 2)
    assert "set conditional_commit=False" in error.message
    assert store.count("put", is_record) == 3
    assert_as_before(store, overwriting, besides=data_in(store) - before)


def test_without_conditions_nothing_is_deleted(store: UnreliableStore) -> None:
    """A late repetition of the first commit brings the first checkpoint back, whole."""
    kept: list[Request] = []

    def repeated_later(request: Request) -> Any:
        kept.append(request)
        return request.deliver()

    store.fails("put", repeated_later, key=is_record)
    save(store, 1, conditional_commit=False)
    save(store, 2, conditional_commit=False)
    assert load(store) == 2
    assert not store.count("delete")
    kept[0].deliver()
    assert load(store) == 1


def test_a_first_save_needs_no_look(store: UnreliableStore) -> None:
    """Who may not list is not told that nothing is there. The commit's condition finds out."""
    store.fails("read_range", forbidden(known=True), key=is_record)
    save(store, 2)
    assert_holds(store, 2)


@pytest.mark.parametrize("known", [True, False])
def test_what_may_not_be_read_is_not_replaced(store: UnreliableStore, known: bool) -> None:
    """Whether the store hides what is there from this caller, or refuses the credentials as such."""
    save(store, 1)
    before = data_in(store)
    for verb in ("read_range", "get", "head"):
        store.fails(verb, always(forbidden(known=known)))
    error = fails(PermissionDeniedError, store, 2)
    assert ("a commit record is there already and may not be read" in error.message) == known
    assert store.count("put", is_record) == 1 + known
    assert_holds(store, 1, besides=data_in(store) - before)


DATA_FAULTS: dict[str, Callable[[], list[Fault | Iterator[Fault]]]] = {
    "unanswered": lambda: [unanswered],
    "never answered": lambda: [always(unanswered)],
    "lost, then never answered": lambda: [lost, always(unanswered)],
    "denied": lambda: [denied],
    "twice": lambda: [times(2)],
}


@pytest.mark.parametrize("fault", DATA_FAULTS)
@pytest.mark.parametrize(("way", "verb"), WAYS)
def test_an_object_that_was_stored_is_there(
    store: UnreliableStore, way: dict[str, Any], verb: str, fault: str
) -> None:
    store.fails(verb, *DATA_FAULTS[fault](), key=is_data)
    save(store, 2, **way)
    assert_holds(store, 2, **way)
    assert not uploads(store)


@pytest.mark.parametrize(("way", "verb"), WAYS)
def test_an_object_that_was_not_stored_fails_the_save(
    store: UnreliableStore, way: dict[str, Any], verb: str
) -> None:
    save(store, 1)
    store.fails(verb, always(lost), key=is_data)
    error = fails(TransientError, store, 2, **way)
    assert is_data(error.key)
    assert "retry_timeout" in error.message
    assert not uploads(store)
    assert_holds(store, 1)


def test_an_upload_that_was_aborted_fails_the_save(store: UnreliableStore) -> None:
    """By a lifecycle rule, say, before it was finished."""

    def aborted() -> None:
        for info in list(store.store.list_uploads("")):
            store.store.abort_upload(info.upload)

    save(store, 1)
    store.fails("finish_upload", and_then(aborted, reliable))
    error = fails(CheckpointIncompleteError, store, 2, **IN_PARTS)
    assert "was it aborted" in error.message
    assert is_data(error.key)
    assert_holds(store, 1)


def test_an_upload_that_is_being_finished_is_waited_for(store: UnreliableStore) -> None:
    """A first request to finish it is under way: the upload is gone, and the object not there yet."""
    finishing: list[Request] = []

    def begins(request: Request) -> Any:
        finishing.append(request)
        raise TransientError("the connection broke")

    def ends(request: Request) -> Any:
        finishing[0].deliver()
        return request.deliver()

    store.fails("finish_upload", begins, missing, missing, ends)
    save(store, 2, **IN_PARTS)
    assert store.count("finish_upload") == 4
    assert_holds(store, 2, **IN_PARTS)


def missing(request: Request) -> Any:
    """What a store says of an upload that it does not know."""
    store = MemoryStore("bucket")
    store.abort_upload(upload := store.start_upload(request.key))
    return store.finish_upload(upload, [])


def test_an_object_of_another_size_is_not_ours(store: UnreliableStore) -> None:
    """It does not prove that the object was stored."""

    def other(request: Request) -> Any:
        write(store, request.key, b"other")
        raise TransientError("the connection broke")

    save(store, 1)
    before = data_in(store)
    store.fails("put", always(other), key=is_data)
    fails(TransientError, store, 2)
    assert_holds(store, 1, besides=data_in(store) - before)


@pytest.mark.parametrize("failing", [False, True])
def test_an_upload_whose_start_was_not_answered_is_dropped(store: UnreliableStore, failing: bool) -> None:
    """Its id is lost: it is found by listing, whether the save succeeds or fails."""
    store.fails("start_upload", unanswered)
    if failing:
        store.fails("finish_upload", always(lost))
        fails(TransientError, store, 2, **IN_PARTS)
    else:
        save(store, 2, **IN_PARTS)
        assert_holds(store, 2, **IN_PARTS)
    assert store.count("start_upload") == 2
    assert not uploads(store)


@pytest.mark.parametrize("verb", ["start_upload", "put_part", "finish_upload"])
@pytest.mark.parametrize("done", [0, 1])
def test_an_interrupt_leaves_no_upload(store: UnreliableStore, done: int, verb: str) -> None:
    """Ctrl-C in the middle of a request, before or after the store did what it asks for."""

    def interrupted(request: Request) -> Any:
        if done:
            request.deliver()
        raise KeyboardInterrupt

    save(store, 1)
    store.fails(verb, interrupted)
    fails(KeyboardInterrupt, store, 2, **IN_PARTS)
    assert not uploads(store)
    assert load(store) == 1


def test_an_abort_that_fails_is_told_of(store: UnreliableStore, caplog: pytest.LogCaptureFixture) -> None:
    """In the log, and where Python has notes in the error that is raised."""
    store.fails("put_part", always(denied))
    store.fails("abort_upload", always(lost))
    with caplog.at_level(logging.WARNING, "dcp_core"):
        error = fails(PermissionDeniedError, store, 2, **IN_PARTS)
    assert "stays behind until `dcp-cloud gc`" in caplog.text
    if sys.version_info >= (3, 11):
        assert any("could not be aborted" in note for note in error.__notes__)
    assert uploads(store)
