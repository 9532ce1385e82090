"""The command, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: Where the command of this environment is.
PROGRAM = str(Path(sys.executable).with_name("dcp-cloud"))


def dcp_cloud(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``dcp-cloud`` with ``arguments``; it must end with the exit code ``expect``."""
    variables = {**os.environ, "COLUMNS": "200", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, check=False, env=variables, timeout=240
    )
    assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
    return done
