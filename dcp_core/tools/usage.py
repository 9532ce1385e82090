"""How many bytes lie where below a URL: by checkpoint, leftovers apart.

::

    usage
    ├── one listing, folder by folder
    └── of each with data        its records, for the names that they refer to        in parallel
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal

from dcp_core.config import LoadOptions
from dcp_core.errors import CheckpointCorruptError, ObjectNotFoundError
from dcp_core.format.layout import data_names_in, is_data_name, is_metadata_name
from dcp_core.format.metadata import decode_metadata
from dcp_core.seam.store import ObjectInfo, ObjectStore
from dcp_core.tools.places import place_at, rank_of
from dcp_core.transfer import Transfer
from dcp_core.upkeep.folders import grouped, split
from dcp_core.upkeep.listing import listed

__all__ = ["Usage", "usage"]

State = Literal["committed", "damaged", "unfinished", "other"]
#: Folders that are looked at side by side.
_WINDOW = 64


@dataclass(frozen=True)
class Usage:
    """One folder.

    Attributes:
        path: below the URL that was asked for; empty for that itself.
        state: ``committed``: a commit record is there. ``damaged``: one is that cannot be read; what it
            refers to is not known, and nothing counts as left over. ``unfinished``: data without a record,
            of a save that is running or failed. ``other``: neither.
        objects, size: of the checkpoint, its record included; of what there is in folders without one.
        leftovers, leftover_size: data objects that no record refers to, and their bytes.
        others, other_size: what no save wrote.
        uploads: unfinished uploads. Stores do not tell how large they are.
        modified: of the newest commit record; without one, of the newest object.
    """

    path: str
    state: State
    objects: int = 0
    size: int = 0
    leftovers: int = 0
    leftover_size: int = 0
    others: int = 0
    other_size: int = 0
    uploads: int = 0
    modified: datetime | None = None

    @property
    def total(self) -> int:
        """All bytes."""
        return self.size + self.leftover_size + self.other_size


def usage(path: str, *, progress: Callable[[int], None] | None = None, **options: Any) -> Iterator[Usage]:
    """What each folder at a path or URL and below it holds, in the order of a listing.

    Args:
        progress: told the number of objects listed.
        **options: of reading.

    Raises:
        CloudCheckpointError: the bucket could not be listed, or a record not be read.
    """
    place = place_at(path, LoadOptions, options)
    try:
        transfer = Transfer(place.options, None)
        looking = _Looking(place.writable_store(), transfer, place.location.key(""))
        folders = grouped(looking.objects(progress), lambda _, info: info)
        uploads = looking.uploads()
        while window := list(islice(folders, _WINDOW)):
            workers = min(place.options.concurrency, len(window))
            for found in transfer.run(window, lambda one: looking.at(*one, uploads), workers):
                uploads.pop(looking.prefix + (f"{found.path}/" if found.path else ""), None)
                yield found
        for prefix, count in uploads.items():
            yield Usage(looking.below(prefix), "unfinished", uploads=count)
    finally:
        place.close()


class _Looking:
    def __init__(self, store: ObjectStore, transfer: Transfer, prefix: str) -> None:
        self._store = store
        self._transfer = transfer
        self.prefix = prefix

    def objects(self, progress: Callable[[int], None] | None) -> Iterator[ObjectInfo]:
        """Everything that is there."""
        found = listed(self._transfer, lambda: self._store.list(self.prefix), lambda info: info.key)
        for number, info in enumerate(found, 1):
            yield info
            if progress is not None:
                progress(number)

    def uploads(self) -> dict[str, int]:
        """Unfinished uploads by the prefix of their folder."""
        found = listed(
            self._transfer, lambda: self._store.list_uploads(self.prefix), lambda info: info.upload.key
        )
        counts: dict[str, int] = {}
        for info in found:
            folder = split(info.upload.key)[0]
            counts[folder] = counts.get(folder, 0) + 1
        return counts

    def below(self, prefix: str) -> str:
        """A folder's path below the URL that was asked for."""
        return prefix[len(self.prefix) :].removesuffix("/")

    def at(self, prefix: str, infos: list[ObjectInfo], uploads: dict[str, int]) -> Usage:
        """What one folder holds."""
        records = [info for info in infos if is_metadata_name(split(info.key)[1])]
        data = [info for info in infos if not is_metadata_name(split(info.key)[1])]
        path, pending = self.below(prefix), uploads.get(prefix, 0)
        if not records:
            return _without_record(path, data, pending)
        try:
            names = self._referenced(prefix, records, data)
        except CheckpointCorruptError:
            return Usage(
                path, "damaged", len(infos), _size(infos), uploads=pending, modified=_newest(records)
            )
        mine = [info for info in data if split(info.key)[1] in names]
        rest = [info for info in data if split(info.key)[1] not in names]
        leftovers, others = _parted(rest)
        return Usage(
            path,
            "committed",
            *(len(mine) + len(records), _size(mine) + _size(records)),
            *(len(leftovers), _size(leftovers), len(others), _size(others)),
            uploads=pending,
            modified=_newest(records),
        )

    def _referenced(self, prefix: str, records: list[ObjectInfo], data: list[ObjectInfo]) -> set[str]:
        """Names that the records refer to; they are decoded only where these are not all of ``data``."""
        raw = [found for info in records if (found := self._get(info.key)) is not None]
        names = set().union(*map(data_names_in, raw))
        if data and all(split(info.key)[1] in names for info in data):
            return names
        for one in raw:
            metadata = decode_metadata(one, bucket=self._store.bucket, key=prefix)
            names |= {info.relative_path for info in metadata.storage_data.values()}
        return names

    def _get(self, key: str) -> bytes | None:
        try:
            return self._transfer.attempt(lambda: self._store.get(key))[0]
        except ObjectNotFoundError:
            return None


def _without_record(path: str, data: list[ObjectInfo], uploads: int) -> Usage:
    leftovers, others = _parted(data)
    return Usage(
        path,
        "unfinished" if leftovers or uploads else "other",
        leftovers=len(leftovers),
        leftover_size=_size(leftovers),
        others=len(others),
        other_size=_size(others),
        uploads=uploads,
        modified=_newest(data),
    )


def _parted(infos: Iterable[ObjectInfo]) -> tuple[list[ObjectInfo], list[ObjectInfo]]:
    """Data objects of saves, and what else there is."""
    parts: tuple[list[ObjectInfo], list[ObjectInfo]] = ([], [])
    for info in infos:
        name = split(info.key)[1]
        is_data = is_data_name(name) or (name.endswith(".distcp") and rank_of(name) is not None)
        parts[0 if is_data else 1].append(info)
    return parts


def _size(infos: Iterable[ObjectInfo]) -> int:
    return sum(info.size for info in infos)


def _newest(infos: Iterable[ObjectInfo]) -> datetime | None:
    return max((info.modified for info in infos if info.modified is not None), default=None)
