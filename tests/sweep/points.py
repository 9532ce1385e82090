"""The points of the sweep: one fault at one request, several faults, or a death before a request."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sweep.faults import BREAKS, Break
from sweep.requests import Request

__all__ = [
    "Broken",
    "Death",
    "SCENARIOS",
    "Scenario",
    "broken_points",
    "combined_points",
    "death_points",
    "sample",
]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Scenario:
    """What is done while something happens.

    Attributes:
        name: what it is called in the tables.
        loads: it is a load.
        existing: a checkpoint is there already.
        overtaken: another job saves meanwhile.
        refused: the end of the upload is refused.
    """

    name: str
    loads: bool = False
    existing: bool = True
    overtaken: bool = False
    refused: bool = False

    @property
    def cleans_up(self) -> bool:
        """Whether only what comes at the end is tried: all before is that of other scenarios."""
        return self.overtaken or self.refused


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("a save where nothing is", existing=False),
        Scenario("a save over a checkpoint"),
        Scenario("a save that is overtaken", overtaken=True),
        Scenario("a save that is refused", refused=True),
        Scenario("a load", loads=True),
    )
}


@dataclass(frozen=True)
class Broken:
    """Requests that are broken, one in one way."""

    breaks: tuple[tuple[Break, Request], ...]

    @property
    def title(self) -> str:
        return self.breaks[0][0].title if len(self.breaks) == 1 else "several of these at once"

    @property
    def passes(self) -> bool:
        return all(one.passes for one, _ in self.breaks)

    @property
    def comes_later(self) -> bool:
        return any(one.comes_later for one, _ in self.breaks)

    @property
    def options(self) -> Mapping[str, Any]:
        return {name: value for one, _ in self.breaks for name, value in one.options.items()}

    def __str__(self) -> str:
        return " and ".join(f"{one} at {request}" for one, request in self.breaks)


@dataclass(frozen=True)
class Death:
    """A signal to some ranks while a request is held, which is dropped then, or arrives all the same."""

    request: Request
    ranks: tuple[int, ...]
    signal: signal.Signals
    arrives: bool

    @property
    def title(self) -> str:
        whom = {(0,): "the coordinator", (1,): "the other rank", (0, 1): "all ranks"}[self.ranks]
        return f"{self.signal.name} to {whom}"

    def __str__(self) -> str:
        return f"{self.title} at {self.request}, which {'arrives' if self.arrives else 'is dropped'}"


def broken_points(requests: Iterable[Request]) -> list[Broken]:
    """Every way to break a request, at every request."""
    return [Broken(((one, request),)) for one in BREAKS for request in requests if one.breaks(request)]


def combined_points(requests: Iterable[Request], count: int, seed: int = 0) -> list[Broken]:
    """Two or three of those at once, at random."""
    chance = random.Random(seed)
    single = [point.breaks[0] for point in broken_points(requests)]
    return [Broken(tuple(chance.sample(single, chance.choice((2, 3))))) for _ in range(count)]


def death_points(requests: Iterable[Request]) -> list[Death]:
    """Every death, at every request."""
    return [
        Death(request, ranks, number, arrives)
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        for ranks in ((0,), (1,), (0, 1))
        for request in requests
        for arrives in (False, True)
    ]


def sample(points: Sequence[_T], count: int, seed: int) -> list[_T]:
    """Some of them, from everywhere; others for another ``seed``."""
    step = len(points) / count
    chance = random.Random(seed)
    return [points[int(min(len(points) - 1, (number + chance.random()) * step))] for number in range(count)]
