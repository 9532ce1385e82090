"""Saves to one URL over a network that fails: whatever happens, one whole checkpoint is there.

Requests of saves that overlap are served, lost, repeated and delayed in any order, and processes die. After
each step the bucket is looked at: what the commit record names is there, to the last byte.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import pytest
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import saves_in_memory
from support.records import read
from support.stepped import Killed, Stepped, killed, killed_afterwards
from support.unreliable_store import ContentVersions, Fault, Held, Request, lost, times, unanswered

from dcp_core import ConflictError
from dcp_core.testing import MemoryStore

RECORD = "run/.metadata"
#: Of a request, before its error is final.
ATTEMPTS = 3
_buckets = itertools.count(1)


class Saves(RuleBasedStateMachine):
    """Saves to one URL, two at a time."""

    #: Whether commits are conditional.
    conditional: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        saves_in_memory.without_waiting(self.patch)
        self.saves: dict[int, Stepped] = {}
        #: Requests that may arrive yet.
        self.late = Held()
        #: Numbers of the saves whose records were in the bucket, one after another.
        self.history: list[int] = []
        self.seen: dict[str, str] = {}
        self.quiet = True

    @initialize(by_content=st.booleans())
    def make_bucket(self, by_content: bool) -> None:
        name = f"commit-machine-{next(_buckets)}"
        MemoryStore.create_bucket(name)
        self.bucket = (ContentVersions if by_content else MemoryStore)(name)

    @property
    def running(self) -> list[int]:
        return [number for number, save in self.saves.items() if save.waits_with is not None]

    @precondition(lambda self: len(self.running) < 2)
    @rule()
    def begin(self) -> None:
        number = len(self.saves) + 1
        self.saves[number] = Stepped(self.bucket, lambda store: self._save(store, number))

    def _save(self, store: Any, number: int) -> None:
        saves_in_memory.save(store, number, conditional_commit=self.conditional, max_attempts=ATTEMPTS)

    def _step(self, data: st.DataObject, fault: Fault) -> None:
        """Have one save's next requests, mostly repetitions of one, meet with ``fault``."""
        self.quiet = False
        number = data.draw(st.sampled_from(self.running))
        for _ in range(data.draw(st.sampled_from((1, ATTEMPTS, ATTEMPTS + 1)))):
            if number in self.running:
                self.saves[number].step(fault)
                self.one_whole_checkpoint_is_there()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 6))
    def go_on(self, data: st.DataObject, count: int) -> None:
        number = data.draw(st.sampled_from(self.running))
        for _ in range(count):
            if number in self.running:
                self.saves[number].step()
                self.one_whole_checkpoint_is_there()

    @precondition(lambda self: set(self.running) - set(self._at_commit()))
    @rule(data=st.data())
    def upload(self, data: st.DataObject) -> None:
        """One save comes to its commit, or to its end, without a failure."""
        number = data.draw(st.sampled_from(sorted(set(self.running) - set(self._at_commit()))))
        while number in self.running and number not in self._at_commit():
            self.saves[number].step()
            self.one_whole_checkpoint_is_there()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fault=st.sampled_from([lost, unanswered, times(2), times(3)]))
    def fail(self, data: st.DataObject, fault: Fault) -> None:
        self._step(data, fault)

    @precondition(lambda self: self._at_commit())
    @rule(data=st.data(), fault=st.sampled_from(["late", "lost"]))
    def delay_commit(self, data: st.DataObject, fault: str) -> None:
        """No attempt to write a record gets a response; some may arrive later."""
        self.quiet = False
        number = data.draw(st.sampled_from(self._at_commit()))
        while number in self._at_commit():
            self.saves[number].step(self.late if fault == "late" else lost)

    def _at_commit(self) -> list[int]:
        """Saves that are about to write their records."""
        waiting = ((number, self.saves[number].waits_with) for number in self.running)
        return [number for number, one in waiting if one and (one.verb, one.key) == ("put", RECORD)]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def delay(self, data: st.DataObject) -> None:
        """The request arrives later, or never."""
        self._step(data, self.late)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def repeat_later(self, data: st.DataObject) -> None:
        """The request is served, and arrives once more later."""

        def twice(request: Request) -> Any:
            self.late.requests.append(request)
            return request.deliver()

        self._step(data, twice)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fault=st.sampled_from([killed, killed_afterwards]))
    def kill(self, data: st.DataObject, fault: Fault) -> None:
        self._step(data, fault)

    @precondition(lambda self: self.late.requests)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.late.requests) - 1))
        self.late.requests.pop(place).arrives()

    def _committed(self) -> int | None:
        """The number of the save whose record is in the bucket, after a look at all that it names."""
        versions = {info.key: info.version for info in self.bucket.list("")}
        if versions != self.seen:
            self.seen = versions
            if RECORD in versions:
                number = int(saves_in_memory.load(self.bucket))
                if self.history[-1:] != [number]:
                    self.history.append(number)
        return self.history[-1] if self.history else None

    @invariant()
    def one_whole_checkpoint_is_there(self) -> None:
        if self._committed() is not None:
            assert RECORD in self.seen, "the commit record is gone"

    @invariant()
    def reports_are_true(self) -> None:
        for number, save in self.saves.items():
            if save.waits_with is not None:
                continue
            if save.error is None:
                assert number in self.history, "a success whose record was never there"
            elif self.conditional and isinstance(_real(save.error), ConflictError):
                # it may have been there, and been replaced before its save heard of it
                assert number not in self.history[-1:], "a conflict whose record is there"

    @invariant()
    def nothing_comes_back(self) -> None:
        if self.conditional:
            assert len(set(self.history)) == len(self.history), "a record came back that was replaced"

    def teardown(self) -> None:
        try:
            while self.running:
                self.saves[self.running[0]].step()
                self.check_all()
            while self.late.requests:
                self.late.requests.pop().arrives()
                self.check_all()
            if self.quiet and self.conditional and self.history:
                self.nothing_is_left()
        finally:
            self.patch.undo()

    def check_all(self) -> None:
        self.one_whole_checkpoint_is_there()
        self.reports_are_true()
        self.nothing_comes_back()
        for save in self.saves.values():
            assert save.error is None or isinstance(save.error, (dcp.CheckpointException, Killed)), save.error

    def nothing_is_left(self) -> None:
        """Without a failure every save tidies up after itself and after what it replaces."""
        record = read(self.bucket.get(RECORD)[0])
        named = {f"run/{info.relative_path}" for info in record.storage_data.values()}
        assert {info.key for info in self.bucket.list("")} == named | {RECORD}


def _real(error: BaseException) -> BaseException:
    return error.failures[0][0] if isinstance(error, dcp.CheckpointException) else error


class ConditionalSaves(Saves):
    conditional = True


class UnconditionalSaves(Saves):
    """For stores without conditional writes: the last writer wins, and a late one is a writer as well."""

    conditional = False


@pytest.mark.parametrize("machine", [ConditionalSaves, UnconditionalSaves])
def test_saves_over_a_network_that_fails(machine: type[Saves]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
