"""Counts of what came of the points, in a JSON file, and the tables of them in a page.

::

    DCP_CLOUD_RELIABILITY=docs/reliability.json python -m pytest tests/faults/test_sweep.py
    python -m sweep.tally docs/reliability.json docs/reliability.md

The file has, for each cloud and scenario, the number of points that there are, and for each kind of them how
many were run, how many reported success, and the violations in words. A scenario that is run again replaces
what was there of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweep.run import Result

__all__ = ["CLOUDS", "Tally", "with_tables"]

CLOUDS = ["seaweedfs", "localstack", "gcs", "azurite"]
BEGIN, END = "<!-- made by make reliability -->", "<!-- end -->"
#: Points after which the file is written.
_OFTEN = 20

_Kinds = dict[str, dict[str, Any]]


class Tally:
    """Counts the results of one scenario on one cloud, and adds them to a file.

    Args:
        cloud: one of :data:`CLOUDS`.
        scenario: what the tables call it.
        planned: points that there are.
        path: the file; ``None`` writes nothing.
    """

    def __init__(self, cloud: str, scenario: str, planned: int, path: Path | None) -> None:
        self._cloud, self._scenario, self._planned, self._path = cloud, scenario, planned, path
        self._kinds: _Kinds = {}
        self._count = 0
        self.violations: list[str] = []

    def add(self, result: Result) -> None:
        """Count one point."""
        kind = self._kinds.setdefault(result.point.title, {"points": 0, "succeeded": 0, "violations": []})
        kind["points"] += 1
        kind["succeeded"] += result.succeeded
        found = [f"{result.point}: {text}" for text in result.violations]
        kind["violations"] += found
        self.violations += found
        self._count += 1
        if found or self._count % _OFTEN == 0 or self._count == self._planned:
            self.write()

    def write(self) -> None:
        """Put what is counted so far into the file; other processes may do the same with theirs."""
        if self._path is None:
            return
        with self._path.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            found = json.loads(file.read() or "{}")
            scenarios = found.setdefault(self._cloud, {})
            scenarios[self._scenario] = {"planned": self._planned, "kinds": self._kinds}
            file.truncate(0)
            json.dump(found, file, indent=1, sort_keys=True)
            file.write("\n")


def path_from_environment() -> Path | None:
    """The file that results are to be added to, if there is one."""
    name = os.environ.get("DCP_CLOUD_RELIABILITY")
    return Path(name) if name else None


def with_tables(page: str, counts: Mapping[str, Any]) -> str:
    """``page`` with the tables of ``counts`` between the marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{''.join(_tables(counts))}{END}{tail}"


def _tables(counts: Mapping[str, Any]) -> Iterator[str]:
    yield _summary(counts)
    scenarios = list(dict.fromkeys(name for cloud in CLOUDS for name in counts.get(cloud, {})))
    for scenario in sorted(scenarios):
        yield f"\n### {scenario[0].upper()}{scenario[1:]}\n\n"
        yield from _rows(counts, scenario)
    violations = list(_violations(counts))
    if violations:
        yield "\n### Violations\n\n"
        yield from (f"- {text}\n" for text in violations)
    yield "\n"


def _summary(counts: Mapping[str, Any]) -> str:
    rows = [
        ("points", lambda cloud: sum(kind["points"] for kind in _kinds(counts, cloud))),
        ("of so many", lambda cloud: sum(one["planned"] for one in counts.get(cloud, {}).values())),
        ("success was reported", lambda cloud: sum(kind["succeeded"] for kind in _kinds(counts, cloud))),
        ("violations", lambda cloud: sum(len(kind["violations"]) for kind in _kinds(counts, cloud))),
    ]
    lines = [f"| {name} | {' | '.join(f'{of(cloud):,}' for cloud in CLOUDS)} |\n" for name, of in rows]
    return _head("all") + "".join(lines)


def _rows(counts: Mapping[str, Any], scenario: str) -> Iterator[str]:
    found = {cloud: counts.get(cloud, {}).get(scenario, {"planned": 0, "kinds": {}}) for cloud in CLOUDS}
    yield _head("what happens")
    for title in sorted({title for one in found.values() for title in one["kinds"]}):
        cells = [_cell(found[cloud]["kinds"].get(title)) for cloud in CLOUDS]
        yield f"| {title} | {' | '.join(cells)} |\n"


def _head(first: str) -> str:
    return f"| {first} | {' | '.join(CLOUDS)} |\n|---|{'---:|' * len(CLOUDS)}\n"


def _cell(kind: Mapping[str, Any] | None) -> str:
    if kind is None:
        return "–"
    wrong = len(kind["violations"])
    return f"{kind['points']}" if not wrong else f"{kind['points']}, **{wrong} violations**"


def _kinds(counts: Mapping[str, Any], cloud: str) -> Iterator[Mapping[str, Any]]:
    for scenario in counts.get(cloud, {}).values():
        yield from scenario["kinds"].values()


def _violations(counts: Mapping[str, Any]) -> Iterator[str]:
    for cloud in CLOUDS:
        for name, scenario in counts.get(cloud, {}).items():
            for kind in scenario["kinds"].values():
                # a trace is for the log
                yield from (f"{cloud}, {name}: {text.splitlines()[0][:300]}" for text in kind["violations"])


def main(counts: str, page: str) -> None:
    """Write the tables of the file ``counts`` into ``page``."""
    text = Path(page).read_text(encoding="utf-8")
    found = json.loads(Path(counts).read_text(encoding="utf-8"))
    Path(page).write_text(with_tables(text, found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
