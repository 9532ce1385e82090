"""Every error this library raises, grouped by what a caller would do about it.

::

    CloudCheckpointError
    ├── TransientError               try again later
    │   ├── ThrottledError             the store asked us to slow down
    │   ├── DeadlineExceededError      the operation's own deadline passed
    │   └── CommitUncertainError       the save may have been committed, or may yet be: load to see
    ├── PeerFailedError              see what happened to the rank it names
    ├── ConfigurationError           fix the configuration
    │   ├── InvalidLocationError       the URL itself
    │   ├── UnknownSchemeError         no installed backend serves the URL's scheme
    │   ├── AmbiguousSchemeError       several installed distributions claim one scheme
    │   ├── MissingExtraError          the backend's SDK is not installed
    │   ├── CredentialsError           no credentials, or ones the SDK cannot use
    │   └── BucketNotFoundError        the bucket does not exist
    ├── PermissionDeniedError        fix permissions
    ├── ConflictError                another writer was faster
    │   ├── RunTakenOverError          another job saves to the run by now
    │   └── CheckpointExistsError      a committed checkpoint is there and must not be replaced
    ├── UnsupportedError             what was asked for cannot be done
    │   └── UnsupportedTensorError     a tensor of a kind that cannot be saved or loaded
    ├── ObjectNotFoundError          one object is absent
    └── CheckpointError              the checkpoint itself
        ├── CheckpointNotFoundError    nothing committed is there
        ├── CheckpointIncompleteError  planned and written, or planned and read, data differ
        ├── CheckpointCorruptError     committed, but its bytes are not what was written
        ├── CheckpointReplacedError    replaced by another save while it was being read
        └── UntrustedDataError         loading it would run code that it does not need

Where Python has an error for the same thing, ours is one too: ``FileNotFoundError``, ``FileExistsError``,
``PermissionError``, ``TimeoutError``, ``ValueError``, ``ImportError``.

Errors cross rank boundaries by pickle (torch gathers them), so every field survives pickling; the
underlying exception is chained with ``from`` locally and named in the message for the other ranks.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AmbiguousSchemeError",
    "BucketNotFoundError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointIncompleteError",
    "CheckpointNotFoundError",
    "CheckpointReplacedError",
    "CloudCheckpointError",
    "CommitUncertainError",
    "ConfigurationError",
    "ConflictError",
    "CredentialsError",
    "DeadlineExceededError",
    "InvalidLocationError",
    "MissingExtraError",
    "ObjectNotFoundError",
    "PeerFailedError",
    "PermissionDeniedError",
    "RunTakenOverError",
    "ThrottledError",
    "TransientError",
    "UnknownSchemeError",
    "UnsupportedError",
    "UnsupportedTensorError",
    "UntrustedDataError",
]


class CloudCheckpointError(Exception):
    """Base of all errors of this library. Its ``code`` does not change between releases.

    Attributes:
        message: what happened and what to do, without the fields below.
        bucket: bucket or container, where one is involved.
        key: object key, where one is involved.
        rank: rank that failed, once known.
        request_id: the cloud's own id of the failed request, for a support ticket.
    """

    code: ClassVar[str] = "cloud_checkpoint"

    def __init__(
        self,
        message: str,
        *,
        bucket: str | None = None,
        key: str | None = None,
        rank: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.bucket = bucket
        self.key = key
        self.rank = rank
        self.request_id = request_id

    def at_rank(self, rank: int) -> CloudCheckpointError:
        """Record the failing rank, unless an inner layer already did; returns ``self``."""
        if self.rank is None:
            self.rank = rank
        return self

    def __str__(self) -> str:
        fields = {
            "bucket": self.bucket,
            "key": self.key,
            "rank": self.rank,
            "request id": self.request_id,
        }
        known = ", ".join(f"{name} {value!r}" for name, value in fields.items() if value is not None)
        return f"{self.message} [{known}]" if known else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))


def _rebuild(cls: type[CloudCheckpointError], message: str, fields: dict[str, Any]) -> CloudCheckpointError:
    error = cls(message)
    error.__dict__.update(fields)
    return error


class TransientError(CloudCheckpointError):
    """A request failed in a way that a later one may not: connection lost or stalled, server error.

    It was tried again for as long as ``retry_timeout`` and ``deadline`` allow. Look for an outage of the
    store or of the network between; then save or load again.

    Attributes:
        retry_after: seconds that the store wants to be left alone for, if it says so
            (``Retry-After``, RFC 9110, section 10.2.3).
    """

    code = "transient"

    def __init__(self, message: str, *, retry_after: float | None = None, **where: Any) -> None:
        super().__init__(message, **where)
        self.retry_after = retry_after


class ThrottledError(TransientError):
    """The store asked for fewer requests (503 SlowDown, 429).

    Use a smaller ``concurrency``, fewer jobs at once, or a prefix of its own for each job.
    """

    code = "throttled"


class DeadlineExceededError(TransientError, TimeoutError):
    """The ``deadline`` of the whole save or load passed.

    Raise ``deadline``, or look for the slow store or rank that the log names.
    """

    code = "deadline_exceeded"


class CommitUncertainError(TransientError):
    """The store did not say whether the commit record was written, and may write it yet.

    The checkpoint that was there before, or the one that was saved, is at the URL, and whole. Load to see
    which, or save again: a save that succeeds is not undone by this one.
    """

    code = "commit_uncertain"


class PeerFailedError(CloudCheckpointError):
    """Another rank failed, and this one stopped because of it; nothing is wrong with this rank.

    ``bucket`` and ``key`` are those of the other rank's failure. Look at that failure: it stands in
    ``CheckpointException.failures`` under ``failed_rank``, and says whether to try again.

    Attributes:
        failed_rank: the rank that failed.
    """

    code = "peer_failed"

    def __init__(self, message: str, *, failed_rank: int | None = None, **where: Any) -> None:
        super().__init__(message, **where)
        self.failed_rank = failed_rank


class ConfigurationError(CloudCheckpointError, ValueError):
    """An option, the environment or the installation is wrong.

    The message names what to change.
    """

    code = "configuration"


class InvalidLocationError(ConfigurationError):
    """The URL cannot name a checkpoint.

    Pass ``scheme://bucket/prefix`` as a string; ``pathlib`` drops one of the slashes.
    """

    code = "invalid_location"


class UnknownSchemeError(ConfigurationError):
    """No installed backend serves the URL's scheme.

    Install the extra that the message names, or correct the scheme.
    """

    code = "unknown_scheme"


class AmbiguousSchemeError(ConfigurationError):
    """More than one installed distribution claims the URL's scheme.

    Uninstall all but one of them.
    """

    code = "ambiguous_scheme"


class MissingExtraError(ConfigurationError, ImportError):
    """The backend is known, but its SDK is not installed.

    Run the ``pip install`` of the message.
    """

    code = "missing_extra"


class CredentialsError(ConfigurationError):
    """The SDK found no usable credentials.

    Log in with the cloud's own tool, set its variables, or pass credentials as options.
    """

    code = "credentials"


class BucketNotFoundError(ConfigurationError, FileNotFoundError):
    """The bucket or container does not exist.

    Create it, or correct the URL; buckets are never created here.
    """

    code = "bucket_not_found"


class PermissionDeniedError(CloudCheckpointError, PermissionError):
    """The credentials are known but may not do this (401, 403).

    Extend their policy: the page of permissions lists what each operation needs.

    Attributes:
        denied: the store knows the caller and misses a permission for this request, rather than refusing
            the credentials as such. Stores say so of an absent object too where the caller may not list.
    """

    code = "permission_denied"

    def __init__(self, message: str, *, denied: bool = False, **where: Any) -> None:
        super().__init__(message, **where)
        self.denied = denied


class ConflictError(CloudCheckpointError):
    """A condition failed: another writer changed the object first.

    Two jobs save to one URL. The checkpoint that is there is whole; find out which job should be saving.
    """

    code = "conflict"


class RunTakenOverError(ConflictError):
    """Another job has begun to save to the same run.

    The job that came last goes on. End this one, or give it a run of its own.
    """

    code = "run_taken_over"


class CheckpointExistsError(ConflictError, FileExistsError):
    """``overwrite=False``, and a committed checkpoint is already there.

    Save to another URL, or with ``overwrite=True``.
    """

    code = "checkpoint_exists"


class UnsupportedError(CloudCheckpointError):
    """The store, or this release of torch, cannot do what was asked.

    The message names the option that does without it, where there is one.
    """

    code = "unsupported"


class UnsupportedTensorError(UnsupportedError):
    """A tensor of the state dict is of a kind that cannot be saved, or cannot be loaded into.

    Sparse, nested, meta and fake tensors are, expanded ones as targets, and any whose storage was freed. The
    message names the tensor. Put a dense one in its place: ``tensor.to_dense()`` or ``tensor.clone()``.
    """

    code = "unsupported_tensor"


class ObjectNotFoundError(CloudCheckpointError, FileNotFoundError):
    """The object does not exist.

    Raised where you name objects yourself; a missing checkpoint is a ``CheckpointNotFoundError``.
    """

    code = "object_not_found"


class CheckpointError(CloudCheckpointError):
    """Something about the checkpoint, rather than about one request.

    The errors below say what.
    """

    code = "checkpoint"


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No committed checkpoint is at this URL.

    The message says what is there instead, such as an unfinished save. Correct the URL, or load another step.
    """

    code = "checkpoint_not_found"


class CheckpointIncompleteError(CheckpointError):
    """What was written, or read, does not match what was planned; a save was not committed.

    A planner left items out or changed them, or a tensor was resized during the save.
    """

    code = "checkpoint_incomplete"


class CheckpointCorruptError(CheckpointError):
    """Committed data is missing, too short, or fails its checksum.

    Load another checkpoint; ``dcp-cloud verify`` lists everything that is damaged.
    """

    code = "checkpoint_corrupt"


class CheckpointReplacedError(CheckpointError):
    """Another save replaced the checkpoint during this load.

    Load again.
    """

    code = "checkpoint_replaced"


class UntrustedDataError(CheckpointError):
    """Loading the data would run code that checkpoints do not need.

    Admit the types with ``torch.serialization.add_safe_globals``, or all of them with ``weights_only=False``
    if you trust whoever can write to the bucket.
    """

    code = "untrusted_data"
