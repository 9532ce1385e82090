"""Runs jobs and keeps their figures."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers
from dcp_server import free_ports

JOB = Path(__file__).with_name("job.py")
GIB = 1 << 30


class JobFailedError(RuntimeError):
    """A job ended with an error; the message has its output."""


@dataclass(frozen=True)
class Job:
    """One save or load. See job.py for the fields of the order."""

    system: str
    operation: str
    url: str
    states: list[dict[str, Any]]
    world: int = 1
    threads: int = 4
    own: bool = False
    shard_dim: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Commands to put before the interpreter, such as one that enters a mount namespace.
    within: tuple[str, ...] = ()

    def run(self, environment: Mapping[str, str]) -> dict[str, float]:
        """Run it in ``world`` processes; sums of CPU and bytes, the longest wall time and largest memory."""
        order = {
            **{"system": self.system, "operation": self.operation, "url": self.url, "states": self.states},
            **{"own": self.own, "shard_dim": self.shard_dim},
            "options": {"threads": self.threads, "ram_disk": ram_disk(), **self.options},
        }
        command = [*self.within, peers.python_of(self.system), str(JOB), json.dumps(order)]
        (port,) = free_ports(1)
        shared = {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes = [
            subprocess.Popen(
                command,
                env={**shared, "RANK": str(rank), "WORLD_SIZE": str(self.world)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(self.world)
        ]
        figures = [self._figures(process) for process in processes]
        return {
            **{name: sum(one[name] for one in figures) for name in ("cpu", "user", "bytes")},
            **{name: max(one[name] for one in figures) for name in ("wall", "extra_rss")},
        }

    def _figures(self, process: subprocess.Popen[str]) -> dict[str, float]:
        out, err = process.communicate(timeout=900)
        if process.returncode:
            raise JobFailedError(f"{self.system}, {self.operation}:\n{out[-1000:]}\n{err[-3000:]}")
        found: dict[str, float] = json.loads(out.splitlines()[-1])
        return found


def clean_environment() -> dict[str, str]:
    """The environment without what would lead a job elsewhere."""
    dropped = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_", "PYTHON", "DCP_CLOUD_", "MSC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


def ram_disk() -> str:
    """A folder on a RAM disk, for torch's own files."""
    return "/dev/shm/dcp-cloud-bench"


def curl(url: str, *options: str) -> dict[str, float]:
    """Download ``url`` to nowhere; the floor of a load."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile() as sizes:
        subprocess.run(
            [
                "curl",
                "-sS",
                "--fail",
                "-o",
                "/dev/null",
                "-w",
                "%{size_download} %{time_total}",
                *options,
                url,
            ],
            check=True,
            stdout=sizes,
        )
        sizes.seek(0)
        size, wall = map(float, sizes.read().split())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    user = after.ru_utime - before.ru_utime
    return {
        "cpu": user + after.ru_stime - before.ru_stime,
        **{"user": user, "wall": wall, "bytes": size, "extra_rss": 0},
    }


def medians(runs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure, CPU seconds for each GiB of the state, and the spread of those."""
    kept = list(runs)
    found = {name: statistics.median(run[name] for run in kept) for name in kept[0]}
    costs = [run["cpu"] / run["bytes"] * GIB for run in kept]
    return {
        **found,
        "cpu_gib": statistics.median(costs),
        **{"cpu_gib_least": min(costs), "cpu_gib_most": max(costs), "runs": len(kept)},
    }
