"""TorchTitan with its checkpoints in a bucket: its own manager through fsspec, and ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import titan
from support.ranks import Ranks
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import CheckpointNotFoundError, CheckpointRun, TransientError

pytest.importorskip("torchtitan")

ROOT = Path(__file__).resolve().parents[2]
MODES = ["disabled", "async", "async_with_pinned_mem"]


@pytest.fixture(scope="module")
def titans() -> Iterator[Ranks]:
    """Two ranks of their own: what the opt-in changes in them stays there."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def settings(bucket: Bucket, **more: Any) -> dict[str, Any]:
    return {"folder": f"{bucket.url}/run", "keep_latest_k": 2, **more}


def steps(bucket: Bucket, name: str = ".metadata") -> list[int]:
    """Steps with an object of this name, as the server has them."""
    found = [re.fullmatch(rf"run/step-(\d+)/{re.escape(name)}", key) for key in bucket.keys("run/")]
    return sorted(int(match[1]) for match in found if match)


def folders(bucket: Bucket) -> set[str]:
    return {key.split("/")[1] for key in bucket.keys("run/") if "/step-" in key and not key.endswith("/")}


@pytest.mark.parametrize("kind", ["theirs", "ours"])
@pytest.mark.parametrize("mode", MODES)
def test_a_job_that_stopped_goes_on_with_equal_losses(
    titans: Ranks, seaweedfs_bucket: Bucket, kind: str, mode: str
) -> None:
    """And all but the newest two steps are gone from the bucket, whole folders."""
    how = settings(seaweedfs_bucket, async_mode=mode)
    whole = titans.run(titan.train, kind, {**how, "folder": f"{seaweedfs_bucket.url}/whole"})
    titans.run(titan.train, kind, how, 4)
    assert steps(seaweedfs_bucket)[-2:] == [3, 4]
    # TorchTitan looks while the newest is under way, and may keep one more
    assert folders(seaweedfs_bucket) <= {"step-3", "step-4"} | ({"step-2"} if kind == "theirs" else set())
    for rank, (found, at, losses) in enumerate(titans.run(titan.resume, kind, how)):
        assert (found, at) == (True, 4)
        assert losses == {5: whole[rank][5]}
    for rank, (_, at, losses) in enumerate(titans.run(titan.resume, kind, how, 3)):
        assert at == 3
        assert losses == {step: whole[rank][step] for step in (4, 5)}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_new_run_is_found_empty_by_one_request_of_one_rank(
    titans: Ranks, proxy: FaultProxy, seaweedfs_bucket: Bucket
) -> None:
    assert [found for found, _, _ in titans.run(titan.load, "ours", settings(seaweedfs_bucket))] == [
        False
    ] * 2
    assert proxy.operations() == ["ListObjectsV2"]
    titans.run(titan.train, "ours", settings(seaweedfs_bucket), 3)
    proxy.clear()
    assert [at for _, at, _ in titans.run(titan.load, "ours", settings(seaweedfs_bucket))] == [3, 3]
    lists = [seen for seen in proxy.requests if seen.operation == "ListObjectsV2"]
    assert len(lists) == 1


@pytest.mark.parametrize("kind", ["theirs", "ours"])
def test_a_listing_that_is_refused_is_no_new_run(
    titans: Ranks, proxy: FaultProxy, seaweedfs_bucket: Bucket, kind: str
) -> None:
    how = settings(seaweedfs_bucket)
    titans.run(titan.train, kind, how, 2)
    proxy.add(Fault("error", operation="ListObjectsV2", status=503, code="SlowDown", times=2))
    assert [at for _, at, _ in titans.run(titan.load, kind, {**how, "options": {"max_attempts": 3}})] == [
        2,
        2,
    ]
    proxy.add(Fault("error", operation="ListObjectsV2", status=503, code="SlowDown", times=99))
    outcomes = titans.outcomes(titan.load, kind, {**how, "options": {"max_attempts": 1}})
    assert all(isinstance(outcome, TransientError) for outcome in outcomes)


def test_a_step_that_is_not_there_is_named(titans: Ranks, seaweedfs_bucket: Bucket) -> None:
    titans.run(titan.train, "ours", settings(seaweedfs_bucket), 2)
    for outcome in titans.outcomes(titan.load, "ours", settings(seaweedfs_bucket), 7):
        assert isinstance(outcome, CheckpointNotFoundError)
        assert isinstance(outcome, FileNotFoundError)
        assert "load_step=7" in str(outcome)
        assert "steps there: 1, 2" in str(outcome)


def test_a_save_that_failed_is_no_step_and_is_cleared_away(
    titans: Ranks, proxy: FaultProxy, seaweedfs_bucket: Bucket
) -> None:
    how = settings(seaweedfs_bucket, options={"max_attempts": 1})
    titans.run(titan.train, "ours", how, 2)
    proxy.add(
        Fault("error", operation="PutObject", path=".metadata", status=403, code="AccessDenied", times=1)
    )
    for outcome in titans.outcomes(titan.train, "ours", how, 3):
        assert isinstance(outcome, CheckpointException)
    assert steps(seaweedfs_bucket) == [1, 2]
    assert [at for _, at, _ in titans.run(titan.load, "ours", how)] == [2, 2]


def test_what_could_not_be_purged_goes_after_the_next_save(
    titans: Ranks, proxy: FaultProxy, seaweedfs_bucket: Bucket
) -> None:
    how = settings(seaweedfs_bucket, options={"max_attempts": 1})
    proxy.add(Fault("error", operation="DeleteObjects", status=403, code="AccessDenied", times=1))
    titans.run(titan.train, "ours", how, 3)
    assert steps(seaweedfs_bucket) == [1, 2, 3]
    titans.run(titan.train, "ours", how, 4)
    assert folders(seaweedfs_bucket) == {"step-3", "step-4"}


@pytest.mark.parametrize("kind", ["theirs", "ours"])
def test_a_seed_checkpoint_is_loaded_as_a_model(titans: Ranks, bucket: Bucket, kind: str) -> None:
    seed = titans.run(titan.save_seed, kind, settings(bucket, last_save_model_only=True))
    for rank, (found, at, weights) in enumerate(titans.run(titan.load, kind, settings(bucket))):
        assert (found, at) == (True, 0)
        assert same(weights, seed[rank])


@pytest.mark.parametrize("kind", ["theirs", "ours"])
@pytest.mark.parametrize("model_only", [True, False])
def test_a_new_run_begins_with_another_ones_step(
    titans: Ranks, seaweedfs_bucket: Bucket, kind: str, model_only: bool
) -> None:
    other = {"folder": f"{seaweedfs_bucket.url}/other"}
    before = titans.run(titan.weights_after, kind, other, 2)
    how = settings(
        seaweedfs_bucket,
        initial_load_path=f"{seaweedfs_bucket.url}/other/step-2",
        initial_load_model_only=model_only,
    )
    for rank, (found, at, weights) in enumerate(titans.run(titan.load, kind, how)):
        assert (found, at) == (True, 0 if model_only else 2)
        assert same(weights, before[rank])
    # and once it has steps of its own, with those
    titans.run(titan.train, kind, how, 4)
    assert [at for _, at, _ in titans.run(titan.load, kind, how)] == [4, 4]


def test_a_local_folder_begins_with_a_step_at_a_url(
    titans: Ranks, seaweedfs_bucket: Bucket, tmp_path: Path
) -> None:
    """And is TorchTitan's own otherwise."""
    before = titans.run(titan.weights_after, "ours", settings(seaweedfs_bucket), 2)
    how = {
        "folder": str(tmp_path / "run"),
        "keep_latest_k": 2,
        "initial_load_path": f"{seaweedfs_bucket.url}/run/step-2",
    }
    for rank, (found, at, weights) in enumerate(titans.run(titan.load, "ours", how)):
        assert (found, at) == (True, 0)
        assert same(weights, before[rank])
    titans.run(titan.train, "ours", how, 3)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-2", "step-3"]
    assert [at for _, at, _ in titans.run(titan.load, "ours", how)] == [3, 3]


def test_a_last_save_of_the_model_alone_is_none_to_go_on_from(
    titans: Ranks, seaweedfs_bucket: Bucket
) -> None:
    how = settings(seaweedfs_bucket, last_save_model_only=True, export_dtype="bfloat16")
    titans.run(titan.train, "ours", how)
    assert steps(seaweedfs_bucket) == [4, 5]
    with CheckpointRun(f"{seaweedfs_bucket.url}/run") as run:
        assert [run.facts(info)["own"]["model_only"] for info in run.steps()] == [False, True]
    assert [at for _, at, _ in titans.run(titan.load, "ours", how)] == [4, 4]


def test_a_model_leaves_and_comes_back_as_files_of_huggingface(
    titans: Ranks, seaweedfs_bucket: Bucket, tmp_path: Path
) -> None:
    how = settings(seaweedfs_bucket, last_save_model_only=True, last_save_in_hf=True)
    after, _ = titans.run(titan.weights_after, "ours", how, titan.STEPS)
    files = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    keys = [key for key in seaweedfs_bucket.keys("run/step-5/") if not key.endswith("/")]
    assert keys == [f"run/step-5/{name}" for name in (*files, "model.safetensors.index.json")]
    exported: dict[str, torch.Tensor] = {}
    for name in files:
        exported.update(safetensors.torch.load(seaweedfs_bucket.read(f"run/step-5/{name}")))
    assert same(exported, {f"model.{name}": value for name, value in after.items()})

    # the job goes on from its newest whole step, and the export stays
    assert [at for _, at, _ in titans.run(titan.load, "ours", how)] == [4, 4]
    titans.run(titan.train, "ours", {**how, "interval": 1}, 4)
    assert steps(seaweedfs_bucket, files[0]) == [5]

    come = {
        "folder": f"{seaweedfs_bucket.url}/new",
        "initial_load_path": f"{seaweedfs_bucket.url}/run/step-5",
        "initial_load_in_hf": True,
    }
    for found, at, weights in titans.run(titan.load, "ours", come):
        assert (found, at) == (True, 0)
        assert same(weights, after)


def test_torchtitans_checks_hold_and_urls_with_huggingfaces_files_pass(titans: Ranks) -> None:
    files = {"folder": "s3://b/run", "last_save_in_hf": True, "last_save_model_only": True}
    imports = {"folder": "s3://b/run", "initial_load_path": "s3://b/hf", "initial_load_in_hf": True}
    for how in (files, imports):
        for outcome in titans.outcomes(titan.settings_of, "theirs", how):
            assert isinstance(outcome, ValueError)
        for logged in titans.run(titan.settings_of, "ours", how):
            assert how.items() <= logged.items()
    for wrong in (
        {"folder": " "},
        {"folder": "s3://b/run", "keep_latest_k": 1},
        {"folder": "s3://b/run", "last_save_in_hf": True, "last_save_model_only": False},
        {"folder": "s3://b/run", "initial_load_path": "not/absolute"},
        {"folder": "s3:/b/run"},
    ):
        for outcome in titans.outcomes(titan.settings_of, "ours", wrong):
            assert isinstance(outcome, ValueError)


def test_values_of_options_are_not_logged(titans: Ranks) -> None:
    how = {"folder": "s3://b/run", "options": {"access_key_id": "me", "secret_access_key": "mine"}}
    for logged in titans.run(titan.settings_of, "ours", how):
        assert logged["options"] == ["access_key_id", "secret_access_key"]
        assert "mine" not in str(logged)


def test_the_manager_is_chosen_on_the_command_line(titans: Ranks) -> None:
    url = "s3://b/run"
    arguments = ["--enable", "--folder", url, "--async-mode", "async", "--fall-back"]
    for name, said in titans.run(titan.from_command_line, arguments):
        assert name == "CloudCheckpointManager.Config"
        assert {
            "enable": True,
            "folder": url,
            "async_mode": "async",
            "fall_back": True,
        }.items() <= said.items()
    target = "dcp_core.frameworks.torchtitan.cloud_checkpoints"
    more = '={"part_size": 8388608, "last_save_in_hf": true, "last_save_model_only": true}'
    for name, said, options in titans.run(
        titan.overridden, {"folder": url, "keep_latest_k": 3}, target + more
    ):
        assert name == "CloudCheckpointManager.Config"
        assert {"folder": url, "keep_latest_k": 3, "last_save_in_hf": True}.items() <= said.items()
        assert options == {"part_size": 8388608}


def test_a_damaged_step_is_an_error_or_if_asked_the_one_before_is_loaded(
    titans: Ranks, seaweedfs_bucket: Bucket
) -> None:
    how = settings(seaweedfs_bucket)
    titans.run(titan.train, "ours", how, 3)
    for key in seaweedfs_bucket.keys("run/step-3/"):
        if key.endswith(".distcp"):
            data = bytearray(seaweedfs_bucket.read(key))
            data[len(data) // 2] ^= 1
            seaweedfs_bucket.write(key, bytes(data))
    for outcome in titans.outcomes(titan.load, "ours", how):
        assert isinstance(outcome, CheckpointException)
    assert [at for _, at, _ in titans.run(titan.load, "ours", {**how, "fall_back": True})] == [2, 2]


def test_blocks_of_the_page_run(seaweedfs_bucket: Bucket) -> None:
    page = (ROOT / "docs/frameworks/torchtitan.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    asked = "assert checkpoint.enable and checkpoint.folder.startswith('s3://')\n"
    code = "\n".join([f"BUCKET = {seaweedfs_bucket.name!r}", *(block + asked for block in blocks)])
    done = python("-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stderr


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that imports this library from here."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def test_the_example_goes_on_where_it_was_killed(seaweedfs_bucket: Bucket) -> None:
    done = python(str(ROOT / "docs/frameworks/torchtitan/run.py"), f"{seaweedfs_bucket.url}/run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "are those of before" in done.stdout
    assert steps(seaweedfs_bucket) == [8, 12]
    assert folders(seaweedfs_bucket) == {"step-8", "step-12", "step-16"}
    exported = safetensors.torch.load(seaweedfs_bucket.read("run/step-16/model-00001-of-00001.safetensors"))
    assert exported["model.layers.0.self_attn.q_proj.weight"].shape == (256, 256)
