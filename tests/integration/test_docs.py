"""The examples of the documents run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Bucket

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"^## (?P<title>[^\n]+)\n(?:(?!^## ).*?)```python\n(?P<code>.*?)```", re.DOTALL | re.MULTILINE
)
EXAMPLES = {
    match["title"]: match["code"] for match in BLOCK.finditer((ROOT / "docs/examples.md").read_text())
}


def run(code: str, environment: dict[str, str]) -> None:
    variables = {**os.environ, **environment, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=variables, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_every_section_has_an_example() -> None:
    assert len(EXAMPLES) == (ROOT / "docs/examples.md").read_text().count("\n## ") == 12


@pytest.mark.parametrize("title", EXAMPLES)
def test_example(request: pytest.FixtureRequest, title: str, tmp_path: Path) -> None:
    code = EXAMPLES[title]
    server = "gcs" if "gs://" in code else "azure" if "az://" in code else "seaweedfs"
    bucket: Bucket = request.getfixturevalue(f"{server}_bucket")
    run(f"BUCKET, FOLDER = {bucket.name!r}, {str(tmp_path)!r}\n{code}", bucket.environment)


def test_readme(seaweedfs_bucket: Bucket) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = code.replace("s3://bucket/", f"{seaweedfs_bucket.url}/")
    run(f"import torch\nstate = {{'weight': torch.ones(3)}}\n{code}", seaweedfs_bucket.environment)
