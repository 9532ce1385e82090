"""Saves under faults: a committed checkpoint is whole, and an error says whose it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import Bucket, proxied
from dcp_fault_proxy import Fault, FaultProxy
from support import processes, scenarios
from support.ranks import Ranks
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import (
    CheckpointExistsError,
    CheckpointIncompleteError,
    CloudStorageReader,
    CloudStorageWriter,
    CommitUncertainError,
    ConflictError,
    DeadlineExceededError,
    LoadOptions,
    PeerFailedError,
    TransientError,
    UnsupportedError,
)
from dcp_core.format.layout import is_data_name
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.upkeep.leftovers import Cleanup, Found

World = Callable[[int], Ranks]
MIB = 1 << 20


def small(seed: int) -> dict[str, Any]:
    return {"weight": scenarios.noise(seed, (64, 64)), "step": seed}


def large(seed: int) -> dict[str, torch.Tensor]:
    """12 MiB: three parts of 5 MiB."""
    return {"weight": scenarios.noise(seed, (3, 1024, 1024))}


def save(url: str, state: dict[str, Any], **options: Any) -> None:
    dcp.save(state, storage_writer=CloudStorageWriter(url, **options))


def load(url: str, state: dict[str, Any], **options: Any) -> None:
    """Load and compare with ``state``."""
    target = scenarios.blanked(state)
    dcp.load(target, storage_reader=CloudStorageReader(url, **options))
    scenarios.assert_same(target, state)


def remove_leftovers(url: str) -> None:
    """What ``dcp-cloud gc`` does, at whatever age."""
    with contextlib.closing(CheckpointStore(url, LoadOptions, {})) as checkpoint:
        # the clock of the server may be ahead
        later = datetime.now(timezone.utc) + timedelta(minutes=5)
        cleanup = Cleanup(checkpoint.writable_store(), checkpoint.location, timedelta(0), now=later)
        for finding in cleanup.find():
            if isinstance(finding, Found):
                list(cleanup.remove(finding))


def failure(caught: pytest.ExceptionInfo[CheckpointException], rank: int = 0) -> BaseException:
    error: BaseException = caught.value.failures[rank][0]
    return error


def sharded_save(url: str, seed: int, options: dict[str, Any]) -> None:
    """48 MiB over the ranks of the world."""
    state = scenarios.sharded({"dim 0": scenarios.noise(seed, (12, 1024, 1024))})
    dcp.save(state, storage_writer=CloudStorageWriter(url, **options))


def sharded_load(url: str, seed: int) -> None:
    full = {"dim 0": scenarios.noise(seed, (12, 1024, 1024))}
    state = scenarios.blanked(scenarios.sharded(full))
    dcp.load(state, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(state, full)


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_one_of_four_ranks_fails(
    cloud_bucket: Bucket, proxy: FaultProxy, worlds: World, operation: str
) -> None:
    url, options = f"{cloud_bucket.url}/run", {"part_size": 5 * MIB, "max_attempts": 2}
    worlds(4).run(sharded_save, url, 1, options)
    skip = 1 if operation == "UploadPart" else 0
    proxy.add(
        Fault(
            "error", operation=operation, path="__2_0", status=500, code="InternalError", skip=skip, times=99
        )
    )
    for rank, error in enumerate(worlds(4).outcomes(sharded_save, url, 2, options)):
        assert isinstance(error, CheckpointException), (rank, error)
        cause = error.failures.pop(2)[0]
        # the others may have been done, or were stopped
        for other, (stopped, _) in error.failures.items():
            assert isinstance(stopped, PeerFailedError)
            assert (stopped.rank, stopped.failed_rank) == (other, 2)
        assert isinstance(cause, TransientError)
        assert cause.rank == 2
        assert "/__2_0." in str(cause)
        assert cloud_bucket.name in str(cause)
    proxy.clear()
    # the others were cut: a part that a busy store was receiving may come after the abort, for gc to find
    assert proxy.settle()
    remove_leftovers(url)
    assert cloud_bucket.uploads() == []
    worlds(2).run(sharded_load, url, 1)


class _Together(dcp.DefaultSavePlanner):
    """Holds each of two jobs until both have looked at the bucket."""

    def finish_plan(self, new_plan: dcp.SavePlan) -> dcp.SavePlan:
        dist.barrier()
        return super().finish_plan(new_plan)


def racing_save(url: str, seeds: list[int]) -> None:
    """One job a rank: each saves on its own."""
    writer = CloudStorageWriter(url)
    dcp.save(small(seeds[dist.get_rank()]), storage_writer=writer, planner=_Together(), no_dist=True)


@pytest.mark.parametrize("existing", [False, True])
def test_two_jobs_save_to_one_url(bucket: Bucket, worlds: World, existing: bool) -> None:
    url = f"{bucket.url}/run"
    if existing:
        save(url, small(1))
    outcomes = worlds(2).outcomes(racing_save, url, [2, 3])
    won = [rank for rank, outcome in enumerate(outcomes) if outcome is None]
    assert len(won) == 1, outcomes
    loser = outcomes[1 - won[0]]
    assert isinstance(loser, CheckpointException)
    assert isinstance(loser.failures[0][0], ConflictError)
    load(url, small(2 + won[0]))
    # the loser's data and the replaced data are gone
    assert len(bucket.keys("run/")) == 2


def test_lost_answer_to_the_commit(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxied(bucket, monkeypatch) as proxy:
        for seed in (1, 2):  # a new checkpoint, then an overwrite
            proxy.add(Fault("lose_response", operation="PutObject", path=r"\.metadata$"))
            save(f"{bucket.url}/run", small(seed))
            load(f"{bucket.url}/run", small(seed))
            assert [seen.fault for seen in proxy.requests if seen.fault] == ["lose_response"]
            proxy.clear()


def test_lost_answer_on_the_last_attempt(cloud_bucket: Bucket, proxy: FaultProxy) -> None:
    """Out of attempts, what the bucket holds decides: the commit stands."""
    lost = Fault("lose_response", operation="PutObject", path=r"\.metadata$", times=9)
    proxy.add(lost)
    save(f"{cloud_bucket.url}/run", small(1), max_attempts=1)
    assert lost.hits == 1
    load(f"{cloud_bucket.url}/run", small(1))


def test_commit_that_never_arrives(cloud_bucket: Bucket, proxy: FaultProxy) -> None:
    url = f"{cloud_bucket.url}/run"
    save(url, small(1))
    proxy.add(Fault("error", operation="PutObject", path=r"\.metadata$", times=99))
    with pytest.raises(CheckpointException) as caught:
        save(url, small(2), max_attempts=2)
    assert isinstance(failure(caught), CommitUncertainError)
    load(url, small(1))
    # what this save stored stays: a request that is still on its way may commit it
    assert len(cloud_bucket.keys("run/")) == 3


def test_lost_answer_to_finish_upload(cloud_bucket: Bucket, proxy: FaultProxy) -> None:
    lost = Fault("lose_response", operation="CompleteMultipartUpload")
    proxy.add(lost)
    save(f"{cloud_bucket.url}/run", large(1), part_size=5 * MIB)
    assert lost.hits > 0
    load(f"{cloud_bucket.url}/run", large(1))
    assert cloud_bucket.uploads() == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", operation="UploadPart", times=3),
        Fault("error", operation="UploadPart", status=500, code="InternalError", times=2),
        Fault("reset_request", operation="UploadPart", after=2 * MIB, times=2),
        Fault("lose_response", operation="UploadPart", times=2),
        Fault("flip_request", operation="UploadPart", after=3 * MIB),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_parts_are_tried_again(cloud_bucket: Bucket, proxy: FaultProxy, fault: Fault) -> None:
    proxy.add(fault)
    save(f"{cloud_bucket.url}/run", large(1), part_size=5 * MIB)
    assert fault.hits > 0
    load(f"{cloud_bucket.url}/run", large(1))


def test_stalled_upload_is_cut(cloud_bucket: Bucket, proxy: FaultProxy) -> None:
    stalled = Fault("delay", operation="UploadPart", seconds=120)
    proxy.add(stalled)
    started = time.monotonic()
    save(f"{cloud_bucket.url}/run", large(1), part_size=5 * MIB, stall_timeout=1.0)
    assert time.monotonic() - started < 60
    assert stalled.hits > 1
    load(f"{cloud_bucket.url}/run", large(1))


def test_deadline(cloud_bucket: Bucket, proxy: FaultProxy) -> None:
    proxy.add(Fault("delay", operation="UploadPart", seconds=120, times=99))
    started = time.monotonic()
    with pytest.raises(CheckpointException) as caught:
        save(f"{cloud_bucket.url}/run", large(1), part_size=5 * MIB, stall_timeout=1.0, deadline=3.0)
    assert time.monotonic() - started < 60
    assert isinstance(failure(caught), DeadlineExceededError)
    assert cloud_bucket.uploads() == []


def test_an_error_of_the_planner_is_the_users_own(cloud_bucket: Bucket) -> None:
    """What is raised while a worker asks for data reaches the caller as it is."""

    class Broken(dcp.DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            if write_item.index.fqn == "second":
                raise ZeroDivisionError("in the planner")
            return super().resolve_data(write_item)

    state = {"first": large(1)["weight"], "second": torch.ones(3)}
    writer = CloudStorageWriter(f"{cloud_bucket.url}/run", part_size=5 * MIB)
    with pytest.raises(CheckpointException) as caught:
        dcp.save(state, storage_writer=writer, planner=Broken())
    assert isinstance(failure(caught), ZeroDivisionError)
    assert cloud_bucket.uploads() == []
    assert cloud_bucket.keys() == []


@pytest.mark.parametrize("forgotten", ["weight", "step"])
def test_planner_that_drops_an_item(cloud_bucket: Bucket, forgotten: str) -> None:
    """A tensor or an object: without it the checkpoint is not whole, and is not committed."""

    class Forgetful(dcp.DefaultSavePlanner):
        def finish_plan(self, new_plan: dcp.SavePlan) -> dcp.SavePlan:
            kept = [item for item in new_plan.items if item.index.fqn != forgotten]
            return dcp.SavePlan(kept, planner_data=new_plan.planner_data)

    writer = CloudStorageWriter(f"{cloud_bucket.url}/run")
    with pytest.raises(CheckpointException) as caught:
        dcp.save(small(1), storage_writer=writer, planner=Forgetful())
    assert isinstance(failure(caught), CheckpointIncompleteError)
    assert f"such as {forgotten}" in str(failure(caught))
    assert "run/.metadata" not in cloud_bucket.keys()


def test_overwrite_refused_before_any_upload(cloud_bucket: Bucket, proxy: FaultProxy) -> None:
    url = f"{cloud_bucket.url}/run"
    save(url, small(1))
    proxy.clear()
    with pytest.raises(CheckpointException) as caught:
        save(url, small(2), overwrite=False)
    assert isinstance(failure(caught), CheckpointExistsError)
    assert "overwrite" in str(failure(caught))
    assert proxy.operations() == ["GetObject"]
    load(url, small(1))


def test_store_without_conditional_writes(cloud_bucket: Bucket, proxy: FaultProxy) -> None:
    url = f"{cloud_bucket.url}/run"
    proxy.add(Fault("error", operation="PutObject", path=r"\.metadata$", status=501, code="NotImplemented"))
    with pytest.raises(CheckpointException) as caught:
        save(url, small(1))
    assert isinstance(failure(caught), UnsupportedError)
    assert "conditional_commit=False" in str(failure(caught))
    save(url, small(2), conditional_commit=False)
    load(url, small(2))
    commits = [seen for seen in proxy.requests if seen.path.endswith(".metadata") and seen.method == "PUT"]
    conditions = {"if-none-match", "if-match", "x-goog-if-generation-match"}
    with_condition, without = ({name.lower() for name in seen.headers} for seen in commits)
    assert conditions & with_condition
    assert not conditions & without


def test_few_requests(cloud_bucket: Bucket, proxy: FaultProxy) -> None:
    url = f"{cloud_bucket.url}/run"
    save(url, small(1))
    assert proxy.operations() == ["GetObject", "PutObject", "PutObject"]
    proxy.clear()
    load(url, small(1))
    assert proxy.operations() == ["GetObject", "GetObject"]
    proxy.clear()
    save(url, small(2))
    assert sorted(proxy.operations()) == [
        "DeleteObjects", "GetObject", "GetObject", "PutObject", "PutObject",
    ]  # fmt: skip
    names = [key.removeprefix("run/") for key in cloud_bucket.keys()]
    assert [name for name in names if name != ".metadata" and not is_data_name(name)] == []
    assert len(names) == 2


def test_foreign_objects_survive_an_overwrite(cloud_bucket: Bucket) -> None:
    url = f"{cloud_bucket.url}/run"
    cloud_bucket.write("run/notes.txt", b"mine")
    cloud_bucket.write("run/step-2/.metadata", b"other")
    save(url, small(1))
    save(url, small(2))
    assert {"run/notes.txt", "run/step-2/.metadata"} <= set(cloud_bucket.keys())


def _save_slowly(url: str) -> None:
    save(url, large(2), part_size=5 * MIB)


@pytest.mark.parametrize("at", ["UploadPart", "CompleteMultipartUpload", "PutObject"])
def test_killed_during_a_save(cloud_bucket: Bucket, proxy: FaultProxy, at: str) -> None:
    url = f"{cloud_bucket.url}/run"
    save(url, large(1))
    proxy.clear()
    proxy.add(Fault("delay", operation=at, seconds=20, times=9))
    victim = processes.start(_save_slowly, url)
    ends_at = time.monotonic() + 60
    while at not in proxy.operations() and time.monotonic() < ends_at:
        time.sleep(0.05)
    victim.kill()
    victim.join()
    victim.close()
    assert at in proxy.operations()
    load(url, large(1))
    # and the next save works, whatever the dead one left
    proxy.clear()
    save(url, large(3))
    load(url, large(3))
