"""One rank asks the bucket, the others are told: a job must not send a request a rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from dcp_core.errors import CloudCheckpointError

__all__ = ["is_first_rank", "told_by_first_rank", "world_size"]

_T = TypeVar("_T")


def is_first_rank() -> bool:
    """Whether this is the rank that looks, saves the record and deletes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def world_size() -> int:
    """Ranks of the job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def told_by_first_rank(ask: Callable[[], _T]) -> _T:
    """What ``ask`` returns, or raises, on the first rank; on every rank.

    Raises:
        CloudCheckpointError: of the first rank.
    """
    if world_size() == 1:
        return ask()
    told: list[tuple[_T | None, CloudCheckpointError | None]] = [(None, None)]
    if is_first_rank():
        told = [_outcome(ask)]
    dist.broadcast_object_list(told, src=0)
    value, error = told[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def _outcome(ask: Callable[[], _T]) -> tuple[_T | None, CloudCheckpointError | None]:
    try:
        return ask(), None
    except CloudCheckpointError as error:
        return None, error.at_rank(0)
    # the others wait to be told, whatever it is
    except Exception as error:  # noqa: BLE001
        told = CloudCheckpointError(f"{type(error).__name__}: {error}")
        told.__cause__ = error
        return None, told.at_rank(0)
