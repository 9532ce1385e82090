"""Checkpoints of one file at URLs, for strategies that use a ``CheckpointIO``."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from dcp_core.config import MIB
from dcp_core.convert.files import file_sink
from dcp_core.convert.torch_file import load_torch_file
from dcp_core.frameworks.deletion import delete_checkpoint, register_schemes
from dcp_core.frameworks.pending import Pending
from dcp_core.frameworks.training_state import is_remote
from dcp_core.runtime.torch_private import write_archive
from dcp_core.storage.checkpoint_store import split_options

__all__ = ["FilesAtURLs"]


class FilesAtURLs:
    """A ``CheckpointIO`` that saves and loads files at URLs, before Lightning's own in the order of classes.

    A file is uploaded in parts while it is made, by many requests at a time, and is there once it is whole.
    ``torch.load`` reads it, wherever it is copied.

    Args:
        asynchronous: go on training while a file is uploaded. A checkpoint that it is to replace is deleted
            once it is whole.
        **options: of saving, of loading and of the backend.
    """

    def __init__(self, *, asynchronous: bool = False, **options: Any) -> None:
        super().__init__()
        self._asynchronous = asynchronous
        self._saving, self._loading = split_options(options)
        self._pending = Pending()
        self._executor: ThreadPoolExecutor | None = None
        register_schemes(self._saving)

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Save ``checkpoint``; with ``asynchronous=True``, once the save before is whole, copy it and return.

        Raises:
            CloudCheckpointError: this save failed, or an asynchronous one before it.
        """
        if not is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)  # type: ignore[misc]
            return
        url, options = os.fspath(path), {**self._saving, **(storage_options or {})}
        self._pending.settle()
        if not self._asynchronous:
            _write(checkpoint, url, options)
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "dcp-cloud-lightning")
        self._pending.begin(self._executor.submit(_write, _copied(checkpoint), url, options))

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load the file at ``path``, to the CPU unless told otherwise."""
        self._pending.settle()
        if not is_remote(path) or map_location is not None:
            loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)  # type: ignore[misc]
            return loaded
        return load_torch_file(path, {**self._loading, "weights_only": weights_only is not False})

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete the file at ``path``, once a save that is under way is whole."""
        if not is_remote(path):
            super().remove_checkpoint(path)  # type: ignore[misc]
            return
        url = os.fspath(path)
        self._pending.delete(url, lambda: delete_checkpoint(url, self._saving))

    def wait_for_saves(self) -> None:
        """Wait for the save that is under way.

        Raises:
            CloudCheckpointError: it failed.
        """
        self._pending.settle()

    def teardown(self) -> None:
        """Wait for the save that is under way; raises what it failed with."""
        try:
            self.wait_for_saves()
        finally:
            if self._executor is not None:
                self._executor.shutdown()
                self._executor = None
            super().teardown()  # type: ignore[misc]


def _write(checkpoint: dict[str, Any], url: str, options: Mapping[str, Any]) -> None:
    size = sum(tensor.nbytes for tensor in _tensors(checkpoint))
    with file_sink(url, options, size + MIB) as sink:
        write_archive(checkpoint, sink, lambda storage: storage)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


#: Values that training cannot change.
_CONSTANT = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def _copied(value: Any) -> Any:
    """``value`` as it is now: its tensors in CPU memory, and containers of their own."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        # of its own kind, which may count what it is updated with
        copied = value.copy()
        for key, item in value.items():
            copied[key] = _copied(item)
        return copied
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        items = [_copied(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value if isinstance(value, _CONSTANT) else copy.deepcopy(value)
