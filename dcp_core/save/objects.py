"""One data object: stored whole in one request, or part by part, or not at all.

A key has its save's own token, so whatever is at it was put there by this save. That settles every response
that was lost or is not what became of the request: an object of the exact size is the one that was sent.

::

    put_whole
    Multipart    start → send each part → finish, or abort
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from dcp_core.errors import (
    CheckpointIncompleteError,
    CloudCheckpointError,
    DeadlineExceededError,
    ObjectNotFoundError,
    PeerFailedError,
    TransientError,
)
from dcp_core.seam.store import Body, ObjectInfo, ObjectStore, Part, Upload
from dcp_core.transfer import Transfer
from dcp_core.transfer.clock import SYSTEM_CLOCK

__all__ = ["Multipart", "put_whole"]

logger = logging.getLogger("dcp_core")

#: How often an upload may be gone without an object in its place: a first request to finish it may be under
#: way still.
_GONE = 3
#: Seconds for parts to arrive that were on their way when the upload was given up.
_SETTLING = 1.0


def put_whole(store: ObjectStore, transfer: Transfer, key: str, body: Body) -> ObjectInfo:
    """Store an object in one request.

    Raises:
        CloudCheckpointError: it failed for good.
    """
    try:
        return transfer.attempt(lambda: store.put(key, body))
    except CloudCheckpointError as error:
        return _there_after_all(store, transfer, key, body.size, error)


def _there_after_all(
    store: ObjectStore, transfer: Transfer, key: str, size: int, error: CloudCheckpointError
) -> ObjectInfo:
    """The object that the requests failed to say they stored; raises their ``error`` if it is not there."""
    if isinstance(error, (DeadlineExceededError, PeerFailedError)):
        raise error
    try:
        info = transfer.cleanup(lambda: store.head(key))
    except CloudCheckpointError:
        raise error  # noqa: B904  # that the object is not there says nothing new
    if info.size != size:
        raise error
    return info


@dataclass
class Multipart:
    """One multipart upload of the object ``key``: ``upload``, where another rank has started it already."""

    store: ObjectStore
    transfer: Transfer
    key: str
    upload: Upload | None = None
    #: Whether there may be uploads whose ids were lost with the responses.
    _strays: bool = field(default=False, init=False)
    #: Whether parts were sent of which the store said nothing.
    _unanswered: bool = field(default=False, init=False)
    _gone: int = field(default=0, init=False)

    def start(self) -> None:
        self.upload = self.transfer.attempt(self._start)

    def _start(self) -> Upload:
        try:
            return self.store.start_upload(self.key)
        except BaseException as error:
            self._strays |= isinstance(error, TransientError) or not isinstance(error, CloudCheckpointError)
            raise

    def send(self, number: int, body: Body) -> Part:
        return self.transfer.attempt(lambda: self._send(number, body))

    def _send(self, number: int, body: Body) -> Part:
        try:
            return self.store.put_part(self._started, number, body)
        except BaseException:
            self._unanswered = True
            raise

    @property
    def _started(self) -> Upload:
        assert self.upload is not None
        return self.upload

    def finish(self, parts: Sequence[Part]) -> ObjectInfo:
        """Make the object of its parts; ``size`` of the result is the store's word.

        Raises:
            CheckpointIncompleteError: the upload is gone, and no object is in its place.
        """
        size = sum(part.size for part in parts)
        try:
            return self.transfer.attempt(lambda: self._finish(parts))
        except CloudCheckpointError as error:
            return _there_after_all(self.store, self.transfer, self.key, size, error)

    def _finish(self, parts: Sequence[Part]) -> ObjectInfo:
        try:
            return self.store.finish_upload(self._started, parts)
        except ObjectNotFoundError as gone:
            return self._in_its_place(gone)

    def _in_its_place(self, gone: ObjectNotFoundError) -> ObjectInfo:
        """The object, where the upload is gone: a request to finish it was delivered before."""
        try:
            return self.store.head(self.key)
        except ObjectNotFoundError:
            self._gone += 1
        kind = TransientError if self._gone < _GONE else CheckpointIncompleteError
        raise kind(
            "the multipart upload is gone and its object is not there: was it aborted, by a lifecycle rule "
            "of the bucket or by `dcp-cloud gc`?",
            bucket=self.store.bucket,
            key=self.key,
        ) from gone

    def abort(self, reason: BaseException) -> None:
        """Drop what was uploaded; ``reason`` is about to be raised."""
        try:
            if self.upload is not None:
                self._abort(self.upload)
            self._abort_strays()
        except CloudCheckpointError as error:
            logger.warning("the upload of %s stays behind until `dcp-cloud gc`: %s", self.key, error)
            if hasattr(reason, "add_note"):
                reason.add_note(f"the unfinished upload of {self.key!r} could not be aborted: {error}")

    def _abort(self, upload: Upload) -> None:
        self.transfer.cleanup(lambda: self.store.abort_upload(upload))
        if self._unanswered:
            # A part that the store was receiving may come to be there after the abort, and then has to be
            # aborted again: https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html
            SYSTEM_CLOCK.wait(threading.Event(), _SETTLING)
            self.transfer.cleanup(lambda: self.store.abort_upload(upload))

    def tidy(self) -> None:
        """Once the object is there, drop uploads that a lost response to the start left."""
        try:
            self._abort_strays()
        except CloudCheckpointError as error:
            logger.info("uploads of %s may stay behind until `dcp-cloud gc`: %s", self.key, error)

    def _abort_strays(self) -> None:
        if self._strays:
            self.transfer.cleanup(self._find_and_abort)

    def _find_and_abort(self) -> None:
        for info in list(self.store.list_uploads(self.key)):
            if info.upload.key == self.key and info.upload != self.upload:
                self.store.abort_upload(info.upload)
