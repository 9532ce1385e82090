"""The newest whole checkpoint in a folder of checkpoints, whatever their names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dcp_core.config import SaveOptions
from dcp_core.errors import ObjectNotFoundError, UnsupportedError
from dcp_core.format.layout import DATA_PREFIX, metadata_name
from dcp_core.run.ranks import told_by_first_rank
from dcp_core.run.steps import facts_of
from dcp_core.seam.location import Location
from dcp_core.seam.store import CommonPrefix, ObjectInfo, ObjectStore
from dcp_core.storage.checkpoint_store import CheckpointStore, split_options
from dcp_core.transfer.transfer import Transfer

__all__ = ["Checkpoint", "newest_checkpoint", "whole_checkpoints"]

#: Folders that are looked at at once where a listing cannot say whether they are committed.
_LOOKS = 8


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole.

    Attributes:
        url: of the folder, or of the file if it is one.
        name: of it in the folder of checkpoints.
        saved: when it was committed, by the store's clock; ``None`` if the store does not say.
    """

    url: str
    name: str
    saved: datetime | None


def newest_checkpoint(url: str, *, prefix: str = "", suffix: str = "", **options: Any) -> str | None:
    """The URL of the checkpoint in the folder ``url`` that was committed last, or ``None``.

    A folder is a checkpoint if its commit record is there, so one whose save was interrupted is none. A file
    whose name ends in ``suffix`` is one too, as it is there only once it is whole. With torch.distributed,
    the first rank looks and tells the others; all must ask.

    Args:
        url: of the folder that checkpoints are in.
        prefix: what their names begin with.
        suffix: what their names end in; without one, files are no checkpoints.
        **options: of saving, loading and the backend.

    Raises:
        CloudCheckpointError: the store could not be asked; never taken for an empty folder.
    """
    saving, _ = split_options(options)
    place = CheckpointStore(url.rstrip("/"), SaveOptions, saving)
    try:
        return told_by_first_rank(lambda: _newest(place, prefix, suffix))
    finally:
        place.close()


def _newest(place: CheckpointStore[SaveOptions], prefix: str, suffix: str) -> str | None:
    store, transfer = place.writable_store(), Transfer(place.options, None)
    whole = whole_checkpoints(store, place.location, transfer, suffix)
    found = [one for one in whole if one.name.startswith(prefix)]
    if not found:
        return None
    last = max(saved_at(one) for one in found)
    latest = [one for one in found if saved_at(one) == last]
    if len(latest) > 1:
        # stores count in seconds: the step of a save, in its commit record, says which came later
        latest.sort(key=lambda one: (_step(store, place.location, one, transfer), _numbers(one.name)))
    return latest[-1].url


def saved_at(checkpoint: Checkpoint) -> float:
    """When a checkpoint was committed, in seconds since 1970; 0 if the store does not say."""
    return checkpoint.saved.timestamp() if checkpoint.saved is not None else 0.0


def _step(store: ObjectStore, folder: Location, checkpoint: Checkpoint, transfer: Transfer) -> int:
    key = folder.child(checkpoint.name).key(metadata_name())
    step = facts_of(store, key, transfer).get("step", -1)
    return step if isinstance(step, int) else -1


def _numbers(name: str) -> list[int]:
    """Those in a name, which trainers put epochs and steps into."""
    return [int(number) for number in re.findall(r"\d+", name)]


def whole_checkpoints(
    store: ObjectStore, folder: Location, transfer: Transfer, suffix: str = ""
) -> list[Checkpoint]:
    """All that are whole, by name: one listing, in which the data of a checkpoint is one entry.

    Where a store only rolls up at ``/``, each folder costs a request more.
    """
    start = folder.key("")
    try:
        return transfer.attempt(
            lambda: _from_listing(folder, store.list_rolled(start, f"/{DATA_PREFIX}"), suffix)
        )
    except UnsupportedError:
        listed = transfer.attempt(lambda: list(store.list_rolled(start, "/")))
    files = _from_listing(folder, iter(listed), suffix)
    names = [one.prefix[len(start) :].strip("/") for one in listed if isinstance(one, CommonPrefix)]
    looked = transfer.run(
        [name for name in names if name.endswith(suffix)],
        lambda name: _looked_at(store, folder, name, transfer),
        _LOOKS,
    )
    return [*files, *(one for one in looked if one is not None)]


def _from_listing(
    folder: Location, listing: Iterator[ObjectInfo | CommonPrefix], suffix: str
) -> list[Checkpoint]:
    found, start = [], len(folder.key(""))
    for entry in listing:
        if not isinstance(entry, ObjectInfo):
            continue
        name, inside, rest = entry.key[start:].partition("/")
        whole = rest == metadata_name() if inside else bool(suffix)
        if name and whole and name.endswith(suffix):
            found.append(Checkpoint(folder.child(name).url, name, entry.modified))
    return found


def _looked_at(store: ObjectStore, folder: Location, name: str, transfer: Transfer) -> Checkpoint | None:
    place = folder.child(name)
    try:
        record = transfer.attempt(lambda: store.head(place.key(metadata_name())))
    except ObjectNotFoundError:
        return None
    return Checkpoint(place.url, name, record.modified)
