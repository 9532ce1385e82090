"""The writer as a stager of ``dcp.async_save(..., async_stager=writer)``, as ``FileSystemWriter`` is."""

from __future__ import annotations

from typing import Any

from dcp_core.runtime.torch_private import staged_copy

__all__ = ["Stages"]


class Stages:
    """What torch asks of an ``AsyncStager``; its ``close`` is the writer's.

    torch takes a writer with these methods as the stager of its saves unless another one is given, so what
    they do is what torch's own stager does then: each save gets a copy of its own, which no later save
    changes, and the copy is complete when ``async_save`` returns.
    """

    # torch looks for this one by name; there is nothing to wait for
    _synchronize_after_execute: bool = False

    @property
    def should_synchronize_after_execute(self) -> bool:
        """Whether ``async_save`` has to call :meth:`synchronize_staging`: no."""
        return self._synchronize_after_execute

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A copy of ``state_dict`` in CPU memory, complete on return."""
        return staged_copy(state_dict)

    def synchronize_staging(self) -> None:
        """Nothing: a copy is complete once :meth:`stage` returns."""
