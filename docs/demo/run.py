"""The demo: train, save to a real object store, and go on elsewhere as if nothing had happened.

1. Start an S3 server on this machine.
2. Train a transformer in 4 processes (FSDP2) and save model, optimizer, schedule, random number generators
   and step to ``s3://demo/run/step-N`` on the way; go on to the end. That is the uninterrupted run.
3. Load into 4, 2 and 1 processes and train on: the losses must be those of the uninterrupted run.
4. Copy the objects to a folder and load them with stock PyTorch.

Exits with 0 only if everything was equal. What users would write themselves is in ``train.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path += [str(FOLDER), str(FOLDER.parent.parent / "localstack")]

from dcp_fault_proxy import FaultProxy  # noqa: E402
from dcp_s3_servers import SeaweedFS  # noqa: E402
from dcp_server import Server, ServerError  # noqa: E402
from report import Stage, compare_losses, compare_values, describe_reference, table  # noqa: E402
from rich.console import Console  # noqa: E402

STEPS = 10
SAVE_AT = 6
BUCKET, PREFIX = "demo", f"run/step-{SAVE_AT}"
CHECKPOINT = f"s3://{BUCKET}/{PREFIX}"
ERROR_LINES = 40

console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)


class DemoError(RuntimeError):
    """The demo cannot go on."""


@contextlib.contextmanager
def surroundings() -> Iterator[None]:
    """Nothing of the user's AWS settings comes in, and no temporary file stays behind."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = f"{os.environ.get('no_proxy', '')},127.0.0.1"
    with tempfile.TemporaryDirectory(prefix="dcp-cloud-demo-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        yield


def torchrun(processes: int, arguments: list[str], environment: dict[str, str], title: str) -> dict[str, Any]:
    """Run the training script and return rank 0's report."""
    with tempfile.TemporaryDirectory() as folder:
        report, errors = Path(folder, "report.json"), Path(folder, "errors.txt")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", str(FOLDER / "train.py")]
        command += [f"--steps={STEPS}", f"--report={report}", *arguments]
        with errors.open("w") as stderr, started(command, environment, stderr) as process:
            with console.status(f"{title}: starting {processes} processes …") as status:
                for line in process.stdout:
                    console.print(f"  [dim]{title}:[/] {line.strip()}")
                    status.update(f"{title}: {line.strip()}")
            code = process.wait()
        if code:
            said = error_tail(errors.read_text(errors="replace"))
            raise DemoError(f"{title}: torchrun ended with {code}:\n{said}")
        return json.loads(report.read_text())  # type: ignore[no-any-return]


def error_tail(text: str) -> str:
    """What the ranks said last, rather than what torchrun said about it."""
    lines = text.splitlines()
    of_ranks = [line for line in lines if line.startswith("[rank")]
    return "\n".join((of_ranks or lines)[-ERROR_LINES:])


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str], stderr: Any) -> Iterator[Any]:
    """A process that does not outlive the block; torchrun takes its workers with it."""
    variables = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        with process.stdout:  # type: ignore[union-attr]
            yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def counted(what: str, processes: int, report: dict[str, Any], proxy: FaultProxy) -> Stage:
    """A stage with everything that passed the proxy since it was last cleared."""
    moved = sum(seen.bytes_in + seen.bytes_out for seen in proxy.requests)
    return Stage(what, processes, report, len(proxy.requests), moved)


def train(what: str, processes: int, arguments: list[str], proxy: FaultProxy, server: Server) -> Stage:
    """Run the training script with its requests counted."""
    proxy.clear()
    environment = {**server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint}
    report = torchrun(processes, arguments, environment, f"{what} ({processes})")
    return counted(what, processes, report, proxy)


def load_with_stock_torch(proxy: FaultProxy, server: Server, reference: Stage) -> Stage:
    """Copy the objects to a folder and load them with nothing but torch."""
    from digests import digests

    what = "stock torch"
    proxy.clear()
    with tempfile.TemporaryDirectory() as folder, console.status(f"{what} …"):
        begun = time.perf_counter()
        copy_objects(proxy.endpoint, server, folder)
        state = stock_load(folder)
        seconds = time.perf_counter() - begun
        stage = counted(what, 1, {"seconds": seconds}, proxy)
        loaded = {name.removeprefix("training."): value for name, value in digests(state).items()}
        compare_values(stage, reference, loaded)
    console.print(f"  [dim]{what}:[/] FileSystemReader loaded a copy of the objects")
    return stage


def copy_objects(endpoint: str, server: Server, folder: str) -> None:
    """Download the checkpoint as any S3 tool would."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )
    with contextlib.closing(client):
        for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{PREFIX}/")["Contents"]:
            client.download_file(BUCKET, entry["Key"], str(Path(folder, Path(entry["Key"]).name)))


def stock_load(folder: str) -> dict[str, Any]:
    """Everything in a checkpoint folder, by name."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.FileSystemReader(folder)
    state: dict[str, Any] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        is_tensor = isinstance(entry, TensorStorageMetadata)
        state[name] = torch.empty(entry.size, dtype=entry.properties.dtype) if is_tensor else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def run() -> list[Stage]:
    """All stages; the first is the uninterrupted run."""
    console.print("Starting an S3 server on this machine (installed on first use) …")
    with SeaweedFS() as server, FaultProxy(server.endpoint) as proxy:
        server.make_bucket(BUCKET)
        save = [f"--save=s3://{BUCKET}/run", f"--save-at={SAVE_AT}"]
        reference = train("save", 4, save, proxy, server)
        describe_reference(reference)
        stages = [reference]
        for processes in (4, 2, 1):
            stage = train("load", processes, [f"--load={CHECKPOINT}"], proxy, server)
            compare_values(stage, reference, stage.report["digests"])
            compare_losses(stage, reference, SAVE_AT)
            stages.append(stage)
        stages.append(load_with_stock_torch(proxy, server, reference))
    return stages


USAGE = """
In your own script:

    import torch.distributed.checkpoint as dcp
    from dcp_core import CloudStorageReader, CloudStorageWriter

    dcp.save(state, storage_writer=CloudStorageWriter("s3://bucket/run/step-1000"))
    dcp.load(state, storage_reader=CloudStorageReader("s3://bucket/run/step-1000"))
"""


def main() -> int:
    # as Ctrl-C does: leave through the finally blocks
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.monotonic()
    try:
        with surroundings():
            stages = run()
    except (DemoError, ServerError) as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    millions = stages[0].report["parameters"] / 1e6
    console.print(table(stages, f"{CHECKPOINT}, {millions:.1f} M parameters and their optimizer"))
    wrong = [f"{stage.what} ({stage.processes}): {what}" for stage in stages for what in stage.wrong]
    if wrong:
        console.print("Not equal:", *wrong, sep="\n  ", style="red", markup=False)
        return 1
    console.print(f"[green]Everything is equal.[/] The demo took {time.monotonic() - begun:.0f} s.")
    # not through rich, which would wrap it
    print(USAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
