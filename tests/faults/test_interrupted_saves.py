"""Saves whose process is told to end: an error soon, and nothing left; or the script's end, which waits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import CloudStorageReader, CloudStorageWriter

MIB = 1 << 20


def large(seed: int) -> dict[str, torch.Tensor]:
    """12 MiB: three parts of 5 MiB."""
    return {"weight": scenarios.noise(seed, (3, 1024, 1024))}


class Terminated(BaseException):
    """What the handler of SIGTERM raises, as those of launchers do."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextlib.contextmanager
def signalled(proxy: FaultProxy, operation: str, number: signal.Signals) -> Iterator[None]:
    """Send this process a signal once requests of ``operation`` are done, and wait for their responses."""

    def done() -> int:
        """How many there are; 0 while one of them is on its way."""
        statuses = [seen.status for seen in list(proxy.requests) if seen.operation == operation]
        return len(statuses) if all(statuses) else 0

    def watch() -> None:
        ends_at = time.monotonic() + 120
        before, now = 0, done()
        while (now == 0 or now != before) and time.monotonic() < ends_at:
            time.sleep(0.5)
            before, now = now, done()
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _terminate)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        watcher.join()
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_an_interrupted_save_leaves_no_upload(
    cloud_bucket: Bucket, proxy: FaultProxy, operation: str, number: signal.Signals
) -> None:
    """The request that is waited for is done, and its response never comes."""
    proxy.add(Fault("late", operation=operation, seconds=3600, times=99))
    writer = CloudStorageWriter(f"{cloud_bucket.url}/run", part_size=5 * MIB, stall_timeout=600)
    started = time.monotonic()
    with signalled(proxy, operation, number), pytest.raises(CheckpointException) as caught:
        dcp.save(large(1), storage_writer=writer)
    assert time.monotonic() - started < 120
    kind = KeyboardInterrupt if number == signal.SIGINT else Terminated
    assert isinstance(caught.value.failures[0][0], kind)
    assert cloud_bucket.uploads() == []
    keys = cloud_bucket.keys()
    # an object that was made of its parts before the interrupt is left to `dcp-cloud gc`
    assert len(keys) == (operation == "CompleteMultipartUpload")
    assert not any(key.endswith(".metadata") for key in keys)
    # the same writer saves the next checkpoint
    proxy.clear()
    dcp.save(large(2), storage_writer=writer)
    load(f"{cloud_bucket.url}/run", large(2))


def load(url: str, state: dict[str, Any]) -> None:
    """Load and compare with ``state``."""
    target = scenarios.blanked(state)
    dcp.load(target, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(target, state)


#: The data is asked for when the main thread has come to its end; some Pythons start no thread from then on.
SCRIPT = """
import sys, threading, time, torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from dcp_core import CloudStorageWriter

class Waits(dcp.DefaultSavePlanner):
    def resolve_data(self, write_item):
        ended.wait()
        time.sleep(1)
        return super().resolve_data(write_item)

ended = threading.Event()
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
writer = CloudStorageWriter(sys.argv[1], part_size=5 << 20)
state = {"weight": torch.arange(3 << 20, dtype=torch.float32)}
future = dcp.async_save(state, storage_writer=writer, planner=Waits())
future.add_done_callback(lambda done: print(done.exception()))
ended.set()
"""


def test_a_save_goes_on_when_the_script_has_ended(cloud_bucket: Bucket) -> None:
    url = f"{cloud_bucket.url}/run"
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, url], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.stdout.strip() == "None", child.stdout + child.stderr
    load(url, {"weight": torch.arange(3 << 20, dtype=torch.float32)})
    assert cloud_bucket.uploads() == []
