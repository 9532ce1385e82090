"""Buckets as file systems of fsspec, for what looks at checkpoints as if they were folders.

Trainers list and delete checkpoints through fsspec. The file systems of other packages keep listings in a
cache that does not know of saves by this library, and need packages of their own. These do single requests
through the same stores as saves and loads, and remember nothing. Saving and loading do not go through them.

A folder is a common prefix of keys; nothing is stored for one. Of a folder that is deleted, commit records
go first: what is left after an interruption is then no checkpoint.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from dcp_core.config import SaveOptions
from dcp_core.errors import CloudCheckpointError, ObjectNotFoundError, UnsupportedError
from dcp_core.format.checksum import crc32c
from dcp_core.format.layout import is_metadata_name
from dcp_core.seam.body import Body
from dcp_core.seam.store import CreateOnly, ObjectInfo, ObjectStore, Part, Upload
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.transfer.transfer import Transfer

__all__ = ["CloudFileSystem", "file_system", "register_file_systems"]

logger = logging.getLogger("dcp_core")

_Entry = dict[str, Any]


class CloudFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The buckets of one URL scheme.

    Args:
        **options: of saving and of the backend, as for a writer.

    Methods raise errors of :mod:`dcp_core.errors`; a missing object is a ``FileNotFoundError`` too.
    """

    #: Instances are not shared: options given later count.
    cachable = False
    scheme: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = {**self.defaults, **options}
        self._places: dict[str, CheckpointStore[SaveOptions]] = {}
        self._lock = threading.Lock()

    def _at(self, path: str) -> tuple[CheckpointStore[SaveOptions], str]:
        """The bucket of ``path`` and the key there."""
        bucket, _, key = self._strip_protocol(path).partition("/")
        with self._lock:
            if bucket not in self._places:
                url = f"{self.scheme}://{bucket}"
                self._places[bucket] = CheckpointStore(url, SaveOptions, self._options)
            return self._places[bucket], key

    def _folder(self, path: str) -> tuple[CheckpointStore[SaveOptions], str]:
        """The bucket of ``path`` and the prefix of the keys below it."""
        place, key = self._at(path)
        return place, f"{key}/" if key else ""

    def info(self, path: str, **_: Any) -> _Entry:
        name = self._strip_protocol(path)
        if "/" in name:
            try:
                return _file(name, self._head(path))
            except ObjectNotFoundError:
                if not self._has_children(path):
                    raise
        return _directory(name)

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is something at ``path``.

        Raises:
            CloudCheckpointError: the store does not say; fsspec's own methods would say no.
        """
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path: str) -> bool:
        """Whether there is a folder at ``path``; raises as :meth:`exists`."""
        try:
            return bool(self.info(path)["type"] == "directory")
        except FileNotFoundError:
            return False

    def isfile(self, path: str) -> bool:
        """Whether there is a file at ``path``, in one request; raises as :meth:`exists`."""
        try:
            return "/" in self._strip_protocol(path) and bool(self._head(path))
        except FileNotFoundError:
            return False

    def _head(self, path: str) -> ObjectInfo:
        place, key = self._at(path)
        store = place.writable_store()
        return _transfer(place).attempt(lambda: store.head(key))

    def _has_children(self, path: str) -> bool:
        place, prefix = self._folder(path)
        store = place.writable_store()
        return _transfer(place).attempt(lambda: next(iter(store.list(prefix)), None)) is not None

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        place, prefix = self._folder(path)
        store = place.writable_store()
        listed = _transfer(place).attempt(lambda: list(store.list_rolled(prefix, "/")))
        root = place.location.bucket
        entries = {}
        for found in listed:
            entry = (
                _file(f"{root}/{found.key}", found)
                if isinstance(found, ObjectInfo)
                else _directory(f"{root}/{found.prefix.removesuffix('/')}")
            )
            entries[entry["name"]] = entry
        if not entries and prefix:
            # a file, or nothing at all
            entry = self.info(path)
            entries[entry["name"]] = entry
        return [entries[name] if detail else name for name in sorted(entries)]

    def created(self, path: str) -> Any:
        return self.modified(path)

    def modified(self, path: str) -> Any:
        return self.info(path)["modified"]

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Nothing: a folder is there once something is in it."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: a folder is there once something is in it."""

    def rmdir(self, path: str) -> None:
        """Nothing: a folder is gone once nothing is in it."""

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete files, and with ``recursive`` folders, commit records first.

        Raises:
            ObjectNotFoundError: there is nothing at a path.
            IsADirectoryError: a path is a folder, and not ``recursive``.
        """
        for one in [path] if isinstance(path, str) else path:
            if maxdepth is not None:
                self._delete(self.expand_path(one, recursive=recursive, maxdepth=maxdepth))
            elif self.isfile(one):
                self._delete([one])
            else:
                self._rm_folder(one, recursive)

    def _rm_folder(self, path: str, recursive: bool) -> None:
        if not recursive:
            # raises if there is nothing at all
            self.info(path)
            raise IsADirectoryError(f"{path} is a folder: delete it with recursive=True")
        place, prefix = self._folder(path)
        store = place.writable_store()
        keys = [info.key for info in _transfer(place).attempt(lambda: list(store.list(prefix)))]
        if not keys:
            self.info(path)
        _delete_keys(place, keys)

    def _rm(self, path: str) -> None:
        self._delete([path])

    def _delete(self, paths: Iterable[str]) -> None:
        by_bucket: dict[str, tuple[CheckpointStore[SaveOptions], list[str]]] = {}
        for path in paths:
            place, key = self._at(path)
            by_bucket.setdefault(place.location.bucket, (place, []))[1].append(key)
        for place, keys in by_bucket.values():
            _delete_keys(place, keys)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy one file, through this process."""
        with self.open(path1, "rb") as source, self.open(path2, "wb") as target:
            while piece := source.read(target.blocksize):
                target.write(piece)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if "a" in mode:
            raise UnsupportedError(f"objects cannot be appended to: write {path} anew, or to a folder")
        place, key = self._at(path)
        if "x" in mode and self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        limits = place.writable_store().limits
        size = max(block_size or place.options.part_size, limits.min_part_size)
        options.pop("autocommit", None)
        options.pop("cache_options", None)
        return CloudFile(self, self._strip_protocol(path), mode, size, place=place, key=key)


class CloudFile(AbstractBufferedFile):  # type: ignore[misc]
    """One object: read by ranges; written in parts, and there once it is closed without an error."""

    def __init__(
        self,
        fs: CloudFileSystem,
        path: str,
        mode: str,
        block_size: int,
        *,
        place: CheckpointStore[SaveOptions],
        key: str,
    ) -> None:
        self._place = place
        self._key = key
        self._upload: Upload | None = None
        self._parts: list[Part] = []
        super().__init__(fs, path, mode, block_size, cache_type="readahead")

    @property
    def _store(self) -> ObjectStore:
        return self._place.writable_store()

    def _fetch_range(self, start: int, end: int) -> bytes:
        def read() -> bytes:
            buffer, received = memoryview(bytearray(max(0, end - start))), 0
            if not buffer:
                return b""
            with self._store.read_range(self._key, start, end) as reader:
                while received < len(buffer) and (count := reader.readinto(buffer[received:])):
                    received += count
            return bytes(buffer[:received])

        return _transfer(self._place).attempt(read)

    def _initiate_upload(self) -> None:
        """A file of one part is put when it is closed."""

    def _upload_chunk(self, final: bool = False) -> bool:
        data = self.buffer.getvalue()
        body = Body([data], crc32c(data))
        if final and self._upload is None:
            condition = CreateOnly() if "x" in self.mode else None
            _transfer(self._place).attempt(lambda: self._store.put(self._key, body, condition))
            return True
        if self._upload is None:
            self._upload = _transfer(self._place).attempt(lambda: self._store.start_upload(self._key))
        upload, number = self._upload, len(self._parts) + 1
        if data:
            part = _transfer(self._place).attempt(lambda: self._store.put_part(upload, number, body))
            self._parts.append(part)
        if final:
            _transfer(self._place).attempt(lambda: self._store.finish_upload(upload, self._parts))
            self._upload = None
        return True

    def discard(self) -> None:
        """Leave nothing of what was written."""
        upload, self._upload = self._upload, None
        if upload is not None:
            _transfer(self._place).attempt(lambda: self._store.abort_upload(upload))

    def __del__(self) -> None:
        # fsspec's would make an object of whatever was written so far
        if not getattr(self, "closed", True) and "r" not in self.mode:
            self.closed = True
            logger.warning("%s was written to and never closed: nothing of it is kept", self.path)
            with suppress(CloudCheckpointError):
                self.discard()

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None or self.mode == "rb":
            self.close()
            return
        self.closed = True
        self.discard()


def file_system(scheme: str, options: Mapping[str, Any]) -> CloudFileSystem:
    """The buckets of ``scheme``, with ``options``, whatever fsspec opens URLs of ``scheme`` with."""
    return _file_system_of(scheme, options)()


def _file_system_of(scheme: str, options: Mapping[str, Any]) -> type[CloudFileSystem]:
    made = {"protocol": scheme, "scheme": scheme, "defaults": dict(options)}
    return type(f"CloudFileSystem_{scheme}", (CloudFileSystem,), made)


def register_file_systems(schemes: Iterable[str], options: Mapping[str, Any]) -> None:
    """Let fsspec open URLs of ``schemes`` through this library, with ``options`` unless others are given."""
    for scheme in schemes:
        fsspec.register_implementation(scheme, _file_system_of(scheme, options), clobber=True)


def _transfer(place: CheckpointStore[SaveOptions]) -> Transfer:
    return Transfer(place.options, None)


def _delete_keys(place: CheckpointStore[SaveOptions], keys: list[str]) -> None:
    """Commit records in requests of their own, before the rest."""
    records = [key for key in keys if is_metadata_name(key.rpartition("/")[2])]
    others = [key for key in keys if not is_metadata_name(key.rpartition("/")[2])]
    for group in (records, others):
        if group:
            _delete_group(place, group)


def _delete_group(place: CheckpointStore[SaveOptions], keys: list[str]) -> None:
    _transfer(place).attempt(lambda: place.writable_store().delete(keys))


def _file(name: str, info: ObjectInfo) -> _Entry:
    return {
        "name": name,
        "type": "file",
        "size": info.size,
        "modified": info.modified,
        "version": info.version,
    }


def _directory(name: str) -> _Entry:
    return {"name": name, "type": "directory", "size": 0, "modified": None}
