"""The DCP storage writer.

torch calls, on every rank unless noted::

    reset                   only when dcp.save gets a checkpoint_id
    storage_meta            before the set-up
    set_up_storage_writer   a new save starts: token, and on the coordinator: is something there already?
    prepare_local_plan, prepare_global_plan
    write_data              upload
    finish                  coordinator, only if every rank succeeded: commit
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from dcp_core.collector import SettledObjects
from dcp_core.config import SaveOptions
from dcp_core.endpoint import Endpoint
from dcp_core.errors import CloudCheckpointError, ConfigurationError, UnsupportedError
from dcp_core.format.layout import data_name, metadata_name, new_token
from dcp_core.location import scheme_of
from dcp_core.registry import Backend, known_schemes
from dcp_core.save.commit import Commit
from dcp_core.save.upload import RankWriter
from dcp_core.transfer import Transfer

__all__ = ["CloudStorageWriter"]


@dataclass
class _Save:
    """One save in progress on one rank."""

    rank: int
    token: str
    commit: Commit
    transfer: Transfer
    settled: SettledObjects


class CloudStorageWriter(StorageWriter):
    """Saves DCP checkpoints to the bucket of any registered URL scheme.

    A checkpoint is visible only once it is whole: data objects get names that no earlier save used, and
    the commit record is written last, by one conditional request. Any failure on any rank leaves the
    previous checkpoint at the URL as it was.

    The writer may be reused, for one save after another, and pickled.

    Args:
        url: ``scheme://bucket/prefix``.
        **options: fields of :class:`~dcp_core.config.SaveOptions` and of the backend's options, such as
            ``dcp_s3.S3Options``.

    Raises:
        ConfigurationError: the URL or an option is wrong, or the backend is not installed.
        UnsupportedError: nothing can be saved at URLs of this scheme.
    """

    def __init__(self, url: str | os.PathLike[str], **options: Any) -> None:
        self._set_up(url, options, None)

    def _set_up(self, url: str | os.PathLike[str], options: dict[str, Any], backend: Backend | None) -> None:
        self._endpoint = Endpoint(url, SaveOptions, options, backend)
        self._require_writable()
        self._save_id = _new_save_id()
        self._save: _Save | None = None

    @property
    def checkpoint_id(self) -> str:
        """URL of the checkpoint that is saved next."""
        return self._endpoint.location.url

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Go on with another checkpoint: a full URL, or a name relative to the URL of this writer."""
        if checkpoint_id is not None:
            self._endpoint.move(checkpoint_id)
            self._require_writable()
        self._save_id = _new_save_id()
        self._save = None

    def _require_writable(self) -> None:
        if self._endpoint.read_only:
            location = self._endpoint.location
            raise UnsupportedError(
                f"{location} cannot be saved to: {location.scheme}:// is read-only. Save to a bucket, and "
                "load from here what serves it"
            )

    def storage_meta(self) -> StorageMeta:
        """URL and id of the save that is about to start."""
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self._save_id)

    # torch passes rank and use_collectives only to a parameter that is named kwargs
    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start a save; the coordinator looks for a committed checkpoint, before anything is written.

        Raises:
            CheckpointExistsError: there is one and ``overwrite=False``.
        """
        rank = int(kwargs.get("rank") or 0)
        alone = kwargs.get("use_collectives") is False
        options, location = self._endpoint.options, self._endpoint.location
        with _naming_rank(rank):
            transfer = Transfer(options, rank)
            store = self._endpoint.store()
            name = metadata_name(rank if alone else None)
            commit = Commit(store, location, name, options, transfer)
            if is_coordinator or alone:
                commit.prepare()
            # from here on torch plans
            self._save = _Save(rank, new_token(), commit, transfer, SettledObjects())

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is. Names do not travel in it: with plan caching torch hands out old plans."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Upload the items of this rank; returns when all are stored.

        Raises:
            CloudCheckpointError: an upload failed for good; its object does not exist and its multipart
                upload is aborted.
        """
        save = self._started()
        location = self._endpoint.location
        writer = RankWriter(
            store=save.commit.store,
            options=self._endpoint.options,
            transfer=save.transfer,
            name_of=lambda number: data_name(save.rank, number, save.token),
            key_of=location.key,
        )
        with save.settled, _naming_rank(save.rank):
            results = writer.write(plan, planner)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit.

        Raises:
            CheckpointIncompleteError: results and plan differ.
            ConflictError: another save committed at this URL meanwhile.
        """
        save = self._started()
        with _naming_rank(save.rank):
            save.commit.publish(metadata, results, self.storage_meta())
        self._save_id = _new_save_id()
        self._save = None

    def _started(self) -> _Save:
        if self._save is None:
            raise ConfigurationError("no save was set up: call set_up_storage_writer first, as dcp.save does")
        return self._save

    def close(self) -> None:
        """Close the connections; the next save opens new ones."""
        self._endpoint.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether an installed backend serves this URL."""
        return scheme_of(checkpoint_id) in known_schemes()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.checkpoint_id!r})"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_save"] = None
        return state


def _new_save_id() -> str:
    return str(uuid.uuid4())


@contextmanager
def _naming_rank(rank: int) -> Iterator[None]:
    """Put the rank into errors of ours: they are raised on every rank, which must know whose they are."""
    try:
        yield
    except CloudCheckpointError as error:
        error.at_rank(rank)
        raise
