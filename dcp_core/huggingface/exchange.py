"""Ranks that hand each other elements, in a process group of their own.

Training goes on in the other groups meanwhile, on whatever backend they have; this one is gloo's, of the
ranks that take part, made when there is something to hand over and gone at the end. When a rank fails, its
connections close, and those that wait for it fail too.

The group is not one of ``new_group``: with ``use_local_synchronization`` that names a group
after its ranks, so that the next one of the same ranks finds the addresses of the last in the store and waits
for connections that nobody makes. This one meets under the name of the export, which no other has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dcp_core.errors import PeerFailedError, UnsupportedError
from dcp_core.runtime.tensor_memory import cpu_buffer
from dcp_core.runtime.torch_private import default_store

__all__ = ["Exchange"]


class Exchange:
    """Sends and receives between the ranks of one save, as a context.

    Args:
        members: the ranks that take part; for any other there is nothing to do.
        rank: this one.
        name: of the save; no other has it.
        seconds: how long one waits for another.
    """

    def __init__(self, members: Sequence[int], rank: int, name: str, seconds: float) -> None:
        self._members = list(members) if rank in members else []
        self._rank = rank
        self._name = name
        self._timeout = timedelta(seconds=seconds)
        #: The only reference to it: its connections close when it is gone, and nothing else closes them.
        self._group: Any = None

    def __enter__(self) -> Exchange:
        if self._members:
            store = default_store()
            if store is None:
                raise UnsupportedError(
                    "rows are exchanged through the store of the default process group, "
                    "and it has none: save each tensor whole from one rank"
                )
            meeting = dist.PrefixStore(f"dcp_cloud/rows/{self._name}", store)  # type: ignore[attr-defined]
            place = self._members.index(self._rank)
            self._try("another rank", None, lambda: self._meet(meeting, place))
        return self

    def _meet(self, meeting: Any, place: int) -> None:
        self._group = dist.ProcessGroupGloo(meeting, place, len(self._members), timeout=self._timeout)

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if self._group is None:
            return
        try:
            if kind is None:
                # a connection that closes early could take with it what was not read yet
                self._try("another rank", None, lambda: self._group.barrier().wait())
        finally:
            self._group = None

    def send(self, message: torch.Tensor, rank: int) -> None:
        """Send bytes to ``rank``, which receives as many."""
        to = self._members.index(rank)
        self._try(f"rank {rank}", rank, lambda: self._group.send([message], to, 0).wait())

    def receive(self, size: int, rank: int) -> torch.Tensor:
        """``size`` bytes from ``rank``."""
        message, sender = cpu_buffer(size), self._members.index(rank)
        self._try(f"rank {rank}", rank, lambda: self._group.recv([message], sender, 0).wait())
        return message

    def _try(self, name: str, rank: int | None, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:
            # frames of its traceback refer to the group
            cause = error.with_traceback(None)
        else:
            return
        raise PeerFailedError(
            f"stopped because rows could not be exchanged with {name}: did it fail? ({cause})",
            failed_rank=rank,
        ) from cause
