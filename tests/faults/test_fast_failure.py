"""When one rank fails for good, the others end too, long before their own requests would."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from support.ranks import Ranks
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import (
    CloudStorageReader,
    CloudStorageWriter,
    DeadlineExceededError,
    PeerFailedError,
    PermissionDeniedError,
)

World = Callable[[int], Ranks]
MIB = 1 << 20
OPTIONS = {"part_size": 5 * MIB, "stall_timeout": 600.0}
#: Seconds for which the other ranks' requests would go on, and in which all must have ended. It takes two,
#: where the machine has nothing else to do.
OCCUPIED = 600.0
LIMIT = 100.0

#: Seconds, and the error.
Timed = tuple[float, Any]


def timed(work: Callable[[], object]) -> Timed:
    started = time.monotonic()
    try:
        work()
    except CheckpointException as error:
        return time.monotonic() - started, error
    return time.monotonic() - started, None


def full(seed: int) -> dict[str, Any]:
    """12 MiB for each of four ranks."""
    return {"dim 0": scenarios.noise(seed, (12, 1024, 1024))}


def timed_save(url: str, seed: int, cached: bool = False) -> Timed:
    state = scenarios.sharded(full(seed))
    planner = dcp.DefaultSavePlanner(enable_plan_caching=cached)
    return timed(lambda: dcp.save(state, storage_writer=CloudStorageWriter(url, **OPTIONS), planner=planner))


def timed_load(url: str, seed: int) -> Timed:
    """Load, and compare if that succeeds."""
    state = scenarios.blanked(scenarios.sharded(full(seed)))
    reader = CloudStorageReader(url, stall_timeout=600.0)
    found = timed(lambda: dcp.load(state, storage_reader=reader))
    if found[1] is None:
        scenarios.assert_same(state, full(seed))
    return found


def assert_rank_2_ended_all(outcomes: list[Timed], bucket: Bucket) -> None:
    for seconds, error in outcomes:
        assert isinstance(error, CheckpointException)
        assert seconds < LIMIT
        assert set(error.failures) == {0, 1, 2, 3}
        cause = error.failures.pop(2)[0]
        assert isinstance(cause, PermissionDeniedError)
        assert cause.rank == 2
        for rank, (stopped, _) in error.failures.items():
            assert isinstance(stopped, PeerFailedError)
            assert (stopped.rank, stopped.failed_rank) == (rank, 2)
            # whose it was, and why
            assert (stopped.bucket, stopped.key) == (cause.bucket, cause.key)
            assert cause.message in stopped.message
            assert bucket.name in str(stopped)


def assert_all_done(outcomes: list[Timed]) -> None:
    assert [error for _, error in outcomes] == [None] * len(outcomes)


#: What goes on at the other ranks meanwhile.
SAVING = {
    "stalled": Fault(
        "stall_request", operation="UploadPart", path="__[013]_0", after=MIB, seconds=OCCUPIED, times=99
    ),
    "throttled": Fault("error", operation="UploadPart", path="__[013]_0", times=9999),
    "unanswered": Fault("hold", operation="UploadPart", path="__[013]_0", times=99),
}


@pytest.mark.parametrize("occupied", SAVING)
def test_a_save_ends_on_all_ranks(
    cloud_bucket: Bucket, proxy: FaultProxy, worlds: World, occupied: str
) -> None:
    url = f"{cloud_bucket.url}/run"
    assert_all_done(worlds(4).run(timed_save, url, 1))
    proxy.clear()
    # a second later, when the others are at it
    refused = Fault(
        "error", operation="UploadPart", path="__2_0", status=403, code="AccessDenied", seconds=1, times=99
    )
    proxy.add(refused, SAVING[occupied])
    assert_rank_2_ended_all(worlds(4).run(timed_save, url, 2), cloud_bucket)
    assert SAVING[occupied].hits >= 3
    proxy.clear()
    proxy.release(drop=True)
    assert cloud_bucket.uploads() == []
    assert_all_done(worlds(4).run(timed_load, url, 1))


@pytest.mark.parametrize(
    "occupied",
    [
        Fault("stall", path="__[013]_0", after=MIB, seconds=OCCUPIED, times=99),
        Fault("error", path="__[013]_0", times=9999),
        Fault("delay", path="__[013]_0", seconds=OCCUPIED, times=99),
    ],
    ids=lambda fault: fault.kind,
)
def test_a_load_ends_on_all_ranks(
    cloud_bucket: Bucket, proxy: FaultProxy, worlds: World, occupied: Fault
) -> None:
    url = f"{cloud_bucket.url}/run"
    assert_all_done(worlds(4).run(timed_save, url, 1))
    refused = Fault("error", path="__2_0", status=403, code="AccessDenied", seconds=1, times=99)
    proxy.add(refused, occupied)
    assert_rank_2_ended_all(worlds(4).run(timed_load, url, 1), cloud_bucket)
    assert occupied.hits >= 3
    proxy.clear()
    assert_all_done(worlds(4).run(timed_load, url, 1))


@pytest.mark.parametrize("cached", [False, True])
def test_the_save_after_a_failure_knows_nothing_of_it(
    seaweedfs_bucket: Bucket, seaweedfs_proxy: FaultProxy, worlds: World, cached: bool
) -> None:
    """With cached plans, the ranks find each other in the same place again."""
    url = f"{seaweedfs_bucket.url}/run"
    for seed in (1, 3):
        assert_all_done(worlds(4).run(timed_save, url, seed, cached))
        refused = Fault(
            "error",
            operation="UploadPart",
            path="__2_0",
            status=403,
            code="AccessDenied",
            seconds=1,
            times=99,
        )
        seaweedfs_proxy.add(refused, SAVING["throttled"])
        assert_rank_2_ended_all(worlds(4).run(timed_save, url, seed + 1, cached), seaweedfs_bucket)
        seaweedfs_proxy.clear()
        assert_all_done(worlds(4).run(timed_load, url, seed))
    assert_all_done(worlds(4).run(timed_save, url, 5, cached))
    assert_all_done(worlds(4).run(timed_load, url, 5))


def apart(url: str, seed: int) -> Timed:
    """Each rank saves and loads a checkpoint of its own."""
    rank = dist.get_rank()
    state = full(seed + rank)
    url = f"{url}/{rank}"
    found = timed(lambda: dcp.save(state, storage_writer=CloudStorageWriter(url, **OPTIONS), no_dist=True))
    if found[1] is None:
        target = scenarios.blanked(state)
        dcp.load(target, storage_reader=CloudStorageReader(url), no_dist=True)
        scenarios.assert_same(target, state)
    return found


def test_ranks_that_save_apart_fail_apart(
    seaweedfs_bucket: Bucket, seaweedfs_proxy: FaultProxy, worlds: World
) -> None:
    """The other ranks are still saving when one fails, for longer than news of it would take."""
    seaweedfs_proxy.add(
        Fault("error", operation="UploadPart", path="run/2/", status=403, code="AccessDenied", times=99),
        Fault("delay", operation="UploadPart", path="run/[013]/", seconds=4.0, times=3),
    )
    outcomes = worlds(4).run(apart, f"{seaweedfs_bucket.url}/run", 1)
    failed = outcomes.pop(2)[1]
    assert isinstance(failed, CheckpointException)
    assert [type(error) for error, _ in failed.failures.values()] == [PermissionDeniedError]
    assert_all_done(outcomes)


def load_in_groups(url: str, seed: int) -> Timed:
    """Ranks 0 and 1, and ranks 2 and 3, load together; rank 2 has little time."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    rank = dist.get_rank()
    mine = groups[rank // 2]
    state = scenarios.blanked(full(seed))
    reader = CloudStorageReader(url, deadline=2.0 if rank == 2 else None, stall_timeout=600.0)
    try:
        found = timed(lambda: dcp.load(state, storage_reader=reader, process_group=mine))
    finally:
        dist.destroy_process_group(mine)
    if found[1] is None:
        scenarios.assert_same(state, full(seed))
    return found


def test_groups_that_load_the_same_fail_apart(
    seaweedfs_bucket: Bucket, seaweedfs_proxy: FaultProxy, worlds: World
) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    dcp.save(full(1), storage_writer=CloudStorageWriter(url))
    seaweedfs_proxy.add(Fault("delay", path=r"\.distcp$", seconds=6.0, times=9999))
    outcomes = worlds(4).run(load_in_groups, url, 1)
    assert_all_done(outcomes[:2])
    for _, error in outcomes[2:]:
        assert isinstance(error, CheckpointException)
        assert {rank: type(cause) for rank, (cause, _) in error.failures.items()} == {
            0: DeadlineExceededError,
            1: PeerFailedError,
        }
