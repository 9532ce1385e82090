"""Which steps of a run are there. The bucket is the truth: a step is there if its commit record is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dcp_core.errors import CheckpointCorruptError, ObjectNotFoundError, UnsupportedError
from dcp_core.format.layout import DATA_PREFIX, metadata_name
from dcp_core.format.metadata import HEAD_SIZE, facts_in
from dcp_core.run.layout import step_name, step_of
from dcp_core.seam.location import Location
from dcp_core.seam.store import CommonPrefix, ObjectInfo, ObjectStore, ReadableStore
from dcp_core.transfer.transfer import Transfer

__all__ = ["StepInfo", "facts_of", "find_steps", "read_facts"]

#: Steps that are asked for at once where a listing cannot say whether they are committed.
_LOOKS = 8


@dataclass(frozen=True)
class StepInfo:
    """One step of a run.

    Attributes:
        step: its number.
        url: of its checkpoint.
        committed: whether it can be loaded; otherwise a save of it is running, or has failed.
        saved: when it was committed, by the store's clock.
        version: of its commit record.
    """

    step: int
    url: str
    committed: bool
    saved: datetime | None = None
    version: str | None = None


def find_steps(store: ObjectStore, run: Location, transfer: Transfer) -> list[StepInfo]:
    """All steps, oldest first, committed or not.

    All data objects of a step are rolled up into one entry of the listing and its record is another: one
    request for every 500 steps or so, whatever the number of ranks. Where a store only rolls up at ``/``,
    each step costs a request.
    """
    try:
        return transfer.attempt(lambda: _from_listing(run, store.list_rolled(run.key(""), f"/{DATA_PREFIX}")))
    except UnsupportedError:
        folders = transfer.attempt(lambda: _from_listing(run, store.list_rolled(run.key(""), "/")))
    return transfer.run(folders, lambda info: _looked_at(store, run, info, transfer), _LOOKS)


def read_facts(store: ReadableStore, run: Location, step: int, transfer: Transfer) -> dict[str, Any]:
    """The facts in the commit record of ``step``: one small range of it; empty if it has none or is gone."""
    return facts_of(store, run.child(step_name(step)).key(metadata_name()), transfer)


def facts_of(store: ReadableStore, key: str, transfer: Transfer) -> dict[str, Any]:
    """The same, of the commit record with ``key``."""

    def read() -> bytes:
        buffer, received = memoryview(bytearray(HEAD_SIZE)), 0
        with store.read_range(key, 0, HEAD_SIZE) as reader:
            wanted = min(HEAD_SIZE, reader.info.size)
            while received < wanted and (count := reader.readinto(buffer[received:wanted])):
                received += count
        return bytes(buffer[:received])

    try:
        return facts_in(transfer.attempt(read))
    except (ObjectNotFoundError, CheckpointCorruptError):
        return {}


def _from_listing(run: Location, listing: Iterator[ObjectInfo | CommonPrefix]) -> list[StepInfo]:
    found: dict[int, StepInfo] = {}
    start = len(run.key(""))
    for entry in listing:
        key = entry.key if isinstance(entry, ObjectInfo) else entry.prefix
        folder, _, name = key[start:].partition("/")
        step = step_of(folder)
        if step is None:
            continue
        url = run.child(folder).url
        if isinstance(entry, ObjectInfo) and name == metadata_name():
            found[step] = StepInfo(step, url, True, entry.modified, entry.version)
        else:
            found.setdefault(step, StepInfo(step, url, False))
    return [found[step] for step in sorted(found)]


def _looked_at(store: ObjectStore, run: Location, info: StepInfo, transfer: Transfer) -> StepInfo:
    """``info`` with what a request for its record says."""
    key = run.child(step_name(info.step)).key(metadata_name())
    try:
        record = transfer.attempt(lambda: store.head(key))
    except ObjectNotFoundError:
        return info
    return StepInfo(info.step, info.url, True, record.modified, record.version)
