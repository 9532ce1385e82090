"""A folder as a bucket: keys are the paths below it.

Files are written beside their place and moved there, so that they are there whole or not at all, and
conditions hold between processes that go through this class. A key that is a folder, or below a file, cannot
be: paths are not quite keys.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import IO

from dcp_core.disk.files import (
    check_key,
    checked,
    info_of,
    locked,
    sync_folder,
    translated,
    unfinished_name,
    unfinished_of,
    write_body,
)
from dcp_core.disk.uploads import PartFolder
from dcp_core.errors import CheckpointCorruptError, ConflictError, ObjectNotFoundError
from dcp_core.seam.store import (
    Body,
    Condition,
    CreateOnly,
    Limits,
    ObjectInfo,
    ObjectStore,
    Part,
    ReplaceVersion,
    Upload,
    UploadInfo,
)

__all__ = ["DiskStore"]

_TIB = 1 << 40


class DiskStore(ObjectStore):
    """The folder ``bucket``, which is made with the first file."""

    limits = Limits(
        min_part_size=1,
        max_part_size=_TIB,
        max_parts=10_000,
        max_object_size=10_000 * _TIB,
        max_put_size=_TIB,
    )

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket

    def _path(self, key: str) -> str:
        return os.path.join(self.bucket, check_key(self.bucket, key))

    def head(self, key: str) -> ObjectInfo:
        with self._open(key) as file:
            return info_of(key, os.fstat(file.fileno()))

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        with self._open(key) as file, translated(self.bucket, key):
            return file.read(), info_of(key, os.fstat(file.fileno()))

    @contextmanager
    def _open(self, key: str) -> Iterator[IO[bytes]]:
        with translated(self.bucket, key):
            file = open(self._path(key), "rb", buffering=0)  # noqa: SIM115  # closed below
        with file:
            yield file

    @contextmanager
    def read_range(self, key: str, start: int, stop: int, *, version: str | None = None) -> Iterator[_Reader]:
        with self._open(key) as file:
            info = info_of(key, os.fstat(file.fileno()))
            if version is not None and version != info.version:
                raise ConflictError("the file is another one by now", bucket=self.bucket, key=key)
            if start >= info.size:
                raise CheckpointCorruptError(
                    f"the file has {info.size} bytes, the range starts at {start}",
                    bucket=self.bucket,
                    key=key,
                )
            file.seek(start)
            yield _Reader(self.bucket, file, info, min(stop, info.size) - start)

    def put(self, key: str, body: Body, condition: Condition | None = None) -> ObjectInfo:
        checked(self.bucket, key, body)
        path = self._path(key)
        folder, name = os.path.split(path)
        with translated(self.bucket, key):
            os.makedirs(folder, exist_ok=True)
            unfinished = os.path.join(folder, unfinished_name(name, "put"))
            try:
                write_body(unfinished, body)
                return self._move(unfinished, key, condition)
            finally:
                _unlink(unfinished)

    def _move(self, unfinished: str, key: str, condition: Condition | None) -> ObjectInfo:
        """Put a finished file in its place, if ``condition`` holds."""
        path = self._path(key)
        folder = os.path.dirname(path)
        with locked(folder):
            there = self._info(key)
            if isinstance(condition, CreateOnly) and there is not None:
                raise ConflictError("the file is there already", bucket=self.bucket, key=key)
            if isinstance(condition, ReplaceVersion):
                self._require(key, there, condition.version)
            info = info_of(key, os.stat(unfinished))
            os.replace(unfinished, path)
            sync_folder(folder)
        return info

    def _info(self, key: str) -> ObjectInfo | None:
        try:
            return self.head(key)
        except ObjectNotFoundError:
            return None

    def _require(self, key: str, there: ObjectInfo | None, version: str) -> None:
        if there is None or there.version != version:
            raise ConflictError("the file is another one by now", bucket=self.bucket, key=key)

    def _parts(self, upload: Upload) -> PartFolder:
        folder, name = os.path.split(self._path(upload.key))
        return PartFolder(
            self.bucket, upload, os.path.join(folder, unfinished_name(name, "upload", upload.upload_id))
        )

    def start_upload(self, key: str) -> Upload:
        folder, name = os.path.split(self._path(key))
        made = unfinished_name(name, "upload")
        with translated(self.bucket, key):
            os.makedirs(os.path.join(folder, made))
        found = unfinished_of(made)
        assert found is not None
        return Upload(key, found.token)

    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        with translated(self.bucket, upload.key):
            return self._parts(upload).add(number, body)

    def finish_upload(self, upload: Upload, parts: Sequence[Part]) -> ObjectInfo:
        with translated(self.bucket, upload.key):
            folder = self._parts(upload)
            info = self._move(folder.join(parts), upload.key, None)
            folder.remove()
        return info

    def abort_upload(self, upload: Upload) -> None:
        folder, name = os.path.split(self._path(upload.key))
        with translated(self.bucket, upload.key):
            _unlink(os.path.join(folder, unfinished_name(name, "put", upload.upload_id)))
            self._parts(upload).remove()
            self._prune(folder)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for entry, key in self._walk("", prefix):
            if unfinished_of(entry.name) is None:
                try:
                    yield info_of(key, entry.stat())
                except FileNotFoundError:
                    # deleted since
                    continue

    def list_uploads(self, prefix: str) -> Iterator[UploadInfo]:
        for entry, key in self._walk("", prefix):
            unfinished = unfinished_of(entry.name)
            if unfinished is None:
                continue
            try:
                began = datetime.fromtimestamp(entry.stat().st_mtime, timezone.utc)
            except FileNotFoundError:
                continue
            yield UploadInfo(Upload(key, unfinished.token), began)

    def _walk(self, folder: str, prefix: str) -> Iterator[tuple[os.DirEntry[str], str]]:
        """Files below ``folder``, empty or ending in a slash, in the order of the keys that they have, or are
        to have."""
        with translated(self.bucket, folder):
            try:
                with os.scandir(os.path.join(self.bucket, folder)) as found:
                    entries = [_named(entry) for entry in found]
            except (FileNotFoundError, NotADirectoryError):
                return
        for name, entry in sorted(entries, key=lambda one: one[0]):
            key = folder + name
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(key, prefix)
            elif key.startswith(prefix):
                yield entry, key

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            path = self._path(key)
            with translated(self.bucket, key):
                _unlink(path)
                self._prune(os.path.dirname(path))

    def delete_version(self, key: str, version: str) -> None:
        path = self._path(key)
        with translated(self.bucket, key), locked(os.path.dirname(path)):
            self._require(key, self.head(key), version)
            os.unlink(path)

    def _prune(self, folder: str) -> None:
        """Remove folders below the bucket's that nothing is in any more: buckets have none."""
        while len(folder) > len(self.bucket):
            try:
                os.rmdir(folder)
            except OSError:
                return
            folder = os.path.dirname(folder)

    def close(self) -> None:
        """Nothing is open."""


class _Reader:
    """A range of an open file."""

    def __init__(self, bucket: str, file: IO[bytes], info: ObjectInfo, left: int) -> None:
        self.info = info
        self._bucket = bucket
        self._file = file
        self._left = left

    def readinto(self, buffer: memoryview) -> int:
        with translated(self._bucket, self.info.key):
            count: int = self._file.readinto(buffer[: self._left])  # type: ignore[attr-defined]
        self._left -= count
        return count


def _named(entry: os.DirEntry[str]) -> tuple[str, os.DirEntry[str]]:
    """The name that an entry sorts by: folders end in a slash, as in the keys of what is in them."""
    unfinished = unfinished_of(entry.name)
    if unfinished is not None:
        return unfinished.name, entry
    return (f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name), entry


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
