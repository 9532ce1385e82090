"""Files of this machine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from dcp_core.config import MIB
from dcp_core.convert.file_types import Path, RangeFile, Sink
from dcp_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    CheckpointReplacedError,
    ConfigurationError,
)

__all__ = ["LocalFile", "LocalSink"]


class LocalFile(RangeFile):
    def __init__(self, path: Path) -> None:
        self.name = os.fspath(path)
        try:
            self._file: IO[bytes] = open(path, "rb", buffering=0)  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise CheckpointNotFoundError(f"{self.name} cannot be read: {error.strerror}") from error
        self.size = os.fstat(self._file.fileno()).st_size

    def read_into(self, ranges: Sequence[tuple[int, memoryview]]) -> None:
        for start, view in ranges:
            done = 0
            while done < view.nbytes:
                count = os.preadv(self._file.fileno(), [view[done:]], start + done)
                if count <= 0:
                    raise CheckpointReplacedError(f"{self.name} was cut short while it was read")
                done += count

    def close(self) -> None:
        self._file.close()


class LocalSink(Sink):
    def __init__(self, path: str, *, overwrite: bool) -> None:
        if os.path.isdir(path):
            raise ConfigurationError(f"{path} is a folder: give the path of a file")
        if not overwrite and os.path.exists(path):
            raise CheckpointExistsError(f"{path} is there already and overwrite=False")
        self._path, self._overwrite = path, overwrite
        self._unfinished = f"{path}.{secrets.token_hex(4)}.unfinished"
        with self._told():
            self._file = open(self._unfinished, "wb", buffering=MIB)  # noqa: SIM115  # closed at the end

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the disk are ours."""
        try:
            yield
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be written: {error.strerror}") from error

    def write(self, data: bytes | memoryview, /) -> int:
        with self._told():
            return self._file.write(data)

    def finish(self) -> None:
        with self._told():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if self._overwrite:
                os.replace(self._unfinished, self._path)
                return
        self._put_new()

    def _put_new(self) -> None:
        """Put the file in its place, unless one has come there meanwhile."""
        try:
            with self._told():
                os.link(self._unfinished, self._path)
        except ConfigurationError as error:
            if isinstance(error.__cause__, FileExistsError):
                raise CheckpointExistsError(
                    f"{self._path} is there already and overwrite=False"
                ) from error.__cause__
            raise
        os.unlink(self._unfinished)

    def abort(self, reason: BaseException) -> None:
        del reason
        # what is buffered has nowhere to go on a disk that is full
        with suppress(OSError):
            self._file.close()
        if os.path.exists(self._unfinished):
            os.unlink(self._unfinished)
