"""The soak runs, for a short while; ``make soak`` takes ten minutes and more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from soak.__main__ import main


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_soak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    summary = tmp_path / "summary.json"
    assert main(["--minutes", "0.2", "--cycles", "3", "--summary", str(summary)]) == 0
    found = json.loads(summary.read_text())
    assert found["violations"] == []
    assert found["cycles"]["cycles"] == 3
    assert found["done"]["saves"] > 0
    assert json.loads(capsys.readouterr().out) == found
