"""``docs/benchmarks.json``, and the page made from it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import peers
from dcp_server import REPOSITORY

DATA = REPOSITORY / "docs" / "benchmarks.json"
PAGE = REPOSITORY / "docs" / "benchmarks.md"

Figures = Mapping[str, Any]

_HEAD = """# Benchmarks

Made by `make bench` (`tests/benchmarks/`); edits are overwritten. Read the ratios within one table: they
carry over to other machines, seconds do not. CPU is the client's, user and system, in seconds for each GiB of
the state; with least and most of all runs. Every run is a process of its own, runs of the systems alternate,
the same operation on something small comes before each, and every round has a new server on the same machine
(SeaweedFS on loopback). Checksums are on. All systems use 4 threads, except where it says otherwise.
"""


def read() -> dict[str, Any]:
    """What was measured before."""
    return json.loads(DATA.read_text()) if DATA.exists() else {}


def machine() -> str:
    """What it ran on, and when."""
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "boto3", "urllib3", "awscrt"))
    model = models[0] if models else platform.machine()
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores of {model}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {libraries}"
    )


def write(results: dict[str, Any]) -> None:
    """Save the figures and make the page."""
    DATA.write_text(json.dumps(results, indent=1) + "\n")
    sections = [section(results[name]) for name, section in SECTIONS.items() if name in results]
    PAGE.write_text("\n".join([_HEAD, *sections]))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cost_rows(figures: Figures, operation: str, systems: list[str]) -> list[list[str]]:
    ours = figures[f"{peers.OURS}, {operation}"]["cpu_gib"]
    rows = []
    for system in systems:
        one = figures.get(f"{system}, {operation}")
        if one is None:
            continue
        rows.append(
            [
                peers.version_of(system),
                f"{one['cpu_gib']:.2f}",
                f"{one['cpu_gib_least']:.2f}–{one['cpu_gib_most']:.2f}",
                f"{one['user'] / one['cpu']:.0%}",
                f"{ours / one['cpu_gib']:.2f}",
                f"{one['wall']:.1f}",
                f"{one['extra_rss'] / (1 << 20):.0f}",
            ]
        )
    return rows


def _costs(title: str, text: str, systems: list[str]) -> Callable[[Figures], str]:
    def section(result: Figures) -> str:
        figures = result["figures"]
        rounds = max(one["runs"] for one in figures.values())
        parts = [f"## {title}\n\n{text} Medians of {rounds}. {result['machine']}.\n"]
        for operation in ("save", "load"):
            header = [operation, "CPU s/GiB", "range", "user", "ours ÷ it", "wall s", "extra MiB"]
            parts.append(table(header, _cost_rows(figures, operation, systems)))
        return "\n".join(parts)

    return section


_SYSTEMS = [
    *(peers.OURS, peers.S3TORCHCONNECTOR, peers.TORCH_FILES, peers.FSSPEC, peers.MSC, peers.CURL),
]


def _clouds(result: Figures) -> str:
    figures, rows = result["figures"], []
    for name, one in figures.items():
        operation = name.partition(", ")[2]
        ratio = one["cpu_gib"] / figures[f"S3, {operation}"]["cpu_gib"]
        spread = f"{one['cpu_gib_least']:.2f}–{one['cpu_gib_most']:.2f}"
        rows.append([name, f"{one['cpu_gib']:.2f}", spread, f"{ratio:.2f}"])
    rounds = max(one["runs"] for one in figures.values())
    text = (
        "1 GiB through each cloud's own client: SeaweedFS, fake-gcs-server behind the gateway of "
        f"`localstack/`, Azurite. Medians of {rounds}."
    )
    header = ["", "CPU s/GiB", "range", "÷ S3"]
    return f"## Clouds\n\n{text} {result['machine']}.\n\n" + table(header, rows)


def _memory(result: Figures) -> str:
    rows = [[name, f"{one['extra_rss'] / (1 << 20):.1f}"] for name, one in result["figures"].items()]
    text = "Peak resident memory above what was resident before the operation; CPU tensors of 16 MiB."
    return f"## Memory\n\n{text} {result['machine']}.\n\n" + table(["", "extra MiB"], rows)


def _amplification(result: Figures) -> str:
    rows = []
    for name, one in result["figures"].items():
        system, _, what = name.partition(", ")
        rows.append([peers.version_of(system), what, f"{one['requests']}", f"{one['ratio']:.3f}"])
    text = (
        "Counted by a proxy before the server: requests, and bytes over the wire for each byte of the state "
        "that was saved or placed. A model of 256 MiB with an optimizer of 1 GiB, and 16 matrices of 16 MiB "
        "saved whole by one rank. What is missing failed."
    )
    header = ["system", "operation", "requests", "bytes ÷ needed"]
    return f"## Requests and amplification\n\n{text} {result['machine']}.\n\n" + table(header, rows)


def _link(result: Figures) -> str:
    rows = [
        [name, f"{one['wall']:.2f}", f"{one['of_the_link']:.1%}", f"{one['cpu_gib']:.2f}"]
        for name, one in result["figures"].items()
    ]
    text = (
        "1 GiB over a link of 20 ms that gives each connection 25 MB/s both ways (`localstack/dcp_link.py`), "
        "16 connections in all: 400 MB/s. Real stores on the same two cores are slower than that, so the "
        "server behind it keeps objects in memory and checks nothing (`localstack/dcp_s3_sink.py`)."
    )
    header = ["", "wall s", "of what the link allows", "CPU s/GiB"]
    return f"## A slow link\n\n{text} {result['machine']}.\n\n" + table(header, rows)


def _planning(result: Figures) -> str:
    rows = [[name, f"{one['cpu']:.2f}"] for name, one in result["figures"].items()]
    text = "From DCP's plan and the commit record to range requests; CPU seconds."
    return f"## Planning a load\n\n{text} {result['machine']}.\n\n" + table(["", "CPU s"], rows)


def _profile(result: Figures) -> str:
    parts = [
        "## What is left\n\nOne save and one load of 1 GiB. First without the profiler: how much of "
        "the CPU time is the kernel's. Then Python's profiler over all threads: the functions with most time "
        f"of their own, without those that wait for the network. {result['machine']}.\n"
    ]
    for operation, one in result["figures"].items():
        system = one["cpu"] - one["user"]
        parts.append(
            f"**{operation}**: {one['cpu']:.2f} CPU s, of which {system:.2f} ({system / one['cpu']:.0%}) "
            "in the kernel.\n"
        )
        rows = [[f"`{name}`", f"{own * 1000:.0f}", str(calls)] for own, calls, name in one["functions"]]
        parts.append(table(["function", "own ms", "calls"], rows))
    parts.append(_WHY)
    return "\n".join(parts)


_WHY = """What the kernel does is one copy of every byte between the tensor and socket buffers, and TCP.
Sending without that copy was built and measured, and costs more here (decision 9). Of the rest, the checksum
is one pass over memory at the speed of the memory; a request costs the SDK almost a millisecond (signing,
hooks, parsing), which parts and ranges of tens of MiB make small; torch plans in Python. Over TLS, OpenSSL's
AES-GCM and its own copy are half of a save.

A save cannot cost much less here: the kernel's part and the checksum alone are three fifths of it.
"""

SECTIONS: dict[str, Callable[[Figures], str]] = {
    "plain": _costs("1 GiB over plain HTTP", "64 tensors of 16 MiB, bfloat16.", _SYSTEMS),
    "tls": _costs(
        "1 GiB over TLS",
        "The same, TLS 1.3 between client and server.",
        [peers.OURS, peers.S3TORCHCONNECTOR, peers.CURL],
    ),
    "small": _costs(
        "Ten thousand tensors of 64 KiB",
        "Most of the time is per tensor: planning in torch, and framing. The state is nested as in DCP's "
        'tutorials, `{"model": {name: tensor}}`: each key at the top costs torch 20 µs of logging, with any '
        "storage.",
        [peers.OURS, peers.S3TORCHCONNECTOR],
    ),
    "clouds": _clouds,
    "memory": _memory,
    "amplification": _amplification,
    "link": _link,
    "planning": _planning,
    "profile": _profile,
}
