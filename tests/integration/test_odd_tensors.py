"""Tensors of every kind: as stock torch has it, or refused. Never lost, and never a dead process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Bucket
from support import odd_outcomes, odd_tensors
from support.odd_outcomes import ABSENT, DIED, RIGHT, SAVED, WRONG

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
        [sys.executable, "-m", odd_outcomes.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # what dies says so there
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(odd_outcomes.__file__).parents[1],
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
    """Whether an outcome of ours is right, an error of torch's planning, or one that names the tensor."""
    if refused:
        return ours.startswith("UnsupportedTensorError: 'x' ")
    if ours in (SAVED, RIGHT, ABSENT):
        return True
    if stock in (SAVED, RIGHT) or ours.startswith((DIED, WRONG)):
        return False
    # torch's own planning comes before anything of ours; a nested tensor's size has a number of its own
    same = re.sub(r"j\d+", "j", ours) == re.sub(r"j\d+", "j", stock)
    return same or ours.startswith(("UnsupportedTensorError: 'x' ", "UntrustedDataError: 'x' "))


BOTH = ("we save", "we load dense")
LOADING = ("we load dense",)
#: What is left out of a column is refused by torch's planning already.
REFUSED = {
    **dict.fromkeys(("sparse coo", "sparse csr", "sparse csc", "sparse bsr", "sparse bsc"), BOTH),
    "mkldnn": LOADING,
    "meta": ("we save",),
    **dict.fromkeys(("fake", "functional"), BOTH),
    **dict.fromkeys(("freed", "shrunk", "slice of a freed one", "subclass that was freed"), BOTH),
    **dict.fromkeys(("expanded", "overlapping", "mapped for reading only"), LOADING),
    **dict.fromkeys(("wrapper without copy_", "wrapper that can do nothing"), LOADING),
    **dict.fromkeys(
        ("quantized per tensor", "wrapper", "strides that do not nest", "flagged as read-only"), ()
    ),
}
REASONS = {
    "sparse coo": "has the layout torch.sparse_coo",
    "fake": "is a fake tensor, which holds no data",
    "functional": "has no memory of its own",
    "freed": "takes 96 bytes of a storage that has 0",
    "shrunk": "takes 96 bytes of a storage that has 8",
    "expanded": "has elements that share memory: clone() it",
    "mapped for reading only": "is mapped for reading only",
    "wrapper without copy_": "copying torch.float32 into a WrapperWithoutCopy",
}


def test_what_is_refused(outcomes: Outcomes) -> None:
    """As the page on compatibility has it."""
    found = {name: outcomes(name) for name in REFUSED}
    refused = {
        name: tuple(stage for stage in ("we save", "we load dense") if _refused(found[name][stage]))
        for name in found
    }
    assert refused == REFUSED
    # and says why
    for name, reason in REASONS.items():
        assert reason in found[name]["we load dense"], name


def _refused(outcome: str) -> bool:
    return outcome.startswith("UnsupportedTensorError: 'x' cannot be ")


SUBCLASSES = {
    "wrapper": odd_tensors.Wrapper,
    "parameter of a wrapper": odd_tensors.Wrapper,
    "subclass that changes nothing": odd_tensors.Plain,
    "subclass with a function": odd_tensors.WithFunction,
}


@pytest.mark.parametrize("name", SUBCLASSES)
def test_a_type_that_is_not_admitted_says_so(name: str, outcomes: Outcomes) -> None:
    found = outcomes(name, admitted=False)
    assert found["we save"] == SAVED
    for stage in ("we load ours", "we load stock's"):
        assert found[stage].startswith("UntrustedDataError: 'x' needs "), found
        assert f"odd_tensors.{SUBCLASSES[name].__name__}" in found[stage]
        assert "torch.serialization.add_safe_globals" in found[stage]
    # what was saved without the type loads into it all the same
    assert found["we load dense"] == RIGHT
