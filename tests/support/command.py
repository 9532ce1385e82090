"""The command ``dcp-cloud`` as a shell runs it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcp_core.cli import main
from support import processes

PROGRAM = str(Path(sys.executable).parent / "dcp-cloud")


def environment(**variables: str) -> dict[str, str]:
    """This process's variables, a wide terminal without colours, no warning of torch's that there is one rank
    only, and ``variables``."""
    quiet = "ignore:torch.distributed is disabled:UserWarning"
    return {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONWARNINGS": quiet, **variables}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it, with more variables. Those that Python itself looks at make it start a new one, for seconds."""
    if any(name.startswith("PYTHON") for name in variables):
        return subprocess.run(
            [PROGRAM, *arguments], capture_output=True, text=True, check=False, env=environment(**variables)
        )
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("out", "err")]
        process = processes.start(_main, arguments, environment(**variables), paths)
        process.join()
        said = [Path(path).read_text() for path in paths]
    return subprocess.CompletedProcess(arguments, process.exitcode or 0, *said)


def _main(arguments: Sequence[str], variables: Mapping[str, str], paths: Sequence[str]) -> None:
    """What the program does, in a process that has imported it already."""
    processes.replace_all_variables(variables)
    for number, path in enumerate(paths, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    sys.argv = ["dcp-cloud", *arguments]
    main()


def command(*arguments: str, code: int = 0) -> str:
    """What it prints, where it must exit with ``code``."""
    done = run(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def as_json(*arguments: str, code: int = 0) -> Any:
    """The one document that it prints with ``--json``."""
    return json.loads(command(*arguments, "--json", code=code))
