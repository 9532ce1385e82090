"""Sharded checkpoints at URLs, for the strategies of Lightning's Trainer and Fabric.

Lightning writes a folder with DCP, and ``meta.pt`` beside it with epochs, callbacks and all else. Here that
is an item of the checkpoint itself. Paths that are no URLs go the way they went.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.stateful import Stateful
from torch.nn import Module
from torch.optim import Optimizer

from dcp_core.convert.files import open_file
from dcp_core.errors import ConfigurationError, UnsupportedError, UntrustedDataError
from dcp_core.frameworks.deletion import delete_checkpoint, register_schemes
from dcp_core.frameworks.model_states import get_states, set_states
from dcp_core.frameworks.pending import Pending
from dcp_core.frameworks.training_state import is_remote, load_training_state, save_training_state
from dcp_core.storage.checkpoint_store import split_options

__all__ = ["FabricAtURLs", "TrainerAtURLs"]

#: What Lightning calls the file with all that is no model or optimizer.
META = "meta.pt"


class ShardedAtURLs:
    """What the strategies have in common, before one of Lightning's in the order of classes.

    Args:
        storage_options: of saving, of loading and of the backend.
        asynchronous: go on training while a checkpoint is uploaded.
        *args, **kwargs: of Lightning's strategy.
    """

    #: Lightning's argument that says whether checkpoints are sharded, and the value that says so.
    sharded: ClassVar[tuple[str, Any]]
    broadcast: Callable[[Any], Any]
    global_rank: int

    def __init__(
        self,
        *args: Any,
        storage_options: Mapping[str, Any] | None = None,
        asynchronous: bool = False,
        **kwargs: Any,
    ) -> None:
        name, value = self.sharded
        kwargs.setdefault(name, value)
        super().__init__(*args, **kwargs)
        self._at_urls = kwargs[name] == value
        self._asynchronous = asynchronous
        self._saving, self._loading = split_options(storage_options or {})
        self._pending = Pending()
        self._group: dist.ProcessGroup | None = None
        register_schemes(self._saving)

    def wait_for_saves(self) -> None:
        """Wait for the save that is under way, if saves are asynchronous.

        Raises:
            CheckpointException: the save failed.
        """
        self._pending.settle()

    def teardown(self) -> None:
        try:
            self.wait_for_saves()
        finally:
            super().teardown()  # type: ignore[misc]

    def remove_checkpoint(self, filepath: str | os.PathLike[str]) -> None:
        if not is_remote(filepath):
            super().remove_checkpoint(filepath)  # type: ignore[misc]
        elif self.global_rank == 0:
            url = os.fspath(filepath)
            self._pending.delete(url, lambda: delete_checkpoint(url, self._saving))

    def _agreed(self, path: str | os.PathLike[str]) -> str:
        """The path of the first rank.

        Raises:
            UnsupportedError: it is a URL, and checkpoints are to be single files.
        """
        agreed: str = self.broadcast(os.fspath(path))
        if is_remote(agreed) and not self._at_urls:
            name, value = self.sharded
            raise UnsupportedError(
                f"{type(self).__name__} has only sharded checkpoints at URLs: give it {name}={value!r}. "
                "dcp-cloud convert makes a single file of one"
            )
        return agreed

    def _save(
        self, url: str, tensors: Mapping[str, Any], meta: Any, given: Mapping[str, Any] | None, **facts: Any
    ) -> None:
        # on all ranks, though one is enough: what cannot be pickled is then an error of all
        content = io.BytesIO()
        torch.save(meta, content)
        self.wait_for_saves()
        if self._asynchronous and self._group is None:
            # the ranks' own may have no backend for the CPU
            self._group = dist.new_group(backend="gloo")
        under_way = save_training_state(
            url,
            tensors,
            {META: content.getvalue()} if self.global_rank == 0 else {},
            {**self._saving, **(given or {})},
            group=self._group,
            asynchronous=self._asynchronous,
            **facts,
        )
        if under_way is not None:
            self._pending.begin(under_way)

    def _load(
        self,
        url: str,
        model: tuple[str, Module],
        optimizers: Mapping[str, Optimizer],
        strict: bool,
        weights_only: bool | None,
    ) -> dict[str, Any]:
        """Load a model and its optimizers; returns all else."""
        self.wait_for_saves()
        models, owned = dict([model]), {name: (model[1], one) for name, one in optimizers.items()}
        states = get_states(models, owned)
        files = load_training_state(url, states, lambda name: name == META, self._loading, partial=not strict)
        set_states(states, models, owned, strict=strict)
        # Lightning's own, copied to a bucket, has it beside the checkpoint
        content = files[META] if META in files else _content(f"{url}/{META}", self._loading)
        return _unpickled(url, content, weights_only)


class TrainerAtURLs(ShardedAtURLs):
    """A strategy of ``Trainer`` that saves and loads at URLs."""

    #: What the strategy calls the model in a checkpoint.
    model_key: ClassVar[str]
    model: Module
    optimizers: list[Optimizer]
    lightning_module: Any

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        filepath: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        path = self._agreed(filepath)
        if not is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)  # type: ignore[misc]
            return
        meta = dict(checkpoint)
        tensors = {self.model_key: meta.pop("state_dict")}
        for number, state in enumerate(meta.pop("optimizer_states", [])):
            tensors[_optimizer_key(number)] = state
        metrics = self.lightning_module.trainer.callback_metrics
        scalars = {name: float(value) for name, value in metrics.items() if value.numel() == 1}
        self._save(path, tensors, meta, storage_options, step=meta.get("global_step"), metrics=scalars)

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        path = self._agreed(checkpoint_path)
        if not is_remote(path):
            loaded: dict[str, Any] = super().load_checkpoint(path, weights_only)  # type: ignore[misc]
            return loaded
        fitting = self.lightning_module.trainer.state.fn == "fit"
        optimizers = {_optimizer_key(number): one for number, one in enumerate(self.optimizers) if fitting}
        strict = self.lightning_module.strict_loading
        return self._load(path, (self.model_key, self.model), optimizers, strict, weights_only)


class FabricAtURLs(ShardedAtURLs):
    """A strategy of ``Fabric`` that saves and loads at URLs."""

    def save_checkpoint(
        self,
        path: str | os.PathLike[str],
        state: dict[str, Any],
        storage_options: Mapping[str, Any] | None = None,
        filter: dict[str, Callable[[str, Any], bool]] | None = None,
    ) -> None:
        path = self._agreed(path)
        if not is_remote(path):
            super().save_checkpoint(path, state, storage_options, filter)  # type: ignore[misc]
            return
        if filter:
            raise UnsupportedError("sharded checkpoints are saved whole: filter= is for single files")
        model, optimizers = _model_and_optimizers(state)
        owned = {name: (model[1], one) for name, one in optimizers.items()}
        tensors = get_states(dict([model]), owned, to_cpu=True)
        meta = {
            name: value.state_dict() if isinstance(value, Stateful) else value
            for name, value in state.items()
            if name not in tensors
        }
        self._save(path, tensors, meta, storage_options, step=_step_in(meta))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        state: Any = None,
        strict: bool = True,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        path = self._agreed(path)
        if not is_remote(path):
            loaded: dict[str, Any] = super().load_checkpoint(path, state, strict, weights_only)  # type: ignore[misc]
            return loaded
        if not isinstance(state, dict):
            raise ConfigurationError(
                "loading a sharded checkpoint needs the model under the name it was saved with: "
                "load_checkpoint(path, state={'model': model, ...})"
            )
        model, optimizers = _model_and_optimizers(state)
        found = self._load(path, model, optimizers, strict, weights_only)
        for name in state.keys() - optimizers.keys() - {model[0]}:
            if name not in found and strict:
                raise KeyError(f"the checkpoint at {path} has no {name!r}; strict=False loads what there is")
            _restore(state, name, found)
        return found


def _restore(state: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    if name in found:
        value = found.pop(name)
        if isinstance(state[name], Stateful):
            state[name].load_state_dict(value)
        else:
            state[name] = value


def _model_and_optimizers(state: Mapping[str, Any]) -> tuple[tuple[str, Module], dict[str, Optimizer]]:
    """Raises:
    ConfigurationError: there is not one model.
    """
    models = [(name, value) for name, value in state.items() if isinstance(value, Module)]
    if len(models) != 1:
        raise ConfigurationError(
            f"a sharded checkpoint is of one model, got {len(models)}: save several under a URL each"
        )
    return models[0], {name: value for name, value in state.items() if isinstance(value, Optimizer)}


def _optimizer_key(number: int) -> str:
    return f"optimizer_{number}"


def _step_in(meta: Mapping[str, Any]) -> int | None:
    """The step, as loops usually name it."""
    found = (meta.get(name) for name in ("global_step", "step", "iteration"))
    return next((value for value in found if isinstance(value, int)), None)


def _content(url: str, options: Mapping[str, Any]) -> bytes:
    file = open_file(url, options)
    try:
        content = bytearray(file.size)
        file.read_into([(0, memoryview(content))])
        return bytes(content)
    finally:
        file.close()


def _unpickled(url: str, content: bytes, weights_only: bool | None) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        raise UntrustedDataError(
            f"what the checkpoint at {url} has besides tensors needs more than weights_only=True: admit "
            "types with torch.serialization.add_safe_globals, or all with weights_only=False if you trust "
            "whoever wrote it"
        ) from error
    return found
