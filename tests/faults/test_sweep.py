"""Every fault at every request of saves and loads, on every cloud: see ``tests/sweep``.

``make test`` runs the samples. All of it takes hours; what came of it is added to the file that
``DCP_CLOUD_RELIABILITY`` names.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from sweep.points import (
    SCENARIOS,
    Broken,
    Death,
    Scenario,
    broken_points,
    combined_points,
    death_points,
    sample,
)
from sweep.run import Sweep
from sweep.tally import CLOUDS, Tally, path_from_environment

SAVES = [name for name, scenario in SCENARIOS.items() if not scenario.loads]
LOADS = [name for name, scenario in SCENARIOS.items() if scenario.loads]
#: Where ranks die: elsewhere the same requests are under way.
FATAL = [name for name in SAVES if not SCENARIOS[name].cleans_up]
#: Sets of several faults, for each scenario.
COMBINED = 100

Points = Sequence[Broken | Death]


def faults_at(sweep: Sweep, scenario: Scenario, cloud: str) -> list[Broken]:
    """Every fault at every request of a scenario that this server can be asked to take."""
    return [point for point in broken_points(sweep.requests(scenario)) if not is_beyond(cloud, point)]


def combinations(sweep: Sweep, scenario: Scenario, cloud: str, count: int, seed: int = 0) -> list[Broken]:
    """Sets of several of those."""
    found = combined_points(sweep.requests(scenario), count, seed)
    return [point for point in found if not is_beyond(cloud, point)]


def is_beyond(cloud: str, point: Broken) -> bool:
    """Whether the server itself loses what it stored, whoever asks.

    LocalStack empties an object that a repeated PUT has stored, once the body of the first one ends, and
    some of those that are made of their parts by two requests at once, both of which it says it has done.
    """
    return cloud == "localstack" and any(
        (way.fault["kind"] == "stall_request" and request.bytes_in)
        or (way.fault["kind"] == "twice_together" and request.name.startswith("CompleteMultipartUpload"))
        for way, request in point.breaks
    )


def try_all(sweep: Sweep, scenario: Scenario, points: Points) -> list[str]:
    """Run points; returns what was wrong."""
    return [
        f"{scenario.name}: {point}: {text}"
        for point in points
        for text in sweep.run(scenario, point).violations
    ]


def cloud_of(request: pytest.FixtureRequest) -> str:
    """What the tables call the server of a test."""
    name = request.node.callspec.params["bucket"]
    return "azurite" if name == "azure" else name


def seed_of(request: pytest.FixtureRequest) -> int:
    """Each cloud's sample is another one."""
    return CLOUDS.index(cloud_of(request))


def test_a_sample_of_saves(sweep: Sweep, request: pytest.FixtureRequest) -> None:
    found = []
    for name, count in zip(SAVES, (3, 5, 2, 2), strict=True):
        points = faults_at(sweep, SCENARIOS[name], cloud_of(request))
        found += try_all(sweep, SCENARIOS[name], sample(points, count, seed_of(request)))
    assert not found, "\n".join(found)


def test_a_sample_of_loads(sweep: Sweep, request: pytest.FixtureRequest) -> None:
    scenario = SCENARIOS["a load"]
    points = faults_at(sweep, scenario, cloud_of(request))
    found = try_all(sweep, scenario, sample(points, 8, seed_of(request)))
    assert not found, "\n".join(found)


def test_a_sample_of_deaths(sweep: Sweep, request: pytest.FixtureRequest) -> None:
    scenario = SCENARIOS["a save over a checkpoint"]
    points = death_points(sweep.requests(scenario))
    found = try_all(sweep, scenario, sample(points, 4, seed_of(request)))
    assert not found, "\n".join(found)


def test_a_sample_of_several_faults_at_once(sweep: Sweep, request: pytest.FixtureRequest) -> None:
    scenario = SCENARIOS["a save over a checkpoint"]
    points = combinations(sweep, scenario, cloud_of(request), 3, seed_of(request))
    found = try_all(sweep, scenario, points)
    assert not found, "\n".join(found)


def run_and_count(sweep: Sweep, scenario: Scenario, points: Points, cloud: str, what: str) -> None:
    """Run all points, in an order that shows soon what is wrong, and count them."""
    tally = Tally(cloud, f"{scenario.name}, {what}", len(points), path_from_environment())
    for point in random.Random(1).sample(points, len(points)):
        tally.add(sweep.run(scenario, point))
    assert not tally.violations, "\n".join(tally.violations)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_fault_at_every_request(sweep: Sweep, request: pytest.FixtureRequest, name: str) -> None:
    points = faults_at(sweep, SCENARIOS[name], cloud_of(request))
    run_and_count(sweep, SCENARIOS[name], points, cloud_of(request), "one fault")


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", FATAL)
def test_every_death_at_every_request(sweep: Sweep, request: pytest.FixtureRequest, name: str) -> None:
    points = death_points(sweep.requests(SCENARIOS[name]))
    run_and_count(sweep, SCENARIOS[name], points, cloud_of(request), "a death")


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", FATAL + LOADS)
def test_many_sets_of_several_faults(sweep: Sweep, request: pytest.FixtureRequest, name: str) -> None:
    points = combinations(sweep, SCENARIOS[name], cloud_of(request), COMBINED)
    run_and_count(sweep, SCENARIOS[name], points, cloud_of(request), "several faults at once")
