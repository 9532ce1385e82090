"""The ``Trainer`` of HuggingFace transformers: checkpoints at URLs.

One DCP checkpoint ``<checkpoint_url>/checkpoint-<step>`` holds the model and the optimizer, sharded or not,
and the files that the ``Trainer`` writes beside them: its state, the schedule, the scaler, random numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from dcp_core.errors import CheckpointNotFoundError, ConfigurationError, UnsupportedError
from dcp_core.frameworks.deletion import register_schemes
from dcp_core.frameworks.folders import files_in, lay_out, wanted_by
from dcp_core.frameworks.keep import keep_newest
from dcp_core.frameworks.model_states import get_states, set_states
from dcp_core.frameworks.newest import newest_checkpoint
from dcp_core.frameworks.packages import missing
from dcp_core.frameworks.training_state import is_remote, load_training_state, save_training_state
from dcp_core.storage.checkpoint_store import split_options

try:
    from transformers import Trainer
except ImportError as error:
    raise missing("transformers", error) from error

__all__ = ["CheckpointsAtURL", "CloudTrainer"]

_PREFIX = "checkpoint-"
_SCHEDULER = "scheduler.pt"
_STATE = "trainer_state.json"
_OTHERS = ("DEEPSPEED", "MEGATRON_LM", "XLA")


class CheckpointsAtURL:
    """What makes a ``Trainer`` save and resume at URLs, before it, or a class of it, in the order of classes.

    Args:
        checkpoint_url: the folder of the run's checkpoints; without it all is as in ``Trainer``.
        storage_options: of saving, of loading and of the backend.
        *args, **kwargs: of the ``Trainer``. ``output_dir`` of its arguments stays a folder of this machine,
            in which no checkpoints are.
    """

    args: Any
    state: Any
    model: Module
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        *args: Any,
        checkpoint_url: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._saving, self._loading = split_options(storage_options or {})
        self._run = None if checkpoint_url is None else checkpoint_url.removesuffix("/")
        self._resumed: str | None = None
        self._folder: str | None = None
        if self._run is None:
            return
        if not is_remote(self._run):
            raise ConfigurationError(f"checkpoint_url is a URL, got {self._run!r}: folders are output_dir")
        if self.args.load_best_model_at_end:
            raise UnsupportedError("load_best_model_at_end=True needs checkpoints in a folder")
        kind = self.accelerator.distributed_type.name  # type: ignore[attr-defined]
        if kind in _OTHERS:
            raise UnsupportedError(f"{kind} has checkpoints of its own, which cannot be saved at a URL")
        register_schemes(self._saving)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from a checkpoint if one is given.

        Args:
            resume_from_checkpoint: a URL or a folder, or ``True`` for the newest whole one of the run.

        Raises:
            CheckpointNotFoundError: the newest one was asked for, and there is none.
        """
        if resume_from_checkpoint is True and self._run is not None:
            resume_from_checkpoint = newest_checkpoint(self._run, prefix=_PREFIX, **self._saving)
            if resume_from_checkpoint is None:
                raise CheckpointNotFoundError(f"there is no checkpoint below {self._run}")
        if not isinstance(resume_from_checkpoint, str) or not is_remote(resume_from_checkpoint):
            return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]
        with TemporaryDirectory(prefix="dcp-cloud-") as folder:
            files = load_training_state(
                resume_from_checkpoint, {}, wanted_by(self.args.process_index), self._loading
            )
            lay_out(files, folder)
            self._resumed = resume_from_checkpoint
            try:
                return super().train(folder, *args, **kwargs)  # type: ignore[misc]
            finally:
                self._resumed = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Module | None = None) -> None:
        # with the optimizer, once both are where they will be trained
        if self._resumed is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._resumed is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        scheduler = Path(checkpoint, _SCHEDULER)
        models, optimizers = self._parts(whole=scheduler.exists())
        states = get_states(models, optimizers)
        load_training_state(self._resumed, states, lambda _: False, self._loading)
        set_states(states, models, optimizers)
        if scheduler.exists():
            self.lr_scheduler.load_state_dict(torch.load(scheduler, weights_only=True))

    def _save_checkpoint(self, model: Module, trial: Any) -> None:
        if self._run is None or trial is not None:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            return
        step = self.state.global_step
        with self._in_a_folder() as folder:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self._name_best(Path(folder, f"{_PREFIX}{step}", _STATE))
            files = files_in(Path(folder, f"{_PREFIX}{step}"), self.args.process_index)
        states = get_states(*self._parts(whole=not self.args.save_only_model), to_cpu=True)
        metrics = _numbers(self.state.log_history[-1:])
        save_training_state(
            f"{self._run}/{_PREFIX}{step}", states, files, self._saving, step=step, metrics=metrics
        )
        limit = self.args.save_total_limit
        if limit and self.args.process_index == 0:
            best = f"{_PREFIX}{self.state.best_global_step}"
            keep_newest(self._run, limit, _PREFIX, spare=(best,), **self._saving)

    def _name_best(self, path: Path) -> None:
        """Have the state name the best checkpoint where it is, and not where it was written first."""
        if self.state.best_model_checkpoint is None:
            return
        self.state.best_model_checkpoint = f"{self._run}/{_PREFIX}{self.state.best_global_step}"
        if path.exists():
            self.state.save_to_json(str(path))

    @contextmanager
    def _in_a_folder(self) -> Iterator[str]:
        """Where the ``Trainer`` writes its own files meanwhile."""
        with TemporaryDirectory(prefix="dcp-cloud-") as folder:
            self._folder = folder
            try:
                yield folder
            finally:
                self._folder = None

    def _get_output_dir(self, trial: Any) -> str:
        if self._folder is not None:
            return self._folder
        found: str = super()._get_output_dir(trial)  # type: ignore[misc]
        return found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model to a folder, as ``Trainer`` does."""
        if self._folder is None:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            return
        # its tensors are saved with the optimizer's; what they are of lies beside them
        assert output_dir is not None
        os.makedirs(output_dir, exist_ok=True)
        config: Any = getattr(self.model, "config", None)
        if self.args.should_save and hasattr(config, "save_pretrained"):
            config.save_pretrained(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._folder is None:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        elif self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, _SCHEDULER))

    def _parts(self, *, whole: bool) -> tuple[dict[str, Module], dict[str, tuple[Module, Optimizer]]]:
        """The model, and if it is to be the whole state the optimizer, by their names in a checkpoint."""
        model = getattr(self, "model_wrapped", self.model)
        # a prepared optimizer is one around another
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return {"model": model}, {"optimizer": (model, optimizer)} if whole else {}


def _numbers(logged: list[dict[str, Any]]) -> dict[str, float]:
    """What was logged, as far as it is numbers."""
    found = (pair for entry in logged for pair in entry.items())
    return {name: value for name, value in found if isinstance(value, (int, float))}


class CloudTrainer(CheckpointsAtURL, Trainer):
    """The ``Trainer`` of transformers, with checkpoints at URLs.

    Args:
        checkpoint_url: the folder of the run's checkpoints.
        storage_options: of saving, of loading and of the backend.
        *args, **kwargs: of ``Trainer``.
    """
