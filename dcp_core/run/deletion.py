"""Taking steps away, safely beside loads and saves: the commit record first, then the data."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta

from dcp_core.format.layout import is_data_name, is_metadata_name
from dcp_core.run.layout import step_name
from dcp_core.run.leases import DEFAULT_TTL, leased_steps
from dcp_core.run.steps import StepInfo
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectInfo, ObjectStore
from dcp_core.transfer.transfer import Transfer

__all__ = ["Deletion"]

logger = logging.getLogger("dcp_core")


class Deletion:
    """Deletes steps of one run.

    Args:
        lease_ttl: seconds that a lease counts after it was made or renewed.
        leftovers_after: how long ago the newest object of an unfinished step must have been written.
    """

    def __init__(
        self,
        store: ObjectStore,
        run: Location,
        transfer: Transfer,
        *,
        lease_ttl: float = DEFAULT_TTL,
        leftovers_after: timedelta = timedelta(days=1),
    ) -> None:
        self._store = store
        self._run = run
        self._transfer = transfer
        self._ttl = lease_ttl
        self._leftovers_after = leftovers_after

    def delete(self, steps: Iterable[int]) -> list[int]:
        """Delete committed steps that no one is loading; returns those that are gone."""
        wanted = list(steps)
        if not wanted:
            return []
        leased = self._leased()
        hidden = {step: self._hide(step) for step in wanted if step not in leased}
        # once more: a load that has begun since read the record before it went
        leased = self._leased() if hidden else set()
        for step, data in hidden.items():
            if step in leased:
                logger.info("step %d of %s is being loaded: its data goes later", step, self._run)
            else:
                self._remove(data)
        return list(hidden)

    def clear_leftovers(self, steps: Iterable[StepInfo], now: datetime) -> list[int]:
        """Delete what is left of unfinished ``steps``, if nothing of it is young at ``now``.

        Steps that hold anything else stay: what a failed save left are data objects, and nothing but them.
        """
        found = {info.step: self._objects(info.step) for info in steps}
        old = {step: objects for step, objects in found.items() if self._are_leftovers(objects, now)}
        leased = self._leased() if old else set()
        cleared = [step for step in old if step not in leased]
        for step in cleared:
            self._remove([info.key for info in old[step]])
        return cleared

    def _leased(self) -> set[int]:
        return leased_steps(self._store, self._run, self._transfer, self._ttl)

    def _objects(self, step: int) -> list[ObjectInfo]:
        prefix = self._run.child(step_name(step)).key("")
        return self._transfer.attempt(lambda: list(self._store.list(prefix)))

    def _hide(self, step: int) -> list[str]:
        """Take the commit record of ``step`` away; returns the keys of what it had.

        Objects written after the record are another save's, which may commit at any moment.
        """
        objects = self._objects(step)
        records = [info for info in objects if _is_record(info)]
        self._remove([info.key for info in records])
        logger.info("deleted step %d of %s", step, self._run)
        committed = max((info.modified for info in records if info.modified is not None), default=None)
        return [
            info.key
            for info in objects
            if not _is_record(info)
            and (committed is None or info.modified is None or info.modified <= committed)
        ]

    def _remove(self, keys: list[str]) -> None:
        self._transfer.attempt(lambda: self._store.delete(keys))

    def _are_leftovers(self, objects: list[ObjectInfo], now: datetime) -> bool:
        """Whether ``objects`` are of no checkpoint, nor of one that may still be committed."""
        written = [info.modified for info in objects]
        young = any(at is None or now - at <= self._leftovers_after for at in written)
        names = {info.key.rpartition("/")[2] for info in objects}
        # a store may list folders, under names that end in a slash
        return not young and all(map(is_data_name, names - {""}))


def _is_record(info: ObjectInfo) -> bool:
    return is_metadata_name(info.key.rpartition("/")[2])
