"""Loads under faults: right bytes, or an error that names the object."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import (
    CheckpointCorruptError,
    CloudStorageReader,
    CloudStorageWriter,
    DeadlineExceededError,
    PermissionDeniedError,
    TransientError,
)

MIB = 1 << 20
DATA = r"\.distcp$"


def state() -> dict[str, Any]:
    return {"large": scenarios.noise(1, (6, 1024, 256)), "small": scenarios.noise(2, (10,)), "step": 4}


@pytest.fixture
def url(cloud_bucket: Bucket) -> str:
    dcp.save(state(), storage_writer=CloudStorageWriter(f"{cloud_bucket.url}/run"))
    return f"{cloud_bucket.url}/run"


def load(url: str, **options: Any) -> None:
    target = scenarios.blanked(state())
    dcp.load(target, storage_reader=CloudStorageReader(url, **options))
    scenarios.assert_same(target, state())


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", path=DATA, times=3),
        Fault("error", path=DATA, status=500, code="InternalError", times=2),
        Fault("error", path=r"\.metadata$", times=2),
        Fault("reset_response", path=DATA, after=0),
        Fault("reset_response", path=DATA, after=700_000, times=4),
        Fault("flip_response", path=DATA, after=300_000),
        Fault("stall", path=DATA, after=300_000, seconds=120),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.after}-{fault.status}",
)
def test_tried_again(url: str, proxy: FaultProxy, fault: Fault) -> None:
    proxy.add(fault)
    started = time.monotonic()
    load(url, stall_timeout=1.0)
    assert fault.hits > 0
    assert time.monotonic() - started < 60


def test_a_broken_range_goes_on_where_it_was(url: str, proxy: FaultProxy) -> None:
    proxy.add(Fault("reset_response", path=DATA, after=3 * MIB))
    load(url, concurrency=1)
    received = sum(seen.bytes_out for seen in proxy.requests if "distcp" in seen.path)
    assert received < 6 * MIB + MIB + 64 * 1024


def test_damage_that_stays(url: str, proxy: FaultProxy) -> None:
    proxy.add(Fault("flip_response", path=DATA, after=300_000, times=99))
    with pytest.raises(CheckpointException) as caught:
        load(url)
    error = caught.value.failures[0][0]
    assert isinstance(error, CheckpointCorruptError)
    assert "'large'" in str(error)
    assert ".distcp" in str(error)


def test_a_store_that_stays_down(url: str, proxy: FaultProxy) -> None:
    proxy.add(Fault("error", path=DATA, times=99))
    with pytest.raises(CheckpointException) as caught:
        load(url, max_attempts=2)
    assert isinstance(caught.value.failures[0][0], TransientError)


def test_deadline(url: str, proxy: FaultProxy) -> None:
    proxy.add(Fault("stall", path=DATA, after=100_000, seconds=120, times=99))
    started = time.monotonic()
    with pytest.raises(CheckpointException) as caught:
        load(url, stall_timeout=0.5, deadline=2.0, max_attempts=99)
    assert isinstance(caught.value.failures[0][0], DeadlineExceededError)
    assert time.monotonic() - started < 60


def test_a_403_is_not_a_missing_checkpoint(url: str, proxy: FaultProxy) -> None:
    proxy.add(Fault("error", path=r"\.metadata$", status=403, code="AccessDenied", times=99))
    with pytest.raises(CheckpointException) as caught:
        load(url)
    assert isinstance(caught.value.failures[0][0], PermissionDeniedError)


def test_an_error_of_the_planner_is_the_users_own(url: str) -> None:
    class Broken(dcp.DefaultLoadPlanner):
        def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
            raise ZeroDivisionError("in the planner")

    with pytest.raises(CheckpointException) as caught:
        dcp.load(scenarios.blanked(state()), storage_reader=CloudStorageReader(url), planner=Broken())
    assert isinstance(caught.value.failures[0][0], ZeroDivisionError)


def test_slow_down_lowers_the_number_of_requests(url: str, proxy: FaultProxy) -> None:
    """The gate's own behaviour is in the unit tests; here it must not lose or repeat work."""
    proxy.add(Fault("error", path=DATA, times=6))
    load(url, max_request_size=MIB, max_attempts=20)
