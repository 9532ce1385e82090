"""Finding what failed saves left behind, and removing it beside saves that are running.

::

    Cleanup.find
    ├── uploads, folder by folder     ── examine ──> Found, LeftAlone
    └── objects, folder by folder
        ├── every old name occurs in the bytes of a record?     nothing is left over there
        └── examine                   ──> Found, LeftAlone
    Cleanup.remove
    ├── examine                       what was found may have been committed since
    ├── abort                         so that no upload of a stalled save ends after all; then examine again
    └── delete                        in batches

**What is never deleted.** A data object that a readable record beside it names; any data object beside a
record that is not readable, or that a newer release wrote; anything in a folder where a save may be running:
one with a data object or an unfinished upload that no record names and that is younger than the limit.

**Why that is enough.** A folder is examined in the order uploads, objects, records, and a save commits after
its last object is stored. If it commits before the records are read, they name its objects. If it commits
later, its newest object or upload was there to be listed, and was young, unless it began longer ago than the
limit. That is what remains, hence the one condition: **the limit must exceed the time of the longest save.**
Where it does not, the unfinished uploads of that save are aborted before any object is deleted: it then
fails, rather than commit what is no longer there. Only a save that has uploaded everything and waits longer
than the limit with its commit is left to the condition.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial

from dcp_core.config import LoadOptions, TransferOptions
from dcp_core.errors import ConfigurationError, ObjectNotFoundError
from dcp_core.format.layout import data_names_in
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectInfo, ObjectStore, UploadInfo
from dcp_core.transfer import Transfer
from dcp_core.upkeep.examination import VANISHED, Examiner, Finding, Found, LeaveAloneError, LeftAlone
from dcp_core.upkeep.folders import Folder, by_folder, uploads_by_folder
from dcp_core.upkeep.listing import listed

__all__ = ["Cleanup", "Finding", "Found", "LeftAlone"]

#: Objects that one request deletes, where a store has such requests.
_BATCH = 1000
#: Seconds that an examination of a folder holds for.
_HOLDS_FOR = 10.0
#: Names, and folders, that are looked at side by side.
_WINDOW_NAMES = 10_000
_WINDOW_FOLDERS = 32


class Cleanup:
    """Leftovers at ``location`` and anywhere below it, last changed more than ``older_than`` ago.

    Any number of these may run at once, beside saves. See the module for what they keep, and for the one
    condition: ``older_than`` must exceed the time of the longest save.

    Args:
        store: the bucket.
        location: of a checkpoint, or of a folder or bucket of them.
        older_than: counted back from ``now``.
        options: ``concurrency`` folders are looked at side by side.
        now: instead of the clock of this machine.
        progress: told the number of objects listed so far.

    Raises:
        ConfigurationError: ``older_than`` is negative, or goes back farther than dates do.
    """

    def __init__(
        self,
        store: ObjectStore,
        location: Location,
        older_than: timedelta,
        options: TransferOptions | None = None,
        *,
        now: datetime | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if older_than < timedelta(0):
            raise ConfigurationError(f"older_than must not be negative, got {older_than}")
        try:
            self._before = (now or datetime.now(timezone.utc)) - older_than
        except OverflowError as error:
            raise ConfigurationError(f"older_than goes back too far: {older_than}") from error
        options = options or LoadOptions()
        self._store = store
        self._prefix = location.key("")
        self._concurrency = options.concurrency
        self._transfer = Transfer(options, None)
        self._examiner = Examiner(store, self._transfer, self._before)
        self._progress = progress
        self._told: set[str] = set()

    def find(self) -> Iterator[Finding]:
        """Look everywhere, folder by folder; each finding comes as soon as it is made.

        Raises:
            CloudCheckpointError: the bucket could not be listed, or a record not be read.
        """
        uploads = listed(
            self._transfer, lambda: self._store.list_uploads(self._prefix), lambda info: info.upload.key
        )
        examined: set[str] = set()
        for folder in uploads_by_folder(uploads, self._before):
            # stores that list uploads in another order than that of their keys come back to a folder
            if folder not in examined:
                examined.add(folder)
                yield from self._once(self._examined(folder, uploads=True))
        for window in _windows(by_folder(self._objects(), self._before)):
            workers = min(self._concurrency, len(window))
            for findings in self._transfer.run(window, self._look, workers):
                yield from self._once(findings)

    def _objects(self) -> Iterator[ObjectInfo]:
        objects = listed(self._transfer, lambda: self._store.list(self._prefix), lambda info: info.key)
        for number, info in enumerate(objects, 1):
            yield info
            if self._progress is not None:
                self._progress(number)

    def _once(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        for finding in findings:
            if isinstance(finding, LeftAlone):
                if finding.folder in self._told:
                    continue
                self._told.add(finding.folder)
            yield finding

    def _look(self, folder: Folder) -> list[Finding]:
        """Leftover objects of a folder that was listed. Most have none: that costs a request a record."""
        old = set(folder.old)
        for name in folder.records:
            try:
                old -= data_names_in(self._examiner.get(folder.prefix + name))
            except ObjectNotFoundError:
                return [LeftAlone(folder.prefix, VANISHED, folder.prefix + name)]
        return self._examined(folder.prefix, uploads=False) if old else []

    def _examined(self, folder: str, *, uploads: bool) -> list[Finding]:
        try:
            found = self._examiner.examine(folder)
        except LeaveAloneError as error:
            return [LeftAlone(folder, error.reason, error.key)]
        found = replace(found, objects=()) if uploads else replace(found, uploads=())
        return [found] if found.objects or found.uploads else []

    def remove(self, found: Found) -> Iterator[Finding]:
        """Remove what was found, as far as it may still go, in batches.

        Yields:
            What was removed; at last, perhaps, why the rest of the folder was left alone after all.

        Raises:
            CloudCheckpointError: a request failed. What was removed stays removed; try again.
        """
        try:
            yield from self._remove(found)
        except LeaveAloneError as error:
            yield LeftAlone(found.folder, error.reason, error.key)

    def _remove(self, found: Found) -> Iterator[Found]:
        now = self._examine_again(found)
        wanted = {info.upload for info in found.uploads}
        aborted = tuple(info for info in now.uploads if info.upload in wanted or found.objects)
        for info in aborted:
            self._abort(info)
        if aborted:
            yield Found(found.folder, uploads=aborted)
            now = self._examine_again(found)
        yield from self._delete(found, now)

    def _examine_again(self, found: Found) -> Found:
        now = self._examiner.examine(found.folder)
        for name in found.records:
            if name not in now.records:
                raise LeaveAloneError(VANISHED, found.folder + name)
        return now

    def _abort(self, info: UploadInfo) -> None:
        self._transfer.attempt(lambda: self._store.abort_upload(info.upload))

    def _delete(self, found: Found, now: Found) -> Iterator[Found]:
        """Delete what was found and may go now, and look again where that takes long."""
        may_go, examined = set(now.objects), time.monotonic()
        left = iter(found.objects)
        while batch := list(itertools.islice(left, _BATCH)):
            if time.monotonic() - examined > _HOLDS_FOR:
                may_go, examined = set(self._examine_again(found).objects), time.monotonic()
            going = tuple(info for info in batch if info in may_go)
            if going:
                self._transfer.attempt(partial(self._store.delete, [info.key for info in going]))
                yield Found(found.folder, going)


def _windows(folders: Iterable[Folder]) -> Iterator[list[Folder]]:
    """Some folders at a time, few if they are large."""
    window: list[Folder] = []
    names = 0
    for folder in folders:
        window.append(folder)
        names += len(folder.old)
        if len(window) >= _WINDOW_FOLDERS or names >= _WINDOW_NAMES:
            yield window
            window, names = [], 0
    if window:
        yield window
