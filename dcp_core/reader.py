"""The DCP storage reader.

torch calls, on every rank unless noted::

    reset                   only when dcp.load gets a checkpoint_id
    read_metadata           without arguments; with rank= once that has failed
    set_up_storage_reader
    prepare_local_plan, prepare_global_plan
    read_data
"""

from __future__ import annotations

import os
import uuid
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from dcp_core.collector import SettledObjects
from dcp_core.config import LoadOptions
from dcp_core.endpoint import Endpoint
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
from dcp_core.load.record import UnreadableMetadata, read_record
from dcp_core.load.source import Catalog
from dcp_core.location import scheme_of
from dcp_core.registry import Backend, known_schemes
from dcp_core.transfer import Transfer

__all__ = ["CloudStorageReader"]


class CloudStorageReader(StorageReader):
    """Loads DCP checkpoints from the bucket of any registered URL scheme.

    Reads checkpoints of :class:`~dcp_core.writer.CloudStorageWriter`, of stock torch and of other DCP
    writers. Only the bytes that the plan needs are fetched, in parallel ranges, into the tensors' own
    memory where that is possible, and checked against the checksums they were saved with.

    The reader may be reused, for one load after another, and pickled.

    Args:
        url: ``scheme://bucket/prefix``.
        **options: fields of :class:`~dcp_core.config.LoadOptions` and of the backend's options, such as
            ``dcp_s3.S3Options``.

    Raises:
        ConfigurationError: the URL or an option is wrong, or the backend is not installed.
    """

    def __init__(self, url: str | os.PathLike[str], **options: Any) -> None:
        self._set_up(url, options, None)

    def _set_up(self, url: str | os.PathLike[str], options: dict[str, Any], backend: Backend | None) -> None:
        self._endpoint = Endpoint(url, LoadOptions, options, backend)
        self._forget()

    def _forget(self) -> None:
        self._load_id = str(uuid.uuid4())
        self._metadata: Metadata | None = None
        self._settled: SettledObjects | None = None
        self._version: str | None = None
        self._failure: CloudCheckpointError | None = None
        self._rank = 0
        self._alone = False

    @property
    def checkpoint_id(self) -> str:
        """URL of the checkpoint that is loaded next."""
        return self._endpoint.location.url

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Go on with another checkpoint: a full URL, or a name relative to the URL of this reader."""
        if checkpoint_id is not None:
            self._endpoint.move(checkpoint_id)
        self._forget()

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
        try:
            metadata = self._read(rank)
        except CloudCheckpointError as error:
            if rank is None:
                self._failure = error
                raise
            return UnreadableMetadata((self._failure or error).at_rank(rank))
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self._load_id
        return metadata

    def _read(self, rank: int | None) -> Metadata:
        if rank is not None and not isinstance(self._failure, (CheckpointNotFoundError, type(None))):
            raise self._failure
        transfer = Transfer(self._endpoint.options, rank)
        metadata, self._version = read_record(self._endpoint.store(), self._endpoint.location, transfer, rank)
        self._failure = None
        return metadata

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
        self._metadata = metadata
        self._rank = int(kwargs.get("rank") or 0)
        self._alone = kwargs.get("use_collectives") is False
        # from here on torch plans
        self._settled = SettledObjects()

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fetch the items of this rank; returns when all are in place.

        Raises:
            CheckpointCorruptError: an object is missing or too short, or bytes fail their checksum.
            CheckpointReplacedError: another save replaced the checkpoint meanwhile.
            UntrustedDataError: a non-tensor item needs ``weights_only=False``.
        """
        if self._metadata is None or self._settled is None:
            raise ConfigurationError("no load was set up: call set_up_storage_reader first, as dcp.load does")
        try:
            with self._settled:
                self._read_data(plan, planner, self._metadata)
        except CloudCheckpointError as error:
            error.at_rank(self._rank)
            raise
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read_data(self, plan: LoadPlan, planner: LoadPlanner, metadata: Metadata) -> None:
        options, store, location = self._endpoint.options, self._endpoint.store(), self._endpoint.location
        transfer = Transfer(options, self._rank)
        reader = RankReader(store, options, transfer, location.key)
        try:
            reader.read(plan, planner, Catalog(metadata))
        except (ObjectNotFoundError, CheckpointCorruptError) as error:
            if self._was_replaced():
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

    def _was_replaced(self) -> bool:
        """Whether the commit record is another one than this load began with."""
        key = self._endpoint.location.key(metadata_name(self._rank if self._alone else None))
        try:
            return self._endpoint.store().head(key).version != self._version
        except ObjectNotFoundError:
            return True
        except CloudCheckpointError:
            return False

    def close(self) -> None:
        """Close the connections; the next load opens new ones."""
        self._endpoint.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether an installed backend serves this URL."""
        return scheme_of(checkpoint_id) in known_schemes()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.checkpoint_id!r})"
