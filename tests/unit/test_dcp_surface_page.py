"""The page of what DCP offers: no public name is missing, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch.distributed.checkpoint
from support.torch_releases import RELEASE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "dcp-surface.md").read_text()
MODULES = (
    *("state_dict", "format_utils", "staging", "hf_storage", "quantized_hf_storage", "stateful"),
    *("planner", "default_planner", "state_dict_saver", "state_dict_loader", "optimizer", "api"),
)


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in found if row[1] != "status"]


def names() -> set[str]:
    return {row[0].strip("`") for row in rows()}


def public(module: ModuleType) -> set[str]:
    """What a module offers; the package itself has no list of it."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return set(listed)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }


@pytest.mark.skipif(RELEASE != (2, 13), reason="the page is of PyTorch 2.13")
@pytest.mark.parametrize("name", ["", *MODULES])
def test_no_public_name_is_missing(name: str) -> None:
    base = torch.distributed.checkpoint.__name__
    offered = public(import_module(f"{base}.{name}" if name else base))
    assert offered
    assert sorted(offered - names()) == []


def test_no_name_has_two_rows() -> None:
    found = [row[0] for row in rows()]
    assert sorted({one for one in found if found.count(one) > 1}) == []


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].strip("`"))
def test_every_row_has_a_status_and_tests_that_exist(row: list[str]) -> None:
    what, status, how, tests = row
    assert status in ("works", "ours", "no")
    # what is done in its place, or why not
    assert status == "works" or how
    references = re.findall(r"`([^`]+)`", tests)
    assert references, what
    for reference in references:
        file, _, test = reference.partition("::")
        (path,) = (ROOT / "tests").rglob(file)
        defined = {
            node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert not test or test in defined, reference
