"""Run the soak against SeaweedFS, and say what came of it; the exit code is 1 if anything is wrong."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conftest import Bucket
from dcp_fault_proxy import FaultProxy
from dcp_s3_servers import SeaweedFS
from sweep.judge import Case, Judge

from soak import traffic
from soak.crashes import Crashes
from soak.resources import growth
from soak.trouble import Trouble

_BUCKET = "soak"
#: Seconds after its time in which the traffic has to end.
_LIMIT = 300.0


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    options = _options(arguments)
    with _bucket() as bucket, FaultProxy(bucket.server.endpoint) as proxy:
        summary: dict[str, Any] = {
            "seed": options.seed,
            "minutes": options.minutes,
            "threads": options.threads,
        }
        violations = []
        if options.minutes:
            violations += _soak(bucket, proxy, options, summary)
        if options.cycles:
            violations += _crash(bucket, proxy, options, summary)
    summary["violations"] = violations
    text = json.dumps(summary, indent=1) + "\n"
    print(text, end="")
    if options.summary is not None:
        options.summary.write_text(text, encoding="utf-8")
    return 1 if violations else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of saves and loads")
    parser.add_argument("--threads", type=int, default=4, help="that save and load")
    parser.add_argument("--cycles", type=int, default=1000, help="of death and restart")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random")
    parser.add_argument("--summary", type=Path, help="JSON file to write")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def _bucket() -> Iterator[Bucket]:
    """A bucket on a server of its own, to which the environment leads."""
    before = dict(os.environ)
    with SeaweedFS() as server:
        server.make_bucket(_BUCKET)
        os.environ.update(server.environment())
        try:
            with contextlib.closing(server.client()) as client:
                yield Bucket(server, _BUCKET, client)
        finally:
            os.environ.clear()
            os.environ.update(before)


def _soak(
    bucket: Bucket, proxy: FaultProxy, options: argparse.Namespace, summary: dict[str, Any]
) -> list[str]:
    """Saves and loads in a process of their own, with trouble."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    variables = bucket.environment_at(proxy.endpoint)
    process = context.Process(
        target=traffic.run,
        args=(theirs, (bucket.url, variables), options.threads, options.minutes * 60, options.seed),
    )
    process.start()
    theirs.close()
    with Trouble(proxy, options.seed) as trouble:
        report = _received(ours, options.minutes * 60 + _LIMIT)
    if report is None:
        process.kill()
        return ["the process with the saves and loads hangs or died"]
    process.join()
    medians, grown = growth(report.samples)
    summary |= {
        **{"requests": trouble.requests, "faults": dict(sorted(trouble.faults.items()))},
        **{"done": dict(sorted(report.counts.items())), "held, early and late": medians},
    }
    return [*report.violations, *grown, *_left(bucket, report)]


def _received(pipe: Any, seconds: float) -> traffic.Report | None:
    with contextlib.suppress(EOFError):
        found: traffic.Report | None = pipe.recv() if pipe.poll(seconds) else None
        return found
    return None


def _left(bucket: Bucket, report: traffic.Report) -> Iterator[str]:
    """What is wrong with what is in the bucket at the end."""
    for name, seeds in report.there.items():
        judge = Judge(bucket, name)
        there = judge.load()
        if there not in seeds:
            yield f"{name}: seed {there} is there at the end, of {seeds}"
        yield from (f"{name}: {text}" for text in judge.judge(Case(there, there, ())).violations)


def _crash(
    bucket: Bucket, proxy: FaultProxy, options: argparse.Namespace, summary: dict[str, Any]
) -> list[str]:
    crashes = Crashes(bucket, proxy, options.seed)
    tell = _telling()
    for number in range(options.cycles):
        crashes.cycle()
        tell(f"{number + 1} of {options.cycles} cycles, {len(crashes.violations)} violations")
    summary["cycles"] = dict(crashes.counts)
    return crashes.violations


def _telling() -> Callable[[str], None]:
    """Says how far it is, every now and then."""
    begun = time.monotonic()
    told = [0]

    def tell(text: str) -> None:
        minutes = int((time.monotonic() - begun) / 60)
        if minutes > told[0]:
            told[0] = minutes
            print(text, file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    # torch tells of every failure
    logging.disable()
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:]))
