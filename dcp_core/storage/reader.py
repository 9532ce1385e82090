"""The DCP storage reader.

torch calls, on every rank unless noted::

    reset                   only when dcp.load gets a checkpoint_id
    read_metadata           without arguments: a new load starts; with rank= once that has failed
    set_up_storage_reader
    prepare_local_plan, prepare_global_plan
    read_data

Other loads may be under way through the same reader on other threads. What a load is about is therefore in a
:class:`_Load`, not on the reader, which keeps one for each thread: see :mod:`dcp_core.storage.per_thread`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from dcp_core.config import LoadOptions
from dcp_core.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointReplacedError,
    CloudCheckpointError,
    ConfigurationError,
    ObjectNotFoundError,
)
from dcp_core.format.layout import metadata_name
from dcp_core.load.fetch import RankReader
from dcp_core.load.metadata import Record, UnreadableMetadata, read_record
from dcp_core.runtime.gc_pause import FrozenHeap
from dcp_core.runtime.torch_private import PASSES_RANK, group_rank
from dcp_core.seam.backend import Backend
from dcp_core.seam.location import scheme_of
from dcp_core.seam.registry import known_schemes
from dcp_core.seam.store import ReadableStore
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.storage.per_thread import Current, UnderWay
from dcp_core.transfer import Peers, Transfer, forget_failures, with_channel

__all__ = ["CloudStorageReader"]


@dataclass(eq=False)
class _Load:
    """One load under way on one rank.

    Attributes:
        metadata, version: the commit record; the version is ``None`` for one that was not read here.
        versions: of objects that were seen with it, by name.
        failure: why there is none.
        rank: of this process.
        alone: whether each rank saved for itself.
        transfer: limits, and the deadline of the whole load.
        settled: what the garbage collector passes over meanwhile.
    """

    checkpoint: CheckpointStore[LoadOptions]
    load_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    metadata: Metadata | None = None
    version: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    failure: CloudCheckpointError | None = None
    rank: int = 0
    alone: bool = False
    settled: FrozenHeap | None = None

    def __post_init__(self) -> None:
        forget_failures()
        self.transfer = Transfer(self.checkpoint.options, None)

    def read_record(self, reader: CloudStorageReader, rank: int | None) -> Metadata:
        """Read the commit record, or that of a rank which saved for itself."""
        if rank is not None and not isinstance(self.failure, (CheckpointNotFoundError, type(None))):
            raise self.failure
        self.transfer.rank = rank
        with self.transfer.watched(), self.checkpoint.use() as store:
            found = reader.find_record(store, self.checkpoint, self.transfer, rank)
        metadata, self.version, self.versions = found
        self.failure = None
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        self.metadata = metadata
        return metadata

    def read(self, by: CloudStorageReader, plan: LoadPlan, planner: LoadPlanner) -> None:
        """Fetch the items of a plan."""
        assert self.metadata is not None
        location, options = self.checkpoint.location, self.checkpoint.options
        with self.checkpoint.use() as store:
            reader = RankReader(store, location, options, self.transfer, self.versions)
            try:
                with self.transfer.watched(Peers.of(plan, self.rank)):
                    by.read_items(reader, plan, planner, self.metadata)
            except (ObjectNotFoundError, CheckpointCorruptError) as error:
                if self._was_replaced(store):
                    raise CheckpointReplacedError(
                        f"another save replaced the checkpoint at {location} during this load; load again",
                        bucket=store.bucket,
                        key=error.key,
                    ) from error
                if isinstance(error, ObjectNotFoundError):
                    raise CheckpointCorruptError(
                        f"the commit record at {location} refers to an object that does not exist",
                        bucket=store.bucket,
                        key=error.key,
                    ) from error
                raise

    def _was_replaced(self, store: ReadableStore) -> bool:
        """Whether the commit record is another one than this load began with."""
        if self.version is None:
            return False
        key = self.checkpoint.location.key(metadata_name(self.rank if self.alone else None))
        try:
            return self.transfer.cleanup(lambda: store.head(key)).version != self.version
        except ObjectNotFoundError:
            return True
        except CloudCheckpointError:
            return False

    def end(self) -> None:
        if self.settled is not None:
            self.settled.end()


class CloudStorageReader(StorageReader):
    """Loads DCP checkpoints from the bucket of any registered URL scheme.

    Reads checkpoints of :class:`~dcp_core.storage.writer.CloudStorageWriter`, of stock torch and of other DCP
    writers. Only the bytes that the plan needs are fetched, in parallel ranges, into the tensors' own
    memory where that is possible, and checked against the checksums they were saved with.

    The reader may be pickled, and reused: for one load after another, and for several at a time on as many
    threads. A thread that resets the reader goes on with that checkpoint; others with the one that it was
    reset to last.

    Args:
        url: ``scheme://bucket/prefix``.
        **options: fields of :class:`~dcp_core.config.LoadOptions` and of the backend's options, such as
            ``dcp_s3.S3Options``.

    Raises:
        ConfigurationError: the URL or an option is wrong, or the backend is not installed.
    """

    #: The backend of a class that is bound to one; otherwise the URL's scheme says which.
    backend: ClassVar[Backend | None] = None

    def __init__(self, url: str | os.PathLike[str], **options: Any) -> None:
        self._current = Current(CheckpointStore(url, LoadOptions, options, self.backend))
        self._loads: UnderWay[_Load] = UnderWay()

    @property
    def checkpoint(self) -> CheckpointStore[LoadOptions]:
        """URL and options of the checkpoint that this thread loads next."""
        return self._current.get()

    @property
    def checkpoint_id(self) -> str:
        """URL of the checkpoint that this thread loads next."""
        return self.checkpoint.location.url

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Go on with another checkpoint: a full URL, or a name relative to the URL this reader was made with.

        Loads under way on other threads are not affected.
        """
        if checkpoint_id is not None:
            self._current.set(self.checkpoint.at(checkpoint_id))
        self._leave()

    # torch passes rank only to a parameter that is named kwargs
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002
        """The commit record.

        With ``rank=``, which torch passes after a first call failed, the record that this rank wrote in a
        save without collectives; if there is none either, an object that raises the first call's error
        when used: torch would replace the error itself with an ``AssertionError``.

        Raises:
            CheckpointNotFoundError: nothing is committed here.
            CheckpointCorruptError: the record is damaged.
            PermissionDeniedError: the record may not be read.
        """
        rank = kwargs.get("rank")
        load = self._loads.mine() if rank is not None else None
        if load is None:
            load = _Load(self.checkpoint)
            self._begin(load)
        try:
            return load.read_record(self, rank)
        except CloudCheckpointError as error:
            if rank is None:
                load.failure = error
                if not PASSES_RANK:
                    error.at_rank(group_rank(kwargs))
                raise
            return UnreadableMetadata((load.failure or error).at_rank(rank))

    def find_record(
        self,
        store: ReadableStore,
        checkpoint: CheckpointStore[LoadOptions],
        transfer: Transfer,
        rank: int | None,
    ) -> Record:
        """What a checkpoint says of itself. Classes for checkpoints of another format read it otherwise."""
        return Record(*read_record(store, checkpoint.location, transfer, rank))

    # torch passes rank and use_collectives only to a parameter that is named kwargs
    def set_up_storage_reader(
        self,
        metadata: Metadata,
        is_coordinator: bool,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Start a load from ``metadata``."""
        del is_coordinator, args
        if isinstance(metadata, UnreadableMetadata):
            raise metadata.reason
        found = self._loads.get()
        known = found is not None and found.metadata is metadata
        load = found if found is not None and known else _Load(self.checkpoint, metadata=metadata)
        load.rank = load.transfer.rank = group_rank(kwargs)
        load.alone = kwargs.get("use_collectives") is False
        load.end()
        # from here on torch plans
        load.settled = FrozenHeap()
        if not known:
            self._begin(load)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are, and where their ranks hear of each other's failures."""
        return with_channel(plans)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fetch the items of this rank; returns when all are in place.

        Raises:
            CheckpointCorruptError: an object is missing or too short, or bytes fail their checksum.
            CheckpointReplacedError: another save replaced the checkpoint meanwhile.
            UnsupportedTensorError: the state dict has a tensor that cannot be loaded into.
            UntrustedDataError: an item needs ``weights_only=False``.
            PeerFailedError: another rank failed, and this one stopped because of it.
        """
        load = self._loads.get()
        if load is None or load.settled is None:
            raise ConfigurationError(
                "this thread has no load under way: call set_up_storage_reader first, as dcp.load does"
            )
        try:
            with load.settled:
                load.read(self, plan, planner)
        except CloudCheckpointError as error:
            error.at_rank(load.rank)
            raise
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def read_items(
        self, reader: RankReader, plan: LoadPlan, planner: LoadPlanner, metadata: Metadata
    ) -> None:
        """Fetch the items of a plan. Classes for elements that are not stored as they are do it otherwise."""
        reader.read(plan, planner, metadata)

    def _begin(self, load: _Load) -> None:
        self._leave()
        self._loads.begin(load)

    def _leave(self) -> None:
        """End the load that this thread may have under way."""
        load = self._loads.mine()
        if load is not None:
            load.end()
        self._loads.end()

    def close(self) -> None:
        """Close the connections, once the loads that are under way let go of them; the next load opens new
        ones."""
        self.checkpoint.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether an installed backend serves this URL."""
        return scheme_of(checkpoint_id) in known_schemes()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.checkpoint_id!r})"
