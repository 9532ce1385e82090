"""Documents of a store that are cut short: they are asked for again, rather than taken for empty ones."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone

import pytest
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios

from dcp_core import CloudStorageReader, CloudStorageWriter, LoadOptions
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.upkeep.leftovers import Cleanup, Found

MIB = 1 << 20
LEFTOVER = "run/__0_0.0123456789abcdef.distcp"


@pytest.mark.parametrize("after", [0, 100, 1 << 30])
def test_a_listing_that_is_cut_short_is_asked_for_again(
    cloud_bucket: Bucket, proxy: FaultProxy, after: int
) -> None:
    cloud_bucket.write(LEFTOVER, b"data")
    proxy.add(Fault("truncate_response", operation="ListObjectsV2", after=after))
    checkpoint = CheckpointStore(f"{cloud_bucket.url}/run", LoadOptions, {})
    with contextlib.closing(checkpoint):
        later = datetime.now(timezone.utc) + timedelta(hours=1)
        cleanup = Cleanup(checkpoint.writable_store(), checkpoint.location, timedelta(0), now=later)
        found = [finding for finding in cleanup.find() if isinstance(finding, Found)]
    assert [info.key for finding in found for info in finding.objects] == [LEFTOVER]
    assert [seen.operation for seen in proxy.requests if seen.fault] == ["ListObjectsV2"]


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "CompleteMultipartUpload"])
@pytest.mark.parametrize("after", [0, 100, 1 << 30])
def test_a_document_about_an_upload_that_is_cut_short_is_asked_for_again(
    cloud_bucket: Bucket, proxy: FaultProxy, operation: str, after: int
) -> None:
    url, state = f"{cloud_bucket.url}/run", {"weight": scenarios.noise(1, (3, 1024, 1024))}
    fault = Fault("truncate_response", operation=operation, after=after)
    proxy.add(fault)
    dcp.save(dict(state), storage_writer=CloudStorageWriter(url, part_size=5 * MIB))
    assert fault.hits > 1
    target = scenarios.blanked(state)
    dcp.load(target, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(target, state)
    assert cloud_bucket.uploads() == []
