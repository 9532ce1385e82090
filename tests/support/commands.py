"""The command ``dcp-cloud`` in this process: what it prints, without the seconds that a new Python takes."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from dcp_core.cli import app

__all__ = ["Command", "Said"]


class Said(NamedTuple):
    """How it ended, and what is on its standard output and standard error."""

    code: int
    out: str
    err: str


class Command:
    """Runs it; ``capsys`` is the test's."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("NO_COLOR", "1")

    def run(self, *arguments: str) -> Said:
        self._capsys.readouterr()
        code = app.run(arguments)
        return Said(code, *self._capsys.readouterr())

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What it prints, where it must exit with ``code`` and complain of nothing."""
        said = self.run(*arguments)
        assert (said.code, said.err) == (code, ""), said
        return said.out

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The one document that it prints with ``--json``."""
        return json.loads(self(*arguments, "--json", code=code))

    def fails(self, *arguments: str, code: int = 2) -> str:
        """The one line that it says of what went wrong."""
        said = self.run(*arguments)
        assert (said.code, said.out) == (code, ""), said
        assert said.err.count("\n") == 1, said.err
        assert said.err.startswith(f"dcp-cloud {arguments[0]}: "), said.err
        return said.err
