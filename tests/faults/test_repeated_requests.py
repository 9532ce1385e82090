"""Requests that arrive twice, late, or after what came later: what the bucket holds stays right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import CloudStorageReader, CloudStorageWriter, CommitUncertainError

MIB = 1 << 20
RECORD = r"\.metadata$"
#: A condition that does not hold; Azure says it in two ways.
REFUSED = {409, 412}


def small(seed: int) -> dict[str, Any]:
    return {"weight": scenarios.noise(seed, (64, 64)), "step": seed}


def large(seed: int) -> dict[str, torch.Tensor]:
    """12 MiB: three parts of 5 MiB."""
    return {"weight": scenarios.noise(seed, (3, 1024, 1024))}


def save(url: str, state: dict[str, Any], planner: dcp.SavePlanner | None = None, **options: Any) -> None:
    writer = CloudStorageWriter(url, part_size=5 * MIB, **options)
    dcp.save(state, storage_writer=writer, planner=planner)


def load(url: str, state: dict[str, Any]) -> None:
    """Load and compare with ``state``."""
    target = scenarios.blanked(state)
    dcp.load(target, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(target, state)


@pytest.mark.parametrize("kind", ["twice", "twice_together", "again"])
def test_a_commit_that_arrives_twice_is_done_once(cloud_bucket: Bucket, proxy: FaultProxy, kind: Any) -> None:
    url = f"{cloud_bucket.url}/run"
    for seed in (1, 2):  # a new checkpoint, then one in the place of another
        fault = Fault(kind, operation="PutObject", path=RECORD)
        proxy.add(fault)
        save(url, small(seed))
        assert fault.hits == 1
        load(url, small(seed))
        record = cloud_bucket.read("run/.metadata")
        again = proxy.deliver()
        assert (len(again), set(again) <= REFUSED) == (kind == "again", True)
        assert cloud_bucket.read("run/.metadata") == record
        load(url, small(seed))
        # the record and its data
        assert len(cloud_bucket.keys("run/")) == 2
        proxy.clear()


def test_a_commit_that_arrives_again_after_the_next_save(cloud_bucket: Bucket, proxy: FaultProxy) -> None:
    url = f"{cloud_bucket.url}/run"
    for seed in (1, 2):  # the commit of a new checkpoint, then of one in the place of another
        proxy.add(Fault("again", operation="PutObject", path=RECORD))
        save(url, small(seed))
        proxy.clear()
    save(url, small(3))
    record = cloud_bucket.read("run/.metadata")
    again = proxy.deliver()
    assert (len(again), set(again) <= REFUSED) == (2, True)
    assert cloud_bucket.read("run/.metadata") == record
    load(url, small(3))
    assert len(cloud_bucket.keys("run/")) == 2


def test_a_commit_that_arrives_when_the_save_has_failed(cloud_bucket: Bucket, proxy: FaultProxy) -> None:
    """The error says that it may, and the checkpoint is whole: its data was left in place."""
    url = f"{cloud_bucket.url}/run"
    for seed in (1, 2):
        before = set(cloud_bucket.keys())
        proxy.add(Fault("postpone", operation="PutObject", path=RECORD, times=9))
        with pytest.raises(CheckpointException) as caught:
            save(url, small(seed), max_attempts=2)
        error = caught.value.failures[0][0]
        assert isinstance(error, CommitUncertainError)
        assert ".metadata" in str(error)
        (data,) = set(cloud_bucket.keys()) - before
        assert data.endswith(".distcp")
        proxy.clear()
        # the two attempts arrive: the first is done
        first, second = proxy.deliver()
        assert first in (200, 201)
        assert second in REFUSED
        load(url, small(seed))


#: What may be left of a request that arrived once more than the client knows. An upload that is started like
#: this is found by ``dcp-cloud gc``; Azure keeps blocks for a week, which nobody sees beside an object.
LEFT = {
    "seaweedfs": {"CreateMultipartUpload"},
    "gcs": {"CreateMultipartUpload"},
    "azure": {"CreateMultipartUpload", "UploadPart"},
}


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "CompleteMultipartUpload", "UploadPart"])
@pytest.mark.parametrize("kind", ["twice", "lose_response", "again"])
def test_an_upload_whose_requests_arrive_twice(
    request: pytest.FixtureRequest, cloud_bucket: Bucket, proxy: FaultProxy, kind: Any, operation: str
) -> None:
    url = f"{cloud_bucket.url}/run"
    fault = Fault(kind, operation=operation)
    proxy.add(fault)
    save(url, large(1))
    assert fault.hits > 0
    load(url, large(1))
    proxy.clear()
    assert len(proxy.deliver()) == (kind == "again")
    load(url, large(1))
    assert len(cloud_bucket.keys()) == 2
    cloud = request.node.callspec.params["cloud_bucket"]
    if kind == "lose_response" or operation not in LEFT[cloud]:
        assert cloud_bucket.uploads() == []


class _Delivering(dcp.DefaultSavePlanner):
    """Has what was kept back done while the save is uploading."""

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__()
        self.statuses: list[int] = []
        self._proxy = proxy

    def resolve_data(self, write_item: Any) -> Any:
        self.statuses += self._proxy.deliver()
        return super().resolve_data(write_item)


def test_an_abort_that_arrives_again_leaves_the_next_save_alone(
    cloud_bucket: Bucket, proxy: FaultProxy
) -> None:
    url = f"{cloud_bucket.url}/run"
    proxy.add(
        Fault("again", operation="AbortMultipartUpload", times=9),
        Fault("error", operation="CompleteMultipartUpload", status=500, code="InternalError", times=99),
    )
    with pytest.raises(CheckpointException):
        save(url, large(1), max_attempts=2)
    assert cloud_bucket.keys() == cloud_bucket.uploads() == []
    proxy.clear()
    planner = _Delivering(proxy)
    save(url, large(2), planner)
    # gone already, or Azure's empty object once more, which is seen no more than the first
    assert planner.statuses
    load(url, large(2))


@pytest.mark.parametrize("done", [False, True])
def test_an_error_in_a_response_with_200(
    seaweedfs_bucket: Bucket, seaweedfs_proxy: FaultProxy, done: bool
) -> None:
    """S3 sends the status before it has made the object of its parts."""
    fault = Fault(
        "page",
        operation="CompleteMultipartUpload",
        status=200,
        body="<?xml version='1.0'?>\n\n<Error><Code>InternalError</Code><Message>try again</Message></Error>",
        content_type="application/xml",
        done=done,
    )
    seaweedfs_proxy.add(fault)
    save(f"{seaweedfs_bucket.url}/run", large(1))
    assert fault.hits == 2
    load(f"{seaweedfs_bucket.url}/run", large(1))
    assert seaweedfs_bucket.uploads() == []
