"""TorchTitan's checkpoint manager, at URLs.

In a function of a ``config_registry``::

    from dcp_core.frameworks.torchtitan import CloudCheckpointManager

    checkpoint=CloudCheckpointManager.Config(enable=True, folder="s3://bucket/runs/mine", interval=500)

or, in place of the manager of any configuration, on the command line::

    --override.imports dcp_core.frameworks.torchtitan.cloud_checkpoints

What it does is TorchTitan's, and so are its settings; where its folder is on a disk, all of it is. At a URL
the folder is a :class:`~dcp_core.CheckpointRun`: one rank looks which steps there are, superseded ones go in
the background and never while they are loaded, and HuggingFace's files are written and read there too.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as FolderReader
from torch.distributed.checkpoint.quantized_hf_storage import (
    QuantizedHuggingFaceStorageReader as QuantizedFolderReader,
)
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, save

from dcp_core.errors import CheckpointNotFoundError, UnsupportedError
from dcp_core.frameworks.packages import missing
from dcp_core.huggingface import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
    QuantizedHuggingFaceStorageReader,
)
from dcp_core.integrations.checkpoint_ids import is_url
from dcp_core.run.layout import step_of
from dcp_core.run.ranks import told_by_first_rank
from dcp_core.run.run import CheckpointRun
from dcp_core.run.steps import StepInfo
from dcp_core.storage.checkpoint_store import split_options
from dcp_core.storage.reader import CloudStorageReader

try:
    from torchtitan.components.checkpointer import MODEL, OPTIMIZER, AsyncMode, CheckpointManager
    from torchtitan.config.override import derive, override
    from torchtitan.tools import filesystem
    from torchtitan.tools.logging import logger
    from torchtitan.tools.utils import GarbageCollection
except ImportError as error:
    raise missing("torchtitan", error) from error
# comes with it
import tyro

__all__ = ["CloudCheckpointManager", "cloud_checkpoints"]

#: A fact of steps that hold the model and nothing else, from which training cannot go on.
_MODEL_ONLY = "model_only"


@dataclass(frozen=True)
class _Source:
    """What to load."""

    at: str
    model_only: bool
    from_hf: bool = False
    quantized: bool = False
    step: StepInfo | None = None


class CloudCheckpointManager(CheckpointManager):
    """TorchTitan's checkpoint manager, at URLs.

    Beside what TorchTitan's own raises:

    Raises:
        ConfigurationError: the URL or an option is wrong.
        RunTakenOverError: another job has begun to save to the folder.
        CheckpointNotFoundError: the step to load is not there.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        """TorchTitan's settings, and two more."""

        options: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict, repr=False)
        """Of saving, loading and the cloud, as writers and readers take them."""

        fall_back: bool = False
        """Whether to load the step before one that is damaged."""

        def __post_init__(self) -> None:
            # TorchTitan refuses HuggingFace's files at any URL: it must not see these while it looks
            urls = {name: getattr(self, name) for name in ("folder", "initial_load_path")}
            urls = {name: url.strip() for name, url in urls.items() if url and is_url(url.strip())}
            for name in urls:
                setattr(self, name, "/")
            CheckpointManager.Config.__post_init__(self)
            for name, url in urls.items():
                setattr(self, name, url)

        def to_dict(self) -> dict[str, Any]:
            """What is logged: of the options, which may hold credentials, their names."""
            return {**CheckpointManager.Config.to_dict(self), "options": sorted(self.options)}

    def __init__(self, config: Config, **parts: Any) -> None:
        self._run: CheckpointRun | None = None
        self.stager: DefaultStager | None = None
        super().__init__(config, **parts)
        self._saving, self._loading = split_options(config.options)
        self._fall_back = config.fall_back
        self._resumed: StepInfo | None = None
        if self.enable and is_url(self.folder):
            # TorchTitan's own purging gets nothing to do
            self._run = CheckpointRun(self.folder, keep_last=self.keep_latest_k or None, **config.options)

    # saving

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        pinned = self.async_mode == AsyncMode.ASYNC_WITH_PINNED_MEM
        if pinned and self.stager is None and not torch.accelerator.is_available():
            self.stager = _stager_without_accelerator()
        return bool(super()._save(curr_step, last_step))

    @torch.no_grad()
    def dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: AsyncMode,
        enable_garbage_collection: bool = False,
        to_hf: bool = False,
    ) -> Any:
        """Save a step; returns what ``dcp.save`` or ``dcp.async_save`` does."""
        if self._run is None:
            return super().dcp_save(state_dict, checkpoint_id, async_mode, enable_garbage_collection, to_hf)
        saved = None
        if to_hf:
            self._export(state_dict, checkpoint_id)
        else:
            saved = self._save_step(self._run, state_dict, checkpoint_id, async_mode)
        if enable_garbage_collection:
            GarbageCollection.collect("GC collection invoked by checkpointer.")
        return saved

    def _save_step(
        self, run: CheckpointRun, state: Mapping[str, Any], checkpoint_id: str, mode: AsyncMode
    ) -> Any:
        step = step_of(checkpoint_id.rpartition("/")[2])
        assert step is not None
        facts = {_MODEL_ONLY: OPTIMIZER not in state}
        if mode == AsyncMode.DISABLED:
            return run.save(step, state, facts=facts)
        options: dict[str, Any] = {"process_group": self.pg}
        if mode == AsyncMode.ASYNC_WITH_PINNED_MEM:
            options["async_checkpointer_type"] = AsyncCheckpointerType.PROCESS
            options["async_stager"] = self.stager
        return run.async_save(step, state, facts=facts, **options)

    def _export(self, state: dict[str, Any], url: str) -> None:
        """Write HuggingFace's files, whole ones, by all ranks at once."""
        assert self.sd_adapter is not None, "sd_adapter is required for to_hf=True"
        exported = self.sd_adapter.to_hf(state)
        writer = HuggingFaceStorageWriter(
            url,
            fqn_to_index_mapping=self.sd_adapter.fqn_to_index_mapping,
            save_distributed=True,
            enable_consolidation=True,
            **self._saving,
        )
        try:
            save(exported, storage_writer=writer)
        finally:
            writer.close()

    def _purge_stale_checkpoints(self) -> None:
        if self._run is None:
            super()._purge_stale_checkpoints()

    # loading

    @torch.no_grad()
    def _load(self, step: int = -1) -> bool:
        if self._run is None and not is_url(self._initial_path() or ""):
            return bool(super()._load(step))
        source = self._resume(step) or self._initial()
        if source is None:
            logger.info("No checkpoint was provided, this is a fresh start.")
            return False
        logger.info(f"Loading the checkpoint from {source.at}.")
        begin = time.monotonic()
        self._resumed = source.step
        states = self._states_to_load(source.model_only)
        self.dcp_load(states, source.at, source.from_hf, source.quantized)
        GarbageCollection.collect("GC collection for checkpoint loading.")
        logger.info(f"Finished loading the checkpoint in {time.monotonic() - begin:.2f} seconds.")
        return True

    def _resume(self, wanted: int) -> _Source | None:
        """The wanted step of this run, or the newest whole one; ``None`` if the newest is wanted and none is.

        Raises:
            CheckpointNotFoundError: the wanted one is not there.
        """
        if self._run is None:
            step = self._find_load_step() if wanted == -1 else wanted
            return None if step == -1 else _Source(self._create_checkpoint_id(step), step == 0)
        committed = [info for info in self._run.steps() if info.committed]
        if wanted == -1:
            found = self._newest_whole(self._run, committed)
        else:
            found = next((info for info in committed if info.step == wanted), None)
            if found is None:
                there = ", ".join(str(info.step) for info in committed) or "none"
                raise CheckpointNotFoundError(
                    f"--checkpoint.load_step={wanted} is not at {self._run.url}; steps there: {there}"
                )
        return None if found is None else _Source(found.url, found.step == 0, step=found)

    def _newest_whole(self, run: CheckpointRun, committed: list[StepInfo]) -> StepInfo | None:
        """The newest step that training can go on from: a seed, or one that has more than the model."""
        for info in reversed(committed):
            facts = told_by_first_rank(lambda info=info: run.facts(info))  # type: ignore[misc]
            if info.step == 0 or not facts.get("own", {}).get(_MODEL_ONLY, False):
                return info
            logger.warning(f"{info.url} holds the model alone: going on from the step before")
        return None

    def _initial_path(self) -> str | None:
        if self.initial_load_path or not self.initial_load_in_hf or self.sd_adapter is None:
            return self.initial_load_path  # type: ignore[no-any-return]
        return self.sd_adapter.hf_assets_path  # type: ignore[no-any-return]

    def _initial(self) -> _Source | None:
        """What a run begins with that has no steps."""
        path = self._initial_path()
        if path is None:
            return None
        if not is_url(path) and not filesystem.isdir(path):
            raise ValueError(f"there is no folder {path} to load from: set checkpoint.initial_load_path")
        return _Source(
            path, self.initial_load_model_only, self.initial_load_in_hf, self.initial_load_in_hf_quantized
        )

    def dcp_load(
        self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool
    ) -> None:
        """Load into ``state_dict``, and of it into the model."""
        if not is_url(checkpoint_id):
            super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
        elif from_hf:
            self._import(state_dict, checkpoint_id, from_quantized)
        else:
            self._load_state(state_dict, checkpoint_id)
            if MODEL in self.states:
                self.states[MODEL].load_state_dict(state_dict)

    def _load_state(self, state: dict[str, Any], url: str) -> None:
        if self._run is not None and self._resumed is not None and self._resumed.url == url:
            self._run.load(state, self._resumed, fall_back=self._fall_back)
            return
        reader = CloudStorageReader(url, **self._loading)
        try:
            load(state, storage_reader=reader)
        finally:
            reader.close()

    def _import(self, state: dict[str, Any], url: str, quantized: bool) -> None:
        """Read HuggingFace's files into the model."""
        assert self.sd_adapter is not None, "sd_adapter is required to load HuggingFace's files"
        imported = self.sd_adapter.to_hf(state)
        reader = _at_url(self.sd_adapter.get_hf_storage_reader("/", quantized), url, self._loading)
        try:
            load(imported, storage_reader=reader)
        finally:
            reader.close()
        self.states[MODEL].load_state_dict(self.sd_adapter.from_hf(imported))

    def _close(self) -> None:
        super()._close()
        if self._run is not None:
            self._run.close()


@override(target=CheckpointManager.Config, exact=True, description="TorchTitan's checkpoints at URLs")  # type: ignore[untyped-decorator]
def cloud_checkpoints(config: Any, **settings: Any) -> Any:
    """The configuration ``config`` with this manager in place of TorchTitan's own.

    Args:
        **settings: settings of the manager, and options as of writers and readers.
    """
    known = {entry.name for entry in dataclasses.fields(CloudCheckpointManager.Config)}
    own = {name: settings.pop(name) for name in known & settings.keys()}
    return derive(config, CloudCheckpointManager.Config, **{"options": settings, **own})


def _stager_without_accelerator() -> DefaultStager:
    """TorchTitan's stager, as far as there is anything to pin memory for."""
    return DefaultStager(StagingOptions(use_pinned_memory=False, use_non_blocking_copy=False))


def _at_url(theirs: Any, url: str, options: Mapping[str, Any]) -> HuggingFaceStorageReader:
    """Our reader for what a model's adapter reads folders with.

    Raises:
        UnsupportedError: it is a reader of the adapter's own.
    """
    if type(theirs) is FolderReader:
        return HuggingFaceStorageReader(url, **options)
    if type(theirs) is QuantizedFolderReader:
        return QuantizedHuggingFaceStorageReader(
            url, target_dtype=theirs.target_dtype, block_size=theirs.block_size, **options
        )
    raise UnsupportedError(
        f"the model's adapter reads with {type(theirs).__qualname__}, which cannot read {url}: "
        "copy the files to a folder"
    )
