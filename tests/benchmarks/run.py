"""Measures this project beside its peers and writes ``docs/benchmarks.md``.

::

    make bench                                      # everything: about 20 minutes on 2 cores
    python tests/benchmarks/run.py plain small      # some scenarios; the others keep their figures

Runs alternate between the systems, each run is a process of its own (job.py), and every round has a new
server. CPU seconds are the client's; only ratios within one table carry over to other machines. Nothing else
should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "localstack")]

import measure  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
from dcp_azure_servers import Azurite  # noqa: E402
from dcp_fault_proxy import FaultProxy  # noqa: E402
from dcp_gcs_servers import GCSServer  # noqa: E402
from dcp_link import Link  # noqa: E402
from dcp_s3_servers import SeaweedFS  # noqa: E402
from dcp_s3_sink import Sink  # noqa: E402
from measure import Job, clean_environment, curl, medians  # noqa: E402

BUCKET = "bench"
LARGE = [{"count": 64, "shape": [8 << 20]}]
SMALL = [{"count": 10_000, "shape": [32 << 10]}]
TRAINING = [
    {"count": 16, "shape": [8 << 20], "name": "model"},
    {"count": 16, "shape": [8 << 20], "name": "exp_avg", "dtype": "float32"},
    {"count": 16, "shape": [8 << 20], "name": "exp_avg_sq", "dtype": "float32"},
]
MATRICES = [{"count": 16, "shape": [4096, 2048]}]
#: A connection of the shaped link, and how many there are.
RATE, LATENCY, CONNECTIONS = 25e6, 0.020, 16

Figures = dict[str, Any]


def note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def seaweedfs(**options: Any) -> Iterator[tuple[SeaweedFS, dict[str, str]]]:
    """A new server with a bucket, and the environment of its clients."""
    with SeaweedFS(**options) as server:
        server.make_bucket(BUCKET)
        environment = {**clean_environment(), **server.environment()}
        configuration = server.folder / "msc.json"
        peers.write_msc_configuration(configuration, server.endpoint, BUCKET)
        environment["MSC_CONFIG"] = str(configuration)
        try:
            yield server, environment
        finally:
            shutil.rmtree(measure.ram_disk(), ignore_errors=True)


def trusting(server: SeaweedFS) -> tuple[str, ...]:
    """A command that runs another one with the system's trusted certificates replaced by the server's.

    Some clients know only the system's. A mount namespace of the command's own leaves the system as it is;
    it takes root.
    """
    script = 'mount --bind "$0" /etc/ssl/certs/ca-certificates.crt && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, str(server.ca_bundle))


def largest_object(server: SeaweedFS, prefix: str) -> str:
    """A presigned URL of the largest object below ``prefix``."""
    with contextlib.closing(server.client()) as client:
        entries = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
        key = max(entries, key=lambda entry: entry["Size"])["Key"]
        return str(client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": key}))


def side_by_side(
    systems: list[str], states: list[Figures], rounds: int, *, tls: bool = False, floor: bool = False
) -> Figures:
    """Save and load by each system in turn, ``rounds`` times."""
    runs: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    for number in range(rounds):
        with seaweedfs(tls=tls) as (server, environment):
            shift = number % len(systems)
            for system in systems[shift:] + systems[:shift]:
                within = trusting(server) if tls and system != peers.OURS else ()
                for operation in ("save", "load"):
                    prefix = f"round-{number}/{systems.index(system)}"
                    job = Job(system, operation, f"s3://{BUCKET}/{prefix}", states, within=within)
                    runs[system, operation].append(job.run(environment))
                if floor and system == peers.OURS:
                    trust = ("--cacert", environment["AWS_CA_BUNDLE"]) if tls else ()
                    runs[peers.CURL, "load"].append(curl(largest_object(server, prefix), *trust))
        note(f"round {number + 1} of {rounds}")
    return {f"{system}, {operation}": medians(kept) for (system, operation), kept in runs.items()}


ALL = [peers.OURS, peers.S3TORCHCONNECTOR, peers.TORCH_FILES, peers.FSSPEC, peers.MSC]


def plain(rounds: int) -> Figures:
    """1 GiB in tensors of 16 MiB, plain HTTP, every system."""
    return side_by_side(ALL, LARGE, rounds, floor=True)


def tls(rounds: int) -> Figures:
    """The same over TLS."""
    return side_by_side([peers.OURS, peers.S3TORCHCONNECTOR], LARGE, rounds, tls=True, floor=True)


def small(rounds: int) -> Figures:
    """Ten thousand tensors of 64 KiB."""
    return side_by_side([peers.OURS, peers.S3TORCHCONNECTOR], SMALL, rounds)


def clouds(rounds: int) -> Figures:
    """1 GiB with each cloud's client, on its emulator."""
    servers = {"S3": (SeaweedFS, "s3"), "Google": (GCSServer, "gs"), "Azure": (Azurite, "az")}
    runs: dict[str, list[Figures]] = defaultdict(list)
    for number in range(rounds):
        names = list(servers)
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            kind, scheme = servers[name]
            with kind() as server:
                server.make_bucket(BUCKET)
                environment = {**clean_environment(), **server.environment()}
                for operation in ("save", "load"):
                    job = Job(peers.OURS, operation, f"{scheme}://{BUCKET}/run", LARGE)
                    runs[f"{name}, {operation}"].append(job.run(environment))
        note(f"round {number + 1} of {rounds}")
    return {name: medians(kept) for name, kept in runs.items()}


def memory(rounds: int) -> Figures:
    """Peak memory above what was resident before, at 1 and 4 GiB."""
    del rounds
    found: Figures = {}
    with seaweedfs() as (_, environment):
        for gib in (1, 4):
            states = [{"count": 64 * gib, "shape": [8 << 20]}]
            for operation in ("save", "load"):
                job = Job(peers.OURS, operation, f"s3://{BUCKET}/{gib}-gib", states)
                found[f"{gib} GiB, {operation}"] = {"extra_rss": job.run(environment)["extra_rss"]}
    return found


def amplification(rounds: int) -> Figures:
    """Requests, and bytes from the server for each byte placed, counted by a proxy."""
    del rounds
    found: Figures = {}
    with seaweedfs() as (server, environment), FaultProxy(server.endpoint) as proxy:
        counted = {**environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        configuration = server.folder / "msc-counted.json"
        peers.write_msc_configuration(configuration, proxy.endpoint, BUCKET)
        counted["MSC_CONFIG"] = str(configuration)

        def count(name: str, job: Job) -> None:
            proxy.clear()
            placed = job.run(counted)["bytes"]
            # requests of the warm-up are not the job's
            seen = [request for request in proxy.requests if "-warm" not in request.path + request.query]
            loading = job.operation == "load"
            moved = sum(request.bytes_out if loading else request.bytes_in for request in seen)
            found[f"{job.system}, {name}"] = {"requests": len(seen), "ratio": moved / placed}

        for system in (peers.OURS, peers.S3TORCHCONNECTOR, peers.FSSPEC, peers.MSC):
            whole, matrices = f"s3://{BUCKET}/{ALL.index(system)}", f"s3://{BUCKET}/m{ALL.index(system)}"
            count("save all", Job(system, "save", whole, TRAINING))
            count("load all", Job(system, "load", whole, TRAINING))
            count("load the model only", Job(system, "load", whole, TRAINING[:1]))
            Job(system, "save", matrices, MATRICES).run(environment)
            for dim, name in enumerate(
                ("half of the rows on each of 2 ranks", "half of the columns, 2 ranks")
            ):
                with contextlib.suppress(measure.JobFailedError):
                    count(name, Job(system, "load", matrices, MATRICES, world=2, shard_dim=dim))
            note(system)
    return found


def link(rounds: int) -> Figures:
    """A link of 20 ms and 25 MB/s a connection, 16 connections."""
    runs: dict[str, list[Figures]] = defaultdict(list)
    quarter = [{"count": 16, "shape": [8 << 20]}]
    for number in range(rounds):
        with Sink() as sink, Link(sink.endpoint, rate=RATE, latency=LATENCY) as slow:
            environment = {
                **clean_environment(),
                **{"AWS_ENDPOINT_URL": slow.endpoint, "AWS_ACCESS_KEY_ID": "none"},
                **{"AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"},
            }
            url = f"s3://{BUCKET}/{number}"
            for operation in ("save", "load"):
                job = Job(peers.OURS, operation, url, LARGE, threads=CONNECTIONS)
                runs[f"1 rank with 16 connections, {operation}"].append(job.run(environment))
                job = Job(*(peers.OURS, operation, f"{url}-ranks", quarter), world=4, threads=4, own=True)
                runs[f"4 ranks with 4 connections each, {operation}"].append(job.run(environment))
        note(f"round {number + 1} of {rounds}")
    found = {name: medians(kept) for name, kept in runs.items()}
    for figures in found.values():
        figures["of_the_link"] = figures["bytes"] / figures["wall"] / (RATE * CONNECTIONS)
    return found


def planning(rounds: int) -> Figures:
    """Planning a load, by number of items."""
    found: Figures = {}
    for items in (10_000, 100_000, 1_000_000):
        runs = []
        for _ in range(min(rounds, 3)):
            command = [sys.executable, str(HERE / "planning.py"), str(items)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout)["cpu"])
        found[f"{items:,} items"] = {"cpu": sorted(runs)[len(runs) // 2]}
        note(f"{items} items")
    return found


def profile(rounds: int) -> Figures:
    """Where the CPU time of a save and a load goes."""
    del rounds
    found: Figures = {}
    with seaweedfs() as (_, environment):
        for operation in ("save", "load"):
            job = [sys.executable, str(HERE / "profiled.py"), operation, f"s3://{BUCKET}/profile"]
            done = subprocess.run(job, check=True, capture_output=True, text=True, env=environment)
            found[operation] = json.loads(done.stdout.splitlines()[-1])
    return found


SCENARIOS: dict[str, Callable[[int], Figures]] = {
    scenario.__name__: scenario
    for scenario in (plain, tls, small, clouds, memory, amplification, link, planning, profile)
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure dcp-cloud beside its peers.")
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS), help=", ".join(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    unknown = set(arguments.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    for system in ALL:
        peers.python_of(system)
    results = report.read()
    for name in arguments.scenarios:
        note(f"scenario {name}")
        results[name] = {"figures": SCENARIOS[name](arguments.rounds), "machine": report.machine()}
        report.write(results)
    note("written to docs/benchmarks.md")


if __name__ == "__main__":
    main()
