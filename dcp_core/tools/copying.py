"""One checkpoint copied to another place, with its record last.

::

    copy
    ├── what the record of the source refers to, and how large that is      sizes held against the record
    ├── is a checkpoint there?                                               the same, another, none
    ├── which objects are there and equal                                    kept.py
    ├── all others                                                           sending.py
    └── the record, byte for byte, on the condition that there still is what was there

Nothing is a checkpoint before its record is there. A copy that was interrupted goes on when it is started
again: objects are there whole or not at all. Several machines share a copy by ``shard``: they copy data, and
a last run without it finds all there and commits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from dcp_core.config import SaveOptions
from dcp_core.errors import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointIncompleteError,
    CheckpointReplacedError,
    ConfigurationError,
    ObjectNotFoundError,
)
from dcp_core.format.metadata import decode_metadata
from dcp_core.save.commit import Commit
from dcp_core.seam.store import ObjectInfo
from dcp_core.tools.copy_plan import shares
from dcp_core.tools.kept import kept_names
from dcp_core.tools.ownership import require_alone, require_own
from dcp_core.tools.places import Opened, Target, open_checkpoint, open_target, place_at
from dcp_core.tools.sending import Sender
from dcp_core.upkeep.inventory import Inventory, StoredFrame, combined, inventory, sizes_against
from dcp_core.upkeep.records import object_sizes
from dcp_core.upkeep.shards import WHOLE, Shard

__all__ = ["Copied", "copy"]

Progress = Callable[[int, int], None]
_Options = Mapping[str, Any]
_NONE: _Options = MappingProxyType({})


@dataclass
class Copied:
    """What a copy did.

    Attributes:
        objects, size: data objects of this share, and their bytes.
        kept, kept_size: of those, what was there already, and equal.
        committed: whether the checkpoint is at the target now; not after one share of several.
    """

    objects: int = 0
    size: int = 0
    kept: int = 0
    kept_size: int = 0
    committed: bool = False


def copy(
    source: str,
    target: str,
    *,
    overwrite: bool = False,
    quick: bool = False,
    shard: Shard = WHOLE,
    progress: Progress | None = None,
    source_options: _Options = _NONE,
    target_options: _Options = _NONE,
) -> Copied:
    """Copy the checkpoint at one path or URL to another.

    Every block of the data is held against its recorded checksum on the way.

    Args:
        overwrite: replace another checkpoint that is committed there.
        quick: take objects that are there for equal if they are of a name that no other save gives and of
            the right size, without reading them.
        shard: copy this share of the data, and do not commit.
        progress: told of bytes done and bytes to do.
        source_options, target_options: of reading and of writing.

    Raises:
        CheckpointNotFoundError: nothing is committed at the source.
        UnsupportedError: the source is of another kind than this library's own, or the target has commit
            records of single ranks.
        CheckpointExistsError: another checkpoint is committed at the target.
        CheckpointCorruptError: the source is not as it was saved; nothing is committed.
        ConflictError: another save committed at the target meanwhile.
        CloudCheckpointError: a request failed. What was copied stays: copying again goes on.
    """
    with open_checkpoint(source, **source_options) as opened:
        if place_at(target, SaveOptions, {}).location == opened.location:
            raise ConfigurationError(f"{source} and {target} are the same place")
        with open_target(target, **{**target_options, "overwrite": overwrite}) as opened_target:
            return _Copy(opened, opened_target, quick).run(shard, progress or _untold)


class _Copy:
    def __init__(self, source: Opened, target: Target, quick: bool) -> None:
        self._source = source
        self._target = target
        self._quick = quick
        #: Commit records at the target, by name.
        self._there: dict[str, tuple[bytes, ObjectInfo]] = {}

    def run(self, shard: Shard, progress: Progress) -> Copied:
        require_own(self._source.records, self._source.url, "convert it, with `dcp-cloud convert --to dcp`")
        records = self._records()
        found, sizes = self._inventory()
        self._look_at_target(records, set(sizes))
        mine = shares(sizes, shard.count)[shard.number - 1]
        report = Copied(len(mine), sum(sizes[name] for name in mine))
        self._copy_data(found, {name: sizes[name] for name in mine}, report, progress)
        if shard.count == 1:
            self._commit(records, set(sizes))
            report.committed = True
        return report

    def _records(self) -> dict[str, bytes]:
        """The bytes of the source's records, by name."""
        source = self._source
        raw: dict[str, bytes] = {}
        for record in source.records:
            key = source.location.key(record.name)
            try:
                raw[record.name], info = source.transfer.attempt(partial(source.store.get, key))
                same = info.version == record.version
            except ObjectNotFoundError:
                same = False
            if not same:
                raise CheckpointReplacedError(
                    f"the checkpoint at {source.url} was replaced: copy it again",
                    bucket=source.store.bucket,
                    key=key,
                )
        return raw

    def _inventory(self) -> tuple[Inventory, dict[str, int]]:
        """What the source's records refer to, and the sizes of its objects.

        Raises:
            CheckpointCorruptError: something is missing or cut, or the records contradict themselves.
        """
        source = self._source
        found = combined(inventory(record.name, record.metadata) for record in source.records)
        concurrency = source.options.concurrency
        sizes = object_sizes(source.store, source.location, source.transfer, list(found.frames), concurrency)
        # bytes beyond what items need harm nobody; `verify` tells of them
        wrong = [one for one in found.defects + sizes_against(found, sizes)[0] if one.kind != "extra"]
        if wrong:
            raise CheckpointCorruptError(
                f"the source is not whole ({wrong[0].problem}; `dcp-cloud verify` lists all {len(wrong)} "
                "defects): nothing is copied",
                bucket=source.store.bucket,
                key=source.location.key(wrong[0].object),
            )
        return found, sizes

    def _look_at_target(self, records: dict[str, bytes], names: set[str]) -> None:
        """Find the records that are there, and refuse to harm a checkpoint that may not be replaced."""
        target = self._target
        require_alone(target.store, target.location, target.transfer)
        for name, record in records.items():
            key = target.location.key(name)
            try:
                self._there[name] = target.transfer.attempt(partial(target.store.get, key))
            except ObjectNotFoundError:
                continue
            if self._there[name][0] != record:
                self._require_replaceable(name, names)

    def _require_replaceable(self, name: str, names: set[str]) -> None:
        target = self._target
        key, bucket = target.location.key(name), target.store.bucket
        if not target.options.overwrite:
            raise CheckpointExistsError(
                f"another checkpoint is committed at {target.location}: copy to another place, or with "
                "--overwrite",
                bucket=bucket,
                key=key,
            )
        metadata = decode_metadata(self._there[name][0], bucket=bucket, key=key)
        there = {info.relative_path for info in metadata.storage_data.values()}
        if there & names:
            raise CheckpointExistsError(
                f"another checkpoint at {target.location} refers to objects that are to be copied there, and "
                "would be damaged: copy to another place",
                bucket=bucket,
                key=key,
            )

    def _copy_data(self, found: Inventory, sizes: dict[str, int], report: Copied, progress: Progress) -> None:
        target, count = self._target, _Counter(report.size, progress)
        frames = {name: found.frames[name] for name in sizes}
        there = object_sizes(
            target.store, target.location, target.transfer, list(sizes), target.options.concurrency
        )
        candidates = {name: size for name, size in sizes.items() if there.get(name) == size}
        kept = kept_names(self._source, target, candidates, frames, quick=self._quick)
        report.kept, report.kept_size = len(kept), sum(sizes[name] for name in kept)
        stale = {name: size for name, size in candidates.items() if name not in kept}
        if stale and not self._there:
            # a failed request must not find what was there, and take it for what it sent
            keys = [target.location.key(name) for name in stale]
            target.transfer.attempt(partial(target.store.delete, keys))
        count(report.kept_size)
        sender = Sender(self._source, target, count)
        sender.send((name, size, frames[name]) for name, size in sizes.items() if name not in kept)
        if self._there:
            # of a checkpoint that is committed nothing is deleted: what was mended is looked at instead
            self._require_mended(stale, frames)

    def _require_mended(self, sizes: dict[str, int], frames: Mapping[str, list[StoredFrame]]) -> None:
        left = set(sizes) - kept_names(self._source, self._target, sizes, frames, quick=False)
        if left:
            raise CheckpointIncompleteError(
                f"{len(left)} damaged objects of the checkpoint at {self._target.location} were not replaced",
                bucket=self._target.store.bucket,
                key=self._target.location.key(min(left)),
            )

    def _commit(self, records: dict[str, bytes], names: set[str]) -> None:
        target = self._target
        for name, record in records.items():
            data, previous = self._there.get(name, (None, None))
            if data != record:
                commit = Commit(target.store, target.location, name, target.options, target.transfer)
                commit.replace(record, names, previous)


class _Counter:
    """Bytes done, added up over threads."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress
        self._lock = threading.Lock()
        progress(0, total)

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress(self._done, self._total)


def _untold(done: int, total: int) -> None:
    """No one asked for progress."""
