"""Ranks that hand each other elements, in a process group of their own.

Training goes on in the other groups meanwhile, on whatever backend they have; this one is gloo's, of the
ranks that take part, made when there is something to hand over and gone at the end. When a rank fails, its
connections close, and those that wait for it fail too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from dcp_core.errors import PeerFailedError
from dcp_core.runtime.tensor_memory import cpu_buffer

__all__ = ["Exchange"]


class Exchange:
    """Sends and receives between the ranks of one save, as a context.

    Args:
        members: the ranks that take part; for any other there is nothing to do.
        rank: this one.
        ranks: the rank in the default process group of each rank of the save.
        seconds: how long one waits for another.
    """

    def __init__(self, members: Sequence[int], rank: int, ranks: Sequence[int], seconds: float) -> None:
        self._members = members if rank in members else ()
        self._ranks = ranks
        self._timeout = timedelta(seconds=seconds)
        #: The only reference to it: its connections close when it is gone, and nothing else closes them.
        self._group: dist.ProcessGroup | None = None

    def __enter__(self) -> Exchange:
        if self._members:
            self._group = dist.new_group(
                [self._ranks[member] for member in self._members],
                timeout=self._timeout,
                backend="gloo",
                use_local_synchronization=True,
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if self._group is None:
            return
        try:
            if kind is None:
                # a connection that closes early could take with it what was not read yet
                self._try("another rank", None, lambda: dist.barrier(self._group))
        finally:
            dist.destroy_process_group(self._group)
            self._group = None

    def send(self, message: torch.Tensor, rank: int) -> None:
        """Send bytes to ``rank``, which receives as many."""
        self._try(f"rank {rank}", rank, lambda: dist.send(message, self._ranks[rank], group=self._group))

    def receive(self, size: int, rank: int) -> torch.Tensor:
        """``size`` bytes from ``rank``."""
        message = cpu_buffer(size)
        self._try(f"rank {rank}", rank, lambda: dist.recv(message, self._ranks[rank], group=self._group))
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
