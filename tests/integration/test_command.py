"""The command ``dcp-cloud`` on a real bucket."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import scenarios
import torch.distributed.checkpoint as dcp
from conftest import Bucket

from dcp_core import CloudStorageWriter
from dcp_core.bench import measure_bucket

TOKEN = "0123456789abcdef"


def command(*arguments: str, code: int = 0) -> str:
    program = str(Path(sys.executable).parent / "dcp-cloud")
    variables = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def save(url: str) -> None:
    state = {"weight": scenarios.noise(1, (512, 512)), "step": 3}
    dcp.save(state, storage_writer=CloudStorageWriter(url))


def test_inspect(seaweedfs_bucket: Bucket) -> None:
    save(f"{seaweedfs_bucket.url}/run")
    said = command("inspect", f"{seaweedfs_bucket.url}/run")
    assert "[512, 512]" in said
    assert "float32" in said
    assert "1.0 MiB of tensors in 1 data objects" in said
    assert "no committed checkpoint" in command("inspect", f"{seaweedfs_bucket.url}/none", code=1)


def test_gc_removes_only_leftovers(bucket: Bucket) -> None:
    for step in ("step-1", "step-2"):
        save(f"{bucket.url}/run/{step}")
    kept = set(bucket.keys()) | {
        "run/notes.distcp",
        "run/broken/.metadata",
        f"run/broken/__0_0.{TOKEN}.distcp",
    }
    bucket.write("run/notes.distcp", b"not ours")
    bucket.write("run/broken/.metadata", b"garbage")
    bucket.write(f"run/broken/__0_0.{TOKEN}.distcp", b"may be referenced")
    bucket.write(f"run/step-1/__3_0.{TOKEN}.distcp", b"left by a failed save")
    bucket.write(f"run/step-9/__0_0.{TOKEN}.distcp", b"never committed")
    bucket.start_upload(f"run/step-9/__1_0.{TOKEN}.distcp")
    assert "0 objects" in command("gc", f"{bucket.url}/run")  # all too young
    said = command("gc", f"{bucket.url}/run", "--older-than-hours", "-1")
    assert "2 objects" in said
    assert "1 uploads found" in said
    assert "left alone: run/broken/.metadata" in said
    assert len(bucket.keys()) == len(kept) + 2
    command("gc", f"{bucket.url}/run", "--older-than-hours", "-1", "--delete")
    assert set(bucket.keys()) == kept
    assert bucket.uploads() == []


def test_bench_measures_and_leaves_nothing(bucket: Bucket) -> None:
    options = ("--gib", "0.02", "--tensor-mib", "1", "--rounds", "2")
    said = command("bench", f"{bucket.url}/run", *options)
    assert len(re.findall(r"^save \d+\.\d\d GB/s in", said, re.MULTILINE)) == 2
    for operation in ("save", "load"):
        assert f"{operation}, median of 2" in said
    assert bucket.keys() == []
    assert bucket.uploads() == []


@pytest.mark.parametrize(("wanted", "moved"), [((3 << 20) + 5, 3 << 20), (1, 1 << 20)])
def test_bench_counts_the_bytes_it_moves(seaweedfs_bucket: Bucket, wanted: int, moved: int) -> None:
    """Whole tensors, whatever size was asked for: rates are of what was really saved and loaded."""
    url = f"{seaweedfs_bucket.url}/run"
    rounds = list(measure_bucket(url, size=wanted, tensor_size=1 << 20, rounds=1, options={}))
    assert [(one.operation, one.size) for one in rounds] == [("save", moved), ("load", moved)]


def test_bench_with_ranks(seaweedfs_bucket: Bucket) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    program = str(Path(sys.executable).parent / "dcp-cloud")
    options = ("--gib", "0.02", "--tensor-mib", "1", "--rounds", "1")
    done = subprocess.run(
        [*launcher, program, "bench", f"{seaweedfs_bucket.url}/run", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # one rank speaks, for the bytes of both
    assert done.stdout.count("save, median of 1") == 1
    assert seaweedfs_bucket.keys() == []
