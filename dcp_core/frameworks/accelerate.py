"""HuggingFace Accelerate: ``save_state`` and ``load_state`` at URLs.

One DCP checkpoint holds models and optimizers, sharded or not, and the files that Accelerate writes beside
them: schedulers, samplers, scaler, random numbers, registered objects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from torch.nn import Module
from torch.optim import Optimizer

from dcp_core.errors import ConfigurationError, UnsupportedError
from dcp_core.frameworks.folders import files_in, lay_out, wanted_by
from dcp_core.frameworks.model_states import get_states, owners, set_states
from dcp_core.frameworks.packages import missing
from dcp_core.frameworks.training_state import is_remote, load_training_state, save_training_state
from dcp_core.storage.checkpoint_store import split_options

try:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType
except ImportError as error:
    raise missing("accelerate", error) from error

__all__ = ["CloudAccelerator", "load_state", "save_state"]

#: They have checkpoints of their own.
_OTHERS = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)


class CloudAccelerator(Accelerator):
    """An ``Accelerator`` whose ``save_state`` and ``load_state`` take URLs; folders go the way they went.

    Args:
        storage_options: of saving, of loading and of the backend.
        *args, **kwargs: of ``Accelerator``.
    """

    def __init__(self, *args: Any, storage_options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self._storage_options = dict(storage_options or {})
        super().__init__(*args, **kwargs)

    def save_state(
        self, output_dir: str | os.PathLike[str] | None = None, safe_serialization: bool = True, **kwargs: Any
    ) -> Any:
        if output_dir is None or not is_remote(output_dir):
            return super().save_state(output_dir, safe_serialization, **kwargs)
        save_state(self, os.fspath(output_dir), **self._storage_options)
        return output_dir

    def load_state(
        self,
        input_dir: str | os.PathLike[str] | None = None,
        load_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if input_dir is None or not is_remote(input_dir):
            super().load_state(input_dir, load_kwargs, **kwargs)
        else:
            load_state(self, os.fspath(input_dir), **self._storage_options)


def save_state(accelerator: Accelerator, url: str, **options: Any) -> None:
    """What ``accelerator.save_state`` does, at a URL; all ranks together.

    Args:
        **options: of saving, of loading and of the backend.

    Raises:
        UnsupportedError: what trains the models has checkpoints of its own, or a hook wants their states.
        CheckpointException: of torch, with the errors of all ranks.
    """
    _check(accelerator, accelerator._save_model_state_pre_hook)
    models, optimizers = _parts(accelerator)
    with TemporaryDirectory(prefix="dcp-cloud-") as folder:
        with _without_parts(accelerator):
            Accelerator.save_state(accelerator, folder)
        for hook in accelerator._save_model_state_pre_hook.values():
            hook(accelerator._models, [], folder)
        files = files_in(folder, accelerator.process_index)
    states = get_states(models, optimizers, to_cpu=True)
    save_training_state(url, states, files, split_options(options)[0], step=_number_in(url))


def load_state(accelerator: Accelerator, url: str, **options: Any) -> None:
    """What ``accelerator.load_state`` does, at a URL; on any number of ranks, all together.

    Args:
        **options: of saving, of loading and of the backend.

    Raises:
        UnsupportedError: as for :func:`save_state`.
        CheckpointException: of torch, with the errors of all ranks.
    """
    _check(accelerator, accelerator._load_model_state_pre_hook)
    models, optimizers = _parts(accelerator)
    states = get_states(models, optimizers)
    files = load_training_state(url, states, wanted_by(accelerator.process_index), split_options(options)[1])
    set_states(states, models, optimizers)
    with TemporaryDirectory(prefix="dcp-cloud-") as folder:
        lay_out(files, folder)
        for hook in accelerator._load_model_state_pre_hook.values():
            hook([], folder)
        with _without_parts(accelerator):
            Accelerator.load_state(accelerator, folder)


def _check(accelerator: Accelerator, hooks: Mapping[Any, Any]) -> None:
    kind = accelerator.distributed_type
    if kind in _OTHERS:
        raise UnsupportedError(f"checkpoints of {kind.value} are its own, and cannot be saved at URLs")
    if hooks and kind != DistributedType.FSDP:
        raise UnsupportedError(
            "hooks on states take models out of what is saved, which is possible for folders only"
        )
    if accelerator.project_configuration.automatic_checkpoint_naming:
        raise ConfigurationError(
            "automatic_checkpoint_naming numbers folders below project_dir: a URL is given with its number"
        )


def _parts(accelerator: Accelerator) -> tuple[dict[str, Module], dict[str, tuple[Module, Optimizer]]]:
    """Models and optimizers by the names that they have in a checkpoint."""
    # a prepared optimizer is one around another
    optimizers = [getattr(one, "optimizer", one) for one in accelerator._optimizers]
    owned = owners(accelerator._models, optimizers)
    return (
        {f"model_{number}": model for number, model in enumerate(accelerator._models)},
        {f"optimizer_{number}": one for number, one in enumerate(owned)},
    )


@contextmanager
def _without_parts(accelerator: Accelerator) -> Iterator[None]:
    """Accelerate's own code does the rest: it saves and loads what it knows of."""
    names = ("_models", "_optimizers", "_save_model_state_pre_hook", "_load_model_state_pre_hook")
    kept = {name: getattr(accelerator, name) for name in names}
    for name, value in kept.items():
        setattr(accelerator, name, type(value)())
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(accelerator, name, value)


def _number_in(url: str) -> int | None:
    """The step, which names end in as a rule."""
    found = re.search(r"(\d+)/?$", url)
    return int(found[1]) if found else None
