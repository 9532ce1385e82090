"""The site builds without a warning, its links lead somewhere, and its tables have what the code has."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import dcp_core
from dcp_azure import AzureOptions
from dcp_core import CloudCheckpointError, LoadOptions, SaveOptions
from dcp_gcs import GCSOptions
from dcp_http import HTTPOptions
from dcp_s3 import S3Options

pytest.importorskip("mkdocs", reason="the site needs Python 3.11")

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = (SaveOptions, LoadOptions, S3Options, GCSOptions, AzureOptions, HTTPOptions)
COMMANDS = ("inspect", "verify", "gc", "convert", "bench", "schemes")


class Page(HTMLParser):
    """What a page links to, what can be linked to on it, and the code words in its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.code: set[str] = set()
        self._open = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._open = tag
        self.links.update(values[name] or "" for name in ("href", "src") if name in values)
        self.anchors.update(values[name] or "" for name in ("id", "name") if name in values)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "code":
            self.code.add(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        timeout=200,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """By their address below the site."""
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_the_site_builds(site: Path, pages: dict[str, Page]) -> None:
    sources = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    for source in sources:
        folder = source.parent if source.stem in ("README", "index") else source.with_suffix("")
        assert (folder / "index.html").as_posix() in pages
    assert (site / "benchmarks.json").read_bytes() == (ROOT / "docs/benchmarks.json").read_bytes()
    assert not any("<!-- options" in path.read_text() for path in site.rglob("*.html"))


def test_every_link_within_the_site_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    for address, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            # what is not found is served for any address, so its links start at the root
            if parts.scheme or parts.netloc or address == "404.html":
                continue
            path = posixpath.normpath(posixpath.join(posixpath.dirname(address), unquote(parts.path)))
            if not parts.path:
                path = address
            elif (site / path).is_dir():
                path = posixpath.normpath(posixpath.join(path, "index.html"))
            assert (site / path).is_file(), f"{address}: {link}"
            if parts.fragment and path in pages:
                assert unquote(parts.fragment) in pages[path].anchors, f"{address}: {link}"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        for loading in ('src="http', "fonts.googleapis", 'rel="stylesheet" href="http'):
            assert loading not in path.read_text(), path


def test_every_option_is_on_the_page_of_options(pages: dict[str, Page]) -> None:
    named = {field.name for kind in OPTIONS for field in dataclasses.fields(kind)}
    assert named <= pages["options/index.html"].code


def test_every_error_is_on_the_page_of_errors(pages: dict[str, Page]) -> None:
    exported = [getattr(dcp_core, name) for name in dcp_core.__all__]
    kinds = [one for one in exported if isinstance(one, type) and issubclass(one, CloudCheckpointError)]
    assert len(kinds) > 20
    for kind in kinds:
        if kind is not CloudCheckpointError:
            assert {kind.__name__, kind.code} <= pages["errors/index.html"].code


def test_every_command_has_a_section(pages: dict[str, Page]) -> None:
    assert set(COMMANDS) <= pages["command/index.html"].anchors
    assert {"--json", "--older-than-hours", "--quick"} <= pages["command/index.html"].code
