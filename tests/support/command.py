"""The command ``dcp-cloud`` as a shell runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).parent / "dcp-cloud")


def environment(**variables: str) -> dict[str, str]:
    """This process's variables, a wide terminal without colours, no warning of torch's that there is one rank
    only, and ``variables``."""
    quiet = "ignore:torch.distributed is disabled:UserWarning"
    return {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONWARNINGS": quiet, **variables}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it, with more variables."""
    return subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, check=False, env=environment(**variables)
    )


def command(*arguments: str, code: int = 0) -> str:
    """What it prints, where it must exit with ``code``."""
    done = run(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def as_json(*arguments: str, code: int = 0) -> Any:
    """The one document that it prints with ``--json``."""
    return json.loads(command(*arguments, "--json", code=code))
