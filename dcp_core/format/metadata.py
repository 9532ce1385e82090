"""The commit record: torch's ``Metadata``, pickled as stock torch does and unpickled without trust.

Whoever can write to the bucket decides what this pickle says, and every rank reads it. The unpickler
therefore builds DCP's own value types and nothing else: it never calls what a stream names.
"""

from __future__ import annotations

import collections
import io
import pathlib
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as _md
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from dcp_core.collector import collector_paused
from dcp_core.errors import CheckpointCorruptError
from dcp_core.format.stored import StorageInfo

__all__ = ["decode_metadata", "encode_metadata", "stamp"]

_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}

#: Everything a commit record may name. Older releases pickled some of these under other modules.
_ADMITTED: dict[tuple[str, str], Any] = {
    **{
        (_md.__name__, kind.__name__): kind
        for kind in (
            BytesStorageMetadata,
            ChunkStorageMetadata,
            Metadata,
            MetadataIndex,
            StorageMeta,
            TensorProperties,
            TensorStorageMetadata,
            _md._MEM_FORMAT_ENCODING,
        )
    },
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    # stock writers record the path they wrote to
    **{
        (module, name): pathlib.PurePosixPath
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")
    },
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a commit record") from None


def stamp(metadata: Metadata, storage_data: dict[MetadataIndex, StorageInfo], meta: StorageMeta) -> None:
    """Complete ``metadata`` in place, as stock writers do: ``dcp.save`` returns this object."""
    metadata.version = CURRENT_DCP_VERSION
    metadata.storage_data = storage_data
    metadata.storage_meta = meta


def encode_metadata(metadata: Metadata) -> bytes:
    """The bytes of the commit record."""
    with collector_paused():
        return pickle.dumps(metadata)


def decode_metadata(data: bytes, *, bucket: str, key: str) -> Metadata:
    """Parse a commit record of this library, of stock torch or of another DCP writer.

    Raises:
        CheckpointCorruptError: it is cut short, is something else, or names a foreign type.
    """
    try:
        with collector_paused():
            metadata = _MetadataUnpickler(io.BytesIO(data)).load()
    # a hostile or damaged stream can make the unpickler raise anything; no state is shared with it
    except Exception as error:
        raise CheckpointCorruptError(
            f"the commit record is not readable: {error or type(error).__name__}", bucket=bucket, key=key
        ) from error
    problem = _problem(metadata)
    if problem:
        raise CheckpointCorruptError(f"the commit record is damaged: {problem}", bucket=bucket, key=key)
    return metadata  # type: ignore[no-any-return]


def _problem(metadata: Any) -> str | None:
    if not isinstance(metadata, Metadata):
        return f"it holds a {type(metadata).__name__}"
    if not isinstance(getattr(metadata, "state_dict_metadata", None), dict):
        return "it has no state_dict_metadata"
    storage_data = getattr(metadata, "storage_data", None)
    if not isinstance(storage_data, dict):
        return "it has no storage_data"
    if getattr(metadata, "planner_data", None) is not None and not isinstance(metadata.planner_data, dict):
        return "its planner_data is not a dict"
    for index, info in storage_data.items():
        problem = _entry_problem(index, info)
        if problem:
            return f"the entry of {getattr(index, 'fqn', index)!r} {problem}"
    return None


def _entry_problem(index: Any, info: Any) -> str | None:
    if not isinstance(index, MetadataIndex) or not isinstance(info, StorageInfo):
        return "is not a storage info"
    state = vars(info)
    name, offset, length = state.get("relative_path"), state.get("offset"), state.get("length")
    if not isinstance(name, str) or not name:
        return "names no object"
    if not (isinstance(offset, int) and isinstance(length, int)) or offset < 0 or length < 0:
        return f"has an impossible range ({offset!r}, {length!r})"
    return None
