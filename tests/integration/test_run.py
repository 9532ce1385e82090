"""A training run on real stores: steps, facts, retention, leases, ownership, resuming."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from support.command import as_json, command
from support.ranks import Ranks
from support.web import Folder
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import (
    Best,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointRun,
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
    ConfigurationError,
    RunTakenOverError,
    TransientError,
)
from dcp_core.config import TransferOptions
from dcp_core.run.leases import hold
from dcp_core.run.ranks import told_by_first_rank
from dcp_core.transfer.transfer import Transfer

World = Callable[[int], Ranks]


@pytest.fixture
def url(bucket: Bucket) -> str:
    return f"{bucket.url}/run"


def state(step: int) -> dict[str, Any]:
    return {"weights": torch.full((300,), float(step)), "step": step}


@contextlib.contextmanager
def running(url: str, **options: Any) -> Iterator[CheckpointRun]:
    with CheckpointRun(url, **options) as run:
        yield run


def committed(run: CheckpointRun) -> list[int]:
    return [info.step for info in run.steps() if info.committed]


def loaded(run: CheckpointRun, step: int | None = None, **options: Any) -> int:
    """The step that was loaded, which the state must be of."""
    target = {"weights": torch.zeros(300), "step": -1}
    found = run.load(target, step, **options)
    scenarios.assert_same(target, state(found.step))
    return found.step


def test_a_new_run_is_empty(url: str) -> None:
    with running(url) as run:
        assert run.steps() == []
        assert run.latest() is None
        with pytest.raises(CheckpointNotFoundError, match="has no step to load"):
            run.load(state(0))


def test_the_newest_committed_step_is_loaded(bucket: Bucket, url: str) -> None:
    with running(url) as run:
        for step in (9, 100, 10):
            run.save(step, state(step))
        bucket.write("run/step-200/__0_0.0123456789abcdef.distcp", b"of a save that never ended")
        assert [(info.step, info.committed) for info in run.steps()] == [
            (9, True),
            (10, True),
            (100, True),
            (200, False),
        ]
        assert loaded(run) == 100
        assert loaded(run, 10) == 10
        with pytest.raises(CheckpointNotFoundError, match="has no step to load 200"):
            run.load(state(0), 200)
    # what a run is, is nothing but checkpoints
    target = {"weights": torch.zeros(300), "step": -1}
    dcp.load(target, storage_reader=CloudStorageReader(f"{url}/step-9"))
    scenarios.assert_same(target, state(9))


def test_only_what_the_rules_keep_is_kept(bucket: Bucket, url: str) -> None:
    losses = {0: 5.0, 10: 1.0, 20: 3.0, 30: 2.0, 40: 9.0, 50: 8.0}
    with running(url, keep_last=2, keep_every=20, keep_best=Best("loss", 1)) as run:
        for step, loss in losses.items():
            run.save(step, state(step), metrics={"loss": loss})
        run.close()
        assert committed(run) == [0, 10, 20, 40, 50]
        for step in committed(run):
            assert loaded(run, step) == step
    gone = [key for key in bucket.keys("run/step-30/") if not key.endswith("/")]
    assert gone == []


def test_facts_lie_in_the_record(url: str) -> None:
    with running(url) as run:
        run.save(3, state(3), metrics={"loss": 0.25}, facts={"user": "ümläut", "tags": [1, 2]})
        (info,) = run.steps()
        facts = run.facts(info)
    assert facts["step"] == 3
    assert facts["metrics"] == {"loss": 0.25}
    assert facts["own"] == {"user": "ümläut", "tags": [1, 2]}
    assert facts["world_size"] == 1
    assert facts["torch"] == torch.__version__
    assert abs(facts["time"] - time.time()) < 3600
    with running(url) as run, pytest.raises(ConfigurationError, match="JSON"):
        run.save(4, state(4), facts={"no": object()})
    with running(url) as run, pytest.raises(ConfigurationError, match="a metric is a number"):
        run.save(4, state(4), metrics={"loss": "low"})  # type: ignore[dict-item]
    with running(url) as run:
        assert committed(run) == [3]


def test_stock_torch_passes_over_the_facts(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    with running(f"{seaweedfs_bucket.url}/run") as run:
        run.save(1, state(1), metrics={"loss": 1.0}, facts={"note": "x" * 5000})
    Folder(tmp_path).copy(seaweedfs_bucket, "run/step-1/")
    target = {"weights": torch.zeros(300), "step": -1}
    (record,) = tmp_path.rglob(".metadata")
    dcp.load(target, checkpoint_id=record.parent)
    scenarios.assert_same(target, state(1))
    reader = dcp.FileSystemReader(record.parent)
    assert set(reader.read_metadata().state_dict_metadata) == {"weights", "step"}


def test_a_leased_step_stays(bucket: Bucket, url: str) -> None:
    with running(url, keep_last=1) as run:
        run.save(1, state(1))
        place = run._place
        with hold(place.writable_store(), place.location, 1, Transfer(TransferOptions(), 0), 600.0):
            assert not run.delete(1)
            run.save(2, state(2))
            run.close()
            assert loaded(run, 1) == 1
        run.save(3, state(3))
        run.close()
        assert committed(run) == [3]
    leases = [key for key in bucket.keys("run/.run/leases/") if not key.endswith("/clock")]
    assert [key for key in leases if not key.endswith("/")] == []


def test_the_newer_job_saves_and_the_older_one_stops(url: str) -> None:
    with running(url) as older, running(url) as newer:
        older.save(1, state(1))
        newer.save(2, state(2))
        with pytest.raises(CheckpointException) as caught:
            older.save(3, state(3))
        (error,) = [cause for cause, _ in caught.value.failures.values()]
        assert isinstance(error, RunTakenOverError)
        assert "another job saves to" in str(error)
        assert "end one of the two" in str(error)
        newer.save(4, state(4))
        assert committed(newer) == [1, 2, 4]
        assert loaded(older) == 4


def test_a_damaged_step_is_passed_over_if_asked(
    bucket: Bucket, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(url) as run:
        for step in (1, 2, 3):
            run.save(step, state(step))
        (data,) = [key for key in bucket.keys("run/step-3/") if key.endswith(".distcp")]
        whole = bucket.read(data)
        at = whole.index(scenarios.bits(state(3)["weights"])) + 100
        bucket.write(data, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        bucket.delete("run/step-2/.metadata")
        with pytest.raises(CheckpointException) as caught:
            run.load(state(0))
        assert isinstance(caught.value.failures[0][0], CheckpointCorruptError)
        assert loaded(run, fall_back=True) == 1
        assert "step 3 of" in caplog.text
        assert "is damaged, trying the one before" in caplog.text
        bucket.delete("run/step-1/.metadata")
        with pytest.raises(CheckpointNotFoundError, match="3 are damaged"):
            run.load(state(0), fall_back=True)


def test_a_failed_save_is_no_step_and_harms_none(
    proxy: FaultProxy, seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_attempts": 1}
    with running(f"{seaweedfs_bucket.url}/run", keep_last=1, **options) as run:
        run.save(1, state(1))
        proxy.add(Fault("error", operation="PutObject", path=".distcp", status=403, code="AccessDenied"))
        with pytest.raises(CheckpointException):
            run.save(2, state(2))
        assert committed(run) == [1]
        assert loaded(run) == 1
        run.save(3, state(3))
        run.close()
        assert committed(run) == [3]


def test_a_listing_that_fails_is_an_error_and_not_an_empty_run(
    proxy: FaultProxy, seaweedfs_bucket: Bucket
) -> None:
    with running(f"{seaweedfs_bucket.url}/run", max_attempts=2) as run:
        run.save(1, state(1))
        proxy.add(Fault("error", operation="ListObjectsV2", status=503, code="SlowDown", times=1))
        assert committed(run) == [1]
        proxy.add(Fault("error", operation="ListObjectsV2", status=503, code="SlowDown", times=99))
        for ask in (run.steps, run.latest, lambda: run.load(state(0))):
            with pytest.raises(TransientError, match="ListObjectsV2"):
                ask()


def test_a_thousand_steps_take_three_requests(proxy: FaultProxy, seaweedfs_bucket: Bucket) -> None:
    """Whatever the number of ranks: data objects are rolled up."""
    url = f"{seaweedfs_bucket.url}/run"
    dcp.save(state(999), storage_writer=CloudStorageWriter(f"{url}/step-999"))
    record = seaweedfs_bucket.read("run/step-999/.metadata")
    for step in range(999):
        failed = step in (17, 500, 998)
        for rank in range(2):
            seaweedfs_bucket.write(f"run/step-{step}/__{rank}_0.0123456789abcdef.distcp", b"x")
        if not failed:
            seaweedfs_bucket.write(f"run/step-{step}/.metadata", record)
    with running(url) as run:
        proxy.clear()
        before = len(proxy.requests)
        newest = run.latest()
        asked = len(proxy.requests) - before
        assert newest is not None
        assert newest.step == 999
        assert asked <= 3
        assert len(committed(run)) == 997


def test_async_saves_are_steps_once_they_are_done(url: str) -> None:
    with running(url, keep_last=2) as run:
        for step in (1, 2, 3):
            kept = state(step)
            done = run.async_save(step, kept)
            kept["weights"].fill_(-1)
            done.result()
        run.close()
        assert committed(run) == [2, 3]
        assert loaded(run) == 3


def _save_sharded(url: str, steps: list[int]) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    with CheckpointRun(url, keep_last=2) as run:
        for step in steps:
            whole = torch.arange(64.0).reshape(8, 8) + step
            run.save(step, {"w": distribute_tensor(whole, scenarios.mesh(), [Shard(0)])})


def _resume_sharded(url: str) -> tuple[int, torch.Tensor, list[int]]:
    from torch.distributed.tensor import Shard, distribute_tensor

    with CheckpointRun(url, keep_last=2) as run:
        target = {"w": distribute_tensor(torch.zeros(8, 8), scenarios.mesh(), [Shard(1)])}
        found = run.load(target)
        return found.step, target["w"].full_tensor(), [info.step for info in run.steps() if info.committed]


def test_another_number_of_ranks_resumes(seaweedfs_bucket: Bucket, worlds: World) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    worlds(4).run(_save_sharded, url, [1, 2, 3])
    for step, whole, steps in worlds(2).run(_resume_sharded, url):
        assert step == 3
        assert torch.equal(whole, torch.arange(64.0).reshape(8, 8) + 3)
        assert steps == [2, 3]


@pytest.mark.parametrize("step", [-1, 1.5, "3", True])
def test_a_step_is_a_whole_number(seaweedfs_bucket: Bucket, step: Any) -> None:
    with running(f"{seaweedfs_bucket.url}/run") as run:
        with pytest.raises(ConfigurationError, match="a step is a whole number from 0"):
            run.save(step, state(0))
        assert seaweedfs_bucket.keys() == []


def test_the_command_lists_steps(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    assert "no steps at" in command("ls", url, code=1)
    with running(url) as run:
        run.save(1, state(1), metrics={"loss": 0.5}, facts={"who": "me"})
        run.save(20, state(20))
    seaweedfs_bucket.write("run/step-30/__0_0.0123456789abcdef.distcp", b"unfinished")
    rows = as_json("ls", url, "--size")
    assert [(row["step"], row["committed"]) for row in rows] == [(1, True), (20, True), (30, False)]
    assert rows[0]["metrics"] == {"loss": 0.5}
    assert rows[0]["facts"]["own"] == {"who": "me"}
    assert rows[2]["size"] == len(b"unfinished")
    table = command("ls", url).splitlines()
    assert "step-1 " in table[1]
    assert "loss=0.5" in table[1]
    assert "unfinished" in table[3]


def test_a_folder_that_holds_more_than_a_failed_save_left_stays(seaweedfs_bucket: Bucket) -> None:
    """Such as a model that was exported as a step."""
    url = f"{seaweedfs_bucket.url}/run"
    there = ["run/step-1/__0_0.0123456789abcdef.distcp", "run/step-1/model.safetensors"]
    for key in there:
        seaweedfs_bucket.write(key, b"not a checkpoint")
    time.sleep(1.1)
    with running(url, keep_last=5, leftovers_after=timedelta(seconds=1)) as run:
        run.save(3, state(3))
        run.close()
        assert set(there) <= set(seaweedfs_bucket.keys())
        assert committed(run) == [3]


def test_a_step_that_was_looked_up_is_loaded_without_another_look(
    proxy: FaultProxy, seaweedfs_bucket: Bucket
) -> None:
    with running(f"{seaweedfs_bucket.url}/run") as run:
        for step in (1, 2, 3):
            run.save(step, state(step))
        first, second, _ = run.steps()
        proxy.clear()
        target = state(0)
        assert run.load(target, second).step == 2
        scenarios.assert_same(target, state(2))
        assert "ListObjectsV2" not in proxy.operations()
        run.delete(1)
        with pytest.raises(CheckpointNotFoundError, match="no step to load 1"):
            run.load(target, first, fall_back=True)


def test_leftovers_of_superseded_steps_go_when_they_are_old(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    left = "run/step-1/__0_0.0123456789abcdef.distcp"
    seaweedfs_bucket.write(left, b"of a failed save")
    with running(url, keep_last=5) as run:
        run.save(2, state(2))
        run.close()
        assert left in seaweedfs_bucket.keys()
    time.sleep(1.1)
    with running(url, keep_last=5, leftovers_after=timedelta(seconds=1)) as run:
        run.save(3, state(3))
        run.close()
        assert left not in seaweedfs_bucket.keys()
        assert committed(run) == [2, 3]


def test_what_was_saved_last_stays_whatever_its_number(
    seaweedfs_bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    """Training that begins anew at a lower step would lose each save at once, to those of before."""
    url = f"{seaweedfs_bucket.url}/runs/anew"
    with CheckpointRun(url, keep_last=2) as run:
        for step in (8, 9, 10):
            run.save(step, {"weight": torch.full((3,), float(step))})
    # stores count in seconds
    time.sleep(1.1)
    with caplog.at_level(logging.WARNING, "dcp_core"), CheckpointRun(url, keep_last=2) as run:
        run.save(4, {"weight": torch.full((3,), 4.0)})
    with CheckpointRun(url) as run:
        assert [info.step for info in run.steps()] == [4, 9, 10]
        assert "step 4 of" in caplog.text


def ask_wrongly() -> str:
    def ask() -> int:
        raise KeyError("what")

    try:
        told_by_first_rank(ask)
    except CloudCheckpointError as error:
        return str(error)
    return ""


def test_no_error_of_the_first_rank_leaves_the_others_waiting(worlds: World) -> None:
    said = worlds(2).run(ask_wrongly)
    assert said == ["KeyError: 'what' [rank 0]"] * 2
