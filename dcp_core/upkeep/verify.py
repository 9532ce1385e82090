"""Verifying a checkpoint where it lies, without a model.

::

    verify_checkpoint
    ├── committed_records      what a load would read
    ├── inventory              what they say must be there            pure
    ├── object_sizes           by listing, or one HEAD an object
    ├── sizes_against          missing, cut, too long                 pure
    ├── tasks                  ranges of objects                      pure
    └── Prover.prove           each of them, in parallel
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dcp_core.config import LoadOptions
from dcp_core.errors import CheckpointCorruptError, CheckpointReplacedError, CloudCheckpointError
from dcp_core.seam.backend import Backend
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.transfer import Transfer
from dcp_core.upkeep.inventory import (
    Defect,
    Inventory,
    Unaccounted,
    combined,
    inventory,
    sizes_against,
    tasks,
)
from dcp_core.upkeep.proof import Proof, Prover
from dcp_core.upkeep.records import CommittedRecord, committed_records, object_sizes, record_version
from dcp_core.upkeep.shards import WHOLE, Shard

__all__ = ["Report", "verify_checkpoint"]

#: Told of bytes done and of bytes to do, from several threads, one at a time.
Progress = Callable[[int, int], None]


@dataclass
class Report:
    """What a verification found.

    Attributes:
        url: the checkpoint.
        quick: whether only the sizes of the objects were looked at.
        shard: the share of the data that was looked at.
        records: names of the commit records: one, or one a rank of a save without collectives.
        items: tensors' chunks and objects.
        objects: data objects.
        size: bytes of all items.
        checked: bytes that a checksum, or their being known in advance, proved right.
        parsed, parsed_items: bytes and number of the items that carry no checksums: their frames are whole,
            but their bytes could not be verified.
        opaque, opaque_items: the same of items that their writer transformed: only their size is right.
        read_twice: places that looked damaged, but not when they were read again: the damage was on the way.
        unaccounted: bytes in objects of other writers that belong to no item. No one reads them.
        defects: everything that is not as it was saved.
    """

    url: str
    quick: bool = False
    shard: Shard = WHOLE
    records: list[str] = field(default_factory=list)
    items: int = 0
    objects: int = 0
    size: int = 0
    checked: int = 0
    parsed: int = 0
    parsed_items: int = 0
    opaque: int = 0
    opaque_items: int = 0
    read_twice: int = 0
    unaccounted: list[Unaccounted] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing wrong was found."""
        return not self.defects


def verify_checkpoint(
    url: str,
    *,
    quick: bool = False,
    shard: Shard = WHOLE,
    progress: Progress | None = None,
    backend: Backend | None = None,
    **options: Any,
) -> Report:
    """Check a committed checkpoint: its record, and each byte of it that can be checked.

    Checkpoints of stock torch and of other DCP writers are checked by what they have: the sizes of their
    objects, the structure of their frames, and the CRC32s in those.

    Args:
        url: the checkpoint's.
        quick: look at sizes only, and read no data.
        shard: of which share of the data; the first one has the record and the sizes too.
        progress: told of bytes done and bytes to do.
        backend: of a URL whose scheme no installed distribution claims.
        **options: those of a reader. ``concurrency`` connections hold 4 MiB each, at most.

    Raises:
        CheckpointNotFoundError: nothing is committed there.
        CheckpointReplacedError: another save replaced the checkpoint meanwhile.
        CloudCheckpointError: it could not be read.
    """
    checkpoint = CheckpointStore(url, LoadOptions, options, backend)
    try:
        return _verify(checkpoint, Report(checkpoint.location.url, quick, shard), progress or _untold)
    finally:
        checkpoint.close()


def _verify(checkpoint: CheckpointStore[LoadOptions], report: Report, progress: Progress) -> Report:
    location, transfer = checkpoint.location, Transfer(checkpoint.options, None)
    try:
        records = committed_records(checkpoint.store(), location, transfer)
    except CheckpointCorruptError as error:
        name = (error.key or "").rpartition("/")[2]
        report.records.append(name)
        report.defects.append(Defect("record", name, None, 0, 0, error.message))
        return report
    found = _everything(records, report)
    try:
        _check_objects(checkpoint, transfer, found, report, progress)
    except CloudCheckpointError as error:
        _refuse_replaced(checkpoint, transfer, records, error)
        raise
    if report.defects:
        _refuse_replaced(checkpoint, transfer, records, None)
    return report


def _everything(records: Sequence[CommittedRecord], report: Report) -> Inventory:
    """What all records refer to."""
    found = combined(inventory(record.name, record.metadata) for record in records)
    report.records += (record.name for record in records)
    report.items, report.objects = found.items, len(found.frames)
    report.size = sum(frame.stop - frame.start for frames in found.frames.values() for frame in frames)
    if report.shard.is_first:
        report.defects += found.defects
    return found


def _check_objects(
    checkpoint: CheckpointStore[LoadOptions],
    transfer: Transfer,
    found: Inventory,
    report: Report,
    progress: Progress,
) -> None:
    store, location, concurrency = checkpoint.store(), checkpoint.location, checkpoint.options.concurrency
    sizes = object_sizes(store, location, transfer, list(found.frames), concurrency)
    defects, report.unaccounted, readable = sizes_against(found, sizes)
    if report.shard.is_first:
        report.defects += defects
    if report.quick:
        return
    todo = report.shard.of(list(tasks(readable)))
    total = sum(task.stop - task.start for task in todo)
    count = _Counter(total, progress)
    prover = Prover(store, location, transfer, count)
    combine(report, transfer.run(todo, prover.prove, max(1, min(concurrency, len(todo)))))


def combine(report: Report, proofs: Iterable[Proof]) -> None:
    """Add what tasks found to ``report``, in the order of the objects' bytes."""
    for proof in proofs:
        report.defects += proof.defects
        report.checked += proof.checked
        report.parsed += proof.parsed
        report.parsed_items += proof.parsed_items
        report.opaque += proof.opaque
        report.opaque_items += proof.opaque_items
        report.read_twice += proof.read_twice
    report.defects.sort(key=lambda one: (one.kind != "record", one.object, one.start, one.stop))


def _refuse_replaced(
    checkpoint: CheckpointStore[LoadOptions],
    transfer: Transfer,
    records: Iterable[CommittedRecord],
    error: CloudCheckpointError | None,
) -> None:
    """Objects of a checkpoint that another save replaced are rightly gone: that is no defect."""
    for record in records:
        version = record_version(checkpoint.store(), checkpoint.location, transfer, record.name)
        if version != record.version:
            raise CheckpointReplacedError(
                f"another save replaced the checkpoint at {checkpoint.location} during its verification; "
                "verify again",
                bucket=checkpoint.store().bucket,
                key=checkpoint.location.key(record.name),
            ) from error


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
