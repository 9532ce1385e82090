"""Accelerate and the Trainer of transformers with checkpoints in buckets, with the real packages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from fsspec.registry import _registry
from support.ranks import Ranks

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from support import accelerate_jobs as jobs
from support import pages
from support.killed import finished, killed_while_saving, losses, resumed_from

from dcp_core import CheckpointNotFoundError, CloudStorageReader, ConfigurationError, UnsupportedError

World = Callable[[int], Ranks]
EXAMPLES = Path(__file__).parents[2] / "docs" / "frameworks" / "accelerate"


@pytest.fixture(autouse=True)
def file_systems() -> Iterator[None]:
    """Those that fsspec knows, as they were."""
    known = dict(_registry)
    yield
    _registry.clear()
    _registry.update(known)


@pytest.mark.parametrize("kind", ["fsdp", "plain"])
def test_a_state_comes_back_with_all_that_trains_depends_on(
    seaweedfs_bucket: Bucket, worlds: World, kind: str
) -> None:
    url = f"{seaweedfs_bucket.url}/run/step_3"
    expected = worlds(2).run(jobs.save_and_go_on, kind, url)
    assert expected[0] != expected[1]
    # all of it is one checkpoint
    others = [key for key in seaweedfs_bucket.keys("run/") if not key.startswith("run/step_3/__")]
    assert others == ["run/step_3/.metadata"]
    record = CloudStorageReader(url).read_metadata()
    assert len(record.state_dict_metadata["model_0.0.weight"].chunks) == (2 if kind == "fsdp" else 1)
    for (found, count, rate), wanted in zip(
        worlds(2).run(jobs.load_and_go_on, kind, url), expected, strict=True
    ):
        assert found == wanted
        assert count == 3
        assert rate == pytest.approx(1e-4)


def test_a_state_loads_on_fewer_ranks(seaweedfs_bucket: Bucket, worlds: World) -> None:
    url = f"{seaweedfs_bucket.url}/run/step_3"
    worlds(2).run(jobs.save_and_go_on, "fsdp", url)
    for kind in ("fsdp", "plain"):
        ((found, count),) = worlds(1).run(jobs.load_only, kind, url)
        assert count == 3
        stored = {"model_0": {name: torch.zeros_like(value) for name, value in found.items()}}
        dcp.load(stored, storage_reader=CloudStorageReader(url))
        assert len(found) == 4
        for name, value in found.items():
            assert torch.equal(value, stored["model_0"][name])


def test_a_folder_goes_the_way_it_went(worlds: World, tmp_path: Path) -> None:
    names = worlds(2).run(jobs.save_to_folder, "fsdp", str(tmp_path / "state"))[0]
    assert {"pytorch_model_fsdp_0", "optimizer_0", "scheduler.bin", "random_states_1.pkl"} <= set(names)


def test_what_cannot_be_saved_is_said(seaweedfs_bucket: Bucket, worlds: World) -> None:
    (error,) = worlds(1).outcomes(jobs.with_a_hook, f"{seaweedfs_bucket.url}/run")
    assert isinstance(error, UnsupportedError)
    assert "hooks" in str(error)
    assert seaweedfs_bucket.keys() == []


def whole(bucket: Bucket) -> list[str]:
    """Checkpoints of the run, as the bucket has them."""
    return [key.split("/")[1] for key in bucket.keys("run/") if key.endswith("/.metadata")]


@pytest.mark.parametrize("kind", ["fsdp", "plain"])
def test_the_trainer_resumes_as_if_nothing_had_happened(
    seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path, kind: str
) -> None:
    run = f"{seaweedfs_bucket.url}/run"
    options = {"checkpoint_url": run}
    train = functools.partial(jobs.train, **options)
    expected = worlds(2).run(train, kind, str(tmp_path))[0]
    assert sorted(expected) == list(range(1, 7))
    # of three two are kept, and nothing of the other; none is on the disk
    assert {key.split("/")[1] for key in seaweedfs_bucket.keys("run/")} == {"checkpoint-4", "checkpoint-6"}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    record = CloudStorageReader(f"{run}/checkpoint-4").read_metadata().state_dict_metadata
    assert len(record["model.model.embed_tokens.weight"].chunks) == (2 if kind == "fsdp" else 1)
    assert "files/0/config.json" in record
    for key in seaweedfs_bucket.keys("run/checkpoint-6/"):
        seaweedfs_bucket.delete(key)
    resumed = worlds(2).run(train, kind, str(tmp_path), True)[0]
    assert resumed == expected
    assert whole(seaweedfs_bucket) == ["checkpoint-4", "checkpoint-6"]


def test_the_trainer_resumes_on_fewer_ranks_and_shards(
    seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path
) -> None:
    run = f"{seaweedfs_bucket.url}/run"
    train = functools.partial(jobs.train, checkpoint_url=run, max_steps=2)
    expected = worlds(2).run(train, "fsdp", str(tmp_path))[0]
    more = functools.partial(jobs.train, checkpoint_url=run, max_steps=4)
    for kind in ("plain", "fsdp"):
        (resumed,) = worlds(1).run(more, kind, str(tmp_path), f"{run}/checkpoint-2")
        assert {step: resumed[step] for step in expected} == expected
        assert sorted(resumed) == [1, 2, 3, 4]


def test_no_checkpoint_to_resume_from_is_an_error(
    seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path
) -> None:
    train = functools.partial(jobs.train, checkpoint_url=f"{seaweedfs_bucket.url}/run")
    (error,) = worlds(1).outcomes(train, "plain", str(tmp_path), True)
    assert isinstance(error, CheckpointNotFoundError)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    (error,) = worlds(1).outcomes(functools.partial(train, **best), "plain", str(tmp_path))
    assert isinstance(error, UnsupportedError)
    (error,) = worlds(1).outcomes(
        functools.partial(jobs.train, checkpoint_url="/folder"), "plain", str(tmp_path)
    )
    assert isinstance(error, ConfigurationError)


def test_training_goes_on_where_nothing_can_be_deleted(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, worlds: World, tmp_path: Path
) -> None:
    proxy.add(Fault("error", operation="DeleteObjects", status=403, code="AccessDenied", times=99))
    train = functools.partial(jobs.train, checkpoint_url=f"{seaweedfs_bucket.url}/run")
    (found,) = worlds(1).run(train, "plain", str(tmp_path))
    assert sorted(found) == list(range(1, 7))
    assert whole(seaweedfs_bucket) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


class Example(NamedTuple):
    """What is run, what it saves, where it is killed, and what must be there then and in the end."""

    script: str
    end: str
    name: str
    killed: int
    kept: list[int]
    last: list[int]

    def checkpoints(self, numbers: list[int]) -> list[str]:
        return [f"{self.name}{number}" for number in numbers]


@pytest.mark.parametrize(
    "example",
    [
        Example("train.py", "--epochs=6", "epoch-", 4, [2, 3], [5, 6]),
        Example("trainer.py", "--steps=8", "checkpoint-", 6, [2, 4], [6, 8]),
    ],
    ids=["accelerate", "trainer"],
)
def test_the_examples_are_killed_while_they_save_and_go_on(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, tmp_path: Path, example: Example
) -> None:
    script, run = EXAMPLES / example.script, f"{seaweedfs_bucket.url}/run"
    expected = losses(finished(script, [f"{seaweedfs_bucket.url}/whole", example.end], tmp_path))
    assert len(expected) == int(example.end.partition("=")[2])
    killed = f"run/{example.name}{example.killed}"
    said = killed_while_saving(script, [run, example.end], tmp_path, proxy, f"{killed}/.metadata")
    assert resumed_from(said) == "None"
    assert whole(seaweedfs_bucket) == example.checkpoints(example.kept)
    # data of the save that was killed is there, and is no checkpoint
    assert any(key.startswith(f"{killed}/__") for key in seaweedfs_bucket.keys("run/"))
    resumed = finished(script, [run, example.end], tmp_path)
    assert resumed_from(resumed) == f"{run}/{example.name}{example.kept[-1]}"
    again = losses(resumed)
    assert 0 < len(again) < len(expected)
    assert {number: expected[number] for number in again} == again
    assert {**losses(said), **again} == expected
    assert whole(seaweedfs_bucket) == example.checkpoints(example.last)


def test_blocks_of_the_page_run(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    names = {"BUCKET": seaweedfs_bucket.name, "FOLDER": str(tmp_path)}
    assert pages.run_blocks("docs/frameworks/accelerate.md", names, tmp_path) == 2
    assert whole(seaweedfs_bucket) == ["epoch-2", "epoch-3"]
    assert "trainer/checkpoint-4/.metadata" in seaweedfs_bucket.keys()
