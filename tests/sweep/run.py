"""Points run against one server, one after the other, over the checkpoint that the one before left."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from conftest import Bucket
from dcp_fault_proxy import FaultProxy
from dcp_faults import Fault

from sweep import cases
from sweep.judge import PATIENCE, Case, Judge, Verdict
from sweep.points import Broken, Death, Scenario
from sweep.requests import AtRequest, Request, requests_in
from sweep.world import World

__all__ = ["Result", "Sweep", "is_held"]

#: Seconds after which ranks hang, and for what is dropped.
_LIMIT = 180.0
#: Seconds for a rank to end of a signal that it may handle, before the request goes on that it may wait for.
_MOMENT = 0.5
#: Seconds between two looks at the ranks while no request is held yet.
_LOOK = 0.1
_EVER = 1_000_000
#: Seeds have four digits.
_FIRST, _SEEDS = 1000, 8000
#: What the phases before the end ask for; the rank that is not refused may do it at any time.
_UPLOADING = ("GetObject .metadata bytes=0-0", "PutObject __", "CreateMultipartUpload", "UploadPart")


@dataclass(frozen=True)
class Result:
    """What came of one point.

    Attributes:
        point: which.
        succeeded: whether success was reported.
        violations: what is wrong.
    """

    point: Broken | Death
    succeeded: bool
    violations: tuple[str, ...]


class Sweep:
    """Saves and loads at one URL, behind a proxy that breaks their requests.

    Args:
        bucket: of its own.
        proxy: before its server.
    """

    def __init__(self, bucket: Bucket, proxy: FaultProxy) -> None:
        self._bucket = bucket
        self._proxy = proxy
        self._variables = {**bucket.environment_at(proxy.endpoint)}
        self._seeds = (_FIRST + number % _SEEDS for number in itertools.count())
        self._folders = (f"run-{number}" for number in itertools.count(1))
        self._judge = Judge(bucket, next(self._folders))
        self._there: int | None = None
        self._saved_by_ranks = True
        self._world: World | None = None

    def close(self) -> None:
        if self._world is not None:
            self._world.close()
            self._world = None

    def requests(self, scenario: Scenario) -> list[Request]:
        """What a scenario asks for when nothing is broken, by name.

        Raises:
            AssertionError: it goes wrong by itself.
        """
        result = self.run(scenario, Broken(()))
        assert not result.violations, result
        assert result.succeeded != scenario.cleans_up, result
        found = requests_in(self._proxy.requests)
        if not scenario.cleans_up:
            return found
        before = (*_UPLOADING, "CompleteMultipartUpload") if scenario.overtaken else _UPLOADING
        return [request for request in found if not request.name.startswith(before)]

    def run(self, scenario: Scenario, point: Broken | Death) -> Result:
        """Run one point, and judge it."""
        self._prepare(scenario)
        if isinstance(point, Death):
            verdict, succeeded = self._die(point)
        elif scenario.loads:
            verdict, succeeded = self._load(point)
        else:
            verdict, succeeded = self._save(scenario, point)
        self._there = verdict.there
        if verdict.violations:
            # the points that follow have nothing to do with it
            self._judge, self._there = Judge(self._bucket, next(self._folders)), None
            self.close()
        return Result(point, succeeded, tuple(verdict.violations))

    def _prepare(self, scenario: Scenario) -> None:
        """The checkpoint that is there, or nothing."""
        if not scenario.existing:
            self._judge.clear()
            self._there = None
        elif self._there is None or (scenario.loads and not self._saved_by_ranks):
            self._there = next(self._seeds)
            with self._faults():
                outcomes = self._begin(cases.save, self._judge.url, self._there, {}).end(_LIMIT)
            assert outcomes == [None, None], outcomes
            self._saved_by_ranks = True

    @contextlib.contextmanager
    def _faults(self, *faults: Fault) -> Iterator[None]:
        self._proxy.clear()
        self._proxy.add(*faults)
        yield
        self._proxy.settle(_LIMIT)

    def _begin(self, *call: Any) -> World:
        if self._world is None:
            self._world = World()
        self._world.begin(self._variables, *call)
        return self._world

    def _save(self, scenario: Scenario, point: Broken) -> tuple[Verdict, bool]:
        seed, before = next(self._seeds), self._there
        faults: list[Fault] = [one.at_request(request) for one, request in point.breaks]
        anyway = _of(scenario)
        with self._faults(*faults, *anyway):
            world = self._begin(cases.save, self._judge.url, seed, dict(point.options))
            if scenario.overtaken and is_held(self._proxy, world):
                before = self._overtake(*anyway)
            outcomes = world.end(_LIMIT)
        case = Case(
            *(before, seed, outcomes),
            may_commit=not scenario.overtaken,
            must_succeed=point.passes and not scenario.cleans_up,
        )
        return self._judged(case, point.comes_later), case.succeeded

    def _overtake(self, hold: Fault) -> int:
        """Another job's save, while a request of this one is held, and whatever repeats it."""
        seed = next(self._seeds)
        cases.save(self._judge.url, seed, PATIENCE)
        self._saved_by_ranks = False
        hold.times = 0
        while self._proxy.wait_held(_LOOK):
            self._proxy.release()
        return seed

    def _judged(self, case: Case, comes_later: bool) -> Verdict:
        """The verdict when everything has arrived, and what was wrong before."""
        if not comes_later:
            return self._judge.judge(case)
        early = self._judge.judge(case, more_may_come=True)
        self._proxy.deliver()
        verdict = self._judge.judge(case)
        verdict.violations[:0] = [f"before all has arrived: {text}" for text in early.violations]
        return verdict

    def _load(self, point: Broken) -> tuple[Verdict, bool]:
        before = self._there
        assert before is not None
        contents = self._judge.contents()
        with self._faults(*(one.at_request(request) for one, request in point.breaks)):
            world = self._begin(cases.load, self._judge.url, before, dict(point.options))
            case = Case(before, None, world.end(_LIMIT), must_succeed=point.passes)
        self._proxy.deliver()
        verdict = self._judge.judge(case)
        if self._judge.contents() != contents:
            verdict.violations.append("the load changed the bucket")
        return verdict, case.succeeded

    def _die(self, point: Death) -> tuple[Verdict, bool]:
        seed, before = next(self._seeds), self._there
        with self._faults(AtRequest("hold", name=point.request.name, skip=point.request.earlier)):
            world = self._begin(cases.save, self._judge.url, seed, {})
            held = is_held(self._proxy, world)
            if held:
                world.signal(point.ranks, point.signal)
                world.wait_dead(point.ranks, _MOMENT)
                self._proxy.release(drop=not point.arrives)
            outcomes = world.end(_LIMIT)
            # nobody goes on after the death of a rank
            self.close()
        case = Case(before, seed, outcomes, died=held)
        verdict = self._judge.judge(case)
        if not held:
            verdict.violations.append("the request did not come: this point is not there")
        return verdict, case.succeeded


def is_held(proxy: FaultProxy, world: World) -> bool:
    """Wait until a request is held; whether one is before all ranks are done, or hang."""
    until = time.monotonic() + _LIMIT
    while not world.has_ended() and time.monotonic() < until:
        if proxy.wait_held(_LOOK):
            return True
    return False


def _of(scenario: Scenario) -> list[Fault]:
    """What happens in a scenario anyway."""
    if scenario.overtaken:
        return [Fault("hold", operation="PutObject", path=r"distcp$", times=_EVER)]
    if scenario.refused:
        denied = {"status": 403, "code": "AccessDenied", "times": _EVER}
        return [Fault("error", operation="CompleteMultipartUpload", **denied)]
    return []
