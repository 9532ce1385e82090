"""One save or load by one system, in a process of its own that measures itself.

Runs in the environment of the system, so it imports nothing of this repository but what that environment
has installed::

    python job.py '{"system": "dcp-cloud", "operation": "save", "url": "s3://…", "state": {...}}'

and prints one line of JSON: client CPU seconds (user and system, all threads), wall seconds, bytes of the
state, and peak resident memory above what was resident before. Before the measured operation the system
does the same once with a small state, so that imports and connections are not in the figures.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def build(state: dict[str, Any], *, blank: bool) -> dict[str, torch.Tensor]:
    """Tensors of one kind; blank ones have their memory touched all the same."""
    dtype = DTYPES[state.get("dtype", "bfloat16")]
    tensors = {}
    for number in range(state["count"]):
        tensor = torch.empty(state["shape"], dtype=dtype)
        raw = tensor.view(-1).view(torch.int32)
        if state.get("kind") == "strided":
            tensor = tensor.t()
        if blank:
            raw.zero_()
        else:
            raw.random_(generator=torch.Generator().manual_seed(number))
        tensors[f"layers.{number:05d}.weight"] = tensor
    return tensors


def sharded(tensors: dict[str, torch.Tensor], dim: int) -> dict[str, Any]:
    """DTensors of which each rank holds an equal part along ``dim``."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parts = {}
    for name, tensor in tensors.items():
        local = tensor.chunk(dist.get_world_size(), dim)[dist.get_rank()].contiguous()
        parts[name] = DTensor.from_local(local, mesh, [Shard(dim)], run_check=False)
    return parts


def local(value: Any) -> torch.Tensor:
    """What this rank has of a tensor."""
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def dcp_cloud(url: str, options: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    from dcp_core import CloudStorageReader, CloudStorageWriter

    kept = {"concurrency": options["threads"], **options.get("dcp-cloud", {})}
    return lambda: CloudStorageWriter(url, **kept), lambda: CloudStorageReader(url, **kept)


def s3torchconnector(url: str, options: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    from s3torchconnector import S3ClientConfig
    from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

    client = S3ClientConfig(force_path_style=True)
    region = os.environ["AWS_DEFAULT_REGION"]
    common = {"region": region, "path": url, "s3client_config": client}
    return (
        lambda: S3StorageWriter(**common, thread_count=options["threads"], overwrite=True),
        lambda: S3StorageReader(**common),
    )


def fsspec(url: str, options: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

    return lambda: FsspecWriter(url, thread_count=options["threads"]), lambda: FsspecReader(url)


def msc(url: str, options: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    from multistorageclient.contrib.torch import MultiStorageFileSystemReader, MultiStorageFileSystemWriter

    path = "msc://bench/" + url.split("/", 3)[3]
    threads = options["threads"]
    return (
        lambda: MultiStorageFileSystemWriter(path, thread_count=threads),
        lambda: MultiStorageFileSystemReader(path, thread_count=threads),
    )


def torch_files(url: str, options: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

    folder = os.path.join(options["ram_disk"], url.split("/", 3)[3])
    writer = lambda: FileSystemWriter(folder, thread_count=options["threads"])  # noqa: E731
    return writer, lambda: FileSystemReader(folder)


SYSTEMS = {
    "dcp-cloud": dcp_cloud,
    "s3torchconnector": s3torchconnector,
    "fsspec + s3fs": fsspec,
    "MSC": msc,
    "torch files on a RAM disk": torch_files,
}


def cpu() -> tuple[float, float]:
    """User and system seconds of this process and its children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime for usage in usages), sum(usage.ru_stime for usage in usages)


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise LookupError(field)


def measured(operation: Callable[[], Any]) -> dict[str, float]:
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    started, (user, system) = time.perf_counter(), cpu()
    operation()
    wall, (user_after, system_after) = time.perf_counter() - started, cpu()
    user, system = user_after - user, system_after - system
    extra = max(0, resident("VmHWM") - before)
    return {"cpu": user + system, "user": user, "wall": wall, "extra_rss": extra}


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    warm_up(job)
    writer, reader = SYSTEMS[job["system"]](job["url"], job["options"])
    loading = job["operation"] == "load"
    # ranks that save tensors of their own give them names of their own
    kinds = [{**kind, "name": f"rank{rank}"} if job.get("own") else kind for kind in job["states"]]
    # nested as in DCP's tutorials; torch logs a call for each key at the top, with any storage
    state: dict[str, Any] = {name_of(kind): build(kind, blank=loading) for kind in kinds}
    if job.get("shard_dim") is not None:
        state = {name: sharded(tensors, job["shard_dim"]) for name, tensors in state.items()}
    placed = sum(local(value).nbytes for tensors in state.values() for value in tensors.values())
    if world > 1:
        dist.barrier()
    if loading:
        figures = measured(lambda: dcp.load(state, storage_reader=reader()))
        if job.get("shard_dim") is None:
            check(state, kinds)
    else:
        figures = measured(lambda: dcp.save(state, storage_writer=writer()))
    print(json.dumps({**figures, "bytes": placed}), flush=True)
    if world > 1:
        dist.destroy_process_group()


def warm_up(job: dict[str, Any]) -> None:
    """Imports, connections and code paths, by the same system on something small."""
    writer, reader = SYSTEMS[job["system"]](job["url"] + "-warm", job["options"])
    small = {"warm": torch.ones(4096)}
    dcp.save(small, storage_writer=writer())
    if job["operation"] == "load":
        dcp.load(small, storage_reader=reader())


def name_of(kind: dict[str, Any]) -> str:
    return str(kind.get("name", "model"))


def check(state: dict[str, dict[str, torch.Tensor]], kinds: list[dict[str, Any]]) -> None:
    """A benchmark of a load that loads nothing would be a fine result: look at some of the tensors."""
    for kind in kinds:
        few = {**kind, "count": min(2, kind["count"])}
        for name, expected in build(few, blank=False).items():
            found = state[name_of(kind)][name]
            if not torch.equal(found.contiguous().view(torch.int16), expected.contiguous().view(torch.int16)):
                raise SystemExit(f"{name} is not what was saved")


if __name__ == "__main__":
    main()
