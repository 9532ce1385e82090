"""Cleanups beside saves, step by step: nothing that a checkpoint needs goes, and all that is left over does.

Saves, and cleanups of the folder around them, go on request by request in any order, and die anywhere. Time
passes meanwhile; no save takes as long as the limit of the cleanups.
"""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import saves_in_memory
from support.records import read
from support.stepped import Stepped, killed, killed_afterwards
from support.unreliable_store import Fault, UnreliableStore, is_record
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import ConflictError, LoadOptions
from dcp_core.format.layout import data_name, new_token
from dcp_core.seam.location import Location
from dcp_core.testing import MemoryStore, body_of
from dcp_core.upkeep.leftovers import Cleanup, Found

LIMIT = timedelta(hours=10)
FOLDERS = ("run/step-1", "run/step-2")
_buckets = itertools.count(1)
_seeds = itertools.count(1)


class CleanupsBesideSaves(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        saves_in_memory.without_waiting(self.patch)
        self.now = datetime(2026, 1, 1, tzinfo=timezone.utc)
        self.saves: list[Stepped] = []
        self.began: dict[int, datetime] = {}
        self.cleanups: list[Stepped] = []
        self.seen: dict[str, str] = {}

    @initialize(in_parts=st.booleans())
    def make_bucket(self, in_parts: bool) -> None:
        name = f"cleanups-{next(_buckets)}"
        MemoryStore.create_bucket(name, clock=lambda: self.now)
        self.bucket = MemoryStore(name)
        if in_parts:
            # then all data objects are multipart uploads
            self.bucket.limits = self.bucket.limits.changed({"max_put_size": 1000})

    @staticmethod
    def _running(among: list[Stepped]) -> list[Stepped]:
        return [one for one in among if one.waits_with is not None]

    @precondition(lambda self: len(self._running(self.saves)) < 2)
    @rule(folder=st.sampled_from(FOLDERS))
    def begin_save(self, folder: str) -> None:
        seed = next(_seeds)

        def work(store: UnreliableStore) -> Any:
            return saves_in_memory.save(store, seed, url=f"memory://bucket/{folder}", concurrency=1)

        self.began[len(self.saves)] = self.now
        self.saves.append(Stepped(self.bucket, work))

    @precondition(lambda self: len(self._running(self.cleanups)) < 2)
    @rule()
    def begin_cleanup(self) -> None:
        now = self.now
        self.cleanups.append(Stepped(self.bucket, lambda store: self._clean(store, now)))

    def _clean(self, store: Any, now: datetime) -> None:
        location = Location.parse("memory://bucket/run")
        cleanup = Cleanup(store, location, LIMIT, LoadOptions(concurrency=1), now=now)
        for finding in cleanup.find():
            if isinstance(finding, Found):
                for _ in cleanup.remove(finding):
                    """Each batch as it goes."""

    @precondition(lambda self: self._running(self.saves))
    @rule(data=st.data(), count=st.integers(1, 4))
    def go_on_saving(self, data: st.DataObject, count: int) -> None:
        self._go_on(data.draw(st.sampled_from(self._running(self.saves))), count)

    @precondition(lambda self: self._uploading())
    @rule(data=st.data())
    def upload(self, data: st.DataObject) -> None:
        """One save comes to its commit."""
        save = data.draw(st.sampled_from(self._uploading()))
        while save in self._uploading():
            self._go_on(save, 1)

    def _uploading(self) -> list[Stepped]:
        """Saves that do not wait with their commits."""
        return [save for save in self._running(self.saves) if not _commits(save)]

    @precondition(lambda self: self._running(self.cleanups))
    @rule(data=st.data(), count=st.integers(1, 8))
    def go_on_cleaning(self, data: st.DataObject, count: int) -> None:
        self._go_on(data.draw(st.sampled_from(self._running(self.cleanups))), count)

    def _go_on(self, one: Stepped, count: int) -> None:
        for _ in range(count):
            if one.waits_with is not None:
                one.step()
                self.checkpoints_are_whole()

    @precondition(lambda self: self._running(self.saves + self.cleanups))
    @rule(data=st.data(), fault=st.sampled_from([killed, killed_afterwards]))
    def kill(self, data: st.DataObject, fault: Fault) -> None:
        data.draw(st.sampled_from(self._running(self.saves + self.cleanups))).step(fault)

    @rule(folder=st.sampled_from(FOLDERS), hours=st.sampled_from((0, 5, 20)))
    def leave_something(self, folder: str, hours: int) -> None:
        """An object and an upload of a save that died on another rank, so many hours ago."""
        now = self.now
        self.now -= timedelta(hours=hours)
        self.bucket.put(f"{folder}/{data_name(1, 0, new_token())}", body_of(b"left"))
        upload = self.bucket.start_upload(f"{folder}/{data_name(1, 1, new_token())}")
        self.bucket.put_part(upload, 1, body_of(b"left"))
        self.now = now

    @rule()
    def clean_up(self) -> None:
        """A whole cleanup between two requests of the others."""
        self._clean(self.bucket, self.now)

    @rule(hours=st.integers(1, 24))
    def pass_time(self, hours: int) -> None:
        running = [began for number, began in self.began.items() if self.saves[number].waits_with is not None]
        latest = min(running, default=self.now + timedelta(days=9)) + LIMIT - timedelta(minutes=1)
        self.now = min(self.now + timedelta(hours=hours), max(self.now, latest))

    @invariant()
    def checkpoints_are_whole(self) -> None:
        versions = {info.key: info.version for info in self.bucket.list("")}
        if versions == self.seen:
            return
        self.seen = versions
        for folder in FOLDERS:
            if f"{folder}/.metadata" in versions:
                saves_in_memory.load(self.bucket, url=f"memory://bucket/{folder}")

    @invariant()
    def saves_are_not_disturbed(self) -> None:
        for save in self.saves:
            if save.waits_with is None and save.error is not None and not save.dead:
                assert isinstance(save.error, CheckpointException), save.error
                assert isinstance(save.error.failures[0][0], ConflictError), save.error

    @invariant()
    def cleanups_end_well(self) -> None:
        for cleanup in self.cleanups:
            if cleanup.waits_with is None:
                assert cleanup.error is None or cleanup.dead, cleanup.error

    def teardown(self) -> None:
        try:
            for one in self.saves + self.cleanups:
                self._go_on(one, 10_000)
            self.saves_are_not_disturbed()
            self.cleanups_end_well()
            self.now += 2 * LIMIT
            self._clean(self.bucket, self.now)
            self.nothing_is_left()
        finally:
            self.patch.undo()

    def nothing_is_left(self) -> None:
        named = set()
        for folder in FOLDERS:
            if f"{folder}/.metadata" in self.seen:
                record = read(self.bucket.get(f"{folder}/.metadata")[0])
                named |= {f"{folder}/{info.relative_path}" for info in record.storage_data.values()}
                named.add(f"{folder}/.metadata")
        assert {info.key for info in self.bucket.list("")} == named
        assert list(self.bucket.list_uploads("")) == []
        self.checkpoints_are_whole()


def _commits(save: Stepped) -> bool:
    waits_with = save.waits_with
    return waits_with is not None and waits_with.verb == "put" and is_record(waits_with.key)


TestCleanupsBesideSaves = CleanupsBesideSaves.TestCase
TestCleanupsBesideSaves.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
