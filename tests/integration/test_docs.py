"""The blocks of the documents run as they stand, against real servers.

Those of the page about backends are run by ``tests/packaging/test_plugin.py``, which installs the plugin, and
those about frameworks by ``tests/frameworks``, where these are installed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import Bucket

from dcp_azure import AzureOptions
from dcp_core import LoadOptions, SaveOptions
from dcp_gcs import GCSOptions
from dcp_http import HTTPOptions
from dcp_s3 import S3Options

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: These take ``BUCKET`` and ``FOLDER`` from the test.
PAGES = [
    "docs/clouds/azure.md",
    "docs/clouds/gcs.md",
    "docs/clouds/s3.md",
    "docs/examples.md",
    "docs/huggingface.md",
    "docs/runs.md",
    "docs/tuning.md",
    "docs/tutorial.md",
]
#: These show what a save looks like, with a ``state`` of the reader's.
SHOWN = ["README.md", "docs/index.md"]
ELSEWHERE = [
    "docs/writing-a-backend.md",
    "docs/frameworks/accelerate.md",
    "docs/frameworks/lightning.md",
    "docs/frameworks/torchtitan.md",
    "docs/frameworks/torch_checkpointing.md",
]
SERVERS = {"gs://": "gcs", "az://": "azure"}
OPTIONS = {
    field.name
    for kind in (SaveOptions, LoadOptions, S3Options, GCSOptions, AzureOptions, HTTPOptions)
    for field in dataclasses.fields(kind)
}
#: What else is written ``name=`` in the text of pages: keywords of torch, of dataclasses, of gcloud, of runs.
KEYWORDS = {
    *("async_stager", "no_dist", "use_collectives", "checkpoint_id", "repr", "expression", "title"),
    *("count", "mode", "fall_back", "fsspec"),
    # of TorchTitan's configuration
    *("load_step", "async_mode"),
    *("use_mmap", "weights_only"),
    # of Lightning, and of its strategies here
    *("asynchronous", "ckpt_path", "device_id", "save_distributed_checkpoint", "save_last"),
    *("state_dict_type", "use_seedable_sampler"),
}
#: Runs each block of a page with names of its own, and says of a failure on which line of the page it is.
RUNNER = """
import json, sys
for name, line, code, names in json.load(sys.stdin):
    exec(compile("\\n" * line + code, name, "exec"), {"__name__": "__main__", **names})
"""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    code: str

    @property
    def server(self) -> str:
        return next((server for scheme, server in SERVERS.items() if scheme in self.code), "seaweedfs")


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [Block(page, text[: found.start(1)].count("\n"), found[1]) for found in BLOCK.finditer(text)]


def run(found: list[Block], environment: dict[str, str], **names: object) -> None:
    """Run blocks one after another in a new process."""
    variables = {**os.environ, **environment, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([(one.page, one.line, one.code, names) for one in found]),
        capture_output=True,
        text=True,
        check=False,
        env=variables,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


def pages_with_blocks() -> Iterator[str]:
    for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        page = str(path.relative_to(ROOT))
        if blocks(page):
            yield page


def test_every_section_of_the_examples_has_one() -> None:
    sections = (DOCS / "examples.md").read_text().split("\n## ")[1:]
    assert len(sections) >= 12
    assert [len(BLOCK.findall(section)) for section in sections] == [1] * len(sections)


def test_no_page_with_blocks_is_forgotten() -> None:
    assert sorted(pages_with_blocks()) == sorted([*PAGES, *SHOWN, *ELSEWHERE])


@pytest.mark.parametrize("server", ["seaweedfs", "gcs", "azure"])
def test_blocks_run(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> None:
    bucket: Bucket = request.getfixturevalue(f"{server}_bucket")
    found = {page: [one for one in blocks(page) if one.server == server] for page in PAGES}
    assert any(found.values())
    for page, mine in found.items():
        folder = tmp_path / page.replace("/", "-")
        folder.mkdir()
        if mine:
            run(mine, bucket.environment, BUCKET=bucket.name, FOLDER=str(folder))


def test_readme(seaweedfs_bucket: Bucket) -> None:
    """And the first page of the site, which shows the same."""
    for page in SHOWN:
        (shown,) = blocks(page)
        code = shown.code.replace("s3://bucket/", f"{seaweedfs_bucket.url}/")
        state = "import torch; state = {'weight': torch.ones(3)}; "
        run([replace(shown, code=state + code)], seaweedfs_bucket.environment)
        saved = [key for key in seaweedfs_bucket.keys() if key.endswith("/.metadata")]
        assert saved == ["run/step-1000/.metadata"]
        seaweedfs_bucket.delete(saved[0])


def test_options_that_a_page_names_are_there() -> None:
    fences = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        for code in re.findall(r"`([^`\n]+)`", fences.sub("", path.read_text())):
            named = set(re.findall(r"\b([a-z_]+)=(?!=)", code))
            assert named <= OPTIONS | KEYWORDS, f"{path.relative_to(ROOT)}: {code}"


def test_the_readme_has_every_option() -> None:
    cells = re.findall(r"^\| (`[^|]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == OPTIONS
