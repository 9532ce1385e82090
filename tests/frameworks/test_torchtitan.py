"""TorchTitan with its checkpoints in a bucket: its own manager through fsspec, and ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Bucket
from support import titan
from support.ranks import Ranks

if find_spec("torchtitan") is None:
    pytest.skip("torchtitan is not installed", allow_module_level=True)

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
    if kind == "ours":
        assert folders(seaweedfs_bucket) == {"step-3", "step-4"}
    for rank, (found, at, losses) in enumerate(titans.run(titan.resume, kind, how)):
        assert (found, at) == (True, 4)
        assert losses == {5: whole[rank][5]}
    for rank, (_, at, losses) in enumerate(titans.run(titan.resume, kind, how, 3)):
        assert at == 3
        assert losses == {step: whole[rank][step] for step in (4, 5)}
