"""What is Azure's own under faults; the rest is in the tests of saves and loads, which run on every cloud."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import proxied
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from support.azure_bucket import AzureBucket
from torch.distributed.checkpoint.api import CheckpointException

from dcp_azure import AzureOptions, AzureStorageReader, AzureStorageWriter
from dcp_azure.store import AzureStore
from dcp_core import CheckpointCorruptError, PermissionDeniedError, TransientError
from dcp_core.testing import body_of

MIB = 1 << 20
RECORD = r"\.metadata$"
BLOCK = "comp=block&"


@pytest.fixture
def proxy(azure_bucket: AzureBucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault proxy before Azurite; the environment's Azure variables lead to the proxy."""
    with proxied(azure_bucket, monkeypatch) as running:
        yield running


def small(seed: int) -> dict[str, Any]:
    return {"weight": scenarios.noise(seed, (64, 64)), "step": seed}


def large(seed: int) -> dict[str, torch.Tensor]:
    """3 MiB: four parts of 1 MiB."""
    return {"weight": scenarios.noise(seed, (3, 512, 512))}


def save(url: str, state: dict[str, Any], **options: Any) -> None:
    dcp.save(state, storage_writer=AzureStorageWriter(url, part_size=MIB, **options))


def load(url: str, state: dict[str, Any], **options: Any) -> None:
    """Load and compare with ``state``."""
    target = scenarios.blanked(state)
    dcp.load(target, storage_reader=AzureStorageReader(url, **options))
    scenarios.assert_same(target, state)


def failure(caught: pytest.ExceptionInfo[CheckpointException]) -> BaseException:
    error: BaseException = caught.value.failures[0][0]
    return error


@pytest.mark.parametrize(
    "fault",
    [
        Fault("flip_request", query=BLOCK, skip=1, after=MIB // 3),
        Fault("flip_request", method="PUT", path=RECORD, after=30),
    ],
    ids=["block", "record"],
)
@pytest.mark.parametrize("checksum", ["crc64", "md5"])
def test_damage_is_found_by_the_store(
    azure_bucket: AzureBucket, proxy: FaultProxy, fault: Fault, checksum: str
) -> None:
    """Whichever checksum is sent; and what was damaged is sent again."""
    proxy.add(fault)
    save(f"{azure_bucket.url}/run", large(1), upload_checksum=checksum)
    assert fault.hits > fault.skip
    proxy.clear()
    load(f"{azure_bucket.url}/run", large(1))


def test_damage_without_a_checksum_is_found_by_the_load(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    proxy.add(Fault("flip_request", query=BLOCK, skip=1, after=MIB // 3))
    save(f"{azure_bucket.url}/run", large(1), upload_checksum=None)
    with pytest.raises(CheckpointException) as caught:
        load(f"{azure_bucket.url}/run", large(1))
    assert isinstance(failure(caught), CheckpointCorruptError)
    assert "'weight'" in str(failure(caught))


@pytest.mark.parametrize("lost", ["PUT", "DELETE"])
def test_abort_whose_answer_is_lost(azure_bucket: AzureBucket, proxy: FaultProxy, lost: str) -> None:
    """An abort that is repeated goes on where it was: not even the empty object stays."""
    with contextlib.closing(AzureStore(azure_bucket.name, AzureOptions())) as store:
        upload = store.start_upload("key")
        store.put_part(upload, 1, body_of(b"data"))
        proxy.add(Fault("lose_response", method=lost))
        with pytest.raises(TransientError):
            store.abort_upload(upload)
        store.abort_upload(upload)
    assert azure_bucket.keys() == azure_bucket.uploads() == []


def test_a_403_is_not_a_missing_checkpoint(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    save(f"{azure_bucket.url}/run", small(1))
    fault = Fault("error", path=RECORD, status=403, code="AuthorizationPermissionMismatch", times=99)
    proxy.add(fault)
    with pytest.raises(CheckpointException) as caught:
        load(f"{azure_bucket.url}/run", small(1))
    assert isinstance(failure(caught), PermissionDeniedError)
    assert "Storage Blob Data Contributor" in str(failure(caught))


def test_few_requests(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    def sent() -> list[tuple[str, str]]:
        found = [(seen.method, seen.query.partition("&blockid")[0]) for seen in proxy.requests]
        proxy.clear()
        return found

    url = f"{azure_bucket.url}/run"
    save(url, small(1))
    assert sent() == [("GET", ""), ("PUT", ""), ("PUT", "")]
    load(url, small(1))
    assert sent() == [("GET", ""), ("GET", "")]
    save(url, large(2))
    requests = sent()
    assert requests.count(("PUT", "comp=block")) == 5  # the start and four parts
    assert requests.count(("PUT", "comp=blocklist")) == 1
    assert len(requests) == 10
