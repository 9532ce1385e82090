"""What goes wrong with every store of HTTP, as our class of error and what to do about it."""

from __future__ import annotations

from typing import NamedTuple

from dcp_core.errors import (
    BucketNotFoundError,
    CheckpointCorruptError,
    CloudCheckpointError,
    ConfigurationError,
    ConflictError,
    ObjectNotFoundError,
    PermissionDeniedError,
    ThrottledError,
    TransientError,
    UnsupportedError,
)


class Verdict(NamedTuple):
    """Our class for an error of a store, and what the user can do.

    Attributes:
        renew: other credentials may help: look for them once more before it is final.
        denied: the store knows the caller; what is missing is a permission for this request.
    """

    kind: type[CloudCheckpointError]
    advice: str
    renew: bool = False
    denied: bool = False


NO_BUCKET = Verdict(BucketNotFoundError, "the bucket does not exist: create it or correct the URL")
BAD_BUCKET_NAME = Verdict(BucketNotFoundError, "this is not a valid bucket name: correct the URL")
GONE = Verdict(ObjectNotFoundError, "the object does not exist")
UPLOAD_GONE = Verdict(ObjectNotFoundError, "the multipart upload does not exist: finished or aborted")
CHANGED = Verdict(ConflictError, "another writer changed the object first")
OUT_OF_RANGE = Verdict(CheckpointCorruptError, "the object ends before the range that the record names")

SLOW_DOWN = Verdict(ThrottledError, "the server asks for fewer requests")
OVERLOADED = Verdict(ThrottledError, "the server is overloaded")
INTERNAL = Verdict(TransientError, "the server had an internal error")
WAITED = Verdict(TransientError, "the server waited too long for bytes")
TOO_FEW_BYTES = Verdict(TransientError, "the server received too few bytes")
PART_LOST = Verdict(TransientError, "the store lost a part")
DAMAGED = Verdict(TransientError, "the bytes changed on their way to the store")

WANTS_CREDENTIALS = Verdict(PermissionDeniedError, "the store wants credentials")
WRONG_CLOCK = Verdict(ConfigurationError, "this machine's clock is wrong by minutes: set it")
NOT_ALLOWED = Verdict(UnsupportedError, "the server does not allow this operation")
NO_CONDITIONS = Verdict(
    UnsupportedError,
    "the store lacks a feature that this request uses. If it lacks conditional writes, set "
    "conditional_commit=False (the last of two concurrent saves then wins)",
)
TOO_LARGE = Verdict(UnsupportedError, "the object or part is larger than the store allows")
TOO_SMALL = Verdict(ConfigurationError, "parts are smaller than the store allows: raise part_size")
REFUSED = Verdict(ConfigurationError, "the server refused the request")

UNEXPECTED = Verdict(
    UnsupportedError,
    "the response is not what the store's API promises: the endpoint is another one, or something on the way "
    "changes responses",
)

UNTRUSTED = Verdict(
    ConfigurationError,
    "the server's certificate is not trusted: set ca_bundle=, or correct the endpoint",
)
TLS_FAILED = Verdict(TransientError, "the TLS connection failed")
UNREACHABLE = Verdict(TransientError, "the endpoint could not be reached")
STALLED = Verdict(TransientError, "no byte moved within stall_timeout")
BROKEN = Verdict(TransientError, "the connection broke")
ENDED_EARLY = Verdict(TransientError, "the response ended early")
UNREADABLE_FILE = Verdict(ConfigurationError, "a local file cannot be read", renew=True)
SDK_FAILED = Verdict(ConfigurationError, "the SDK failed")
