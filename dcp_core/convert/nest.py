"""Nested state dicts from flat names: what torch's planner took apart when it saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dcp_core.errors import CheckpointCorruptError

__all__ = ["nested"]


class _Branch(dict[Any, Any]):
    """A dict or list that is being put together; values of the state itself are never of this class."""


def nested(values: Mapping[str, Any], paths: Mapping[str, Any] | None) -> dict[str, Any]:
    """``values`` where ``paths``, of keys of dicts and indexes of lists, say that they were; by their own
    names where those say nothing.

    Raises:
        CheckpointCorruptError: the paths contradict each other.
    """
    root = _Branch()
    for name, value in values.items():
        path = (paths or {}).get(name) or (name,)
        here = root
        for step in path[:-1]:
            below = here.setdefault(step, _Branch())
            if not isinstance(below, _Branch):
                raise CheckpointCorruptError(f"the commit record puts {name!r} below another item")
            here = below
        if path[-1] in here:
            raise CheckpointCorruptError(f"the commit record puts {name!r} where another item is")
        here[path[-1]] = value
    return {step: _finished(value) for step, value in root.items()}


def _finished(value: Any) -> Any:
    if not isinstance(value, _Branch):
        return value
    made = {step: _finished(item) for step, item in value.items()}
    if not all(type(step) is int for step in made):
        return made
    # what a save left out of a list is None, as in torch; a record that is not to be trusted makes none long
    length = max(made) + 1
    if min(made) < 0 or length > 1000 + 100 * len(made):
        raise CheckpointCorruptError(
            f"the commit record has a list of {len(made)} items with an index {max(made)}"
        )
    return [made.get(index) for index in range(length)]
