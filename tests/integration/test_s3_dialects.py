"""What docs/s3-stores.md says of the requests that are sent, seen at the server."""

from __future__ import annotations

import pytest
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import CloudStorageReader, CloudStorageWriter, ConfigurationError

MIB = 1 << 20


def save_and_load(url: str, **options: object) -> None:
    """Tensors whose sizes fit no part: 21 MiB and some."""
    state = {f"weight {n}": scenarios.noise(n, (n, 700, 1001)) for n in (1, 3, 2)} | {"step": 3}
    dcp.save(state, storage_writer=CloudStorageWriter(url, part_size=5 * MIB, **options))
    target = scenarios.blanked(state)
    dcp.load(target, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(target, state)


def test_parts_are_of_one_size(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    save_and_load(f"{seaweedfs_bucket.url}/run")
    sizes = sorted(seen.bytes_in for seen in proxy.requests if seen.operation == "UploadPart")
    assert len(sizes) == 4
    assert set(sizes[1:]) == {5 * MIB}
    assert sizes[0] < 5 * MIB


def test_parts_carry_checksums(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    save_and_load(f"{seaweedfs_bucket.url}/run")
    sent = [seen for seen in proxy.requests if seen.operation in ("UploadPart", "PutObject")]
    assert sent
    assert all("x-amz-checksum-crc32c" in names(seen.headers) for seen in sent)


def test_without_checksums_no_such_header_is_sent(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    save_and_load(f"{seaweedfs_bucket.url}/run", upload_checksum=None)
    assert {"UploadPart", "PutObject", "CompleteMultipartUpload", "GetObject"} <= set(proxy.operations())
    for seen in proxy.requests:
        assert not [name for name in names(seen.headers) if "checksum" in name or "trailer" in name]


def names(headers: dict[str, str]) -> set[str]:
    return {name.lower() for name in headers}


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
def test_a_store_that_refuses_the_header(seaweedfs_bucket: Bucket, proxy: FaultProxy, operation: str) -> None:
    proxy.add(Fault("error", operation=operation, status=400, code="InvalidArgument", times=99))
    with pytest.raises(CheckpointException) as caught:
        save_and_load(f"{seaweedfs_bucket.url}/run")
    error = caught.value.failures[0][0]
    assert isinstance(error, ConfigurationError)
    assert "upload_checksum=None" in str(error)
