"""Which steps may go: what the rules say, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_core import Best, ConfigurationError
from dcp_core.run.retention import Retention

COUNTS = st.none() | st.integers(1, 6)
METRICS = st.dictionaries(st.sampled_from(["loss", "other"]), st.floats(), max_size=2)
BESTS = st.none() | st.builds(Best, st.just("loss"), st.integers(1, 4), st.sampled_from(["min", "max"]))
RULES = st.builds(Retention, COUNTS, COUNTS, BESTS)
STEPS = st.dictionaries(st.integers(0, 60), METRICS, max_size=20)


def kept_by_definition(rule: Retention, steps: dict[int, dict[str, float]]) -> set[int]:
    """The same, written down as the documentation says it."""
    if rule.keeps_all or not steps:
        return set(steps)
    ordered = sorted(steps)
    kept = {ordered[-1]}
    for index, step in enumerate(ordered):
        if rule.keep_last is not None and index >= len(ordered) - rule.keep_last:
            kept.add(step)
        if rule.keep_every is not None and step % rule.keep_every == 0:
            kept.add(step)
    best = rule.keep_best
    if best is not None:
        known = [(steps[step]["loss"], step) for step in ordered if steps[step].get("loss", None) is not None]
        known = [(value, step) for value, step in known if value == value]  # noqa: PLR0124  # not NaN
        for value, step in known:
            better = [
                other
                for other, at in known
                if (other < value if best.mode == "min" else other > value) or (other == value and at > step)
            ]
            if len(better) < best.count:
                kept.add(step)
    return kept


@given(RULES, STEPS)
def test_exactly_what_no_rule_keeps_may_go(rule: Retention, steps: dict[int, dict[str, float]]) -> None:
    superseded = rule.superseded(steps, steps)
    assert superseded == sorted(set(steps) - kept_by_definition(rule, steps))


@given(RULES, STEPS)
def test_a_second_pass_finds_nothing(rule: Retention, steps: dict[int, dict[str, float]]) -> None:
    gone = rule.superseded(steps, steps)
    left = {step: found for step, found in steps.items() if step not in gone}
    assert rule.superseded(left, left) == []
    assert not steps or max(steps) in left


@pytest.mark.parametrize(
    "rule", [{"keep_last": 0}, {"keep_last": True}, {"keep_every": 1.5}, {"keep_every": -1}]
)
def test_rules_that_make_no_sense_are_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="must be a whole number from 1"):
        Retention(**rule)


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'min' or 'max'"):
        Best("loss", mode="lowest")  # type: ignore[arg-type]
