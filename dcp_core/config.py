"""Options of the core. A backend has its own (``dcp_s3.S3Options``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict, TypeVar

from dcp_core.errors import ConfigurationError

__all__ = [
    "BucketKeywords",
    "BucketOptions",
    "CONNECT_TIMEOUT",
    "GIB",
    "KIB",
    "MIB",
    "ConnectionKeywords",
    "ConnectionOptions",
    "LoadKeywords",
    "LoadOptions",
    "SaveKeywords",
    "SaveOptions",
    "build_options",
]

#: Seconds to wait for a connection, where nothing else is said.
CONNECT_TIMEOUT = 10.0
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
#: What a store's limits are (``dcp_core.seam.store.Limits``).
LIMITS = frozenset({"min_part_size", "max_part_size", "max_parts", "max_object_size", "max_put_size"})

_T = TypeVar("_T")


@dataclass(frozen=True)
class TransferOptions:
    """What saving and loading share.

    Attributes:
        concurrency: requests in flight at most, for this rank. 8 suits 8 ranks on a node.
        memory: bytes of buffers of ours in flight at most, for this rank, as far as parts of the smallest
            size that the store takes allow; tensors sent from or received into their own memory need none.
        retry_timeout: seconds for which a failing request is tried again: its error is final once it has
            failed for that long without any progress. Throttling and outages that are shorter are ridden
            out. 300 is longer than what S3 takes to split a prefix or a service to restart, and shorter than
            the time limit of NCCL's collectives (600), in which the other ranks wait meanwhile.
        attempts: tries of one request before its error is final, if that comes first; ``None`` is any number.
        deadline: seconds for the whole save or load; ``None`` is no limit. A request that is under way then
            is cut.
    """

    concurrency: int = 8
    memory: int = 512 * MIB
    retry_timeout: float = 300.0
    attempts: int | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "concurrency", "memory", "retry_timeout")
        _require_positive(self, "attempts", "deadline", optional=True)


class TransferKeywords(TypedDict, total=False):
    """:class:`TransferOptions` as keywords, for type checkers."""

    concurrency: int
    memory: int
    retry_timeout: float
    attempts: int | None
    deadline: float | None


@dataclass(frozen=True)
class SaveOptions(TransferOptions):
    """Options of every writer.

    Attributes:
        part_size: bytes of one part of a multipart upload, about: parts come out even over the connections,
            take a sixth of ``memory`` at most, about, and grow where an object would need more of them than
            the store allows. Objects up to 16 MiB go in one request.
        overwrite: replace a committed checkpoint at the same URL. ``False`` refuses before any upload.
        conditional_commit: commit with a conditional write, so that of two concurrent saves to one URL one
            wins and the other gets a ``ConflictError``. Switch off only for stores without conditional
            writes: the last writer then wins.
    """

    part_size: int = 64 * MIB
    overwrite: bool = True
    conditional_commit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "part_size")


class SaveKeywords(TransferKeywords, total=False):
    """:class:`SaveOptions` as keywords, for type checkers."""

    part_size: int
    overwrite: bool
    conditional_commit: bool


@dataclass(frozen=True)
class LoadOptions(TransferOptions):
    """Options of every reader.

    Attributes:
        request_size: bytes of one range request, about; fewer where the connections would not be busy.
        gap: unneeded bytes between two needed ranges that are read through rather than skipped with
            another request.
        verify: check the recorded checksums of all whole blocks that are read.
        weights_only: refuse non-tensor items that need more than ``torch.load(weights_only=True)``.
            ``False`` lets whoever can write to the bucket run code in this process.
    """

    request_size: int = 128 * MIB
    gap: int = 64 * KIB
    verify: bool = True
    weights_only: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "request_size")
        if self.gap < 0:
            raise ConfigurationError(f"gap must not be negative, got {self.gap!r}")


class LoadKeywords(TransferKeywords, total=False):
    """:class:`LoadOptions` as keywords, for type checkers."""

    request_size: int
    gap: int
    verify: bool
    weights_only: bool


@dataclass(frozen=True)
class ConnectionOptions:
    """What every backend on HTTP has.

    Attributes:
        connect_timeout: seconds to wait for a connection; ``None`` is what the SDK is configured with, or 10.
        stall_timeout: seconds without a byte moved after which a request is cut and tried again.
        ca_bundle: file of certificate authorities; ``None`` is the SDK's choice.
        verify_tls: ``False`` accepts any certificate, for tests.
    """

    connect_timeout: float | None = None
    stall_timeout: float = 30.0
    ca_bundle: str | None = None
    verify_tls: bool = True

    def __post_init__(self) -> None:
        _require_positive(self, "stall_timeout")
        _require_positive(self, "connect_timeout", optional=True)

    @property
    def connect_seconds(self) -> float:
        """``connect_timeout``, where no SDK has a say in it."""
        return CONNECT_TIMEOUT if self.connect_timeout is None else self.connect_timeout


class ConnectionKeywords(TypedDict, total=False):
    """:class:`ConnectionOptions` as keywords, for type checkers."""

    connect_timeout: float | None
    stall_timeout: float
    ca_bundle: str | None
    verify_tls: bool


@dataclass(frozen=True)
class BucketOptions(ConnectionOptions):
    """What every backend has whose stores can be written.

    Attributes:
        limits: for stores that differ from the cloud's own: ``min_part_size``, ``max_part_size``,
            ``max_parts``, ``max_object_size``, ``max_put_size`` → bytes, or the count of parts.
    """

    limits: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (self.limits or {}).items():
            if name not in LIMITS:
                raise ConfigurationError(f"limits has no {name!r}; it has {', '.join(sorted(LIMITS))}")
            if not (isinstance(value, int) and value > 0):
                raise ConfigurationError(f"limits: {name} must be a positive whole number, got {value!r}")


class BucketKeywords(ConnectionKeywords, total=False):
    """:class:`BucketOptions` as keywords, for type checkers."""

    limits: Mapping[str, int] | None


def _require_positive(options: object, *names: str, optional: bool = False) -> None:
    for name in names:
        value = getattr(options, name)
        if value is None and optional:
            continue
        if not (isinstance(value, (int, float)) and value > 0):
            raise ConfigurationError(f"{name} must be a positive number, got {value!r}")


def build_options(given: Mapping[str, Any], *kinds: type[_T]) -> tuple[_T, ...]:
    """Share out keyword options among option dataclasses by field name.

    Raises:
        ConfigurationError: a name that none of ``kinds`` has; the message lists those they do.
    """
    names = {kind: {field.name for field in fields(kind)} for kind in kinds}  # type: ignore[arg-type]
    known = set().union(*names.values())
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigurationError(
            f"unknown option {', '.join(map(repr, unknown))}; known options: {', '.join(sorted(known))}"
        )
    return tuple(
        kind(**{name: value for name, value in given.items() if name in names[kind]}) for kind in kinds
    )
