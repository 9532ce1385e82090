"""Saves by ``async_save`` that overlap: begun one after the other without waiting for the one before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from support.ranks import Ranks
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import CheckpointNotFoundError, CloudStorageReader, CloudStorageWriter, ConflictError

World = Callable[[int], Ranks]

#: 16 MiB, so that a save is under way when the next ones begin.
ELEMENTS = 4 << 20


def state_of(value: float) -> dict[str, Any]:
    return {"weight": torch.full((ELEMENTS,), value), "step": value}


def loaded(url: str) -> float:
    """The value that the checkpoint holds throughout."""
    state = {"weight": torch.zeros(ELEMENTS), "step": None}
    dcp.load(state, storage_reader=CloudStorageReader(url))
    value = state["step"]
    assert isinstance(value, float)
    assert (state["weight"] == value).all(), "parts of two saves"
    return value


def failure_of(future: Future[Any]) -> BaseException | None:
    """The error of the only rank, where a save failed."""
    error = future.exception(120)
    return error.failures[0][0] if isinstance(error, CheckpointException) else error


def saves_to_urls_of_their_own(url: str) -> None:
    writer = CloudStorageWriter(url)
    # torch copies nothing that is in CPU memory before 2.7: the states must live until the end
    states = {step: state_of(float(step)) for step in range(1, 7)}
    futures = {
        step: dcp.async_save(state, checkpoint_id=f"step-{step}", storage_writer=writer)
        for step, state in states.items()
    }
    for step, future in futures.items():
        assert failure_of(future) is None, step
        assert loaded(f"{url}/step-{step}") == step


def test_saves_that_overlap_each_have_their_own_url(seaweedfs_bucket: Bucket, worlds: World) -> None:
    """Which checkpoint a save is about does not change when the next one resets the writer."""
    worlds(1).run(saves_to_urls_of_their_own, f"{seaweedfs_bucket.url}/run")
    keys = seaweedfs_bucket.keys("run/")
    for step in range(1, 7):
        below = [key for key in keys if key.startswith(f"run/step-{step}/")]
        assert len(below) == 2
        assert f"run/step-{step}/.metadata" in below
    assert len(keys) == 12
    assert seaweedfs_bucket.uploads() == []


def saves_to_one_url(url: str, previous: bool) -> None:
    writer = CloudStorageWriter(url)
    if previous:
        dcp.save(state_of(0.5), storage_writer=writer)
    states = [state_of(float(n)) for n in range(3)]
    failures = [
        failure_of(future) for future in [dcp.async_save(state, storage_writer=writer) for state in states]
    ]
    assert all(failure is None or isinstance(failure, ConflictError) for failure in failures), failures
    saved = {float(n) for n, failure in enumerate(failures) if failure is None}
    assert saved, "each lost to another"
    # not the checkpoint before, nor one whose save failed
    assert loaded(url) in saved


def test_saves_that_overlap_at_one_url_leave_one_of_them(seaweedfs_bucket: Bucket, worlds: World) -> None:
    """Something whole is there in the end, whichever won, and nothing else."""
    for number in range(6):
        url = f"{seaweedfs_bucket.url}/run/{number}"
        worlds(1).run(saves_to_one_url, url, number % 2 == 1)
        assert len(seaweedfs_bucket.keys(f"run/{number}/")) == 2
    for error in worlds(1).outcomes(loaded, f"{seaweedfs_bucket.url}/run"):
        assert isinstance(error, CheckpointException)
        assert isinstance(error.failures[0][0], CheckpointNotFoundError)


SCRIPT = """
import sys, warnings
warnings.filterwarnings("ignore")
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from dcp_core import CloudStorageWriter

dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
state = {"weight": torch.full((4 << 20,), 7.0), "step": 7.0}
dcp.async_save(state, storage_writer=CloudStorageWriter(sys.argv[1]))
"""


def test_a_script_may_end_without_waiting(seaweedfs_bucket: Bucket, worlds: World) -> None:
    """Python waits for the thread that saves, though newer ones let it start no thread any more."""
    url = f"{seaweedfs_bucket.url}/run"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, url], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert worlds(1).run(loaded, url) == [7.0]
    assert len(seaweedfs_bucket.keys()) == 2
    assert seaweedfs_bucket.uploads() == []
