"""Saving, finding, loading and deleting the steps of a training run.

::

    save    claim the run → dcp.save → retention, in the background
    load    which steps are there (rank 0, told to the others) → lease → dcp.load → or the step before
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from torch.distributed.checkpoint.planner import LoadPlanner, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from dcp_core.config import LoadOptions, SaveOptions
from dcp_core.errors import CheckpointNotFoundError, CloudCheckpointError
from dcp_core.run.background import Background
from dcp_core.run.deletion import Deletion
from dcp_core.run.facts import gather_facts
from dcp_core.run.fallback import damage_of
from dcp_core.run.layout import step_name
from dcp_core.run.leases import DEFAULT_TTL, hold
from dcp_core.run.owner import Owner
from dcp_core.run.ranks import is_first_rank, told_by_first_rank
from dcp_core.run.retention import Best, Retention
from dcp_core.run.steps import StepInfo, find_steps, read_facts
from dcp_core.run.writer import RunWriter
from dcp_core.storage.checkpoint_store import CheckpointStore, split_options
from dcp_core.storage.reader import CloudStorageReader
from dcp_core.transfer.transfer import Transfer

__all__ = ["CheckpointRun"]

logger = logging.getLogger("dcp_core")

_T = TypeVar("_T")


class CheckpointRun:
    """The checkpoints of one training run, by step.

    Made and used alike on every rank of a job; without torch.distributed, by the one process. A step is there
    if its commit record is: nothing else is written that says so.

    Args:
        url: of the run; step ``n`` lies at ``<url>/step-<n>``.
        keep_last: keep the newest so many steps.
        keep_every: keep the steps whose number it divides.
        keep_best: keep the steps with the best values of a metric.
        leftovers_after: when what failed saves left of superseded steps is deleted; longer than any save.
        lease_ttl: seconds after which the lease of a loader that died no longer keeps a step.
        **options: of saving, loading and the backend, as for the writer and the reader.

    Without any of the three rules every step is kept. The newest step, steps that are being loaded through a
    ``CheckpointRun`` and steps that no committed one supersedes are always kept.

    Raises:
        ConfigurationError: the URL, a rule or an option is wrong.
    """

    def __init__(
        self,
        url: str,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep_best: Best | None = None,
        leftovers_after: timedelta = timedelta(days=1),
        lease_ttl: float = DEFAULT_TTL,
        **options: Any,
    ) -> None:
        self.retention = Retention(keep_last, keep_every, keep_best)
        self._save_options, self._load_options = split_options(options)
        self._place = CheckpointStore(url, SaveOptions, self._save_options)
        # a wrong option of loading is told now, not when the run is resumed
        CheckpointStore(url, LoadOptions, self._load_options)
        self._leftovers_after = leftovers_after
        self._lease_ttl = lease_ttl
        self._owner = Owner(self._place.location)
        self._background = Background("dcp-cloud-retention")
        self._saving: set[int] = set()
        self._facts: dict[tuple[int, str | None], dict[str, Any]] = {}

    @property
    def url(self) -> str:
        """Where the run is."""
        return self._place.location.url

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        facts: Mapping[str, Any] | None = None,
        planner: SavePlanner | None = None,
    ) -> None:
        """Save ``state`` as ``step``; all ranks together, as ``dcp.save``.

        Args:
            metrics: values that ``keep_best`` compares.
            facts: what else to note in the commit record, of JSON's types.

        Raises:
            RunTakenOverError: another job has begun to save to this run.
            CheckpointException: of torch, with the errors of all ranks.
        """
        writer = self._writer(step, metrics, facts)
        self._saving.add(step)
        try:
            save(dict(state), storage_writer=writer, planner=planner)
        finally:
            self._saving.discard(step)
            writer.close()
        self._retain()

    def async_save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        facts: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """As :meth:`save`, without waiting for the upload.

        Args:
            **options: of ``dcp.async_save``, such as ``async_checkpointer_type`` and ``process_group``.

        Returns:
            What ``dcp.async_save`` returns: a future, or an ``AsyncSaveResponse`` if the stager stages in the
            background.
        """
        self._saving.add(step)
        try:
            writer = self._writer(step, metrics, facts)
            response = async_save(dict(state), storage_writer=writer, **options)
        except BaseException:
            self._saving.discard(step)
            raise
        future: Future[Any] = getattr(response, "upload_completion", response)  # type: ignore[arg-type]
        future.add_done_callback(lambda done: self._saved_async(step, done))
        return response

    def _saved_async(self, step: int, done: Future[Any]) -> None:
        self._saving.discard(step)
        if not done.cancelled() and done.exception() is None:
            self._retain()

    def _writer(
        self, step: int, metrics: Mapping[str, float] | None, facts: Mapping[str, Any] | None
    ) -> RunWriter:
        url = self._place.location.child(step_name(step)).url
        return RunWriter(url, self._owner, gather_facts(step, metrics, facts), self._save_options)

    def steps(self) -> list[StepInfo]:
        """All steps, oldest first, committed or not; every rank must ask, and the first one looks."""
        return self._told(self._find_steps)

    def latest(self) -> StepInfo | None:
        """The newest committed step; ``None`` if there is none."""
        committed = [info for info in self.steps() if info.committed]
        return committed[-1] if committed else None

    def _find_steps(self) -> list[StepInfo]:
        return find_steps(self._place.writable_store(), self._place.location, self._transfer())

    def load(
        self,
        state: dict[str, Any],
        step: int | StepInfo | None = None,
        *,
        fall_back: bool = False,
        planner: LoadPlanner | None = None,
    ) -> StepInfo:
        """Load a step into ``state``; all ranks together, as ``dcp.load``.

        Args:
            step: which; the newest committed one by default. Given as what :meth:`steps` or :meth:`latest`
                returned, it is not looked up once more.
            fall_back: if a step is damaged, say so in the log and load the one before.

        Returns:
            The step that was loaded.

        Raises:
            CheckpointNotFoundError: the run has no committed step, or not this one.
            CheckpointException: of torch, with the errors of all ranks.
        """
        tried: list[str] = []
        for info in self._candidates(step, fall_back):
            try:
                self._load_one(info, state, planner)
            except BaseException as error:
                reason = damage_of(error)
                if reason is None or not fall_back:
                    raise
                tried.append(str(info.step))
                logger.warning(
                    "step %d of %s is damaged, trying the one before: %s", info.step, self.url, reason
                )
            else:
                return info
        raise CheckpointNotFoundError(
            f"{self.url} has no step to load"
            + (f": {', '.join(tried)} are damaged" if tried else "" if step is None else f" {_number(step)}"),
            bucket=self._place.location.bucket,
        )

    def _candidates(self, wanted: int | StepInfo | None, fall_back: bool) -> list[StepInfo]:
        """Committed steps, newest first, from the wanted one on."""
        if isinstance(wanted, StepInfo) and not fall_back:
            return [wanted]
        step = None if wanted is None else _number(wanted)
        committed = [info for info in self.steps() if info.committed]
        if step is not None and all(info.step != step for info in committed):
            return []
        return [info for info in reversed(committed) if step is None or info.step <= step]

    def _load_one(self, info: StepInfo, state: dict[str, Any], planner: LoadPlanner | None) -> None:
        reader = CloudStorageReader(info.url, **self._load_options)
        try:
            if not is_first_rank():
                load(state, storage_reader=reader, planner=planner)
                return
            store = self._place.writable_store()
            with hold(store, self._place.location, info.step, self._transfer(), self._lease_ttl):
                load(state, storage_reader=reader, planner=planner)
        finally:
            reader.close()

    def delete(self, step: int) -> bool:
        """Delete ``step``; every rank must ask. Returns whether it went: it stays while someone loads it."""
        return step in self._told(lambda: self._deletion().delete([step]))

    def _deletion(self) -> Deletion:
        return Deletion(
            self._place.writable_store(),
            self._place.location,
            self._transfer(),
            lease_ttl=self._lease_ttl,
            leftovers_after=self._leftovers_after,
        )

    def _retain(self) -> None:
        """Delete what may go, in the background, on the first rank."""
        if is_first_rank() and not self.retention.keeps_all:
            self._background.submit(self._retain_now)

    def _retain_now(self) -> None:
        try:
            found = self._find_steps()
            committed = [info for info in found if info.committed]
            superseded = self.retention.superseded(
                [info.step for info in committed], self._metrics(committed)
            )
            deletion = self._deletion()
            spared = self._saving | self._committed_last(committed)
            deletion.delete([step for step in superseded if step not in spared])
            newest = committed[-1].step if committed else -1
            unfinished = [
                i for i in found if not i.committed and i.step < newest and i.step not in self._saving
            ]
            deletion.clear_leftovers(unfinished, datetime.now(timezone.utc))
        except CloudCheckpointError as error:
            logger.warning("steps of %s that could go were not deleted: %s", self.url, error)

    def _committed_last(self, committed: list[StepInfo]) -> set[int]:
        """The step that was committed last: its number may be below those of a training that was given up."""
        dated = [(info.saved, info.step) for info in committed if info.saved is not None]
        if not dated:
            return set()
        # stores count in seconds: of several steps the last one
        _, step = max(dated)
        if step < committed[-1].step:
            logger.warning(
                "step %d of %s was saved last, and step %d is the newest by number: delete the steps that "
                "training no longer goes on from",
                step,
                self.url,
                committed[-1].step,
            )
        return {step}

    def _metrics(self, committed: list[StepInfo]) -> dict[int, Mapping[str, float]]:
        """Metrics by step, as far as a rule asks for them."""
        if self.retention.keep_best is None:
            return {}
        return {info.step: self.facts(info).get("metrics", {}) for info in committed}

    def facts(self, info: StepInfo) -> dict[str, Any]:
        """What was noted of a committed step: when, where, of which code, with which metrics.

        Empty where the checkpoint was saved by something else than a run.
        """
        known = (info.step, info.version)
        if known not in self._facts:
            store = self._place.writable_store()
            self._facts[known] = read_facts(store, self._place.location, info.step, self._transfer())
        return self._facts[known]

    def size_of(self, step: int) -> int:
        """Bytes of all objects of ``step``; this rank asks for itself."""
        prefix = self._place.location.child(step_name(step)).key("")
        store = self._place.writable_store()
        return self._transfer().attempt(lambda: sum(info.size for info in store.list(prefix)))

    def _told(self, ask: Callable[[], _T]) -> _T:
        return told_by_first_rank(ask)

    def _transfer(self) -> Transfer:
        return Transfer(self._place.options, 0)

    def close(self) -> None:
        """Wait for deletions that are under way, and close the connections."""
        self._background.close()
        self._place.close()

    def __enter__(self) -> CheckpointRun:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CheckpointRun({self.url!r})"


def _number(step: int | StepInfo) -> int:
    return step.step if isinstance(step, StepInfo) else step
