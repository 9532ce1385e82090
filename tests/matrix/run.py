"""Runs what could tell releases of PyTorch apart on releases of PyTorch and Python.

::

    run.py                     every row of MATRIX; writes docs/compatibility.md
    run.py --keep 2.14.1       one release, on this Python; keeps its environment for the next time

Each row has an environment of its own, with the oldest or the newest Python that the release is published
for. Needs no packages itself. A Python that is not on this machine makes a row that was not run, and exit
code 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
MARKS = ("<!-- torch releases: made by make test-matrix -->", "<!-- end -->")

#: Release of PyTorch → the oldest and the newest Python that it is published for, from 3.10 on.
MATRIX = {
    "2.6.0": ("3.10", "3.13"),
    "2.8.0": ("3.10", "3.13"),
    "2.10.0": ("3.10", "3.14"),
    "2.12.1": ("3.10", "3.14"),
    "2.15.0": ("3.10", "3.14"),
}
#: What could tell releases apart, with SeaweedFS as the only store: the clouds are all the same to torch.
TESTS = (
    "tests/unit",
    "tests/property",
    "tests/integration/test_async_saves.py",
    "tests/integration/test_checkpoint_ids.py",
    "tests/integration/test_dcp_surface.py",
    "tests/integration/test_load_planners.py",
    "tests/integration/test_main_job.py",
    "tests/integration/test_odd_tensors.py",
    "tests/integration/test_run.py",
    "tests/packaging/test_torch_names.py",
)
SELECTION = "not localstack and not gcs and not azure"
#: Of requirements-dev.txt: what these tests need. Linters and the site need not be there for every Python.
NEEDED = re.compile(r"azure|fsspec|hypothesis|numpy|pytest|pyzstd|trustme")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    torch: str
    python: str
    passed: int = 0
    skipped: int = 0
    failed: int = 0
    problem: str = ""

    @property
    def ok(self) -> bool:
        return self.passed > 0 and not self.failed and not self.problem

    def __str__(self) -> str:
        cells = (self.torch, self.python, self.passed, self.skipped, self.failed or self.problem or 0)
        return f"| {' | '.join(map(str, cells))} |"


def interpreter(version: str) -> str | None:
    """A Python of this version that starts: on the path, or installed by pyenv."""
    names = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for name in filter(None, names):
        if not subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode:
            return str(name)
    return None


def requirements(torch: str) -> list[str]:
    """What pip is told, for an environment with this release of torch."""
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    wanted = (ROOT / "requirements-dev.txt").read_text().splitlines()
    pins = [line for line in pinned if line and not line.startswith(("#", "torch=="))]
    return [f"torch=={torch}", *pins, *(line for line in wanted if NEEDED.match(line))]


def install(python: str, torch: str, folder: Path) -> None:
    """Make the environment, unless it is there and was finished with the same requirements."""
    ready, wanted = folder / ".ready", "\n".join(requirements(torch))
    if ready.is_file() and ready.read_text() == wanted:
        return
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    (folder / "requirements.txt").write_text(wanted)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-r", folder / "requirements.txt", "-e", f"{ROOT}[all]"], check=True)
    ready.write_text(wanted)


def run_tests(torch: str, python: str, folder: Path) -> Row:
    """Run the tests in the environment; their output goes through."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [folder / "bin" / "python", "-m", "pytest", "-n", "auto", "--dist", "loadfile"]
    selected = ["-m", "not slow", "-k", SELECTION, f"--junitxml={report}", *TESTS]
    code = subprocess.run([*command, *selected], cwd=ROOT, check=False).returncode
    if not report.is_file():
        return Row(torch, python, problem=f"pytest ended with {code}")
    counts = ElementTree.parse(report).getroot().find("testsuite")
    assert counts is not None
    tests, skipped, failures, errors = (
        int(counts.attrib[name]) for name in ("tests", "skipped", "failures", "errors")
    )
    failed = failures + errors
    problem = f"pytest ended with {code}" if code and not failed else ""
    return Row(torch, python, tests - skipped - failed, skipped, failed, problem)


def row(torch: str, version: str, python: str | None, folder: Path) -> Row:
    """One release on one Python, from the environment to the counts."""
    if python is None:
        return Row(torch, version, problem=f"not run: no python{version} here")
    print(f"torch {torch}, Python {version}", flush=True)
    try:
        install(python, torch, folder)
    except subprocess.CalledProcessError as error:
        return Row(torch, version, problem=f"not installed: exit code {error.returncode}")
    return run_tests(torch, version, folder)


def table(rows: list[Row]) -> str:
    heads = "| PyTorch | Python | passed | skipped | failed |\n|---|---|---|---|---|"
    return "\n".join([heads, *map(str, rows)])


def write(rows: list[Row], page: Path = PAGE) -> None:
    """Put the table between the marks of the page."""
    before, start, rest = page.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        raise ValueError(f"{page} lacks {MARKS}")
    page.write_text(f"{before}{start}\n\n{table(rows)}\n\n{end}{after}")


def whole_matrix() -> list[Row]:
    """Every row, one after another; environments are gone afterwards: each has gigabytes."""
    rows = []
    for torch, versions in MATRIX.items():
        for version in versions:
            with tempfile.TemporaryDirectory(dir=ROOT, prefix=".venv-torch-") as folder:
                rows.append(row(torch, version, interpreter(version), Path(folder)))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests on releases of PyTorch.")
    parser.add_argument("--keep", metavar="RELEASE", help="run this release only, and keep its environment")
    keep = parser.parse_args().keep
    # an editable install of this checkout is imported, and nothing else that the caller's variables name
    os.environ.pop("PYTHONPATH", None)
    if keep is not None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        rows = [row(keep, version, sys.executable, ROOT / f".venv-torch-{keep}")]
    else:
        rows = whole_matrix()
        write(rows)
    print(table(rows))
    return 0 if all(one.ok for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
