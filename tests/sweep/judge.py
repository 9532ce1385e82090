"""What must hold after a save or load, whatever happened to it.

The judge is not behind the proxy. It says what is wrong, and leaves the bucket with nothing but the
checkpoint: what ``dcp-cloud gc`` finds is deleted, and whatever is left beside it then is a violation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from conftest import Bucket
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import CheckpointNotFoundError, CloudCheckpointError, PeerFailedError
from dcp_core.config import LoadOptions
from dcp_core.format.layout import data_names_in, is_data_name
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.upkeep.leftovers import Cleanup, Found
from sweep.cases import WrongValuesError, seed_of
from sweep.world import DEAD, HUNG

__all__ = ["PATIENCE", "Case", "Judge", "Verdict", "error_violations"]

#: Options where nothing is broken: what goes wrong is a machine's that is too busy.
PATIENCE = {"retry_timeout": 900.0, "stall_timeout": 120.0}


@dataclass(frozen=True)
class Case:
    """What was done, and what was reported.

    Attributes:
        before: seed of the checkpoint that was there; ``None`` where nothing was.
        saving: seed of the one that was saved; ``None`` for a load.
        outcomes: of each rank: ``None`` is success.
        may_commit: whether the save may have become the checkpoint at all.
        must_succeed: whether what happened has to be ridden out.
        died: whether ranks were killed: what others say of it is then torch's.
    """

    before: int | None
    saving: int | None
    outcomes: Sequence[Any]
    may_commit: bool = True
    must_succeed: bool = False
    died: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether anybody was told that it is done."""
        return any(outcome is None for outcome in self.outcomes)


@dataclass
class Verdict:
    """Attributes:
    there: seed of the checkpoint that is there; ``None`` if there is none.
    violations: what is wrong; empty if all is right.
    """

    there: int | None = None
    violations: list[str] = field(default_factory=list)


class Judge:
    """Judges one checkpoint's folder of a bucket."""

    def __init__(self, bucket: Bucket, folder: str) -> None:
        self.bucket = bucket
        self.folder = folder
        self.url = f"{bucket.url}/{folder}"

    def judge(self, case: Case, *, more_may_come: bool = False) -> Verdict:
        """What is wrong, if anything.

        Args:
            case: what was done.
            more_may_come: requests are still on their way: nothing is deleted yet, nor has to be there.
        """
        verdict = Verdict()
        verdict.violations += error_violations(case)
        try:
            verdict.there = self.load()
        except WrongValuesError as error:
            verdict.violations.append(f"it loads, but {error}")
        except (CheckpointException, CloudCheckpointError) as error:
            verdict.violations.append(f"what is there does not load: {error}")
        else:
            verdict.violations += _wrongly_there(case, verdict.there)
        if not more_may_come and case.saving is not None:
            verdict.violations += self._leftovers()
        return verdict

    def load(self) -> int | None:
        """The seed of the checkpoint that is there; ``None`` if nothing is."""
        try:
            return seed_of(self.url, PATIENCE)
        except CheckpointException as error:
            if any(isinstance(found, CheckpointNotFoundError) for found, _ in error.failures.values()):
                return None
            raise

    def contents(self) -> dict[str, bytes]:
        """The commit record, and the names of everything else."""
        return {key: self.bucket.read(key) if key == self._record else b"" for key in self._keys()}

    @property
    def _record(self) -> str:
        return f"{self.folder}/.metadata"

    def _keys(self) -> list[str]:
        return self.bucket.keys(f"{self.folder}/")

    def _belonging(self) -> set[str]:
        """Keys of the checkpoint that is there."""
        if self._record not in self._keys():
            return set()
        names = data_names_in(self.bucket.read(self._record))
        return {self._record, *(f"{self.folder}/{name}" for name in names)}

    def _uploads(self) -> set[str]:
        """Keys of unfinished uploads. Azure's blocks beside an object are none: nobody sees them."""
        found = {key for key in self.bucket.uploads() if key.startswith(f"{self.folder}/")}
        return found - set(self._keys()) if self.url.startswith("az:") else found

    def _leftovers(self) -> Iterator[str]:
        """Delete what is left over, and say what gc does not find, or finds wrongly."""
        belonging = self._belonging()
        expected = set(self._keys()) - belonging
        expected_uploads = self._uploads()
        objects, uploads = self._delete_leftovers()
        for found, wanted, what in (
            (objects, expected, "object"),
            (uploads, expected_uploads, "upload"),
        ):
            yield from (f"gc does not find the {what} {key}" for key in sorted(wanted - found))
            yield from (f"gc takes the {what} {key} for a leftover" for key in sorted(found - wanted))
        missing = belonging - set(self._keys())
        yield from (f"{key} is not there" for key in sorted(missing))
        yield from (f"{key} stays behind" for key in sorted(set(self._keys()) - belonging))
        yield from (f"the upload of {key} stays behind" for key in sorted(self._uploads()))

    def _delete_leftovers(self) -> tuple[set[str], set[str]]:
        """Keys of objects and uploads that gc found; it has deleted them."""
        objects: set[str] = set()
        uploads: set[str] = set()
        checkpoint = CheckpointStore(self.url, LoadOptions, {"concurrency": 2, **PATIENCE})
        with contextlib.closing(checkpoint):
            # the clock of the server may be ahead, and tells whole seconds
            cleanup = Cleanup(checkpoint.writable_store(), checkpoint.location, timedelta(0), now=_later())
            for finding in cleanup.find():
                if isinstance(finding, Found):
                    objects |= {info.key for info in finding.objects}
                    uploads |= {info.upload.key for info in finding.uploads}
                    list(cleanup.remove(finding))
        return objects, uploads

    def clear(self) -> None:
        """Delete everything."""
        for key in self._keys():
            self.bucket.delete(key)
        self._delete_leftovers()


def _later() -> datetime:
    return datetime.now(timezone.utc) + timedelta(hours=1)


def _wrongly_there(case: Case, there: int | None) -> Iterator[str]:
    allowed = {case.before}
    if case.saving is not None and case.may_commit:
        allowed.add(case.saving)
    if there is None and case.before is not None:
        yield "no checkpoint is there any more"
    elif there not in allowed:
        yield f"the checkpoint of seed {there} is there, of {sorted(map(str, allowed))}"
    if case.saving is not None and case.succeeded and there != case.saving:
        yield f"success was reported, and the checkpoint of seed {there} is there, not {case.saving}"


def error_violations(case: Case) -> list[str]:
    """What is wrong with what was reported."""
    found = []
    for rank, outcome in enumerate(case.outcomes):
        found += [f"rank {rank}: {text}" for text in _about(rank, outcome, case)]
    if case.must_succeed and not all(outcome is None for outcome in case.outcomes):
        found.append(f"what passes was not ridden out: {[str(outcome) for outcome in case.outcomes]}")
    return found


def _about(rank: int, outcome: Any, case: Case) -> Iterator[str]:
    if outcome is None:
        return
    if outcome == HUNG or (outcome == DEAD and not case.died):
        yield f"{outcome}"
    elif isinstance(outcome, CheckpointException):
        yield from _about_failures(outcome, case)
    elif isinstance(outcome, WrongValuesError) or not case.died:
        yield f"raised {outcome!r}"


def _about_failures(error: CheckpointException, case: Case) -> Iterator[str]:
    errors = {rank: found for rank, (found, _) in error.failures.items()}
    if all(isinstance(found, PeerFailedError) for found in errors.values()) and not case.died:
        yield "no error says what happened"
    for rank, found in errors.items():
        if not isinstance(found, CloudCheckpointError):
            if not case.died:
                yield f"not an error of the library: {found!r}"
            continue
        if found.rank != rank:
            yield f"the error of rank {rank} names rank {found.rank}: {found}"
        if isinstance(found, PeerFailedError):
            if found.failed_rank == rank:
                yield f"rank {rank} blames itself: {found}"
        elif found.key is None or not _names_object(found):
            yield f"names no object: {found!r}"


def _names_object(error: CloudCheckpointError) -> bool:
    """Whether the text of an error has the key of a record or data object in it."""
    name = (error.key or "").rpartition("/")[2]
    return (name == ".metadata" or is_data_name(name)) and str(error.key) in str(error)
