"""When a failed load may be tried with another step."""

from __future__ import annotations

from torch.distributed.checkpoint.api import CheckpointException

from dcp_core.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointReplacedError,
    CloudCheckpointError,
)

__all__ = ["damage_of"]

#: The checkpoint itself is not whole, or is gone: trying again gives the same.
_DAMAGE = (CheckpointCorruptError, CheckpointNotFoundError, CheckpointReplacedError)


def damage_of(error: BaseException) -> CloudCheckpointError | None:
    """The first rank's error, if all of a failed load's errors say that the checkpoint itself is damaged.

    torch gives every rank the same errors, so all of them decide alike.
    """
    if not isinstance(error, CheckpointException):
        return None
    causes = [cause for _, (cause, _) in sorted(error.failures.items())]
    damage = [cause for cause in causes if isinstance(cause, _DAMAGE)]
    return damage[0] if damage and len(damage) == len(causes) else None
