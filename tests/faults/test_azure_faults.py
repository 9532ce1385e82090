"""Azure under faults: what the tests of saves and loads show for S3, in blocks and block lists."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import scenarios
import torch
import torch.distributed.checkpoint as dcp
from azure_bucket import AzureBucket
from dcp_fault_proxy import Fault, FaultProxy
from ranks import Ranks
from torch.distributed.checkpoint.api import CheckpointException

from dcp_azure import AzureOptions, AzureStorageReader, AzureStorageWriter
from dcp_azure.store import AzureStore
from dcp_core import (
    CheckpointCorruptError,
    DeadlineExceededError,
    PermissionDeniedError,
    ThrottledError,
    TransientError,
)
from dcp_core.testing.contract import body_of

World = Callable[[int], Ranks]
MIB = 1 << 20
DATA = r"\.distcp$"
RECORD = r"\.metadata$"
BLOCK, BLOCK_LIST = "comp=block&", "comp=blocklist"


@pytest.fixture
def proxy(azure_bucket: AzureBucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault proxy before Azurite; the environment's Azure variables lead to the proxy."""
    with FaultProxy(azure_bucket.server.endpoint) as running:
        for name, value in azure_bucket.environment_at(running.endpoint).items():
            monkeypatch.setenv(name, value)
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


def sharded_save(url: str, seed: int, options: dict[str, Any]) -> None:
    """12 MiB over the ranks of the world."""
    state = scenarios.sharded({"dim 0": scenarios.noise(seed, (12, 512, 512))})
    dcp.save(state, storage_writer=AzureStorageWriter(url, part_size=MIB, **options))


def sharded_load(url: str, seed: int) -> None:
    full = {"dim 0": scenarios.noise(seed, (12, 512, 512))}
    state = scenarios.blanked(scenarios.sharded(full))
    dcp.load(state, storage_reader=AzureStorageReader(url))
    scenarios.assert_same(state, full)


@pytest.mark.parametrize(
    "fault",
    [
        {"query": BLOCK, "times": 99},
        {"query": BLOCK, "skip": 1, "times": 99},
        {"query": BLOCK_LIST, "times": 2},
    ],
    ids=["start", "part", "end"],
)
def test_one_of_four_ranks_fails(
    azure_bucket: AzureBucket, proxy: FaultProxy, worlds: World, fault: dict[str, Any]
) -> None:
    url, options = f"{azure_bucket.url}/run", {"attempts": 2}
    worlds(4).run(sharded_save, url, 1, options)
    proxy.add(Fault("error", method="PUT", path="__2_0", status=500, code="InternalError", **fault))
    for rank, error in enumerate(worlds(4).outcomes(sharded_save, url, 2, options)):
        assert isinstance(error, CheckpointException), (rank, error)
        assert list(error.failures) == [2]
        cause = error.failures[2][0]
        assert isinstance(cause, TransientError)
        assert cause.rank == 2
        assert "/__2_0." in str(cause)
        assert azure_bucket.name in str(cause)
    proxy.clear()
    assert azure_bucket.uploads() == []
    worlds(2).run(sharded_load, url, 1)


def test_lost_answer_to_the_commit(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    for seed in (1, 2):  # a new checkpoint, then an overwrite
        proxy.add(Fault("lose_response", method="PUT", path=RECORD))
        save(f"{azure_bucket.url}/run", small(seed))
        load(f"{azure_bucket.url}/run", small(seed))
        assert [seen.fault for seen in proxy.requests if seen.fault] == ["lose_response"]
        proxy.clear()
    assert len(azure_bucket.keys()) == 2


def test_lost_answer_on_the_last_attempt(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    proxy.add(Fault("lose_response", method="PUT", path=RECORD, times=9))
    save(f"{azure_bucket.url}/run", small(1), attempts=1)
    load(f"{azure_bucket.url}/run", small(1))


def test_commit_that_never_arrives(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    url = f"{azure_bucket.url}/run"
    save(url, small(1))
    proxy.add(Fault("error", method="PUT", path=RECORD, code="ServerBusy", times=99))
    with pytest.raises(CheckpointException) as caught:
        save(url, small(2), attempts=2)
    assert isinstance(failure(caught), ThrottledError)
    load(url, small(1))


def test_lost_answer_to_the_block_list(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    """Its blocks are staged no more, and the object is there: it was this save's."""
    proxy.add(Fault("lose_response", method="PUT", query=BLOCK_LIST))
    save(f"{azure_bucket.url}/run", large(1))
    load(f"{azure_bucket.url}/run", large(1))
    assert azure_bucket.uploads() == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", query=BLOCK, skip=1, code="ServerBusy", times=3),
        Fault("error", query=BLOCK, skip=1, status=500, code="OperationTimedOut", times=2),
        Fault("reset_request", query=BLOCK, skip=1, after=MIB // 2, times=2),
        Fault("lose_response", query=BLOCK, times=2),
        Fault("flip_request", query=BLOCK, skip=1, after=MIB // 3),
        Fault("flip_request", method="PUT", path=RECORD, after=30),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{'record' if fault.path else 'block'}",
)
@pytest.mark.parametrize("checksum", ["crc64", "md5"])
def test_writes_are_tried_again(
    azure_bucket: AzureBucket, proxy: FaultProxy, fault: Fault, checksum: str
) -> None:
    """Damage on the way is found by the store, whichever checksum is sent."""
    fault.hits = 0
    proxy.add(fault)
    save(f"{azure_bucket.url}/run", large(1), transactional_checksum=checksum)
    assert fault.hits > fault.skip
    proxy.clear()
    load(f"{azure_bucket.url}/run", large(1))


def test_damage_without_a_checksum_is_found_by_the_load(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    proxy.add(Fault("flip_request", query=BLOCK, skip=1, after=MIB // 3))
    save(f"{azure_bucket.url}/run", large(1), transactional_checksum=None)
    with pytest.raises(CheckpointException) as caught:
        load(f"{azure_bucket.url}/run", large(1))
    assert isinstance(failure(caught), CheckpointCorruptError)
    assert "'weight'" in str(failure(caught))


def test_stalled_upload_is_cut(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    proxy.add(Fault("delay", query=BLOCK, skip=1, seconds=30))
    started = time.monotonic()
    save(f"{azure_bucket.url}/run", large(1), stall_timeout=1.0)
    assert time.monotonic() - started < 15
    load(f"{azure_bucket.url}/run", large(1))


def test_deadline(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    proxy.add(Fault("delay", query=BLOCK, skip=1, seconds=30, times=99))
    started = time.monotonic()
    with pytest.raises(CheckpointException) as caught:
        save(f"{azure_bucket.url}/run", large(1), stall_timeout=1.0, deadline=3.0)
    assert time.monotonic() - started < 15
    assert isinstance(failure(caught), (DeadlineExceededError, TransientError))
    assert azure_bucket.uploads() == []


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


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", path=DATA, code="ServerBusy", times=3),
        Fault("error", path=DATA, status=500, code="InternalError", times=2),
        Fault("error", path=RECORD, code="ServerBusy", times=2),
        Fault("reset_response", path=DATA, after=0),
        Fault("reset_response", path=DATA, after=700_000, times=4),
        Fault("flip_response", path=DATA, after=300_000),
        Fault("stall", path=DATA, after=300_000, seconds=20),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.after}-{fault.status}",
)
def test_reads_are_tried_again(azure_bucket: AzureBucket, proxy: FaultProxy, fault: Fault) -> None:
    save(f"{azure_bucket.url}/run", large(1))
    proxy.clear()
    proxy.add(fault)
    started = time.monotonic()
    load(f"{azure_bucket.url}/run", large(1), stall_timeout=1.0)
    assert fault.hits > 0
    assert time.monotonic() - started < 15


def test_damage_that_stays(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    save(f"{azure_bucket.url}/run", large(1))
    proxy.add(Fault("flip_response", path=DATA, after=300_000, times=99))
    with pytest.raises(CheckpointException) as caught:
        load(f"{azure_bucket.url}/run", large(1))
    assert isinstance(failure(caught), CheckpointCorruptError)
    assert "'weight'" in str(failure(caught))


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


def _save_slowly(url: str, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    save(url, large(2))


@pytest.mark.parametrize("at", [BLOCK, BLOCK_LIST, "record"])
def test_killed_during_a_save(azure_bucket: AzureBucket, proxy: FaultProxy, at: str) -> None:
    url = f"{azure_bucket.url}/run"
    save(url, large(1))
    proxy.clear()
    query, path = ("", RECORD) if at == "record" else (at, "")
    stop = Fault("delay", method="PUT", query=query, path=path, seconds=20, times=9)
    proxy.add(stop)
    variables = azure_bucket.environment_at(proxy.endpoint)
    victim = multiprocessing.get_context("spawn").Process(target=_save_slowly, args=(url, variables))
    victim.start()
    ends_at = time.monotonic() + 60
    while not stop.hits and time.monotonic() < ends_at:
        time.sleep(0.05)
    victim.kill()
    victim.join()
    victim.close()
    assert stop.hits
    load(url, large(1))
    # and the next save works, whatever the dead one left
    proxy.clear()
    save(url, large(3))
    load(url, large(3))
