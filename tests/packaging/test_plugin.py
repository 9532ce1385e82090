"""The example backend as its users get it: built, installed, found by its entry point, and tested."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "docs" / "plugin"
GUIDE = (ROOT / "docs" / "writing-a-backend.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3's blobs came with 3.11")


def run(command: list[str], cwd: Path, *importable: Path) -> str:
    """What a command says, with folders before what it can import anyway."""
    folders = [*map(str, importable), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin installed, and nothing else."""
    source = tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", "dist"], source)
    (wheel,) = (source / "dist").glob("*.whl")
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    run([*pip, "--target", str(folder), str(wheel)], source)
    assert [path.name for path in folder.glob("*.py")] == ["dcp_sqlite.py"]
    return folder


def test_it_keeps_the_contract(site: Path, tmp_path: Path) -> None:
    for name in ("test_dcp_sqlite.py", "pyproject.toml"):
        shutil.copy(PLUGIN / name, tmp_path)
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q"]
    command += ["-m", "not slow", "-p", "no:cacheprovider"]
    said = run(command, tmp_path, site)
    found = re.search(r"^(\d+) passed, 1 deselected", said, re.MULTILINE)
    assert found is not None, said
    assert int(found[1]) >= 65
    assert "skipped" not in said


def test_its_entry_point_finds_it(site: Path, tmp_path: Path) -> None:
    code = "from dcp_core.seam.registry import *; print(known_schemes(), find_backend('sqlite'))"
    assert "dcp_sqlite" not in run([sys.executable, "-c", code.split(";", maxsplit=1)[0]], tmp_path)
    said = run([sys.executable, "-c", code], tmp_path, site)
    assert "'sqlite'" in said
    assert "dcp_sqlite.SQLiteBackend" in said


@pytest.mark.parametrize("number", [0, 1])
def test_guide(site: Path, tmp_path: Path, number: int) -> None:
    (tmp_path / "checkpoints").mkdir()
    run([sys.executable, "-W", "ignore::UserWarning", "-c", BLOCKS[number]], tmp_path, site)


def test_guide_on_the_contract(site: Path, tmp_path: Path) -> None:
    """The skeleton makes a class of tests; its two ellipses are for the reader to fill in."""
    assert len(BLOCKS) == 3
    code = BLOCKS[2] + "\nfrom dcp_core.testing import deviations\nprint(deviations(TestMyStore))"
    said = run([sys.executable, "-c", code], tmp_path, site)
    assert said.strip() == "{'test_odd_keys': 'why this store cannot keep the clause'}"


def test_guide_and_plugin_agree() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    assert block in (PLUGIN / "pyproject.toml").read_text()


def test_under_150_lines() -> None:
    """Lines with code on them, imports aside."""
    source = (PLUGIN / "dcp_sqlite.py").read_text()
    body = source[source.index("\nDB = ") :]
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    tokens = list(tokenize.generate_tokens(io.StringIO(body).readline))
    lines = {
        line
        for token in tokens
        if token.type not in skipped
        for line in range(token.start[0], token.end[0] + 1)
    }
    assert len(lines) < 150
