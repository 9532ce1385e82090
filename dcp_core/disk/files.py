"""Files that are there whole or not at all; their names, versions and errors."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import NamedTuple

from dcp_core.errors import (
    CloudCheckpointError,
    ConfigurationError,
    ObjectNotFoundError,
    PermissionDeniedError,
    TransientError,
    UnsupportedError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.seam.store import Body, ObjectInfo

__all__ = [
    "Unfinished",
    "check_key",
    "checked",
    "info_of",
    "locked",
    "settle",
    "sync_folder",
    "translated",
    "unfinished_name",
    "unfinished_of",
    "write_body",
]

#: What is being written beside the file that it is to become, and is no object yet.
_UNFINISHED = re.compile(r"\.(.+)\.([0-9a-f]{16})\.(put|upload)")
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class Unfinished(NamedTuple):
    """What the name of a file or folder that is being written says."""

    name: str
    token: str
    kind: str


def unfinished_name(name: str, kind: str, token: str | None = None) -> str:
    """A name for what is to become ``name``: ``kind`` is "put" or "upload"."""
    return f".{name}.{token or secrets.token_hex(8)}.{kind}"


def unfinished_of(name: str) -> Unfinished | None:
    """The inverse; ``None`` for the names of objects."""
    found = _UNFINISHED.fullmatch(name)
    return None if found is None else Unfinished(*found.groups())


def check_key(bucket: str, key: str) -> str:
    """``key``, if it is a path below the folder that is not one of :func:`unfinished_name`.

    Raises:
        UnsupportedError: it is not.
    """
    parts = key.split("/")
    if {"", ".", ".."}.intersection(parts) or "\0" in key or unfinished_of(parts[-1]):
        raise UnsupportedError("not a name of a file in this folder", bucket=bucket, key=key)
    return key


def info_of(key: str, found: os.stat_result) -> ObjectInfo:
    """The facts about a file. Files are replaced by others and never changed, and each has its own time."""
    version = f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}"
    return ObjectInfo(key, found.st_size, version, datetime.fromtimestamp(found.st_mtime, timezone.utc))


@contextmanager
def translated(bucket: str, key: str | None) -> Iterator[None]:
    """The context in which errors of the system become ours."""
    try:
        yield
    # some of ours are errors of the system too
    except CloudCheckpointError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _ABSENT:
            raise ObjectNotFoundError("the file does not exist", bucket=bucket, key=key) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PermissionDeniedError(reason, denied=True, bucket=bucket, key=key) from error
        raise ConfigurationError(f"the disk fails: {reason}", bucket=bucket, key=key) from error


def checked(bucket: str, key: str, body: Body) -> None:
    """Make sure that the bytes to be stored are those that were to be sent.

    Raises:
        TransientError: they changed.
    """
    found = 0
    for view in body.buffers:
        found = crc32c(view, found)
    if found != body.crc32c:
        raise TransientError("the bytes changed on their way", bucket=bucket, key=key)


def write_body(path: str, body: Body) -> os.stat_result:
    """Make a new file of ``body``, on the disk when this returns, and with a time of its own."""
    with open(path, "xb", buffering=0) as file:
        for view in body.buffers:
            left = view.cast("B") if view.nbytes else memoryview(b"")
            while left:
                left = left[file.write(left) :]
        settle(file.fileno())
        return os.fstat(file.fileno())


def settle(descriptor: int) -> None:
    """Write a finished file through to the disk."""
    now = time.time_ns()
    os.utime(descriptor, ns=(now, now))
    os.fsync(descriptor)


def sync_folder(path: str) -> None:
    """Have the names in a folder survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Let nobody else change which files are in ``folder``, in this process or another."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
