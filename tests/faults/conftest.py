"""One server a cloud, with a fault proxy before it: every fault is tried on each."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest
from conftest import Bucket, proxied
from dcp_fault_proxy import FaultProxy
from sweep.run import Sweep

CLOUDS = [
    "seaweedfs",
    "gcs",
    "azure",
]


@pytest.fixture(params=CLOUDS)
def cloud_bucket(request: pytest.FixtureRequest) -> Bucket:
    """A new bucket on one server of each cloud."""
    found: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return found


@pytest.fixture
def proxy(cloud_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault proxy before the server; the environment's variables lead to the proxy."""
    with proxied(cloud_bucket, monkeypatch) as running:
        yield running


@pytest.fixture
def seaweedfs_proxy(seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault proxy before SeaweedFS alone, for what no cloud has to do with."""
    with proxied(seaweedfs_bucket, monkeypatch) as running:
        yield running


@pytest.fixture
def sweep(bucket: Bucket) -> Iterator[Sweep]:
    """Two ranks behind a fault proxy, on each server in turn; this process is not behind it."""
    # pytest would keep what is logged of every failure, with the states that were saved and loaded
    logging.disable()
    try:
        with (
            FaultProxy(bucket.server.endpoint) as running,
            contextlib.closing(Sweep(bucket, running)) as found,
        ):
            yield found
    finally:
        logging.disable(logging.NOTSET)
