"""What is at a path or URL, what is to be made of it, and how."""

from __future__ import annotations

import enum
import importlib.util
import os
from collections.abc import Mapping
from contextlib import closing
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter

from dcp_core.config import GIB, LoadOptions
from dcp_core.convert.blanks import Progress, Source
from dcp_core.convert.checkpoint import CheckpointSource, flattened, save_checkpoint
from dcp_core.convert.file_types import Path
from dcp_core.convert.torch_file import TorchFileSource, save_torch_file
from dcp_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigurationError,
    ObjectNotFoundError,
    UnsupportedError,
)
from dcp_core.format.layout import metadata_name
from dcp_core.huggingface import HuggingFaceStorageReader, HuggingFaceStorageWriter
from dcp_core.huggingface.names import INDEX, is_file_name
from dcp_core.integrations.checkpoint_ids import refuse_folded
from dcp_core.load.metadata import describe_absence
from dcp_core.seam.location import scheme_of
from dcp_core.seam.store import ReadableStore
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.storage.reader import CloudStorageReader
from dcp_core.storage.writer import CloudStorageWriter
from dcp_core.transfer import Transfer

__all__ = ["Format", "convert", "dcp_to_torch_save", "torch_save_to_dcp"]

_Options = Mapping[str, Any]
_NONE: _Options = MappingProxyType({})

#: What files of torch.save are called.
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
#: Bytes of one safetensors file, as transformers has it by default.
_FILE_SIZE = 5 * GIB


class Format(str, enum.Enum):
    """A format of checkpoints."""

    DCP = "dcp"
    TORCH = "torch"
    HUGGINGFACE = "huggingface"


def _nothing(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def dcp_to_torch_save(
    dcp_checkpoint_dir: Path,
    torch_save_path: Path,
    *,
    source_options: _Options = _NONE,
    target_options: _Options = _NONE,
    progress: Progress = _nothing,
) -> None:
    """Make a ``torch.save`` file of a DCP checkpoint, like torch's function of this name.

    Either may be a path or a URL. In memory are a few of the largest tensors and buffers within
    ``memory_limit``, whatever the size of the whole. The file is there once it is whole; one that was there
    is replaced.

    Args:
        dcp_checkpoint_dir: the checkpoint.
        torch_save_path: the file.
        source_options: of reading, as for :class:`~dcp_core.CloudStorageReader`.
        target_options: of writing, as for :class:`~dcp_core.CloudStorageWriter`.
        progress: called with bytes done, and bytes in all.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CloudCheckpointError: as loading and saving do.
    """
    options: dict[str, Any] = {
        "source_options": source_options,
        "target_options": target_options,
        "progress": progress,
    }
    convert(dcp_checkpoint_dir, torch_save_path, source=Format.DCP, target=Format.TORCH, **options)


def torch_save_to_dcp(
    torch_save_path: Path,
    dcp_checkpoint_dir: Path,
    *,
    source_options: _Options = _NONE,
    target_options: _Options = _NONE,
    progress: Progress = _nothing,
) -> None:
    """Make a DCP checkpoint of a ``torch.save`` file, like torch's function of this name.

    Either may be a path or a URL. In memory are a few of the largest tensors and buffers within
    ``memory_limit``, whatever the size of the whole; except of files in the format of before torch 1.6 and
    with tensors of unusual kinds, which are read whole. The file is read with ``weights_only=True``
    unless ``source_options`` has it otherwise.

    Args, and errors: as for :func:`dcp_to_torch_save`.
    """
    options: dict[str, Any] = {
        "source_options": source_options,
        "target_options": target_options,
        "progress": progress,
    }
    convert(torch_save_path, dcp_checkpoint_dir, source=Format.TORCH, target=Format.DCP, **options)


def convert(
    source_path: Path,
    target_path: Path,
    *,
    source: Format | None = None,
    target: Format | None = None,
    source_options: _Options = _NONE,
    target_options: _Options = _NONE,
    progress: Progress = _nothing,
) -> Format:
    """Make a checkpoint of one format of one of another, each at a path or URL.

    Args:
        source: what is there; found out by default.
        target: what to make of it. By default a ``torch.save`` file where the name is that of one
            (``.pt``, ``.pth``, ``.bin``, ``.ckpt``), and a DCP checkpoint of anything but one.
        source_options, target_options, progress: as for :func:`dcp_to_torch_save`.

    Returns:
        What was made.

    Raises:
        CheckpointNotFoundError: nothing is there.
        ConfigurationError: what to make is not clear, or is what there is.
        CloudCheckpointError: as loading and saving do.
    """
    found = source or _format_at(source_path, source_options)
    wanted = target or _wanted(found, target_path)
    if found is wanted is Format.TORCH:
        raise ConfigurationError("both are files of torch.save: copy it")
    with closing(_source(source_path, found, source_options)) as opened:
        if wanted is Format.TORCH:
            save_torch_file(opened, target_path, target_options, progress)
        else:
            _save(opened, target_path, wanted, target_options, progress)
    return wanted


def _wanted(found: Format, path: Path) -> Format:
    if os.fspath(path).endswith(_SUFFIXES):
        return Format.TORCH
    if found is Format.DCP:
        raise ConfigurationError(
            f"what to make at {os.fspath(path)} is not clear: give it a name that ends in .pt, or say which "
            "format: torch, huggingface or dcp"
        )
    return Format.DCP


def _format_at(path: Path, options: _Options) -> Format:
    """What is at a path or URL."""
    if scheme_of(path) is not None:
        return _format_in_bucket(path, options)
    refuse_folded(path)
    if os.path.isfile(path):
        return Format.TORCH
    names = os.listdir(path) if os.path.isdir(path) else []
    if metadata_name(None) in names:
        return Format.DCP
    if any(_is_huggingface(name) for name in names):
        return Format.HUGGINGFACE
    what = "no checkpoint is in it" if names else "nothing is there"
    raise CheckpointNotFoundError(f"no checkpoint is at {os.fspath(path)}: {what}")


def _is_huggingface(name: str) -> bool:
    return name == INDEX or is_file_name(name)


def _format_in_bucket(path: Path, options: _Options) -> Format:
    with closing(CheckpointStore(path, LoadOptions, options)) as place:
        store, location = place.store(), place.location
        transfer = Transfer(place.options, None)
        names = {
            metadata_name(None): Format.DCP,
            INDEX: Format.HUGGINGFACE,
            "model.safetensors": Format.HUGGINGFACE,
        }
        for name, kind in names.items():
            if _is_there(store, transfer, location.key(name)):
                return kind
        if location.prefix and _is_there(store, transfer, location.prefix):
            return Format.TORCH
        absence = describe_absence(store, location)
        if "HuggingFace" in absence:
            return Format.HUGGINGFACE
        raise CheckpointNotFoundError(
            f"no checkpoint is at {location}: {absence}", bucket=store.bucket, key=location.prefix
        )


def _is_there(store: ReadableStore, transfer: Transfer, key: str) -> bool:
    try:
        transfer.attempt(lambda: store.head(key))
    except ObjectNotFoundError:
        return False
    return True


def _source(path: Path, kind: Format, options: _Options) -> Source:
    if kind is Format.TORCH:
        return TorchFileSource(path, options)
    reader: StorageReader
    if scheme_of(path) is not None:
        kinds = {Format.DCP: CloudStorageReader, Format.HUGGINGFACE: HuggingFaceStorageReader}
        reader = kinds[kind](path, **options)
    else:
        refuse_folded(path)
        if kind is Format.HUGGINGFACE:
            reader = _safetensors_on_disk("HuggingFaceStorageReader")(os.fspath(path))
        else:
            if not os.path.exists(os.path.join(path, metadata_name(None))):
                raise CheckpointNotFoundError(f"no checkpoint is at {os.fspath(path)}")
            reader = FileSystemReader(path)
    return CheckpointSource(reader)


def _save(source: Source, path: Path, kind: Format, options: _Options, progress: Progress) -> None:
    writer: StorageWriter
    mapping = _files(source) if kind is Format.HUGGINGFACE else None
    if scheme_of(path) is not None:
        writer = (
            HuggingFaceStorageWriter(path, mapping, **options)
            if kind is Format.HUGGINGFACE
            else CloudStorageWriter(path, **options)
        )
        with closing(writer):
            save_checkpoint(source, writer, progress)
        return
    refuse_folded(path)
    if not options.get("overwrite", True) and os.path.isdir(path) and os.listdir(path):
        raise CheckpointExistsError(f"{os.fspath(path)} is not empty and overwrite=False")
    if kind is Format.HUGGINGFACE:
        made = _safetensors_on_disk("HuggingFaceStorageWriter")
        writer = made(os.fspath(path), mapping)
    else:
        writer = FileSystemWriter(path)
    save_checkpoint(source, writer, progress)


def _files(source: Source) -> dict[str, int] | None:
    """In which file each tensor goes; ``None`` if one file has room for all."""
    found: dict[str, int] = {}
    number, size = 1, 0
    for name, value in flattened(source.state).items():
        if not isinstance(value, torch.Tensor):
            raise UnsupportedError(
                f"{name!r} is a {type(value).__name__}: HuggingFace files have tensors only. "
                "Convert a checkpoint of the model alone"
            )
        size += value.nbytes
        if size > _FILE_SIZE and found:
            number, size = number + 1, value.nbytes
        found[name] = number
    return found if number > 1 else None


def _safetensors_on_disk(name: str) -> Any:
    """A class of torch's for HuggingFace folders on a disk."""
    if importlib.util.find_spec("safetensors") is None:
        raise ConfigurationError("HuggingFace folders on a disk need safetensors: pip install safetensors")
    found = getattr(dcp, name, None)
    if found is None:
        raise UnsupportedError(f"this torch has no {name}: HuggingFace folders have to be in a bucket")
    return found
