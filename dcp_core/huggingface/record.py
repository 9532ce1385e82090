"""From a folder of safetensors files to what a commit record says: where each tensor lies.

::

    read_headers
    ├── _find         the index, or else the files that are there
    ├── _read_header  the first bytes of each, in parallel
    └── metadata_of   all headers together, held against each other      pure
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from dcp_core.config import KIB
from dcp_core.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointReplacedError,
    CloudCheckpointError,
    ObjectNotFoundError,
    PermissionDeniedError,
    TransientError,
)
from dcp_core.format.layout import metadata_name
from dcp_core.format.stored import Payload, storage_info
from dcp_core.format.tiling import GAP, chunk_fault
from dcp_core.huggingface.header import Header, header_size, parse_header, saved_offsets
from dcp_core.huggingface.names import INDEX, SINGLE, is_file_name, require_all_files, weight_map_in
from dcp_core.load.metadata import Record
from dcp_core.seam.location import Location
from dcp_core.seam.store import CommonPrefix, ObjectStore, ReadableStore
from dcp_core.transfer import Transfer

__all__ = ["list_names", "metadata_of", "read_headers"]

#: Bytes of a file that are read at first; most headers are shorter.
_HEAD = 64 * KIB


class _Chunk(NamedTuple):
    """A tensor in a file, or a part of one."""

    file: str
    dtype: torch.dtype
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    stop: int


def read_headers(store: ReadableStore, location: Location, transfer: Transfer, concurrency: int) -> Record:
    """What the files at a URL hold.

    Raises:
        CheckpointNotFoundError: there are none.
        CheckpointIncompleteError: there is no index, and files are missing.
        CheckpointCorruptError: an index or a header is damaged, or they contradict each other.
    """
    folder = _Folder(store, location, transfer)
    names, weight_map = folder.find()
    read = transfer.run(names, folder.read_header, max(1, min(concurrency, len(names))))
    headers = {name: header for name, (header, _) in zip(names, read, strict=True)}
    versions = {name: version for name, (_, version) in zip(names, read, strict=True)}
    return Record(metadata_of(headers, weight_map), None, versions)


def list_names(store: ReadableStore, location: Location) -> set[str]:
    """Names of the objects at a URL, without those in folders below."""
    assert isinstance(store, ObjectStore)
    prefix = location.key("")
    found = store.list_rolled(prefix, "/")
    return {entry.key[len(prefix) :] for entry in found if not isinstance(entry, CommonPrefix)}


@dataclass(frozen=True)
class _Folder:
    store: ReadableStore
    location: Location
    transfer: Transfer

    def find(self) -> tuple[list[str], dict[str, str]]:
        """Names of the files, and which of them has which tensor as far as an index says."""
        key = self.location.key(INDEX)
        try:
            data, _ = self.transfer.attempt(lambda: self.store.get(key))
        except ObjectNotFoundError:
            return self._without_index(), {}
        try:
            weight_map = weight_map_in(data)
        except CloudCheckpointError as error:
            raise self._about(INDEX, error)  # noqa: B904  # the same error, with the key
        return sorted(set(weight_map.values())), weight_map

    def _without_index(self) -> list[str]:
        if not isinstance(self.store, ObjectStore):
            return [SINGLE]
        try:
            found = self.transfer.attempt(lambda: list_names(self.store, self.location))
        except PermissionDeniedError:
            return [SINGLE]
        names = sorted(filter(is_file_name, found))
        if not names:
            also = "a DCP checkpoint is: use CloudStorageReader" if metadata_name() in found else "none is"
            raise CheckpointNotFoundError(
                f"no safetensors files are at {self.location}: {also}",
                bucket=self.store.bucket,
                key=self.location.key(INDEX),
            )
        try:
            require_all_files(names)
        except CloudCheckpointError as error:
            raise self._about(INDEX, error)  # noqa: B904  # as above
        return names

    def read_header(self, name: str) -> tuple[Header, str]:
        """The header of a file, and the version of the file that has it."""
        try:
            head, size, version = self._range(name, 0, _HEAD)
            needed = header_size(head, size)
            if needed > len(head):
                rest, _, version_of_rest = self._range(name, len(head), needed)
                if version_of_rest != version:
                    raise CheckpointReplacedError("the file changed while it was read; load again")
                head += rest
            return parse_header(head[:needed], size), version
        except ObjectNotFoundError as error:
            raise self._missing(name) from error
        except CloudCheckpointError as error:
            raise self._about(name, error)  # noqa: B904  # as above

    def _range(self, name: str, start: int, stop: int) -> tuple[bytes, int, str]:
        """Bytes of a file, up to its end; its size; its version."""
        key = self.location.key(name)

        def read() -> tuple[bytes, int, str]:
            with self.store.read_range(key, start, stop) as reader:
                data = memoryview(bytearray(max(0, min(stop, reader.info.size) - start)))
                received = 0
                while received < len(data):
                    count = reader.readinto(data[received:])
                    if count <= 0:
                        raise TransientError(
                            f"the response ended {len(data) - received} bytes early", key=key
                        )
                    received += count
                return bytes(data), reader.info.size, reader.info.version

        return self.transfer.attempt(read)

    def _missing(self, name: str) -> CloudCheckpointError:
        if name == SINGLE:
            error: CloudCheckpointError = CheckpointNotFoundError(
                f"neither {INDEX} nor {SINGLE} is at {self.location}"
            )
        else:
            error = CheckpointCorruptError("the index names a file that does not exist")
        return self._about(name, error)

    def _about(self, name: str, error: CloudCheckpointError) -> CloudCheckpointError:
        if error.key is None:
            error.bucket, error.key = self.store.bucket, self.location.key(name)
        return error


def metadata_of(headers: Mapping[str, Header], weight_map: Mapping[str, str]) -> Metadata:
    """What files hold together, by name.

    Raises:
        CheckpointCorruptError: they contradict each other, or the index.
    """
    found: dict[str, list[_Chunk]] = {}
    for file, header in headers.items():
        offsets = saved_offsets(header)
        for name, (dtype, shape, start, stop) in header.tensors.items():
            if weight_map.get(name, file) == file:
                found.setdefault(name, []).append(_Chunk(file, dtype, offsets[name], shape, start, stop))
    for name, file in weight_map.items():
        if name not in found:
            raise CheckpointCorruptError(f"the index says that {name!r} is in {file}, and it is not")
    metadata = Metadata({name: _entry(name, chunks) for name, chunks in found.items()})
    metadata.storage_data = {
        MetadataIndex(name, chunk.offsets): _place(chunk)
        for name, chunks in found.items()
        for chunk in chunks
    }
    return metadata


def _place(chunk: _Chunk) -> object:
    size = chunk.stop - chunk.start
    return storage_info(chunk.file, chunk.start, size, Payload(0, size, True, b""))


def _entry(name: str, chunks: list[_Chunk]) -> TensorStorageMetadata:
    first = chunks[0]
    if any(chunk.dtype is not first.dtype or len(chunk.shape) != len(first.shape) for chunk in chunks):
        raise CheckpointCorruptError(f"the parts of {name!r} are of several dtypes or dimensions")
    ends = [[o + n for o, n in zip(chunk.offsets, chunk.shape, strict=True)] for chunk in chunks]
    size = torch.Size(map(max, zip(*ends, strict=True)))
    stored = [ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.shape)) for chunk in chunks]
    fault = chunk_fault(size, stored)
    if len({chunk.offsets for chunk in chunks}) < len(chunks) or fault not in (None, GAP):
        files = ", ".join(sorted({chunk.file for chunk in chunks})[:3])
        raise CheckpointCorruptError(f"the parts of {name!r} in {files} overlap: is it there twice?")
    return TensorStorageMetadata(TensorProperties(dtype=first.dtype), size, stored)
