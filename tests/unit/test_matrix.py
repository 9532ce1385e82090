"""The script that runs the tests on releases of PyTorch: what it installs, what it runs, what it reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from matrix import run


def test_the_tests_that_it_names_are_there() -> None:
    for name in run.TESTS:
        assert (run.ROOT / name).exists(), name


def test_the_release_takes_the_place_of_the_pinned_one() -> None:
    wanted = run.requirements("2.9.1")
    assert [line for line in wanted if line.startswith("torch==")] == ["torch==2.9.1"]
    assert {line.partition("==")[0] for line in wanted} >= {
        "boto3",
        "awscrt",
        "pytest",
        "pytest-xdist",
        "hypothesis",
    }
    assert not any(line.startswith(("mkdocs", "mypy", "ruff")) for line in wanted)


def test_the_table_replaces_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{run.MARKS[0]}\n\n{run.MARKS[1]}\n\nafter\n")
    run.write([run.Row("2.6.0", "3.10", passed=1)], page)
    run.write([run.Row("2.8.0", "3.13", passed=812, skipped=3)], page)
    heads = "| PyTorch | Python | passed | skipped | failed |\n|---|---|---|---|---|"
    table = f"{heads}\n| 2.8.0 | 3.13 | 812 | 3 | 0 |"
    assert page.read_text() == f"before\n\n{run.MARKS[0]}\n\n{table}\n\n{run.MARKS[1]}\n\nafter\n"


def test_a_page_without_its_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks"):
        run.write([], page)
    assert page.read_text() == "no marks"


def test_the_page_has_the_marks() -> None:
    text = run.PAGE.read_text()
    assert [text.count(mark) for mark in run.MARKS] == [1, 1]


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (run.Row("2.6.0", "3.10", passed=5, failed=1), "| 2.6.0 | 3.10 | 5 | 0 | 1 |"),
        (run.Row("2.6.0", "3.10"), "| 2.6.0 | 3.10 | 0 | 0 | 0 |"),
        (run.Row("2.6.0", "3.10", problem="not installed"), "| 2.6.0 | 3.10 | 0 | 0 | not installed |"),
    ],
    ids=["a failure", "no test at all", "nothing was run"],
)
def test_what_did_not_pass_is_not_taken_for_well(row: run.Row, shown: str) -> None:
    assert not row.ok
    assert str(row) == shown


def test_a_python_that_is_not_here_is_none() -> None:
    assert run.interpreter("2.99") is None


def test_a_row_without_its_python_is_not_run(tmp_path: Path) -> None:
    row = run.row("2.6.0", "2.99", None, tmp_path)
    assert not row.ok
    assert row.problem == "not run: no python2.99 here"
    assert list(tmp_path.iterdir()) == []
