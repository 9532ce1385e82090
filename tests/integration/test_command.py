"""The command ``dcp-cloud`` on a real bucket: what it says, and how it exits."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from support.command import PROGRAM, as_json, command, environment, run

from dcp_core import CloudStorageWriter
from dcp_core.cli import app
from dcp_core.upkeep.bench import measure_bucket


def save(url: str) -> None:
    state = {"weight": scenarios.noise(1, (512, 512)), "step": 3}
    dcp.save(state, storage_writer=CloudStorageWriter(url))


def test_inspect(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    said = command("inspect", url)
    assert re.search(r"weight.*float32.*\[512, 512\].*1", said)
    assert re.search(r"step.*object", said)
    assert "1.0 MiB of tensors in 1 data objects" in said
    weight = {"name": "weight", "kind": "float32", "shape": [512, 512], "chunks": 1, "bytes": 1 << 20}
    step = {"name": "step", "kind": "object", "shape": None, "chunks": 1, "bytes": None}
    expected = {"url": url, "items": [step, weight], "tensor_bytes": 1 << 20, "objects": 1}
    assert as_json("inspect", url) == expected


def test_schemes() -> None:
    known = ["abfs", "abfss", "az", "gs", "http", "https", "s3"]
    assert command("schemes").split() == [f"{scheme}://" for scheme in known]
    assert as_json("schemes") == known


# --- bench


def test_bench_measures_and_leaves_nothing(bucket: Bucket) -> None:
    bucket.write("run/else", b"of somebody else")
    said = command("bench", f"{bucket.url}/run", "--gib", "0.02", "--tensor-mib", "1", "--rounds", "2")
    for operation in ("save", "load"):
        assert len(re.findall(rf"^{operation} \d+\.\d\d GB/s in \d+\.\d\d s$", said, re.MULTILINE)) == 2
        assert f"{operation}, median of 2" in said
    assert bucket.keys() == ["run/else"]
    assert bucket.uploads() == []


def test_bench_for_programs(seaweedfs_bucket: Bucket) -> None:
    found = as_json("bench", seaweedfs_bucket.url, "--gib", "0", "--tensor-mib", "0.5", "--rounds", "3")
    assert found["url"] == seaweedfs_bucket.url
    assert [one["operation"] for one in found["rounds"]] == ["save"] * 3 + ["load"] * 3
    assert {one["size"] for one in found["rounds"]} == {1 << 19}
    for operation, median in found["medians"].items():
        walls = sorted(one["wall"] for one in found["rounds"] if one["operation"] == operation)
        assert median["wall"] == walls[1]
        assert median["rate"] > 0
    assert set(found["medians"]) == {"save", "load"}
    assert seaweedfs_bucket.keys() == []


@pytest.mark.parametrize(("wanted", "moved"), [((3 << 20) + 5, 3 << 20), (1, 1 << 20)])
def test_bench_counts_the_bytes_it_moves(seaweedfs_bucket: Bucket, wanted: int, moved: int) -> None:
    """Whole tensors, whatever size was asked for: rates are of what was really saved and loaded."""
    url = f"{seaweedfs_bucket.url}/run"
    rounds = list(measure_bucket(url, size=wanted, tensor_size=1 << 20, rounds=1, options={}))
    assert [(one.operation, one.size) for one in rounds] == [("save", moved), ("load", moved)]


def test_bench_with_ranks(seaweedfs_bucket: Bucket) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    options = ("--gib", "0.02", "--tensor-mib", "1", "--rounds", "1")
    done = subprocess.run(
        [*launcher, PROGRAM, "bench", f"{seaweedfs_bucket.url}/run", *options],
        capture_output=True,
        text=True,
        check=False,
        env=environment(OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # one rank speaks, for the bytes of both
    assert done.stdout.count("save, median of 1") == 1
    assert seaweedfs_bucket.keys() == []


# --- what goes wrong

BAD_INPUT = {
    "no URL": ("verify",),
    "no scheme": ("verify", "bucket/run"),
    "a folded URL": ("inspect", "s3:/bucket/run"),
    "a folded URL to show": ("show", "s3:/bucket/run"),
    "no path": ("show", ""),
    "a file for a folder": ("show", __file__),
    "no depth": ("show", "s3://bucket/run", "--depth", "0"),
    "one checkpoint to compare": ("diff", "s3://bucket/run"),
    "nothing to compare with": ("diff", "no/such/folder", "s3://bucket/run"),
    "no tensor": ("head", "s3://bucket/run"),
    "fewer than no values": ("head", "s3://bucket/run", "w", "-n", "-1"),
    "du of a web server": ("du", "https://host/run"),
    "rm of a web server": ("rm", "https://host/run"),
    "rm of a bucket": ("rm", "s3://"),
    "rm of a folder that is none": ("rm", "no/such/folder", "--yes"),
    "one place to copy": ("cp", "s3://bucket/run"),
    "a shard of none": ("cp", "s3://bucket/run", "folder", "--shard", "1/0"),
    "a shard that is none": ("verify", "s3://bucket/run", "--shard", "3/2"),
    "no bucket": ("inspect", "s3:///run"),
    "an unknown scheme": ("verify", "ftp://bucket/run"),
    "an unknown option": ("gc", "s3://bucket", "--force"),
    "an unknown command": ("delete",),
    "too much": ("schemes", "s3"),
    "a negative age": ("gc", "s3://bucket", "--older-than-hours", "-1"),
    "an age that is no number": ("gc", "s3://bucket", "--older-than-hours", "nan"),
    "an age that is no age": ("gc", "s3://bucket", "--older-than-hours", "1 day"),
    "an endless age": ("gc", "s3://bucket", "--older-than-hours", "inf"),
    "no connections": ("verify", "s3://bucket/run", "--concurrency", "0"),
    "half a connection": ("verify", "s3://bucket/run", "--concurrency", "0.5"),
    "gc of a web server": ("gc", "https://host/run"),
    "bench of a web server": ("bench", "https://host/run"),
    "no rounds": ("bench", "s3://bucket", "--rounds", "0"),
    "a negative size": ("bench", "s3://bucket", "--gib", "-1"),
    "endless tensors": ("bench", "s3://bucket", "--tensor-mib", "inf"),
}


def assert_one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """What it said, which is one line on standard error."""
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("dcp-cloud")
    return done.stderr


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(what: str) -> None:
    arguments = BAD_INPUT[what]
    said = assert_one_line(run(*arguments), 2)
    if arguments[0] != "delete":
        assert said.startswith(f"dcp-cloud {arguments[0]}: ")
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["inspect", "show", "verify", "rm"])
def test_where_nothing_is_committed(seaweedfs_bucket: Bucket, name: str) -> None:
    seaweedfs_bucket.write("none/__0_0.0123456789abcdef.distcp", b"of a save that failed")
    said = assert_one_line(run(name, f"{seaweedfs_bucket.url}/none"), 2)
    assert "no committed checkpoint" in said
    assert "'none/.metadata'" in said


@pytest.mark.parametrize("name", ["inspect", "show", "verify", "du", "rm", "gc", "bench"])
def test_a_bucket_that_does_not_exist(seaweedfs_bucket: Bucket, name: str) -> None:
    said = assert_one_line(run(name, "s3://no-such-bucket-here/run"), 2)
    assert "no-such-bucket-here" in said
    assert "no-such-bucket-here" not in seaweedfs_bucket.bucket_names()


def test_help() -> None:
    said = command("--help")
    for name in (
        "ls",
        "show",
        "inspect",
        "head",
        "diff",
        "du",
        "verify",
        "cp",
        "rm",
        "gc",
        "bench",
        "schemes",
    ):
        assert re.search(rf"\b{name}\b", said)
        assert "--json" in command(name, "--help")


def test_a_shell_completes_commands_and_options() -> None:
    words = {"_DCP_CLOUD_COMPLETE": "complete_bash", "COMP_WORDS": "dcp-cloud cp --ov", "COMP_CWORD": "2"}
    done = run(**words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "--overwrite\n", "")
    words |= {"COMP_WORDS": "dcp-cloud s", "COMP_CWORD": "1"}
    assert run(**words).stdout.split() == ["show", "schemes"]


# --- what is not installed


def without(folder: Path, *packages: str) -> dict[str, str]:
    """Variables with which Python finds none of ``packages``."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, *where):\n"
        f"        if name.partition('.')[0] in {packages!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Without())\n"
    )
    python_path = environment().get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder}:{python_path}" if python_path else str(folder)}


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_its_extra_it_says_what_to_install(tmp_path: Path, package: str) -> None:
    said = assert_one_line(run("schemes", **without(tmp_path, package)), 2)
    assert said == f"dcp-cloud: the command needs {package}: pip install 'dcp-cloud[cli]'\n"


def test_a_backend_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    said = assert_one_line(run("verify", "s3://bucket/run", **without(tmp_path, "boto3")), 2)
    assert said == "dcp-cloud verify: s3:// needs the package boto3: pip install 'dcp-cloud[s3]'\n"


# --- terminals and pipes


def test_names_cannot_steer_the_terminal(seaweedfs_bucket: Bucket) -> None:
    """Names come from a bucket: whoever can write to it could otherwise clear a screen, or show a lie."""
    url, name = f"{seaweedfs_bucket.url}/run", "we\x1b[2J\x1b]0;title\x07ight\r\nfake: line\u202e"
    dcp.save({name: torch.ones(3)}, storage_writer=CloudStorageWriter(url))
    key = next(key for key in seaweedfs_bucket.keys() if key.endswith(".distcp"))
    seaweedfs_bucket.write(key, b"damaged")
    for said in (command("inspect", url), command("verify", url, code=1)):
        assert r"we\x1b[2J\x1b]0;title\x07ight\r\nfake: line\u202e" in said
        assert all(one.isprintable() for line in said.split("\n") for one in line)
    assert as_json("inspect", url)["items"][0]["name"] == name


def test_a_reader_of_the_output_may_go(seaweedfs_bucket: Bucket) -> None:
    """``dcp-cloud inspect URL | head -1``"""
    url = f"{seaweedfs_bucket.url}/run"
    state = {f"layer {n}": torch.zeros(1) for n in range(3000)}
    dcp.save(state, storage_writer=CloudStorageWriter(url))
    for options in ((), ("--json",)):
        with subprocess.Popen(
            [PROGRAM, "inspect", url, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(60) == 2


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell starts in its background ignores Ctrl-C, and has its children ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_is_one_line(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    """Ctrl-C while parts are being sent; what was written is gone all the same."""
    proxy.add(Fault("delay", operation="UploadPart", seconds=500.0, times=99))
    arguments = ("bench", f"{seaweedfs_bucket.url}/run", "--gib", "0.05")
    with subprocess.Popen(
        [PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        while not any(seen.operation == "UploadPart" for seen in proxy.requests):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=300)
    assert said == ("", "dcp-cloud bench: interrupted\n")
    assert process.returncode == 130
    assert seaweedfs_bucket.keys() == []
    assert seaweedfs_bucket.uploads() == []


def test_an_interrupt_between_requests_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where torch does not make a failed rank of it."""

    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("dcp_core.cli.schemes.known_schemes", interrupted)
    assert app.run(["schemes"]) == 130
    assert capsys.readouterr() == ("", "dcp-cloud schemes: interrupted\n")
