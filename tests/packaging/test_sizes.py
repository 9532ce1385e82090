"""Modules that can be read in one go, and functions that fit on a screen."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("dcp_core", "backends") for path in (ROOT / folder).rglob("*.py"))
#: A catalogue: each error with what it means and what to do.
LONG = {"dcp_core/errors.py"}
MODULE_LINES = 350
FUNCTION_LINES = 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_not_long(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MODULE_LINES or str(path.relative_to(ROOT)) in LONG


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_nineteen_functions_of_twenty_are_short() -> None:
    lengths = sorted(
        lines_of(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert lengths[len(lengths) * 95 // 100] <= FUNCTION_LINES
