"""torch_checkpointing on real ranks, with its checkpoints in a bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Bucket
from dcp_fault_proxy import FaultProxy
from support import checkpointing
from support.ranks import Ranks

pytest.importorskip("torch_checkpointing")


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def where(bucket: Bucket, job: str = "one", **more: Any) -> dict[str, Any]:
    return {"url": f"{bucket.url}/run", "job": job, **more}


def names(bucket: Bucket, prefix: str = "run/") -> list[str]:
    return [key for key in bucket.keys(prefix) if not key.endswith("/")]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_saved_is_loaded(pair: Ranks, bucket: Bucket, asynchronous: bool) -> None:
    pair.run(checkpointing.save, where(bucket), "step-1", 1, asynchronous)
    record = json.loads(bucket.read("run/step-1/.directory"))
    assert {"model_0.pt", "model_1.pt", "metadata.pkl"} <= record["files"].keys()
    assert sorted(f"run/step-1/{at}" for at, _ in record["files"].values()) == [
        key for key in names(bucket) if not key.endswith("/.directory")
    ]
    assert pair.run(checkpointing.load, where(bucket), "step-1", 1) == [(True, 1)] * 2
    assert pair.run(checkpointing.load, where(bucket, "two"), "step-1", 1, False) == [(True, 1)] * 2


def test_a_rename_is_one_conditional_record_and_no_copy(
    pair: Ranks, proxy: FaultProxy, seaweedfs_bucket: Bucket
) -> None:
    pair.run(checkpointing.save, where(seaweedfs_bucket), "step-1", 1)
    assert not {"CopyObject", "UploadPartCopy", "DeleteObject", "DeleteObjects"} & set(proxy.operations())
    records = [
        seen for seen in proxy.requests if seen.path.endswith("/.directory") and seen.operation == "PutObject"
    ]
    assert len(records) == 1
