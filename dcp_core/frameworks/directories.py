"""Folders that appear as a whole: files under names of their own, and one record of which are in them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any

from dcp_core.errors import CheckpointCorruptError, ConflictError, ObjectNotFoundError
from dcp_core.format.checksum import crc32c
from dcp_core.seam.body import Body
from dcp_core.seam.store import CommonPrefix, CreateOnly, ObjectInfo, ObjectStore

__all__ = ["Directory"]

_STAGED = ".staged/"
_RECORD = ".directory"
_FORMAT = "dcp-cloud directory 1"
_LONG_AGO = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Directory:
    """One folder.

    Args:
        prefix: of its keys, with a slash at the end.
        job: whose files are written and put into the folder.
        attempt: makes requests, and repeats them.
    """

    def __init__(
        self, store: ObjectStore, prefix: str, job: str, attempt: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self._store = store
        self.prefix = prefix
        self._own = f"{prefix}{_STAGED}{job}/"
        self._attempt = attempt
        self._known: dict[str, tuple[str, int]] | None = None

    def record(self) -> dict[str, tuple[str, int]] | None:
        """Files of the folder: name → where it lies below the folder, and its size. ``None``: no record.

        Raises:
            CheckpointCorruptError: the record is damaged, or names what is not in the folder.
        """
        if self._known is None:
            try:
                data, _ = self._attempt(lambda: self._store.get(self.prefix + _RECORD))
            except ObjectNotFoundError:
                return None
            self._known = self._decoded(data)[1]
        return self._known

    def _decoded(self, data: bytes) -> tuple[str, dict[str, tuple[str, int]]]:
        try:
            found = json.loads(data)
            files = {str(name): (str(at), int(size)) for name, (at, size) in found["files"].items()}
            save = str(found["save"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged(str(error)) from error
        if found.get("format") != _FORMAT:
            raise self._damaged(f"its format is {found.get('format')!r}")
        if any(not at.startswith(_STAGED) or ".." in at.split("/") for at, _ in files.values()):
            raise self._damaged("it names files of another folder")
        return save, files

    def _damaged(self, why: str) -> CheckpointCorruptError:
        return CheckpointCorruptError(
            f"the record of a folder cannot be read: {why}",
            bucket=self._store.bucket,
            key=self.prefix + _RECORD,
        )

    def listing(self) -> list[ObjectInfo | CommonPrefix]:
        """What lies below, with files under names of their own rolled up by folder."""
        return list(self._store.list_rolled(self.prefix, _STAGED))

    def new_key(self, name: str) -> str:
        """Where one write of the file ``name`` goes."""
        return f"{self._own}{time.time_ns():016x}-{secrets.token_hex(8)}/{name}"

    def staged(self) -> list[ObjectInfo]:
        """Files that this job wrote for the folder."""
        return list(self._store.list(self._own))

    def commit(self) -> bool:
        """Write the record of what this job staged; returns whether the folder was free.

        Raises:
            ObjectNotFoundError: nothing was staged.
        """
        objects: list[ObjectInfo] = self._attempt(lambda: list(self._store.list(self.prefix)))
        if any(
            not info.key.startswith(self.prefix + _STAGED) and not info.key.endswith("/") for info in objects
        ):
            return False
        staged = [info for info in objects if info.key.startswith(self._own)]
        newest = self._newest(staged)
        if not newest:
            raise ObjectNotFoundError(
                "there is nothing to rename", bucket=self._store.bucket, key=self.prefix
            )
        save = secrets.token_hex(8)
        files = {name: (info.key[len(self.prefix) :], info.size) for name, info in newest.items()}
        data = json.dumps({"format": _FORMAT, "save": save, "files": files}).encode()
        if not self._create(data, save):
            return False
        kept = {info.key for info in newest.values()}
        self._remove(info.key for info in staged if info.key not in kept)
        return True

    def _newest(self, staged: list[ObjectInfo]) -> dict[str, ObjectInfo]:
        """Of each file the last write: an earlier one is of a save that was killed."""
        found: dict[str, ObjectInfo] = {}
        for info in sorted(staged, key=lambda info: (info.modified or _LONG_AGO, info.key)):
            _, _, name = info.key[len(self._own) :].partition("/")
            if name and not name.endswith("/"):
                found[name] = info
        return found

    def _create(self, data: bytes, save: str) -> bool:
        body = Body([data], crc32c(data))
        key = self.prefix + _RECORD
        try:
            self._attempt(lambda: self._store.put(key, body, CreateOnly()))
        except ConflictError:
            # lost to another save, or to this request itself, repeated: what the bucket holds decides
            there, _ = self._attempt(lambda: self._store.get(key))
            return self._decoded(there)[0] == save
        return True

    def delete(self) -> None:
        """Delete the folder and all in it, its record first.

        Raises:
            ObjectNotFoundError: there is nothing.
        """
        keys = [info.key for info in self._attempt(lambda: list(self._store.list(self.prefix)))]
        if not keys:
            raise ObjectNotFoundError("there is no such folder", bucket=self._store.bucket, key=self.prefix)
        self._known = None
        self._remove(key for key in keys if key.endswith("/" + _RECORD))
        self._remove(key for key in keys if not key.endswith("/" + _RECORD))

    def delete_staged(self) -> None:
        """Delete what this job staged and is not in the folder."""
        there = {self.prefix + at for at, _ in (self.record() or {}).values()}
        self._remove(info.key for info in self._attempt(self.staged) if info.key not in there)

    def _remove(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        if wanted:
            self._attempt(lambda: self._store.delete(wanted))
