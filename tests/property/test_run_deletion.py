"""Deletion of steps, stopped between any two requests, beside loads and saves between any two requests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.saves_in_memory import load, save

from dcp_core.config import TransferOptions
from dcp_core.format.checksum import crc32c
from dcp_core.run.deletion import Deletion
from dcp_core.run.layout import lease_name
from dcp_core.seam.body import Body
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectStore
from dcp_core.testing.memory import MemoryStore
from dcp_core.transfer.transfer import Transfer

RUN = Location("memory", "runs", "run")
STEPS = (1, 2, 3)

_REQUESTS = ("head", "get", "put", "list", "delete", "start_upload", "put_part", "finish_upload")


class Killed(BaseException):
    """The process is gone."""


class StepByStep(MemoryStore):
    """Calls ``before(number)`` in front of every request, and of every key of a batch that is deleted."""

    def __init__(self) -> None:
        super().__init__(RUN.bucket)
        self.count = 0
        self.before: Callable[[int], None] = lambda _: None

    def __getattribute__(self, name: str) -> Any:
        if name in _REQUESTS and name != "delete":
            object.__getattribute__(self, "_step")()
        return super().__getattribute__(name)

    def _step(self) -> None:
        self.count += 1
        self.before(self.count)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._step()
            super().delete([key])


def url_of(step: int) -> str:
    return f"{RUN.url}/step-{step}"


def new_run() -> None:
    MemoryStore.create_bucket(RUN.bucket, clock=_ticking())
    for step in STEPS:
        save(MemoryStore(RUN.bucket), float(step), url=url_of(step))


def _ticking() -> Callable[[], datetime]:
    """A store's clock: every object is a second younger than the one before."""
    now = [datetime(2026, 1, 1, tzinfo=timezone.utc)]

    def clock() -> datetime:
        now[0] += timedelta(seconds=1)
        return now[0]

    return clock


def deletion(store: ObjectStore) -> Deletion:
    return Deletion(store, RUN, Transfer(TransferOptions(), 0))


def committed() -> list[int]:
    keys = [info.key for info in MemoryStore(RUN.bucket).list(RUN.key(""))]
    return [step for step in (*STEPS, 4) if RUN.child(f"step-{step}").key(".metadata") in keys]


def lease(step: int) -> None:
    """What whoever loads ``step`` writes before it looks at the record."""
    body = Body([b"{}"], crc32c(b"{}"))
    MemoryStore(RUN.bucket).put(RUN.key(lease_name(step, "one")), body)


@given(st.integers(1, 40), st.sets(st.sampled_from(STEPS), min_size=1))
def test_a_crash_at_any_request_leaves_every_record_whole(at: int, steps: set[int]) -> None:
    new_run()
    store = StepByStep()

    def kill(number: int) -> None:
        if number >= at:
            raise Killed

    store.before = kill
    with contextlib.suppress(Killed):
        deletion(store).delete(sorted(steps))
    for step in committed():
        assert load(MemoryStore(RUN.bucket), url=url_of(step)) == step
    assert set(STEPS) - steps <= set(committed())
    # and whoever comes next can do the rest
    deletion(MemoryStore(RUN.bucket)).delete(sorted(steps))
    assert committed() == sorted(set(STEPS) - steps)


@given(st.integers(1, 40), st.sampled_from(STEPS), st.booleans())
def test_a_load_under_a_lease_finds_its_data(at: int, step: int, early: bool) -> None:
    """Whoever has made a lease and then read the record loads every byte, whenever the deletion began."""
    new_run()
    store, seen = StepByStep(), []
    if early:
        lease(step)

    def begin(number: int) -> None:
        if number == at:
            lease(step)
            seen.append(step in committed())

    store.before = begin
    deletion(store).delete([step])
    if early:
        assert load(MemoryStore(RUN.bucket), url=url_of(step)) == step
    elif seen == [True]:
        keys = [info.key for info in MemoryStore(RUN.bucket).list(RUN.child(f"step-{step}").key(""))]
        assert [key for key in keys if key.endswith(".distcp")]
    others = [other for other in STEPS if other != step]
    assert [load(MemoryStore(RUN.bucket), url=url_of(other)) for other in others] == others


@given(st.integers(1, 40), st.sampled_from(STEPS))
def test_a_save_that_commits_meanwhile_keeps_its_data(at: int, step: int) -> None:
    """A step is saved anew between any two requests of its deletion."""
    new_run()
    store, done = StepByStep(), []

    def save_anew(number: int) -> None:
        if number == at:
            store.before = lambda _: None
            save(MemoryStore(RUN.bucket), 50.0, url=url_of(step))
            done.append(number)

    store.before = save_anew
    deletion(store).delete([step])
    if step in committed():
        assert load(MemoryStore(RUN.bucket), url=url_of(step)) == 50.0
