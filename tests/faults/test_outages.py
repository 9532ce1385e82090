"""How long a save or load goes on when nothing works, and what ends it before."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from dcp_http_servers import WebServer
from support import processes, scenarios
from support.ranks import outcome_of
from support.web import Folder
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import (
    CloudStorageReader,
    CloudStorageWriter,
    CommitUncertainError,
    DeadlineExceededError,
    PermissionDeniedError,
    TransientError,
)

MIB = 1 << 20
DATA = r"\.distcp$"
RECORD = r"\.metadata$"
#: Seconds that no request of these tests takes by itself, and that none may wait for.
FOREVER = 3600.0


def large(seed: int) -> dict[str, torch.Tensor]:
    """12 MiB: three parts of 5 MiB."""
    return {"weight": scenarios.noise(seed, (3, 1024, 1024))}


def save(url: str, seed: int = 1, **options: Any) -> None:
    dcp.save(large(seed), storage_writer=CloudStorageWriter(url, part_size=5 * MIB, **options))


def load(url: str, seed: int = 1, **options: Any) -> None:
    """Load and compare with what was saved."""
    target = scenarios.blanked(large(seed))
    dcp.load(target, storage_reader=CloudStorageReader(url, **options))
    scenarios.assert_same(target, large(seed))


def failure(operation: str, url: str, **options: Any) -> tuple[BaseException, float]:
    """What a save or load ends with, and after how many seconds."""
    started = time.monotonic()
    with pytest.raises(CheckpointException) as caught:
        (save if operation == "save" else load)(url, **options)
    return caught.value.failures[0][0], time.monotonic() - started


def ride_out(operation: str, bucket: Bucket, proxy: FaultProxy, outage: Fault, seconds: float) -> None:
    """Save or load while nothing works for so many seconds, from the middle of it on; default options."""
    url = f"{bucket.url}/run"
    if operation == "load":
        save(url)
        proxy.clear()
    proxy.add(outage)
    started = time.monotonic()
    (save if operation == "save" else load)(url)
    assert outage.hits > 0
    assert time.monotonic() - started >= seconds
    proxy.clear()
    load(url)
    assert bucket.uploads() == []
    assert len(bucket.keys()) == 2


REFUSED = Fault("error", skip=2, spreads=True, lasts=8.0)
VANISHED = Fault("refuse", skip=1, seconds=8.0)


@pytest.mark.parametrize(
    ("operation", "outage"), [("save", REFUSED), ("load", VANISHED)], ids=["save-refused", "load-vanished"]
)
def test_seconds_are_ridden_out(
    seaweedfs_bucket: Bucket, seaweedfs_proxy: FaultProxy, operation: str, outage: Fault
) -> None:
    ride_out(operation, seaweedfs_bucket, seaweedfs_proxy, outage, 8.0)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["save", "load"])
@pytest.mark.parametrize(
    ("outage", "seconds"),
    [
        (Fault("error", skip=1, spreads=True, lasts=90.0), 90.0),
        (Fault("error", status=500, code="InternalError", skip=1, spreads=True, lasts=90.0), 90.0),
        (Fault("refuse", skip=1, seconds=60.0), 60.0),
    ],
    ids=["refused", "failing", "vanished"],
)
def test_a_minute_is_ridden_out(
    cloud_bucket: Bucket, proxy: FaultProxy, operation: str, outage: Fault, seconds: float
) -> None:
    ride_out(operation, cloud_bucket, proxy, outage, seconds)


def test_one_request_that_always_fails_ends(cloud_bucket: Bucket, proxy: FaultProxy) -> None:
    """The others succeed meanwhile: that is no progress of this one."""
    proxy.add(Fault("error", operation="UploadPart", status=500, code="InternalError", skip=1, times=9999))
    error, seconds = failure("save", f"{cloud_bucket.url}/run", retry_timeout=3.0)
    assert type(error) is TransientError
    assert "see retry_timeout=" in str(error)
    assert "attempts failed within" in str(error)
    assert 3.0 <= seconds < 60
    assert cloud_bucket.keys() == cloud_bucket.uploads() == []


@pytest.mark.parametrize(
    ("operation", "never"),
    [
        ("save", Fault("delay", operation="UploadPart", seconds=FOREVER, times=9999)),
        ("save", Fault("stall_request", operation="UploadPart", seconds=FOREVER, times=9999)),
        ("load", Fault("delay", path=DATA, seconds=FOREVER, times=9999)),
        ("load", Fault("stall", path=DATA, after=1000, seconds=FOREVER, times=9999)),
        ("load", Fault("delay", path=RECORD, seconds=FOREVER, times=9999)),
    ],
    ids=["save-unread", "save-half-read", "load-unanswered", "load-half-answered", "load-no-record"],
)
def test_a_rank_without_progress_fails_by_itself(
    seaweedfs_bucket: Bucket, seaweedfs_proxy: FaultProxy, operation: str, never: Fault
) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    if operation == "load":
        save(url)
    seaweedfs_proxy.add(never)
    error, seconds = failure(operation, url, stall_timeout=1.0, retry_timeout=4.0)
    assert isinstance(error, TransientError)
    assert error.rank == 0
    assert ".metadata" in str(error) if never.path == RECORD else ".distcp" in str(error)
    assert seconds < 120
    assert never.hits > 1
    assert seaweedfs_bucket.uploads() == []


@pytest.mark.parametrize(
    ("operation", "stuck"),
    [
        ("save", Fault("hold", operation="UploadPart")),
        ("load", Fault("stall", path=DATA, after=MIB, seconds=FOREVER)),
        ("load", Fault("delay", path=RECORD, seconds=FOREVER)),
    ],
    ids=["save", "load", "load-no-record"],
)
def test_a_deadline_cuts_a_request_that_is_under_way(
    cloud_bucket: Bucket, proxy: FaultProxy, operation: str, stuck: Fault
) -> None:
    url = f"{cloud_bucket.url}/run"
    if operation == "load":
        save(url)
    proxy.add(stuck)
    error, seconds = failure(operation, url, stall_timeout=FOREVER, deadline=2.0)
    assert stuck.hits > 0
    assert isinstance(error, DeadlineExceededError)
    assert "deadline=" in str(error)
    # the object that was waited for
    assert ".metadata" in str(error) if stuck.path == RECORD else ".distcp" in str(error)
    assert 2.0 <= seconds < 60
    assert cloud_bucket.uploads() == []


def test_a_deadline_is_one_for_all_of_a_load(seaweedfs_bucket: Bucket, seaweedfs_proxy: FaultProxy) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    seaweedfs_proxy.add(
        Fault("delay", path=RECORD, seconds=10.0), Fault("delay", path=DATA, seconds=FOREVER, times=99)
    )
    error, seconds = failure("load", url, stall_timeout=FOREVER, deadline=15.0)
    assert isinstance(error, DeadlineExceededError)
    assert ".distcp" in str(error)
    # each with its own would have taken 25
    assert 15.0 <= seconds < 25


def test_a_deadline_is_one_for_all_of_a_save(seaweedfs_bucket: Bucket, seaweedfs_proxy: FaultProxy) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    seaweedfs_proxy.add(
        Fault("delay", method="GET", path=RECORD, seconds=10.0),
        Fault("delay", method="PUT", path=RECORD, seconds=FOREVER, times=99),
    )
    error, seconds = failure("save", url, stall_timeout=FOREVER, deadline=15.0)
    # the record may arrive yet, and its data is there
    assert isinstance(error, CommitUncertainError)
    assert "deadline" in str(error)
    assert 15.0 <= seconds < 25
    assert len(seaweedfs_bucket.keys()) == 1


def test_a_failed_save_does_not_wait_long_for_the_abort(
    seaweedfs_bucket: Bucket, seaweedfs_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    seaweedfs_proxy.add(
        Fault("error", operation="UploadPart", status=403, code="AccessDenied", times=99),
        Fault("delay", operation="AbortMultipartUpload", seconds=FOREVER, times=99),
    )
    with caplog.at_level(logging.WARNING, "dcp_core"):
        error, seconds = failure("save", f"{seaweedfs_bucket.url}/run", stall_timeout=FOREVER)
    assert isinstance(error, PermissionDeniedError)
    assert 10.0 <= seconds < 60
    (key,) = seaweedfs_bucket.uploads()
    warnings = [record.getMessage() for record in caplog.records if record.name == "dcp_core"]
    assert any(key in message and "stays behind until `dcp-cloud gc`" in message for message in warnings)


def test_the_log_tells_the_user_what_is_going_on(
    seaweedfs_bucket: Bucket, seaweedfs_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    seaweedfs_proxy.add(Fault("error", skip=1, spreads=True, lasts=16.0))
    with caplog.at_level(logging.WARNING, "dcp_core"):
        save(f"{seaweedfs_bucket.url}/run")
    said = [record.getMessage() for record in caplog.records if record.name == "dcp_core"]
    assert said[0].startswith("rank 0: the store has refused every request for ")
    assert "will keep trying for another " in said[0]
    assert "SlowDown" in said[0]
    assert said[-1].startswith("rank 0: the store works again after ")
    # one every ten seconds
    assert len(said) <= 4


def _interruptible(url: str, pipe: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    _, error, _ = outcome_of(save, (url,))
    causes = [type(cause).__name__ for cause, _ in getattr(error, "failures", {}).values()]
    pipe.send(causes or repr(error))


@pytest.mark.parametrize(
    "stuck",
    [
        Fault("late", operation="UploadPart", seconds=FOREVER, times=99),
        Fault("error", operation="UploadPart", times=9999),
    ],
    ids=lambda fault: fault.kind,
)
def test_an_interrupt_ends_a_save_whatever_its_threads_wait_for(
    cloud_bucket: Bucket, proxy: FaultProxy, stuck: Fault
) -> None:
    """A response that does not come, or the time for the next attempt."""
    proxy.add(stuck)
    ours, theirs = multiprocessing.Pipe()
    process = processes.start(_interruptible, f"{cloud_bucket.url}/run", theirs)
    ends_at = time.monotonic() + 120
    # done, or refused, as far as the store is concerned
    while sum(seen.operation == "UploadPart" and seen.status > 0 for seen in proxy.requests) < 3:
        assert time.monotonic() < ends_at
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert ours.poll(60)
    assert ours.recv() == ["KeyboardInterrupt"]
    process.join(60)
    assert process.exitcode == 0
    process.close()
    assert cloud_bucket.keys() == cloud_bucket.uploads() == []


@pytest.fixture
def served(seaweedfs_bucket: Bucket, tmp_path: Path) -> Iterator[FaultProxy]:
    """A proxy before a web server that has a checkpoint at ``run``."""
    save(f"{seaweedfs_bucket.url}/run")
    Folder(tmp_path).copy(seaweedfs_bucket, "run/")
    with WebServer(tmp_path) as server, FaultProxy(server.url) as running:
        yield running


def test_loads_over_http_are_cut_and_patient_as_well(served: FaultProxy) -> None:
    url = f"{served.endpoint}/run"
    served.add(Fault("error", skip=1, spreads=True, lasts=3.0))
    started = time.monotonic()
    load(url)
    assert time.monotonic() - started >= 3.0
    served.clear()
    served.add(Fault("stall", path=DATA, after=MIB, seconds=FOREVER, times=99))
    error, seconds = failure("load", url, stall_timeout=FOREVER, deadline=2.0)
    assert isinstance(error, DeadlineExceededError)
    assert 2.0 <= seconds < 60
    served.clear()
    served.add(Fault("delay", path=DATA, seconds=FOREVER, times=9999))
    error, seconds = failure("load", url, stall_timeout=1.0, retry_timeout=3.0)
    assert isinstance(error, TransientError)
    assert ".distcp" in str(error)
    assert seconds < 60
