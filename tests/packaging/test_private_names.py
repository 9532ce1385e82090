"""Private names of urllib3 and the SDKs: each in one file, which its name gives away."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = (
    "dcp_core/transport/urllib3_private.py",
    "backends/dcp_s3/botocore_private.py",
    "backends/dcp_azure/azure_private.py",
    "backends/dcp_gcs/google_private.py",
)
#: What reaches urllib3, http.client and the SDKs.
REACHING = sorted(
    path
    for folder in ("dcp_core/transport", "backends")
    for path in (ROOT / folder).rglob("*.py")
    if str(path.relative_to(ROOT)) not in NAMED
)
#: Public methods of named tuples, and of yarl's and aiohttp's, which are such.
NAMED_TUPLES = frozenset({"_asdict", "_fields", "_make", "_replace"})


def foreign_names(source: str) -> set[str]:
    """Names with a leading underscore that a source uses of something that it does not define itself."""
    tree = ast.parse(source)
    ours = set(_defined(tree)) | NAMED_TUPLES
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | _asked_for(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            used |= {alias.name for alias in node.names}
    return {name for name in used - ours if name.startswith("_") and not name.endswith("__")}


def _asked_for(tree: ast.AST) -> set[str]:
    """Names in ``getattr(thing, "name")``."""
    return {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr")
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[1].value, str)
    }


def _defined(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif _stored_on_self(node):
            found.add(node.attr)  # type: ignore[attr-defined]
    return found


def _stored_on_self(node: ast.AST) -> bool:
    """``self._name = …``, and not the same on a thing of somebody else's."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    )


def test_private_names_stand_in_one_file_each() -> None:
    ours = {name for path in REACHING for name in _defined(ast.parse(path.read_text()))}
    found = {
        str(path.relative_to(ROOT)): names
        for path in REACHING
        if (names := foreign_names(path.read_text()) - ours)
    }
    assert found == {}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_file_has_such_names(name: str) -> None:
    assert foreign_names((ROOT / name).read_text())
