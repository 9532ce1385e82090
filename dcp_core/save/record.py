"""One commit record, written under a condition, and what became of it.

A response tells what happened to one delivery of a request, and the network may deliver a request twice, or
late, or lose its response. So a refusal does not prove that the record was not written, and after an error it
may still be. What the bucket holds decides: after any refusal the record is read back and compared, byte for
byte, with what was to be written, which no other save writes: it has this save's own id. See decision 11.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dcp_core.errors import (
    CloudCheckpointError,
    CommitUncertainError,
    ConflictError,
    ObjectNotFoundError,
    PermissionDeniedError,
    TransientError,
    UnsupportedError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.seam.store import Body, Condition, ObjectStore, ReplaceVersion
from dcp_core.transfer import Transfer

__all__ = ["Found", "RecordWrite"]

#: How often a store may refuse a condition that holds.
_UNFOUNDED = 3


@dataclass(frozen=True)
class Found:
    """What the bucket holds in place of the record.

    Attributes:
        data: the record that is there; ``None`` where none is.
        holds: whether the condition of the write holds.
        final: whether it can never hold again, so that no request which is still on its way can write the
            record.
    """

    data: bytes | None
    holds: bool
    final: bool


@dataclass
class RecordWrite:
    """Writes ``record`` at ``key`` if ``condition`` holds."""

    store: ObjectStore
    key: str
    record: bytes
    condition: Condition | None
    transfer: Transfer
    _sent: bool = field(default=False, init=False)
    _unfounded: int = field(default=0, init=False)

    def run(self) -> Found | None:
        """``None`` once the bucket has held the record; otherwise what it holds.

        Raises:
            CommitUncertainError: whether the record was or will be written cannot be told.
            CloudCheckpointError: the store refuses the write for another reason than its condition.
        """
        body = Body([self.record], crc32c(self.record))
        try:
            return self.transfer.attempt(lambda: self._write(body))
        except CloudCheckpointError as error:
            if not self._sent:
                raise
            return self._last_word(error)

    def _write(self, body: Body) -> Found | None:
        self._sent = True
        try:
            self.store.put(self.key, body, self.condition)
        except (ConflictError, ObjectNotFoundError) as refusal:
            return self._refused(refusal)
        return None

    def _refused(self, refusal: CloudCheckpointError) -> Found | None:
        try:
            found = self._look()
        except PermissionDeniedError as denied:
            raise PermissionDeniedError(
                "a commit record is there already and may not be read: to replace a checkpoint, permission "
                f"to read objects is needed ({denied.message})",
                bucket=self.store.bucket,
                key=self.key,
            ) from denied
        if found.data == self.record:
            return None
        if not found.holds:
            return found
        self._unfounded += 1
        kind = TransientError if self._unfounded < _UNFOUNDED else UnsupportedError
        raise kind(
            f"the store refuses a conditional write whose condition holds ({refusal.message}); if it never "
            "takes one, set conditional_commit=False (the last of two concurrent saves then wins)",
            bucket=self.store.bucket,
            key=self.key,
        ) from refusal

    def _look(self) -> Found:
        """What the bucket holds, from one request."""
        try:
            data, info = self.store.get(self.key)
        except ObjectNotFoundError:
            return Found(None, not isinstance(self.condition, ReplaceVersion), final=False)
        if self.condition is None:
            return Found(data, holds=True, final=False)
        # Every write of a record is conditional, and each record has its own bytes, hence its own version:
        # a version that was replaced does not come back.
        held = isinstance(self.condition, ReplaceVersion) and self.condition.version == info.version
        return Found(data, held, final=not held)

    def _last_word(self, error: CloudCheckpointError) -> Found | None:
        """What the bucket says after the last attempt failed."""
        try:
            found = self.transfer.cleanup(self._look)
        except CloudCheckpointError:
            found = None
        if found is not None and found.data == self.record:
            return None
        if not isinstance(error, TransientError):
            raise error
        if found is not None and found.final:
            return found
        raise CommitUncertainError(
            f"the store did not say whether the commit was done ({error.message}). {self._account(found)} "
            "Load to see which checkpoint is there; either is whole. Data that nothing refers to stays until "
            "`dcp-cloud gc`",
            bucket=self.store.bucket,
            key=self.key,
        ) from error

    def _account(self, found: Found | None) -> str:
        if found is None:
            return "What the bucket holds could not be read either."
        now = "no commit record" if found.data is None else "another commit record"
        return f"It holds {now} now, and a request that is still on its way may write this one."
