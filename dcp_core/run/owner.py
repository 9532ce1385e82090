"""Which job saves to a run: the one that came last.

A job that was killed and started again must not wait for anything, and one that was taken for dead must not
go on. So whoever starts to save puts its name into one object, by a condition on what it found there, and
looks before each commit whether it is still there.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from datetime import datetime, timezone
from typing import Any

from dcp_core.errors import ConflictError, ObjectNotFoundError, RunTakenOverError
from dcp_core.format.checksum import crc32c
from dcp_core.run.layout import OWNER
from dcp_core.seam.body import Body
from dcp_core.seam.location import Location
from dcp_core.seam.store import Condition, CreateOnly, ObjectStore, ReplaceVersion
from dcp_core.transfer.transfer import Transfer

__all__ = ["Owner"]


class Owner:
    """One job's claim to a run. Picklable; the claim is made with the first save."""

    def __init__(self, run: Location) -> None:
        self._run = run
        self._id = secrets.token_hex(8)
        self._claimed = False

    def require(self, store: ObjectStore, transfer: Transfer) -> None:
        """Claim the run, or make sure that it is still this job's.

        Raises:
            RunTakenOverError: another job has claimed it since.
        """
        holder, condition = transfer.attempt(lambda: self._holder(store))
        if holder.get("id") == self._id:
            self._claimed = True
            return
        if self._claimed:
            raise self._taken_over(store, holder)
        self._claim(store, transfer, condition)
        self._claimed = True

    def _holder(self, store: ObjectStore) -> tuple[dict[str, Any], Condition]:
        try:
            data, info = store.get(self._run.key(OWNER))
        except ObjectNotFoundError:
            return {}, CreateOnly()
        try:
            found = json.loads(data)
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}, ReplaceVersion(info.version)

    def _claim(self, store: ObjectStore, transfer: Transfer, condition: Condition) -> None:
        record = json.dumps(
            {
                "id": self._id,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
        ).encode()
        body = Body([record], crc32c(record))
        try:
            transfer.attempt(lambda: store.put(self._run.key(OWNER), body, condition))
        except ConflictError as error:
            # lost to another job, or to this request itself, repeated: what the bucket holds decides
            holder, _ = transfer.attempt(lambda: self._holder(store))
            if holder.get("id") != self._id:
                raise self._taken_over(store, holder) from error

    def _taken_over(self, store: ObjectStore, holder: dict[str, Any]) -> RunTakenOverError:
        return RunTakenOverError(
            f"another job saves to {self._run}: process {holder.get('pid')} on {holder.get('host')}, since "
            f"{holder.get('since')}. This job stops saving; end one of the two",
            bucket=store.bucket,
            key=self._run.key(OWNER),
        )
