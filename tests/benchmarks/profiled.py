"""One save or load under Python's profiler, all threads: ``python profiled.py save s3://bucket/prefix``.

Prints JSON: user and system CPU seconds without the profiler, and the functions that took most time of their
own with it, less those that wait.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
import threading
from collections.abc import Callable
from typing import Any

import job
import torch
import torch.distributed.checkpoint as dcp

#: Calls that a thread sits in until bytes come or leave, or another thread ends.
_WAITING = ("recv_into", "sendall", "acquire", "poll", "connect", "wait")


def profiled(operation: Callable[[], Any]) -> list[list[Any]]:
    """Own seconds and calls by function."""
    profiles = [cProfile.Profile()]
    run = threading.Thread.run

    def traced(self: threading.Thread) -> None:
        profiles.append(cProfile.Profile())
        profiles[-1].runcall(run, self)

    threading.Thread.run = traced  # type: ignore[method-assign]
    profiles[0].runcall(operation)
    threading.Thread.run = run  # type: ignore[method-assign]
    rows = []
    for (file, line, name), (_, calls, own, *_) in pstats.Stats(*profiles).stats.items():  # type: ignore[attr-defined]
        where = "" if file == "~" else f"{'/'.join(file.split('/')[-2:])}:{line} "
        rows.append([own, calls, f"{where}{name}"])
    return sorted(rows, reverse=True)


def main() -> None:
    operation, url = sys.argv[1:]
    torch.set_num_threads(1)
    options = {"threads": 4}
    job.warm_up({"system": "dcp-cloud", "operation": operation, "url": url, "options": options})
    state = {"model": job.build({"count": 64, "shape": [8 << 20]}, blank=operation == "load")}
    writer, reader = job.SYSTEMS["dcp-cloud"](url, options)

    def work() -> None:
        if operation == "save":
            dcp.save(state, storage_writer=writer())
        else:
            dcp.load(state, storage_reader=reader())

    plain = job.measured(work)
    rows = [row for row in profiled(work) if not any(word in row[2] for word in _WAITING)]
    print(json.dumps({"cpu": plain["cpu"], "user": plain["user"], "functions": rows[:10]}))


if __name__ == "__main__":
    main()
