"""An example that is killed while it saves, and started again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dcp_fault_proxy import Fault, FaultProxy

_LIMIT = 200.0
_RANKS = 2
_LOSSES = re.compile(r"^(?:epoch|step) (\d+): loss(?:es)? (.*)$", re.MULTILINE)
_RESUMED = re.compile(r"^going on from (\S+)$", re.MULTILINE)


@contextlib.contextmanager
def _started(script: Path, arguments: Sequence[str], folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """``script`` with the environment that torchrun would give it; killed at the end, all at once.

    torchrun's workers are in sessions of their own, and outlive it if it is killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(_RANKS)}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "LOCAL_WORLD_SIZE": str(_RANKS)}
    common["PYTHONFAULTHANDLER"] = "1"
    ranks = []
    try:
        for rank in range(_RANKS):
            log = (folder / f"rank-{rank}.txt").open("w")
            with log:
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, str(script), *arguments],
                        env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        text=True,
                        cwd=folder,
                    )
                )
        yield ranks
    finally:
        for process in ranks:
            process.kill()
        for process in ranks:
            process.wait()


def _said(folder: Path) -> str:
    """What the first rank printed."""
    return (folder / "rank-0.txt").read_text()


def finished(script: Path, arguments: Sequence[str], folder: Path) -> str:
    """What the first rank prints; all must end well."""
    with _started(script, arguments, folder) as ranks:
        until = time.monotonic() + _LIMIT
        while any(process.poll() is None for process in ranks):
            if any(process.poll() for process in ranks) or time.monotonic() > until:
                # one has failed, or nothing goes on: the others say where they are
                for process in ranks:
                    process.send_signal(signal.SIGABRT)
                break
            time.sleep(0.1)
        codes = [process.wait() for process in ranks]
    assert codes == [0] * _RANKS, "\n".join(path.read_text() for path in folder.glob("rank-*.txt"))
    return _said(folder)


def killed_while_saving(
    script: Path, arguments: Sequence[str], folder: Path, proxy: FaultProxy, record: str
) -> str:
    """Kill it while the request for the commit record ``record``, a pattern, is held; what was printed."""
    proxy.add(Fault("hold", operation="PutObject", path=record))
    with _started(script, arguments, folder):
        held = proxy.wait_held(_LIMIT)
    # its client is gone, and it never arrives
    proxy.release(drop=True)
    proxy.clear()
    assert held, _said(folder)
    return _said(folder)


def losses(said: str) -> dict[int, str]:
    """By epoch or step, as they were printed."""
    return {int(number): values for number, values in _LOSSES.findall(said)}


def resumed_from(said: str) -> str:
    (url,) = _RESUMED.findall(said)
    return str(url)
