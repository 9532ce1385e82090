"""Options of the core. A backend has its own (``dcp_s3.S3Options``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from dcp_core.errors import ConfigurationError

__all__ = ["GIB", "KIB", "MIB", "LoadOptions", "SaveOptions", "build_options"]

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_T = TypeVar("_T")


@dataclass(frozen=True)
class TransferOptions:
    """What saving and loading share.

    Attributes:
        concurrency: requests in flight at most, for this rank. 8 suits 8 ranks on a node.
        memory: bytes of buffers of ours in flight at most, for this rank, as far as parts of the smallest
            size that the store takes allow; tensors sent from or received into their own memory need none.
        attempts: tries of one request before its error is final.
        deadline: seconds for the whole save or load; ``None`` is no limit.
    """

    concurrency: int = 8
    memory: int = 512 * MIB
    attempts: int = 6
    deadline: float | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "concurrency", "memory", "attempts", "deadline")


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


def _require_positive(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and not (isinstance(value, (int, float)) and value > 0):
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
