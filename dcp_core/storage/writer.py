"""The DCP storage writer.

torch calls, on every rank unless noted::

    reset                   only when dcp.save gets a checkpoint_id
    storage_meta            before the set-up
    set_up_storage_writer   a new save starts: token, and on the coordinator: is something there already?
    prepare_local_plan, prepare_global_plan
    write_data              upload
    finish                  coordinator, only if every rank succeeded: commit

Other saves may be under way through the same writer on other threads. What a save is about (URL, id, token,
the record it found) is therefore in a :class:`Save`, not on the writer, which keeps one for each thread: see
:mod:`dcp_core.storage.per_thread`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from dcp_core.config import SaveOptions
from dcp_core.errors import CloudCheckpointError, ConfigurationError, UnsupportedError
from dcp_core.format.layout import data_name, metadata_name, new_token
from dcp_core.runtime.gc_pause import FrozenHeap
from dcp_core.runtime.torch_private import group_rank
from dcp_core.save.commit import Commit
from dcp_core.save.results import RankResults
from dcp_core.save.upload import RankWriter
from dcp_core.seam.backend import Backend
from dcp_core.seam.location import scheme_of
from dcp_core.seam.registry import known_schemes
from dcp_core.seam.store import ObjectInfo, ObjectStore
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.storage.per_thread import Current, UnderWay
from dcp_core.storage.stager import Stages
from dcp_core.transfer import Peers, Transfer, forget_failures, with_channel

__all__ = ["CloudStorageWriter", "Save", "naming_rank"]


@dataclass(eq=False)
class _Announced:
    """The save that a thread starts next."""

    checkpoint: CheckpointStore[SaveOptions]
    save_id: str

    @property
    def meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=self.checkpoint.location.url, save_id=self.save_id)


@dataclass(eq=False)
class Save:
    """One save under way on one rank.

    Attributes:
        announced: where to, and its id.
        rank: of this process.
        alone: whether each rank commits for itself.
        token: what the names of its data objects have in common.
        transfer: limits and the deadline.
        previous: the commit record that was there when it started.
        settled: what the garbage collector passes over meanwhile.
        format: what a writer of another format keeps of it.
    """

    announced: _Announced
    rank: int
    alone: bool
    token: str
    transfer: Transfer
    previous: ObjectInfo | None = None
    settled: FrozenHeap | None = None
    format: Any = None

    @property
    def checkpoint(self) -> CheckpointStore[SaveOptions]:
        return self.announced.checkpoint

    def commit(self, store: ObjectStore, facts: Mapping[str, Any] | None = None) -> Commit:
        name = metadata_name(self.rank if self.alone else None)
        return Commit(store, self.checkpoint.location, name, self.checkpoint.options, self.transfer, facts)

    def name_of(self, number: int) -> str:
        return data_name(self.rank, number, self.token)

    def end(self) -> None:
        if self.settled is not None:
            self.settled.end()


class CloudStorageWriter(Stages, StorageWriter):
    """Saves DCP checkpoints to the bucket of any registered URL scheme.

    A checkpoint is visible only once it is whole: data objects get names that no earlier save used, and
    the commit record is written last, by one conditional request. Any failure on any rank leaves the
    previous checkpoint at the URL as it was.

    The writer may be pickled, and reused: for one save after another, and for several at a time on as many
    threads, as with ``async_save`` before the save before is done. Each is a save of its own. A thread that
    resets the writer goes on with that checkpoint; others with the one that it was reset to last.

    It is a stager too: ``async_save`` may be given it as ``async_stager``, and takes it as that by itself.

    Args:
        url: ``scheme://bucket/prefix``.
        **options: fields of :class:`~dcp_core.config.SaveOptions` and of the backend's options, such as
            ``dcp_s3.S3Options``.

    Raises:
        ConfigurationError: the URL or an option is wrong, or the backend is not installed.
        UnsupportedError: nothing can be saved at URLs of this scheme.
    """

    #: The backend of a class that is bound to one; otherwise the URL's scheme says which.
    backend: ClassVar[Backend | None] = None

    def __init__(self, url: str | os.PathLike[str], **options: Any) -> None:
        #: What is noted in the commit record beside the checkpoint, of JSON's types.
        self.facts: Mapping[str, Any] | None = None
        self._current = Current(_writable(CheckpointStore(url, SaveOptions, options, self.backend)))
        self._next: UnderWay[_Announced] = UnderWay()
        self._saves: UnderWay[Save] = UnderWay()

    @property
    def checkpoint(self) -> CheckpointStore[SaveOptions]:
        """URL and options of the checkpoint that this thread saves next."""
        return self._current.get()

    @property
    def checkpoint_id(self) -> str:
        """URL of the checkpoint that this thread saves next."""
        return self.checkpoint.location.url

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Go on with another checkpoint: a full URL, or a name relative to the URL this writer was made with.

        Saves under way on other threads are not affected.
        """
        if checkpoint_id is not None:
            self._current.set(_writable(self.checkpoint.at(checkpoint_id)))
        self._next.end()
        self._leave()

    def storage_meta(self) -> StorageMeta:
        """URL and id of the save that this thread is about to start."""
        announced, checkpoint = self._next.mine(), self.checkpoint
        if announced is None or announced.checkpoint is not checkpoint:
            announced = _Announced(checkpoint, str(uuid.uuid4()))
            self._next.begin(announced)
        return announced.meta

    # torch passes rank and use_collectives only to a parameter that is named kwargs
    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start a save; the coordinator looks for a committed checkpoint, before anything is written.

        Raises:
            CheckpointExistsError: there is one and ``overwrite=False``.
        """
        self._leave()
        announced = self._next.mine() or _Announced(self.checkpoint, str(uuid.uuid4()))
        # an id belongs to one save, even if that one fails
        self._next.end()
        rank = group_rank(kwargs)
        alone = kwargs.get("use_collectives") is False
        forget_failures()
        save = Save(announced, rank, alone, new_token(), Transfer(announced.checkpoint.options, rank))
        with naming_rank(rank), save.transfer.watched(), save.checkpoint.use_writable() as store:
            if is_coordinator or alone:
                self.look_before(save, store)
        # from here on torch plans
        save.settled = FrozenHeap()
        self._saves.begin(save)

    def look_before(self, save: Save, store: ObjectStore) -> None:
        """Look at what is there before anything is written; writers of another format do it otherwise."""
        save.previous = save.commit(store).prepare()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is. Names do not travel in it: with plan caching torch hands out old plans."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are, and where their ranks hear of each other's failures."""
        return with_channel(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Upload the items of this rank; returns when all are stored.

        Raises:
            CloudCheckpointError: an upload failed for good, and was aborted; the save is over.
            PeerFailedError: another rank failed, and this one stopped because of it.
        """
        save = self.under_way()
        try:
            with (
                naming_rank(save.rank),
                save.checkpoint.use_writable() as store,
                save.settled or nullcontext(),
            ):
                results = self.write_items(save, store, plan, planner)
        except BaseException:
            self._leave()
            raise
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def write_items(
        self, save: Save, store: ObjectStore, plan: SavePlan, planner: SavePlanner
    ) -> list[WriteResult]:
        """Upload the items of this rank; writers of another format do it otherwise."""
        location, options = save.checkpoint.location, save.checkpoint.options
        writer = RankWriter(store, options, save.transfer, save.name_of, location.key)
        with save.transfer.watched(Peers.of(plan, save.rank)):
            return RankResults(location.url, writer.write(plan, planner))

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit. ``metadata`` is completed, as stock writers do.

        Raises:
            CheckpointIncompleteError: results and plan differ.
            ConflictError: another save committed at this URL meanwhile.
            CommitUncertainError: the store did not say whether the commit was done.
        """
        save = self.under_way()
        try:
            with naming_rank(save.rank), save.transfer.watched(), save.checkpoint.use_writable() as store:
                self.publish(save, store, metadata, results)
        finally:
            self._saves.end(save)

    def publish(
        self, save: Save, store: ObjectStore, metadata: Metadata, results: list[list[WriteResult]]
    ) -> None:
        """Make what was written visible; writers of another format do it otherwise."""
        save.commit(store, self.facts).publish(metadata, results, save.announced.meta, save.previous)

    def under_way(self) -> Save:
        """The save that this thread has under way.

        Raises:
            ConfigurationError: there is none.
        """
        save = self._saves.get()
        if save is None:
            raise ConfigurationError(
                "this thread has no save under way: call set_up_storage_writer first, as dcp.save does"
            )
        return save

    def _leave(self) -> None:
        """End the save that this thread may have under way: it failed, or was left while it was planned."""
        save = self._saves.mine()
        if save is not None:
            save.end()
        self._saves.end()

    def close(self) -> None:
        """Close the connections, once the saves that are under way let go of them; the next save opens new
        ones."""
        self.checkpoint.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether an installed backend serves this URL."""
        return scheme_of(checkpoint_id) in known_schemes()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.checkpoint_id!r})"


def _writable(checkpoint: CheckpointStore[SaveOptions]) -> CheckpointStore[SaveOptions]:
    if checkpoint.read_only:
        location = checkpoint.location
        raise UnsupportedError(
            f"{location} cannot be saved to: {location.scheme}:// is read-only. Save to a bucket (s3://, "
            "gs://, az://); use this URL only for loading"
        )
    return checkpoint


@contextmanager
def naming_rank(rank: int) -> Iterator[None]:
    """Put the rank into errors: they are raised on every rank, which must know whose they are."""
    try:
        yield
    except CloudCheckpointError as error:
        error.at_rank(rank)
        raise
