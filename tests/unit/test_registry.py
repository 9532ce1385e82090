"""Backends by scheme, with real distributions on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dcp_core import (
    AmbiguousSchemeError,
    CloudStorageWriter,
    ConfigurationError,
    MissingExtraError,
    UnknownSchemeError,
)
from dcp_core.seam.registry import find_backend, known_schemes
from dcp_core.testing import MemoryBackend


def distribution(folder: Path, name: str, *entries: str) -> None:
    """What an installer leaves behind for a distribution with these entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dcp_core.backends]\n" + "\n".join(entries) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_another_distribution_adds_a_scheme(site: Path) -> None:
    (site / "strange_store.py").write_text(
        "from dcp_core.testing import MemoryBackend\nbackend = MemoryBackend()\n"
    )
    distribution(site, "strange-store", "strange = strange_store:backend")
    assert {"s3", "strange"} <= set(known_schemes())
    assert "strange_store" not in sys.modules
    assert isinstance(find_backend("strange"), MemoryBackend)
    assert CloudStorageWriter("strange://bucket/x").checkpoint_id == "strange://bucket/x"


def test_two_claims_to_one_scheme(site: Path) -> None:
    distribution(site, "first-store", "odd = first:backend")
    distribution(site, "second-store", "odd = second:backend")
    with pytest.raises(AmbiguousSchemeError, match=r"first-store.*second-store"):
        find_backend("odd")


def test_one_distribution_seen_twice(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (site, site / "again"):
        distribution(folder, "memory-store", "twice = dcp_core.testing:MemoryBackend")
    monkeypatch.syspath_prepend(str(site / "again"))
    with pytest.raises(ConfigurationError, match=r"not a dcp_core\.seam Backend"):
        find_backend("twice")  # a class is no backend; but it was found, once


def test_unknown_scheme_names_the_known() -> None:
    with pytest.raises(UnknownSchemeError, match=r"known: .*s3://"):
        find_backend("nope")


@pytest.mark.parametrize(
    ("scheme", "extra"), [("s3", "s3"), ("gs", "gcs"), ("az", "azure"), ("abfss", "azure"), ("https", "http")]
)
def test_scheme_of_ours_that_is_not_installed(
    site: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, extra: str
) -> None:
    """As with a distribution that has fewer backends: the message names what adds this one."""
    distribution(site, "memory-store", "memory = dcp_core.testing:MemoryBackend")
    monkeypatch.setattr(sys, "path", [str(site)])
    with pytest.raises(
        UnknownSchemeError, match=rf"{scheme}://.*known: memory://.*pip install 'dcp-cloud\[{extra}\]'"
    ):
        find_backend(scheme)


def test_missing_dependency_of_a_backend(site: Path) -> None:
    (site / "needy_store.py").write_text("import a_package_that_is_not_there\n")
    distribution(site, "needy-store", "needy = needy_store:backend")
    with pytest.raises(MissingExtraError, match=r"a_package_that_is_not_there.*needy-store"):
        find_backend("needy")
