"""The demo: train, save to a real object store, and go on elsewhere as if nothing had happened.

1. Start an S3 server on this machine.
2. Train a transformer in 4 processes (FSDP2) and save model, optimizer, schedule, RNG and step to
   ``s3://demo/run/step-N`` on the way; go on to the end. That is the uninterrupted run.
3. Load into 4, 2 and 1 processes and train on: the losses must be those of the uninterrupted run.
4. Copy the objects to a folder and load them with stock PyTorch.

Exits with 0 only if everything was equal.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path += [str(FOLDER), str(FOLDER.parent.parent / "localstack")]

from dcp_fault_proxy import FaultProxy  # noqa: E402
from dcp_servers import SeaweedFS, Server  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

STEPS = 10
SAVE_AT = 6
CHECKPOINT = f"s3://demo/run/step-{SAVE_AT}"
#: Sums over ranks are in another order in another number of processes, so losses differ by rounding. The
#: loaded state itself must be equal bit for bit.
LOSS_TOLERANCE = 1e-4

console = Console(width=None if sys.stdout.isatty() else 110)


@dataclass
class Stage:
    """One line of the report."""

    what: str
    processes: int
    report: dict[str, Any]
    requests: int = 0
    received: int = 0
    sent: int = 0
    equal: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self, good: bool, what: str) -> None:
        (self.equal if good else self.wrong).append(what)


def torchrun(processes: int, arguments: list[str], environment: dict[str, str], title: str) -> dict[str, Any]:
    """Run the training script and return rank 0's report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
        ]
        command += [str(FOLDER / "train.py"), f"--steps={STEPS}", f"--report={report}", *arguments]
        variables = {**os.environ, **environment, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        process = subprocess.Popen(
            command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
        reader.start()
        with console.status(f"{title}: starting {processes} processes") as status:
            for line in process.stdout or ():
                status.update(f"{title}: {line.strip()}")
                console.print(f"  [dim]{title}: {line.strip()}")
        reader.join()
        if process.wait():
            console.print("".join(errors)[-6000:], markup=False, highlight=False)
            raise SystemExit(f"{title} failed with exit code {process.returncode}")
        return json.loads(report.read_text())  # type: ignore[no-any-return]


def staged(what: str, processes: int, arguments: list[str], proxy: FaultProxy, server: Server) -> Stage:
    """Run the training script with every request counted."""
    proxy.clear()
    environment = {**server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint}
    report = torchrun(processes, arguments, environment, what)
    return Stage(
        what,
        processes,
        report,
        len(proxy.requests),
        sum(seen.bytes_out for seen in proxy.requests),
        sum(seen.bytes_in for seen in proxy.requests),
    )


def compare_values(stage: Stage, reference: Stage, loaded: dict[str, str]) -> None:
    """Hold every loaded value to the saved one."""
    saved = reference.report["digests"]
    different = sorted(name for name in saved.keys() | loaded.keys() if saved.get(name) != loaded.get(name))
    named = f" ({len(different)} differ, such as {different[0]})" if different else ""
    stage.check(not different, f"{len(loaded)} loaded values bit for bit{named}")


def compare(stage: Stage, reference: Stage) -> None:
    """Hold a resumed run to the uninterrupted one."""
    compare_values(stage, reference, stage.report["digests"])
    expected = {step: loss for step, loss in reference.report["losses"].items() if int(step) > SAVE_AT}
    actual = stage.report["losses"]
    worst = max(abs(actual[step] - loss) / loss for step, loss in expected.items())
    exact = stage.processes == reference.processes
    said = f"{len(expected)} losses " + ("exactly" if worst == 0 else f"within {worst:.0e}")
    stage.check(actual.keys() == expected.keys() and worst <= (0 if exact else LOSS_TOLERANCE), said)


def load_with_stock_torch(server: Server, reference: Stage) -> Stage:
    """Copy the objects to a folder and load them with torch's own reader."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
    from train import digests

    with tempfile.TemporaryDirectory() as folder, contextlib.closing(server.client()) as client:
        prefix = f"run/step-{SAVE_AT}/"
        entries = client.list_objects_v2(Bucket="demo", Prefix=prefix)["Contents"]
        for entry in entries:
            client.download_file("demo", entry["Key"], str(Path(folder, entry["Key"].removeprefix(prefix))))
        state: dict[str, Any] = {}
        started = time.perf_counter()
        _load_state_dict(
            state, dcp.FileSystemReader(folder), no_dist=True, planner=_EmptyStateDictLoadPlanner()
        )
        report = {"seconds": time.perf_counter() - started}
    stage = Stage("stock FileSystemReader", 1, report, len(entries), sum(entry["Size"] for entry in entries))
    compare_values(stage, reference, digests(state["training"]))
    return stage


def table(stages: list[Stage]) -> Table:
    result = Table(title=f"Checkpoint {CHECKPOINT}")
    for column in ("what", "processes", "MiB sent", "MiB received", "requests", "seconds", "equal"):
        result.add_column(column, justify="left" if column in ("what", "equal") else "right")
    for stage in stages:
        verdict = (
            "[green]" + ", ".join(stage.equal) if not stage.wrong else "[red]NOT " + ", ".join(stage.wrong)
        )
        result.add_row(
            stage.what,
            str(stage.processes),
            f"{stage.sent / 2**20:.1f}",
            f"{stage.received / 2**20:.1f}",
            str(stage.requests),
            f"{stage.report['seconds']:.2f}",
            verdict,
        )
    return result


USAGE = """
In your own script:

    import torch.distributed.checkpoint as dcp
    from dcp_core import CloudStorageReader, CloudStorageWriter

    dcp.save(state, storage_writer=CloudStorageWriter("s3://bucket/run/step-1000"))
    dcp.load(state, storage_reader=CloudStorageReader("s3://bucket/run/step-1000"))
"""


def main() -> int:
    console.print("Starting an S3 server on this machine (installed on first use) …")
    with SeaweedFS() as server, FaultProxy(server.endpoint) as proxy:
        server.make_bucket("demo")
        saved = staged("train and save", 4, ["--save=s3://demo/run", f"--save-at={SAVE_AT}"], proxy, server)
        stages = [saved]
        saved.check(True, f"{saved.report['parameters'] / 1e6:.1f} M parameters")
        for processes in (4, 2, 1):
            stage = staged(
                f"load and train on ({processes})", processes, [f"--load={CHECKPOINT}"], proxy, server
            )
            compare(stage, saved)
            stages.append(stage)
        stages.append(load_with_stock_torch(server, saved))
    console.print(table(stages))
    wrong = [f"{stage.what}: {what}" for stage in stages for what in stage.wrong]
    if wrong:
        console.print("[red]Not equal: " + "; ".join(wrong))
        return 1
    console.print("[green]Everything is equal.")
    console.print(USAGE, markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
