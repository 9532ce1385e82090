"""A job of two ranks that dies at some request, and starts again from what it finds."""

from __future__ import annotations

import itertools
import random
import signal
from collections import Counter
from collections.abc import Iterator

from conftest import Bucket
from dcp_fault_proxy import FaultProxy
from dcp_faults import Fault
from sweep import cases
from sweep.judge import Case, Judge
from sweep.run import is_held
from sweep.world import World

from soak.trouble import random_fault

__all__ = ["Crashes"]

#: Requests that such a job sends about.
_REQUESTS = 18
#: How often something else goes wrong too.
_TROUBLED = 0.3
_LIMIT = 180.0
_FIRST, _SEEDS = 1000, 8000


def resume(url: str, there: int | None, seed: int) -> None:
    """What a job does that starts again: load what is there, and save what comes next."""
    if there is not None:
        cases.load(url, there, {})
    cases.save(url, seed, {})


class Crashes:
    """Cycles of one seed: the same deaths in the same order.

    Attributes:
        counts: of what came of them.
        violations: what is wrong.
    """

    def __init__(self, bucket: Bucket, proxy: FaultProxy, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self._proxy = proxy
        self._variables = bucket.environment_at(proxy.endpoint)
        self._chance = random.Random(seed)
        self._judge = Judge(bucket, "crashes")
        self._seeds: Iterator[int] = (_FIRST + number % _SEEDS for number in itertools.count())
        self._there: int | None = None

    def cycle(self) -> None:
        """One life of the job, and what it leaves."""
        seed = next(self._seeds)
        world = World()
        try:
            world.begin(self._variables, resume, self._judge.url, self._there, seed)
            self._kill(world)
            outcomes = world.end(_LIMIT)
        finally:
            world.close()
        self._proxy.clear()
        self._proxy.settle(_LIMIT)
        # as when a process gave up a request that arrives later
        self._proxy.deliver()
        case = Case(self._there, seed, outcomes, died=True)
        verdict = self._judge.judge(case)
        self.violations += [f"cycle {self.counts['cycles']}: {text}" for text in verdict.violations]
        self.counts["cycles"] += 1
        self.counts["saved"] += verdict.there == seed
        self.counts["reported success"] += case.succeeded
        self._there = verdict.there

    def _kill(self, world: World) -> None:
        """Kill all ranks when some request comes, if it does; then let it arrive, or not."""
        hold = Fault("hold", skip=self._chance.randrange(_REQUESTS))
        others = [random_fault(self._chance)] if self._chance.random() < _TROUBLED else []
        arrives = self._chance.random() < 0.5
        self._proxy.clear()
        self._proxy.add(hold, *others)
        if not is_held(self._proxy, world):
            return
        world.signal(range(world.size), signal.SIGKILL)
        world.wait_dead(range(world.size), _LIMIT)
        self._proxy.release(drop=not arrives)
        self.counts["deaths"] += 1
