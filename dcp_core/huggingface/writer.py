"""The writer of HuggingFace checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from dcp_core.errors import (
    CheckpointExistsError,
    ConfigurationError,
    PeerFailedError,
    PermissionDeniedError,
    UnsupportedError,
)
from dcp_core.huggingface.export import Export, abort_all
from dcp_core.huggingface.layout import rank_files, require_numbers, require_tensors, whole_files
from dcp_core.huggingface.names import INDEX, is_file_name
from dcp_core.huggingface.record import list_names
from dcp_core.huggingface.task import RankExport, RankTask
from dcp_core.save.objects import Multipart
from dcp_core.seam.store import ObjectStore
from dcp_core.storage.writer import CloudStorageWriter, Save, naming_rank
from dcp_core.transfer import Peers, Transfer

__all__ = ["HuggingFaceStorageWriter"]


@dataclass
class _State:
    """What the coordinator knows: the files that are there, ``None`` if they may not be listed."""

    there: set[str] | None
    export: Export | None = None


class HuggingFaceStorageWriter(CloudStorageWriter):
    """Exports a model to a bucket as safetensors files, as HuggingFace models have them.

    Files and names are those of torch's writer of this name. All ranks upload their parts of the same files
    at once: nothing is written twice or read back, and no rank holds a whole file. All files become visible
    together, the index last; when any rank fails, none does. An older export at the URL is replaced.

    Args:
        path: ``scheme://bucket/prefix`` of the folder.
        fqn_to_index_mapping: tensor → number of its file, from 1. Without, all go into one file.
        thread_count: as torch's writer has it; ``concurrency`` says here how many requests are in flight.
        save_distributed: ranks have shards. Without ``enable_consolidation``, each rank then writes files of
            its own, ``shard-<rank>-model-…``, which say where their tensors lie in the whole ones and are
            loaded by DCP alone; there is no index.
        enable_consolidation: files have whole tensors. So they do without ``save_distributed``.
        thread_count_consolidation: as torch's writer has it; files are never consolidated afterwards.
        **options: as for :class:`~dcp_core.CloudStorageWriter`.

    Raises:
        ConfigurationError: the URL or an option is wrong, or the backend is not installed.
        UnsupportedError: nothing can be saved at URLs of this scheme.
    """

    # torch's parameters, in torch's order
    def __init__(  # noqa: PLR0917
        self,
        path: str | os.PathLike[str],
        fqn_to_index_mapping: Mapping[str, int] | None = None,
        thread_count: int = 1,
        save_distributed: bool = False,
        enable_consolidation: bool = False,
        thread_count_consolidation: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        if self.checkpoint.options.extensions:
            raise ConfigurationError(
                "extensions= transforms frames of DCP, and HuggingFace files have none: leave it out"
            )
        require_numbers(fqn_to_index_mapping or {})
        self.fqn_to_index_mapping = fqn_to_index_mapping
        self.thread_count = thread_count
        self.save_distributed = save_distributed
        self.enable_consolidation = enable_consolidation
        self.thread_count_consolidation = thread_count_consolidation

    @property
    def _whole(self) -> bool:
        """Whether files have whole tensors."""
        return self.enable_consolidation or not self.save_distributed

    def look_before(self, save: Save, store: ObjectStore) -> None:
        """List the files that are there.

        Raises:
            CheckpointExistsError: there are some, and ``overwrite=False``.
            UnsupportedError: ranks plan alone, and could not write the same files.
        """
        if save.alone and dist.is_initialized() and dist.get_world_size() > 1:
            raise UnsupportedError(
                "HuggingFace files are made of the plans of all ranks: save with use_collectives=True, or "
                "the whole model from one rank with no_dist=True"
            )
        location, options = save.checkpoint.location, save.checkpoint.options
        try:
            names = save.transfer.attempt(lambda: list_names(store, location))
        except PermissionDeniedError:
            if not options.overwrite:
                raise
            save.format = _State(None)
            return
        there = {name for name in names if name == INDEX or is_file_name(name)}
        if there and not options.overwrite:
            raise CheckpointExistsError(
                f"safetensors files are at {location} already and overwrite=False: choose another URL, or "
                "overwrite=True",
                bucket=store.bucket,
                key=location.key(min(there)),
            )
        save.format = _State(there)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is.

        Raises:
            UnsupportedError: an item is no tensor, or one that safetensors cannot hold.
        """
        require_tensors(plan)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Start the uploads; each plan gets what its rank has to do.

        Raises:
            CheckpointIncompleteError: the plans do not make up whole tensors.
            ConfigurationError: ``fqn_to_index_mapping`` does not fit them.
        """
        if not all(getattr(plan, "usable", True) for plan in plans):
            raise UnsupportedError(
                "a cached plan cannot be exported, for its uploads are those of an earlier save: use a "
                "planner without enable_plan_caching"
            )
        save = self.under_way()
        mapping, whole = self.fqn_to_index_mapping, self._whole
        with naming_rank(save.rank), save.transfer.watched(), save.checkpoint.use_writable() as store:
            export = Export(
                store,
                save.checkpoint.location,
                save.checkpoint.options,
                save.transfer,
                files=whole_files(plans, mapping) if whole else rank_files(plans, mapping),
                ranks=len(plans),
                indexed=whole,
            )
            export.begin()
        save.format.export = export
        return [replace(plan, storage_data=task) for plan, task in zip(plans, export.tasks(), strict=True)]

    def write_items(
        self, save: Save, store: ObjectStore, plan: SavePlan, planner: SavePlanner
    ) -> list[WriteResult]:
        """Upload the parts of this rank."""
        task = plan.storage_data
        if not isinstance(task, RankTask):
            raise ConfigurationError(
                "the planner dropped storage_data of the plan, which says what a rank has to write"
            )
        export = self._export(save)
        uploads = _joined(task, store, save.transfer) if export is None else export.uploads
        rank = RankExport(save.checkpoint.options, save.transfer, task, save.rank, uploads)
        try:
            with save.transfer.watched(Peers.of(plan, save.rank)):
                return rank.write(save.checkpoint.location.url, plan, planner)
        except BaseException as error:
            # Where a rank stops because of another, that one drops everything, and so does the coordinator.
            # What this one was sending may have come after that.
            own = {step.file for step in task.steps if step.owner == save.rank}
            everything = export is not None or not isinstance(error, PeerFailedError)
            abort_all([one for number, one in uploads.items() if everything or number in own], error)
            raise

    def _export(self, save: Save) -> Export | None:
        """The export, on the coordinator."""
        state = save.format
        return state.export if isinstance(state, _State) else None

    def publish(
        self, save: Save, store: ObjectStore, metadata: Metadata, results: list[list[WriteResult]]
    ) -> None:
        """Make the files visible."""
        del store
        export = self._export(save)
        assert export is not None
        export.finish(metadata, results, save.announced.meta, save.format.there)


def _joined(task: RankTask, store: ObjectStore, transfer: Transfer) -> dict[int, Multipart]:
    """Uploads that the coordinator has started."""
    return {number: Multipart(store, transfer, upload.key, upload) for number, upload in task.uploads.items()}
