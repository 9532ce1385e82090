"""The targets that a load is busy with: asked for when bytes arrive, given back when the last one is there.

A planner may make a buffer in ``resolve_tensor`` and drop it in ``commit_tensor``, so an item is resolved
only when its first bytes are about to be received. Requests are made in the order of the bytes in their
object, and so items are completed in that order: where items do not interleave, each request in progress has
two open at most, the one that it is at and one that it still owes bytes, and one more is between requests.

torch's own planner looks tensors up in the state dict, which holds them anyway. Its items are resolved
beforehand: what cannot be loaded is refused before anything is changed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadPlanner

from dcp_core.errors import CheckpointIncompleteError
from dcp_core.load.item import Item
from dcp_core.load.target import Target
from dcp_core.runtime.memory_map import ReadOnlyMemory

__all__ = ["OpenTargets", "looks_up"]

_CPU = torch.device("cpu")


def looks_up(planner: LoadPlanner) -> bool:
    """Whether resolving a tensor only finds it, as with torch's planner: that may be done beforehand."""
    return isinstance(planner, DefaultLoadPlanner) and all(
        getattr(getattr(planner, name), "__func__", None) is getattr(DefaultLoadPlanner, name)
        for name in ("resolve_tensor", "lookup_tensor", "transform_tensor")
    )


class OpenTargets:
    """Resolves, counts and commits the items of one load. Thread-safe; the planner's methods take turns."""

    def __init__(self, planner: LoadPlanner) -> None:
        #: Where tensors were seen to be, other than on the CPU.
        self.devices: set[torch.device] = set()
        self._planner = planner
        self._read_only = ReadOnlyMemory()
        self._looked_at: dict[int, Target] = {}
        self._open: dict[int, Target] = {}
        self._left: dict[int, int] = {}
        self._lock = threading.Lock()

    def look_at(self, items: Sequence[Item]) -> list[Target]:
        """Resolve ``items`` beforehand, before any of them is changed."""
        targets = [self._resolve(item) for item in items]
        self._looked_at = {item.number: target for item, target in zip(items, targets, strict=True)}
        return targets

    def expect(self, item: Item, placements: int) -> None:
        """Note how many placements ``item`` has; one without any is complete at once."""
        if placements:
            self._left[item.number] = placements
        else:
            with self._lock:
                self._begin(item).commit(self._planner)

    def open(self, item: Item) -> Target:
        """The target of ``item``, for its next bytes."""
        target = self._open.get(item.number)
        if target is None:
            with self._lock:
                target = self._open.get(item.number)
                if target is None:
                    target = self._open[item.number] = self._begin(item)
        return target

    def _begin(self, item: Item) -> Target:
        target = self._looked_at.pop(item.number, None) or self._resolve(item)
        target.begin()
        return target

    def _resolve(self, item: Item) -> Target:
        target = item.open(self._planner, self._read_only)
        if target.device != _CPU:
            self.devices.add(target.device)
        return target

    def done(self, item: Item) -> None:
        """Note one placement; the last one commits the item."""
        with self._lock:
            left = self._left[item.number] = self._left[item.number] - 1
            if left == 0:
                del self._left[item.number]
                self._open.pop(item.number).commit(self._planner)

    def require_all(self) -> None:
        """Make sure that all items which were expected are complete.

        Raises:
            CheckpointIncompleteError: some are not.
        """
        if self._left:
            raise CheckpointIncompleteError(
                f"{len(self._left)} items were planned to be read and were not: a defect of dcp-cloud"
            )
