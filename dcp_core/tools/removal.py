"""One checkpoint taken away: its commit record first, and only if it is still the one that was looked at.

::

    Removal.find       what would go; raises where nothing is committed, or where a load holds the step
    Removal.remove
    ├── the commit record, on the condition that it is that version
    ├── is someone loading it? then the data stays for `dcp-cloud gc`
    └── the data objects that the record referred to

Whatever interrupts it, no record is left without its data; what is left then is what ``gc`` removes. Data
that the record does not refer to, such as what a failed save left, and files that no save wrote stay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dcp_core.config import SaveOptions
from dcp_core.errors import (
    CheckpointReplacedError,
    CloudCheckpointError,
    ConflictError,
    ObjectNotFoundError,
    UnsupportedError,
)
from dcp_core.run.layout import step_of
from dcp_core.run.leases import DEFAULT_TTL, is_leased
from dcp_core.seam.store import ObjectStore
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.tools.ownership import names_of, require_alone, require_own
from dcp_core.tools.places import place_at
from dcp_core.transfer import Transfer
from dcp_core.upkeep.records import CommittedRecord, committed_records, object_sizes, record_version

__all__ = ["Removable", "Removal", "removal_at"]


@dataclass(frozen=True)
class Removable:
    """What a checkpoint is made of.

    Attributes:
        record: its commit record.
        sizes: bytes of its data objects that are there, by name.
    """

    record: CommittedRecord
    sizes: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of the data objects."""
        return sum(self.sizes.values())


@contextmanager
def removal_at(path: str, **options: Any) -> Iterator[Removal]:
    """The removal of the checkpoint at a path or URL.

    Raises:
        ConfigurationError: the URL or an option is wrong.
    """
    place, run = place_at(path, SaveOptions, options), None
    try:
        parent, step = _run_of(path)
        if step is not None:
            run = place_at(parent, SaveOptions, options)
        yield Removal(place, run, step)
    finally:
        place.close()
        if run is not None:
            run.close()


def _run_of(path: str) -> tuple[str, int | None]:
    """The URL of the run that a URL names a step of, and the step."""
    parent, slash, name = os.fspath(path).rstrip("/").rpartition("/")
    step = step_of(name)
    # a step at the root of a bucket is one of a run too, but a bucket alone is none
    if parent.endswith(("/", ":")):
        return path, None
    return parent or slash or ".", step


class Removal:
    """Takes the checkpoint at ``place`` away: step ``step`` of ``run``, if it is one."""

    def __init__(
        self, place: CheckpointStore[SaveOptions], run: CheckpointStore[SaveOptions] | None, step: int | None
    ) -> None:
        self._place = place
        self._run = run
        self._step = step
        self._transfer = Transfer(place.options, None)

    @property
    def _store(self) -> ObjectStore:
        return self._place.writable_store()

    def find(self) -> Removable:
        """What would go.

        Raises:
            CheckpointNotFoundError: no checkpoint is committed there.
            CheckpointCorruptError: its commit record is damaged: what it refers to is not known.
            UnsupportedError: it is of another kind than this library's own.
            ConflictError: the step is being loaded.
        """
        location = self._place.location
        # a store that cannot be written is refused before it is asked for anything
        records = committed_records(self._store, location, self._transfer)
        if self._leased():
            raise ConflictError(
                f"step {self._step} is being loaded: try again later", bucket=self._store.bucket
            )
        record = require_own(records, location.url, "delete its folder with the tools of the store")
        require_alone(self._store, location, self._transfer)
        names = sorted(names_of(record))
        concurrency = self._place.options.concurrency
        sizes = object_sizes(self._store, location, self._transfer, names, concurrency)
        return Removable(record, sizes)

    def _leased(self) -> bool:
        if self._run is None or self._step is None:
            return False
        store = self._run.writable_store()
        return is_leased(store, self._run.location, self._step, self._transfer, DEFAULT_TTL)

    def remove(self, found: Removable) -> bool:
        """Take it away; returns whether its data is gone too, which stays where someone is loading it.

        Raises:
            CheckpointReplacedError: another save has replaced it meanwhile; no data was removed.
            CloudCheckpointError: a request failed; says what is left.
        """
        self._remove_record(found.record)
        try:
            # once more: a load that has begun since read the record before it went
            if self._leased():
                return False
            keys = [self._place.location.key(name) for name in found.sizes]
            self._transfer.attempt(lambda: self._store.delete(keys))
        except CloudCheckpointError as error:
            error.message = (
                f"the checkpoint is gone, and some of its {len(found.sizes)} data objects may be left: "
                f"`dcp-cloud gc` removes them ({error.message})"
            )
            raise
        return True

    def _remove_record(self, record: CommittedRecord) -> None:
        key = self._place.location.key(record.name)

        def delete() -> None:
            # stores have been seen that pass over the condition of a delete; others have none
            if self._store.head(key).version != record.version:
                raise ConflictError("the object is another one by now", bucket=self._store.bucket, key=key)
            try:
                self._store.delete_version(key, record.version)
            except UnsupportedError:
                self._store.delete([key])

        try:
            self._transfer.attempt(delete)
        except ObjectNotFoundError:
            # deleted by a request whose response was lost, or by someone else
            return
        except ConflictError as error:
            if record_version(self._store, self._place.location, self._transfer, record.name) is None:
                # to some stores that is another version
                return
            raise CheckpointReplacedError(
                f"another save has replaced the checkpoint at {self._place.location} meanwhile: no data was "
                "removed",
                bucket=self._store.bucket,
                key=key,
            ) from error
