"""How the ranks of a save or load hear of each other's failures, over every kind of store that torch has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan

from dcp_core.config import SaveOptions
from dcp_core.errors import CloudCheckpointError, ConflictError, PeerFailedError, TransientError
from dcp_core.runtime.torch_private import default_store
from dcp_core.transfer import Peers, Transfer, forget_failures, peers, with_channel
from dcp_core.transfer.peers import Channel

#: Seconds between two looks here.
INTERVAL = 0.02
#: Seconds after which a test that waits has failed.
LIMIT = 20.0


def tcp_store(use_libuv: bool) -> Any:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=use_libuv)


STORES: dict[str, Callable[[Path], Any]] = {
    "tcp": lambda folder: tcp_store(True),
    "tcp without libuv": lambda folder: tcp_store(False),
    "file": lambda folder: dist.FileStore(str(folder / "store"), 1),
    "hash": lambda folder: dist.HashStore(),
}


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_INTERVAL", INTERVAL)


@pytest.fixture(params=STORES)
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A default process group on each kind of store."""
    store = STORES[request.param](tmp_path)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield store
    dist.destroy_process_group()
    peers._failures.clear()


class Rank:
    """One rank, and what it hears."""

    def __init__(self, channel: Channel, rank: int) -> None:
        found = Peers.of(SavePlan([], storage_data=channel), rank)
        assert found is not None
        self.peers = found
        self.heard: list[PeerFailedError] = []
        self._hears = threading.Event()

    def hear(self, error: PeerFailedError) -> None:
        self.heard.append(error)
        self._hears.set()

    def wait(self) -> PeerFailedError:
        """The first failure of another rank."""
        assert self._hears.wait(LIMIT), "nothing was heard"
        return self.heard[0]


@pytest.fixture
def ranks(group: Any) -> list[Rank]:
    channel = Channel("this save")
    return [Rank(channel, number) for number in range(3)]


def told(channel: str = "this save") -> bool:
    """Whether a failure is written down."""
    store = default_store()
    assert store is not None
    return bool(store.check([f"dcp_cloud/failure/{channel}"]))


def a_while() -> None:
    """Many looks."""
    time.sleep(10 * INTERVAL)


def test_a_failure_is_heard_with_rank_and_object(ranks: list[Rank]) -> None:
    with ranks[1].peers.heard(ranks[1].hear), ranks[2].peers.heard(ranks[2].hear):
        ranks[0].peers.tell(ConflictError("no", bucket="bucket", key="run/object"))
        for number in (1, 2):
            error = ranks[number].wait()
            assert error.message == "stopped because rank 0 failed: no"
            assert (error.failed_rank, error.rank) == (0, number)
            assert (error.bucket, error.key) == ("bucket", "run/object")
    assert [len(rank.heard) for rank in ranks] == [0, 1, 1]


def test_an_error_that_is_not_of_this_library_is_told_too(ranks: list[Rank]) -> None:
    """And cut to a length that the store takes."""
    with ranks[1].peers.heard(ranks[1].hear):
        ranks[0].peers.tell(ValueError("ö" * 100_000))
        message = ranks[1].wait().message
    assert message.startswith("stopped because rank 0 failed: ValueError: öö")
    assert len(message) < 2100


def test_a_long_message_is_cut(ranks: list[Rank]) -> None:
    """One of this library's may have that of an SDK in it."""
    with ranks[1].peers.heard(ranks[1].hear):
        ranks[0].peers.tell(ConflictError("x" * 100_000, key="run/object"))
        error = ranks[1].wait()
    assert len(error.message) < 2100
    assert error.key == "run/object"


def test_silence_as_long_as_all_is_well(ranks: list[Rank]) -> None:
    """Nothing is written, and nothing heard: not of another save either."""
    other = Rank(Channel("another save"), 0)
    other.peers.tell(ConflictError("no"))
    other.peers.end()
    assert told("another save")
    with ranks[0].peers.heard(ranks[0].hear), ranks[1].peers.heard(ranks[1].hear):
        a_while()
    for rank in ranks:
        rank.peers.end()
    assert not any(rank.heard for rank in ranks)
    assert not told()


def test_a_rank_that_stops_for_another_does_not_say_so(ranks: list[Rank]) -> None:
    ranks[0].peers.tell(PeerFailedError("rank 5 failed", failed_rank=5))
    ranks[0].peers.end()
    assert not told()
    # it still may tell of a failure of its own
    ranks[0].peers.tell(ConflictError("no"))
    ranks[0].peers.end()
    assert told()


def test_a_transfer_stops_and_says_why(ranks: list[Rank]) -> None:
    """Whether it waits for its next attempt, or works without a request; nobody else is told of that."""
    failing, waiting = (Transfer(SaveOptions(), number) for number in (0, 1))
    errors: list[BaseException] = []

    def always_fails() -> None:
        raise TransientError("the connection broke", bucket="bucket", key="mine", retry_after=LIMIT)

    def waits() -> None:
        try:
            with waiting.watched(ranks[1].peers):
                waiting.run([None], lambda _: waiting.attempt(always_fails), 1)
        except CloudCheckpointError as error:
            errors.append(error)

    thread = threading.Thread(target=waits)
    thread.start()
    with pytest.raises(ConflictError), failing.watched(ranks[0].peers):
        failing.run([None], refuse, 2)
    thread.join(LIMIT)
    (error,) = errors
    assert isinstance(error, PeerFailedError)
    assert "stopped because rank 0 failed: no" in error.message
    assert (error.failed_rank, error.rank, error.key) == (0, 1, "run/object")


def refuse(task: None) -> None:
    raise ConflictError("no", bucket="bucket", key="run/object")


def test_an_error_outside_of_requests_is_told_too(ranks: list[Rank]) -> None:
    """A planner's, say, or an interrupt."""
    with ranks[1].peers.heard(ranks[1].hear):
        with pytest.raises(KeyboardInterrupt), Transfer(SaveOptions(), 0).watched(ranks[0].peers):
            raise KeyboardInterrupt("by the user")
        assert "KeyboardInterrupt: by the user" in ranks[1].wait().message


def test_what_failed_before_is_forgotten(ranks: list[Rank]) -> None:
    """torch may hand out the plans of an earlier save again, and with them its channel."""
    ranks[0].peers.tell(ConflictError("no"))
    ranks[0].peers.end()
    assert told()
    forget_failures()
    assert not told()
    later = Rank(Channel("this save"), 1)
    with later.peers.heard(later.hear):
        a_while()
    assert not later.heard
    forget_failures()


@pytest.mark.parametrize("group", ["tcp"], indirect=True)
def test_nobody_waits_for_the_stores_lock(
    monkeypatch: pytest.MonkeyPatch, group: Any, ranks: list[Rank]
) -> None:
    """A thread that waits for a key holds it all the while."""
    monkeypatch.setattr(peers, "_TELLING", 0.1)
    waiting = threading.Thread(target=lambda: group.wait(["a key"], timedelta(seconds=LIMIT)))
    waiting.start()
    a_while()
    with Transfer(SaveOptions(), 0).watched(ranks[0].peers):
        # until its thread is waiting for the lock
        a_while()
    with pytest.raises(ConflictError), Transfer(SaveOptions(), 1).watched(ranks[1].peers):
        raise ConflictError("no")
    forget_failures()
    assert waiting.is_alive()
    elsewhere = dist.TCPStore("127.0.0.1", group.port, is_master=False)
    elsewhere.set("a key", "")
    waiting.join(LIMIT)
    assert not waiting.is_alive()


def test_a_broken_store_breaks_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        calls = 0

        def check(self, *arguments: Any) -> bool:
            self.calls += 1
            raise RuntimeError("the store is gone")

        set = compare_set = delete_key = check

    store = Broken()
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(peers, "default_store", lambda: store)
    one = Rank(Channel("this save"), 0)
    transfer = Transfer(SaveOptions(), 0)

    def work(task: None) -> None:
        a_while()
        assert transfer.attempt(lambda: "done") == "done"
        raise ConflictError("no")

    with pytest.raises(ConflictError, match="no"), transfer.watched(one.peers):
        transfer.run([None], work, 1)
    assert store.calls == 2
    forget_failures()
    assert store.calls == 3
    peers._failures.clear()


@pytest.mark.parametrize("kind", [SavePlan, LoadPlan])
def test_plans_get_a_channel_where_there_are_peers(kind: type[Any]) -> None:
    first, second = with_channel([kind([]), kind([])])
    assert isinstance(first.storage_data, Channel)
    assert first.storage_data == second.storage_data
    again, _ = with_channel([kind([]), kind([])])
    assert again.storage_data != first.storage_data
    assert with_channel([kind([])]) == [kind([])]
    # what a planner has there stays
    used = [kind([], storage_data="the planner's"), kind([])]
    assert with_channel(used) == used


def test_without_a_process_group_there_are_no_peers() -> None:
    assert Peers.of(SavePlan([], storage_data=Channel("this save")), 0) is None
    forget_failures()


@pytest.mark.parametrize("group", ["hash"], indirect=True)
def test_without_a_channel_there_are_no_peers(group: Any) -> None:
    for storage_data in (None, "the planner's"):
        assert Peers.of(SavePlan([], storage_data=storage_data), 0) is None
