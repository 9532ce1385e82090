"""A storage of torch_checkpointing, at URLs.

::

    from dcp_core.frameworks.torch_checkpointing import CloudStorageConfig

    config = CheckpointManager.Config(storage_config=CloudStorageConfig("s3://bucket/runs/mine"))
    config.build().save("step-100", {"model": model.state_dict()})

Names of checkpoints are names below the URL. torch_checkpointing writes the files of ``step-100`` into a
folder ``tmp_step-100`` and then renames it. Buckets have no rename: files lie below the folder that they will
be in, under names of their own, and the rename is one record, written if there is none yet::

    <url>/step-100/.staged/<job>/<write>/model_0.pt      files, of one write each
    <url>/step-100/.directory                            the record: which of them are in the folder

So nothing is copied, a folder is there as a whole or not at all, and what a save writes while there is one of
that name, or after one was killed, touches none of its files. Files of two jobs are never mixed.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from dcp_core.config import SaveOptions
from dcp_core.errors import InvalidLocationError, UnsupportedError
from dcp_core.frameworks.directories import Directory
from dcp_core.frameworks.packages import missing
from dcp_core.frameworks.plain_metadata import as_plain_pickle
from dcp_core.integrations.checkpoint_ids import refuse_folded
from dcp_core.integrations.filesystem import file_system
from dcp_core.seam.store import CommonPrefix, ObjectInfo
from dcp_core.storage.checkpoint_store import CheckpointStore, split_options
from dcp_core.transfer.transfer import Transfer

try:
    from torch_checkpointing.storage.base_storage import ReadArgs, Storage, StorageConfig
except ImportError as error:
    raise missing("torch_checkpointing", error) from error

__all__ = ["CloudStorage", "CloudStorageConfig"]

_T = TypeVar("_T")

_METADATA = "metadata.pkl"
#: Reads of less than this fetch as much, for the next ones.
_AHEAD = 256 << 10


def _this_job() -> str:
    """What ``torchrun`` gives all ranks of one start of a job, as a name; the same for all without it."""
    told = [
        os.environ.get(name, "")
        for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
    ]
    return re.sub(r"[^A-Za-z0-9_-]", "_", "-".join(filter(None, told))) or "job"


@dataclass
class CloudStorageConfig(StorageConfig):
    """Checkpoints of torch_checkpointing below a URL.

    Args:
        url: below which checkpoints lie; their names are relative to it.
        temp_dir_prefix: as in the configuration of the writer.
        json_types: classes, as ``module.Class``, that a checkpoint may ask to make JSON into.
        options: of saving, loading and the cloud, as writers and readers take them.
        job: what all ranks of a job have in common, and no other job has; as ``torchrun`` tells by default.
    """

    url: str
    temp_dir_prefix: str = "tmp_"
    json_types: Collection[str] = ()
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    job: str = field(default_factory=_this_job)

    def create_storage(self) -> CloudStorage:
        return CloudStorage(self)


class CloudStorage(Storage):
    """See :class:`CloudStorageConfig`.

    Raises:
        ConfigurationError: the URL or an option is wrong.
    """

    def __init__(self, config: CloudStorageConfig) -> None:
        saving, _ = split_options(config.options)
        self._place = CheckpointStore(config.url, SaveOptions, saving)
        self._files = file_system(self._place.location.scheme, saving)
        self._prefix = config.temp_dir_prefix
        self._json_types = frozenset(config.json_types)
        self._job = config.job
        self._directories: dict[str, Directory] = {}

    @property
    def mmap_fill_workers(self) -> int:
        return int(self._place.options.concurrency)

    @property
    def mmap_fill_chunk_bytes(self) -> int:
        return int(self._place.options.part_size)

    def stream_write(self, path: Path) -> Any:
        """A file that is there once it was closed without an error."""
        return self._files.open(self._url(self._key_to_write(path)), "wb")

    def write(self, path: Path, data: Any) -> None:
        with self.stream_write(path) as file:
            file.write(data)

    def stream_read(self, path: Path, read_args: ReadArgs | None = None) -> io.RawIOBase:
        """A file whose ``readinto`` receives into the caller's memory."""
        key, size = self._located(path)
        if read_args is not None and read_args.known_size_bytes not in (None, size):
            raise OSError(f"{path} has {size} bytes, not {read_args.known_size_bytes}")
        return _Reading(self, key, size)

    def read(self, path: Path, read_args: ReadArgs | None = None) -> bytes:
        """The whole of a file. Of torch_checkpointing's metadata, a pickle, what is plain data.

        Raises:
            UntrustedDataError: the metadata would run code.
        """
        with self.stream_read(path, read_args) as file:
            data = file.readall()
        return as_plain_pickle(data, self._json_types, str(path)) if path.name == _METADATA else data

    def receive(self, key: str, start: int, into: memoryview) -> None:
        """Fill ``into`` with what ``key`` holds from ``start`` on."""

        def fill() -> None:
            received = 0
            with self._place.writable_store().read_range(key, start, start + len(into)) as reader:
                while received < len(into):
                    count = reader.readinto(into[received:])
                    if not count:
                        raise OSError(f"{self._url(key)} ended at {start + received}")
                    received += count

        self._attempt(fill)

    def delete(self, path: Path) -> None:
        key, _ = self._located(path)
        self._attempt(lambda: self._place.writable_store().delete([key]))

    def mkdir(self, path: Path, recursive: bool = True) -> None:
        """Nothing: a folder is there once something is in it."""

    def rmdir(self, path: Path) -> None:
        """Delete a folder and all in it, its record first."""
        directory = self._directory(self._final(path) or _parts(path))
        if self._final(path) is None:
            directory.delete()
        else:
            directory.delete_staged()
        self._directories.clear()

    def rename(
        self,
        src_path: Path,
        dst_path: Path,
        is_directory: bool = False,
        background_cleanup: bool = False,  # noqa: ARG002
    ) -> None:
        """Make the files of a temporary folder those of ``dst_path``, by one record.

        Raises:
            FileExistsError: there is something at ``dst_path``.
            FileNotFoundError: there is nothing at ``src_path``.
            UnsupportedError: it is no temporary folder of that name.
        """
        if not is_directory or self._final(src_path) != _parts(dst_path):
            raise UnsupportedError(
                f"{src_path} cannot be renamed to {dst_path}: objects cannot be renamed, and only folders "
                f"{self._prefix}NAME become NAME"
            )
        if not self._directory(_parts(dst_path)).commit():
            raise FileExistsError(errno.ENOTEMPTY, "there is something already", str(dst_path))

    def ls(self, path: Path) -> list[str]:
        """Names in a folder; of folders without a record, those of what is being written."""
        directory = self._directory(_parts(path))
        record = directory.record()
        names = {name.partition("/")[0] for name in record} if record is not None else set()
        for entry in self._attempt(directory.listing):
            name = (entry.key if isinstance(entry, ObjectInfo) else entry.prefix)[len(directory.prefix) :]
            first, _, rest = name.partition("/")
            names.add(self._shown(first, rest, entry))
        return sorted(names - {""})

    def _shown(self, first: str, rest: str, entry: ObjectInfo | CommonPrefix) -> str:
        """The name to show of an entry of a listing."""
        if not rest:
            return "" if first.startswith(".") else first
        return f"{self._prefix}{first}" if isinstance(entry, CommonPrefix) else first

    def exists(self, path: Path) -> bool:
        if self._final(path) is not None:
            return bool(self._attempt(lambda: self._directory(self._final(path) or ()).staged()))
        try:
            self._located(path)
        except FileNotFoundError:
            return self.isdir(path)
        return True

    def isdir(self, path: Path) -> bool:
        if self._final(path) is not None:
            return self.exists(path)
        directory = self._directory(_parts(path))
        return directory.record() is not None or any(
            isinstance(entry, ObjectInfo) for entry in self._attempt(directory.listing)
        )

    def getsize(self, path: Path) -> int:
        return self._located(path)[1]

    def remap_path(self, path: Path) -> str:
        try:
            return self._url(self._located(path)[0])
        except FileNotFoundError:
            return self._url(self._place.location.key("/".join(_parts(path))))

    # where files lie

    def _final(self, path: Path) -> tuple[str, ...] | None:
        """The folder that a temporary one will become; ``None`` for any other path."""
        parts = _parts(path)
        for at, part in enumerate(parts):
            if part.startswith(self._prefix):
                return (*parts[:at], part.removeprefix(self._prefix))
        return None

    def _key_to_write(self, path: Path) -> str:
        final, parts = self._final(path), _parts(path)
        if final is None:
            return self._place.location.key("/".join(parts))
        return self._directory(final).new_key("/".join(parts[len(final) :]))

    def _located(self, path: Path) -> tuple[str, int]:
        """The key and size of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        parts = _parts(path)
        for at in range(len(parts) - 1, 0, -1):
            directory = self._directory(parts[:at])
            record = directory.record()
            if record is not None:
                name = "/".join(parts[at:])
                if name not in record:
                    break
                return directory.prefix + record[name][0], record[name][1]
        key = self._place.location.key("/".join(parts))
        store = self._place.writable_store()
        return key, self._attempt(lambda: store.head(key)).size

    def _directory(self, parts: tuple[str, ...]) -> Directory:
        name = "/".join(parts)
        if name not in self._directories:
            prefix = self._place.location.key(f"{name}/" if name else "")
            store = self._place.writable_store()
            self._directories[name] = Directory(store, prefix, self._job, self._attempt)
        return self._directories[name]

    def _url(self, key: str) -> str:
        location = self._place.location
        return f"{location.scheme}://{location.bucket}/{key}"

    def _attempt(self, ask: Callable[[], _T]) -> _T:
        return Transfer(self._place.options, 0).attempt(ask)


class _Reading(io.RawIOBase):
    """A file of known size; small reads, of a zip's directory, do not cost a request each."""

    def __init__(self, storage: CloudStorage, key: str, size: int) -> None:
        super().__init__()
        self._storage, self._key, self._size = storage, key, size
        self._at = 0
        self._kept = (0, b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"there is nothing at {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self._size - self._at))]
        if len(view) >= _AHEAD:
            self._storage.receive(self._key, self._at, view)
        elif view:
            view[:] = self._small(len(view))
        self._at += len(view)
        return len(view)

    def _small(self, count: int) -> bytes:
        start, kept = self._kept
        if not start <= self._at <= self._at + count <= start + len(kept):
            # the directory of a zip is read backwards from its end
            start = max(0, min(self._at, self._size - _AHEAD))
            data = bytearray(min(_AHEAD, self._size - start))
            self._storage.receive(self._key, start, memoryview(data))
            kept = bytes(data)
            self._kept = (start, kept)
        return kept[self._at - start : self._at - start + count]


def _parts(path: Path) -> tuple[str, ...]:
    """The names of a path below the URL.

    Raises:
        InvalidLocationError: it leads out of there, or was a URL.
    """
    refuse_folded(path)
    parts = tuple(part for part in PurePosixPath(path).parts if part != "/")
    if ".." in parts:
        raise InvalidLocationError(f"{path} is not a name below the storage's URL")
    return parts
