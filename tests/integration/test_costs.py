"""What a save and a load cost: memory, bytes and requests. CPU time is for the benchmarks (make bench)."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import FaultProxy
from support import scenarios
from support.ranks import Ranks

from dcp_core import CloudStorageReader, CloudStorageWriter

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import measure
import planning

MIB = 1 << 20
World = Callable[[int], Ranks]


def extra_memory(bucket: Bucket, mib: int, operation: str, options: dict[str, object], kind: str = "") -> int:
    states = [{"count": mib // 16, "shape": [4096, 2048], "kind": kind}]
    job = measure.Job(
        *("dcp-cloud", operation, f"{bucket.url}/memory-{mib}", states), options={"dcp-cloud": options}
    )
    return int(job.run({**os.environ, **bucket.environment})["extra_rss"])


@pytest.mark.parametrize("mib", [256, pytest.param(4096, marks=pytest.mark.slow)])
def test_tensors_in_place_take_no_memory(seaweedfs_bucket: Bucket, mib: int) -> None:
    """Whatever the size: contiguous CPU tensors are sent from and received into their own memory."""
    for operation in ("save", "load"):
        assert extra_memory(seaweedfs_bucket, mib, operation, {}) < 32 * MIB


@pytest.mark.parametrize("mib", [512, pytest.param(4096, marks=pytest.mark.slow)])
def test_staged_tensors_take_the_memory_setting(seaweedfs_bucket: Bucket, mib: int) -> None:
    """Strided tensors go through the staging ring, as a device's tensors do, and through scratch buffers."""
    options = {"memory_limit": 96 * MIB}
    for operation in ("save", "load"):
        assert extra_memory(seaweedfs_bucket, mib, operation, options, "strided") < (96 + 64) * MIB


def received(proxy: FaultProxy, work: Callable[[], object]) -> int:
    """Bytes of responses that ``work`` made the server send."""
    proxy.clear()
    work()
    return sum(seen.bytes_out for seen in proxy.requests)


def training_state() -> dict[str, torch.Tensor]:
    """A model and an optimizer that a plan orders name by name, so that they lie between each other."""
    return {
        f"{layer}.{part}": scenarios.noise(layer, (256 * 1024,))
        for layer in range(24)
        for part in ("exp_avg", "exp_avg_sq", "weight")
    }


def test_a_load_fetches_what_it_needs(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    state = training_state()
    dcp.save(state, storage_writer=CloudStorageWriter(url))
    for names, limit in ((list(state), 1.02), ([name for name in state if "weight" in name], 1.05)):
        wanted = {name: torch.zeros_like(state[name]) for name in names}
        placed = sum(tensor.nbytes for tensor in wanted.values())
        # bound, because the lambda outlives the loop's values
        load = lambda wanted=wanted: dcp.load(wanted, storage_reader=CloudStorageReader(url))  # noqa: E731
        assert received(proxy, load) / placed <= limit
        scenarios.assert_same(wanted, {name: state[name] for name in names})


@pytest.mark.parametrize(("dim", "limit"), [(0, 1.10), (1, 2.02)])
def test_slices_of_a_chunk(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, worlds: World, dim: int, limit: float
) -> None:
    """Rows: their own bytes. Columns: never more than every rank reading the whole chunk."""
    url = f"{seaweedfs_bucket.url}/run"
    worlds(1).run(scenarios.save_sharded, url, 0)
    size = scenarios.SHARDED.numel() * 4
    ratio = received(proxy, lambda: worlds(2).run(scenarios.load_sharded, url, dim)) / size
    assert ratio <= limit


def test_requests_of_a_small_training_state(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    state = {f"layer.{number}": torch.ones(64, 64) for number in range(100)}
    dcp.save(state, storage_writer=CloudStorageWriter(url))
    # is a checkpoint there? data, commit
    assert proxy.operations() == ["GetObject", "PutObject", "PutObject"]
    proxy.clear()
    dcp.load(state, storage_reader=CloudStorageReader(url))
    # the commit record, data
    assert proxy.operations() == ["GetObject", "GetObject"]


@pytest.mark.parametrize("items", [30_000, pytest.param(300_000, marks=pytest.mark.slow)])
def test_planning_a_load_is_linear(items: int) -> None:
    """In CPU seconds, the best of up to four: other processes take caches away. Ten times the items may take
    thirty times as long; planning that compares all items with all others takes a hundred times."""
    few, many = math.inf, math.inf
    for _ in range(4):
        few, many = min(few, planning.seconds(items // 10)), min(many, planning.seconds(items))
        if many <= 30 * few:
            return
    pytest.fail(f"{many:.2f} s for {items} items, {few:.2f} s for a tenth")
