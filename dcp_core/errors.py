"""Every error this library raises, grouped by what a caller would do about it.

::

    CloudCheckpointError
    ├── TransientError               try again later
    │   ├── ThrottledError             the store asked us to slow down
    │   └── DeadlineExceededError      the operation's own deadline passed
    ├── ConfigurationError           fix the configuration
    │   ├── InvalidLocationError       the URL itself
    │   ├── UnknownSchemeError         no installed backend serves the URL's scheme
    │   ├── AmbiguousSchemeError       several installed distributions claim one scheme
    │   ├── MissingExtraError          the backend's SDK is not installed
    │   ├── CredentialsError           no credentials, or ones the SDK cannot use
    │   └── BucketNotFoundError        the bucket does not exist
    ├── PermissionDeniedError        fix permissions
    ├── ConflictError                another writer was faster
    │   └── CheckpointExistsError      a committed checkpoint is there and must not be replaced
    ├── UnsupportedError             the store lacks a feature
    ├── ObjectNotFoundError          one object is absent
    └── CheckpointError              the checkpoint itself
        ├── CheckpointNotFoundError    nothing committed is there
        ├── CheckpointIncompleteError  planned and written data differ: not committed
        ├── CheckpointCorruptError     committed, but its bytes are not what was written
        ├── CheckpointReplacedError    replaced by another save while it was being read
        └── UntrustedDataError         loading it would run code that it does not need

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
    "ConfigurationError",
    "ConflictError",
    "CredentialsError",
    "DeadlineExceededError",
    "InvalidLocationError",
    "MissingExtraError",
    "ObjectNotFoundError",
    "PermissionDeniedError",
    "ThrottledError",
    "TransientError",
    "UnknownSchemeError",
    "UnsupportedError",
    "UntrustedDataError",
]


class CloudCheckpointError(Exception):
    """Base of all errors of this library.

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
    """A later attempt may succeed: connection lost, stalled, server error."""

    code = "transient"


class ThrottledError(TransientError):
    """The store asked for fewer requests (503 SlowDown, 429)."""

    code = "throttled"


class DeadlineExceededError(TransientError):
    """The deadline of the whole save or load passed."""

    code = "deadline_exceeded"


class ConfigurationError(CloudCheckpointError):
    """An option, the environment or the installation has to change."""

    code = "configuration"


class InvalidLocationError(ConfigurationError):
    """The URL cannot name a checkpoint."""

    code = "invalid_location"


class UnknownSchemeError(ConfigurationError):
    """No installed backend serves the URL's scheme."""

    code = "unknown_scheme"


class AmbiguousSchemeError(ConfigurationError):
    """More than one installed distribution claims the URL's scheme."""

    code = "ambiguous_scheme"


class MissingExtraError(ConfigurationError):
    """The backend is known but its SDK is not installed."""

    code = "missing_extra"


class CredentialsError(ConfigurationError):
    """The SDK found no usable credentials."""

    code = "credentials"


class BucketNotFoundError(ConfigurationError):
    """The bucket or container does not exist."""

    code = "bucket_not_found"


class PermissionDeniedError(CloudCheckpointError):
    """The credentials are known but may not do this (401, 403)."""

    code = "permission_denied"


class ConflictError(CloudCheckpointError):
    """A condition failed: another writer changed the object first."""

    code = "conflict"


class CheckpointExistsError(ConflictError):
    """``overwrite=False`` and a committed checkpoint is already there."""

    code = "checkpoint_exists"


class UnsupportedError(CloudCheckpointError):
    """The store does not implement what was asked."""

    code = "unsupported"


class ObjectNotFoundError(CloudCheckpointError):
    """The object does not exist."""

    code = "object_not_found"


class CheckpointError(CloudCheckpointError):
    """Something about the checkpoint, rather than about one request."""

    code = "checkpoint"


class CheckpointNotFoundError(CheckpointError):
    """No committed checkpoint is at this URL."""

    code = "checkpoint_not_found"


class CheckpointIncompleteError(CheckpointError):
    """Written results do not match the plan; the checkpoint was not committed."""

    code = "checkpoint_incomplete"


class CheckpointCorruptError(CheckpointError):
    """Committed data is missing, too short, or fails its checksum."""

    code = "checkpoint_corrupt"


class CheckpointReplacedError(CheckpointError):
    """Another save replaced the checkpoint during this load; load again."""

    code = "checkpoint_replaced"


class UntrustedDataError(CheckpointError):
    """The data asks to run code beyond what checkpoints need; opt in only if its writer is trusted."""

    code = "untrusted_data"
