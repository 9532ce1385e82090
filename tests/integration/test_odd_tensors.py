"""Tensors of every kind: as stock torch has it, or refused. Never lost, never a mixture, never a dead process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import odd_outcomes
import odd_tensors
import pytest
from conftest import Bucket
from odd_outcomes import ABSENT, DIED, RIGHT, SAVED, WRONG

Outcomes = Callable[..., dict[str, str]]

#: What stock torch takes and this library does not: the result depends on the order of writing, or lies
#: beyond the tensor's memory.
MORE_THAN_STOCK_REFUSES = {
    "overlapping": {"we load dense", "we load stock's", "we load ours"},
    "shrunk": {"we save"},
}


@pytest.fixture(scope="module")
def process(seaweedfs: Any) -> Iterator[subprocess.Popen[str]]:
    """Forks those processes that may die; it has no other threads, unlike this one."""
    with subprocess.Popen(
        [sys.executable, odd_outcomes.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # what dies says so there
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **seaweedfs.environment()},
    ) as running:
        yield running
        assert running.stdin is not None
        running.stdin.close()


@pytest.fixture
def outcomes(process: subprocess.Popen[str], seaweedfs_bucket: Bucket) -> Outcomes:
    """What becomes of a kind of tensors, stage by stage."""

    def ask(name: str, *, admitted: bool = True) -> dict[str, str]:
        assert process.stdin is not None
        assert process.stdout is not None
        asked = {"name": name, "url": f"{seaweedfs_bucket.url}/{name}/{admitted}", "admitted": admitted}
        print(json.dumps(asked), file=process.stdin, flush=True)
        found: dict[str, str] = json.loads(process.stdout.readline())
        return found

    return ask


@pytest.mark.parametrize("name", odd_tensors.KINDS)
def test_as_stock_torch_or_refused(name: str, outcomes: Outcomes) -> None:
    found = outcomes(name)
    refusals = MORE_THAN_STOCK_REFUSES.get(name, set())
    for ours, stock in (
        ("we save", "stock saves"),
        ("we load dense", "stock loads dense"),
        ("we load stock's", "stock loads stock's"),
        ("we load ours", "stock loads stock's"),
    ):
        assert _is_as_stock(found[ours], found[stock], refused=ours in refusals), (ours, found)
    if found["we save"] == SAVED:
        assert found["stock loads ours"] in (RIGHT, found["stock loads stock's"]), found


def _is_as_stock(ours: str, stock: str, *, refused: bool) -> bool:
    """Whether an outcome of ours is right, no worse than stock's, or an error that names the tensor."""
    if refused:
        return ours.startswith("UnsupportedTensorError: 'x' ")
    if ours in (SAVED, RIGHT, ABSENT):
        return True
    if stock in (SAVED, RIGHT) or ours.startswith(DIED):
        return False
    # torch's own planning comes before anything of ours
    same = ours == stock and ours != WRONG
    return same or ours.startswith(("UnsupportedTensorError: 'x' ", "UntrustedDataError: 'x' "))
