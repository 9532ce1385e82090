"""What the benchmarks of slow links stand on: the link is as slow as it says, the sink keeps what it gets."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_link import Link
from dcp_s3_sink import Sink
from support import scenarios

from dcp_core import CloudStorageReader, CloudStorageWriter, ConflictError
from dcp_core.format.checksum import crc32c
from dcp_core.seam.store import Body, CreateOnly
from dcp_s3.options import S3Options
from dcp_s3.store import S3Store


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    """A sink that the environment's AWS variables lead to."""
    with Sink() as server:
        for name, value in {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }.items():
            monkeypatch.setenv(name, value)
        yield server


def seconds_to_save_and_load(url: str) -> tuple[float, float]:
    """16 MiB over two connections, compared bit for bit."""
    options = {"concurrency": 2, "part_size": 8 << 20}
    state = {str(number): scenarios.noise(number, (1 << 20,)) for number in range(4)}
    started = time.monotonic()
    dcp.save(state, storage_writer=CloudStorageWriter(url, **options))
    saved = time.monotonic()
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(loaded, storage_reader=CloudStorageReader(url, concurrency=2))
    scenarios.assert_same(loaded, state)
    return saved - started, time.monotonic() - saved


def test_a_sink_keeps_checkpoints(sink: Sink) -> None:
    seconds_to_save_and_load("s3://bucket/run")
    seconds_to_save_and_load("s3://bucket/run")  # over the first one
    store = S3Store("bucket", S3Options())
    body = Body([b"x"], crc32c(b"x"))
    store.put("once", body, CreateOnly())
    with pytest.raises(ConflictError):
        store.put("once", body, CreateOnly())
    store.close()


def test_a_link_gives_each_connection_its_rate(
    seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In front of a real store. Two connections of 8 MB/s need a second for 16 MiB, or more."""
    with Link(seaweedfs_bucket.server.endpoint, rate=8e6, latency=0.02) as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", link.endpoint)
        for seconds in seconds_to_save_and_load(f"{seaweedfs_bucket.url}/run"):
            assert (16 << 20) / 2 / 8e6 < seconds < 60
