"""Which steps of a run may be deleted. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dcp_core.errors import ConfigurationError

__all__ = ["Best", "Retention"]


@dataclass(frozen=True)
class Best:
    """The ``count`` steps with the lowest, or highest, value of a metric; of equal ones the newest.

    Steps that were saved without the metric, or with NaN, are not among them.
    """

    metric: str
    count: int = 1
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ConfigurationError(f"mode must be 'min' or 'max', got {self.mode!r}")
        _require_count("count", self.count)

    def of(self, metrics: Mapping[int, Mapping[str, float]]) -> list[int]:
        """The best steps, of those that ``metrics`` are known of."""
        sign = 1 if self.mode == "min" else -1
        values = {
            step: found[self.metric] * sign
            for step, found in metrics.items()
            if self.metric in found and not math.isnan(found[self.metric])
        }
        return sorted(values, key=lambda step: (values[step], -step))[: self.count]


@dataclass(frozen=True)
class Retention:
    """A step stays if any of the rules keeps it; without rules, all stay.

    Attributes:
        keep_last: the newest so many.
        keep_every: those whose number it divides.
        keep_best: those with the best values of a metric.
    """

    keep_last: int | None = None
    keep_every: int | None = None
    keep_best: Best | None = None

    def __post_init__(self) -> None:
        _require_count("keep_last", self.keep_last)
        _require_count("keep_every", self.keep_every)

    @property
    def keeps_all(self) -> bool:
        """Whether there is no rule."""
        return self.keep_last is None and self.keep_every is None and self.keep_best is None

    def superseded(self, steps: Iterable[int], metrics: Mapping[int, Mapping[str, float]]) -> list[int]:
        """The committed ``steps`` that may go, oldest first: never the newest.

        Args:
            steps: all committed ones.
            metrics: metrics by step; only ``keep_best`` asks for them.
        """
        ordered = sorted(set(steps))
        if self.keeps_all or not ordered:
            return []
        kept = self._kept(ordered, metrics)
        return [step for step in ordered[:-1] if step not in kept]

    def _kept(self, ordered: Sequence[int], metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        kept: set[int] = set()
        if self.keep_last is not None:
            kept.update(ordered[-self.keep_last :])
        if self.keep_every is not None:
            kept.update(step for step in ordered if step % self.keep_every == 0)
        if self.keep_best is not None:
            kept.update(self.keep_best.of({step: metrics[step] for step in ordered if step in metrics}))
        return kept


def _require_count(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigurationError(f"{name} must be a whole number from 1, got {value!r}")
