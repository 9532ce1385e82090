"""TorchTitan trains on two ranks with its checkpoints in a bucket, is killed, and goes on.

    python docs/frameworks/torchtitan/run.py                     with an S3 server that runs on this machine
    python docs/frameworks/torchtitan/run.py s3://bucket/run     at a URL of your own

1. Train. Checkpoints go to ``<url>/step-4``, ``<url>/step-8`` and so on, in the background, and the newest
   two stay. In step 12, both processes are killed.
2. Train again, with the same command: it goes on from the newest whole step, and each loss must be the one of
   before. What is saved at last is the model, as HuggingFace's files.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[2]
RANKS = 2
KILLED_IN = 12
LOSS = re.compile(r"step: *(\d+) +loss: +(\S+) +grad_norm: +(\S+)")
#: Of each step the loss and the norm of its gradients, as TorchTitan prints them.
Losses = dict[int, tuple[str, str]]


def train(url: str, **variables: str) -> tuple[int, Losses]:
    """Train, as ``torchrun`` would; returns what the first rank ended with, and the losses."""
    with tempfile.TemporaryDirectory() as work:
        port = free_port()
        ranks = [start(rank, port, url, Path(work), variables) for rank in range(RANKS)]
        codes = [rank.wait() for rank in ranks]
        said = (Path(work) / "rank-0.txt").read_text()
    losses = {int(step): (loss, norm) for step, loss, norm in LOSS.findall(said)}
    for step, (loss, _) in losses.items():
        print(f"  step {step}: loss {loss}", flush=True)
    if any(code > 0 for code in codes):
        raise SystemExit(f"training ended with {codes}:\n{said[-5000:]}")
    return codes[0], losses


def start(rank: int, port: int, url: str, work: Path, more: dict[str, str]) -> subprocess.Popen[bytes]:
    # with GPUs: python -m torchtitan.train
    command = [sys.executable, str(FOLDER / "on_cpu.py"), "--module=tiny", "--config=tiny"]
    variables = {
        "RUN": url,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
    }
    with (work / f"rank-{rank}.txt").open("wb") as said:
        return subprocess.Popen(
            [*command, f"--dump_folder={work}"],
            env={**os.environ, **variables, **more},
            stdout=said,
            stderr=subprocess.STDOUT,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A bucket on this machine; the environment leads to it."""
    sys.path.append(str(ROOT / "localstack"))
    from dcp_s3_servers import SeaweedFS

    with SeaweedFS() as running:
        running.make_bucket("titan")
        os.environ.update(running.environment())
        yield "s3://titan/run"


def show(url: str) -> int:
    """Train, be killed, go on, compare."""
    print(f"Training at {url} …")
    code, before = train(url, KILLED_IN=str(KILLED_IN))
    print(f"Ended with {code} after step {max(before)}. Going on …")
    _, after = train(url)
    both = sorted(before.keys() & after.keys())
    different = [(step, before[step], after[step]) for step in both if before[step] != after[step]]
    if code != -9 or min(after) == 1 or not both or different:
        print(f"Not equal: {different or sorted(after)}")
        return 1
    print(f"It went on from step {min(after) - 1}, and the losses of steps {both} are those of before.")
    return 0


def main() -> int:
    if len(sys.argv) > 1:
        return show(sys.argv[1])
    with server() as url:
        return show(url)


if __name__ == "__main__":
    sys.exit(main())
