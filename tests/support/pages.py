"""Blocks of a page about a framework, each run in a process of its own: they make process groups."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LIMIT = 200.0


def run_blocks(page: str, names: dict[str, str], folder: Path) -> int:
    """Run the Python blocks of ``page`` one after another in one process; how many there are."""
    blocks = _BLOCK.findall((ROOT / page).read_text())
    given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    done = subprocess.run(
        [sys.executable, "-c", given + "\n".join(blocks)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        timeout=_LIMIT,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return len(blocks)
