"""What torch keeps for each thread by itself, taken over from a caller into the threads that work for it.

A save or load does in threads of its own what stock torch does in the caller's: it fills tensors and calls
the planner. A caller in ``torch.inference_mode()``, with a default device, or on a stream of its own means
that work as well.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import torch

from dcp_core.runtime.torch_private import current_accelerator, default_device_mode, has_foreign_modes

__all__ = ["CallerModes"]

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class CallerModes:
    """The modes of the thread that made this, by :meth:`of_this_thread`.

    Attributes:
        portable: whether other threads can have the same modes. Dispatch and function modes, such as
            ``FakeTensorMode`` or one of the user's own, keep state that only their own thread may touch; with
            one of those active, what the caller asks for has to be done in the caller's thread.
    """

    portable: bool
    inference: bool
    grad: bool
    #: device type → dtype, of each device type with autocast
    autocast: dict[str, torch.dtype]
    device: torch.device | None
    stream: torch.Stream | None

    @classmethod
    def of_this_thread(cls) -> CallerModes:
        return cls(
            portable=not has_foreign_modes(),
            inference=torch.is_inference_mode_enabled(),
            grad=torch.is_grad_enabled(),
            autocast=_autocast(),
            device=default_device_mode(),
            stream=_stream(),
        )

    def bind(self, work: Callable[[], _R]) -> Callable[[], _R]:
        """``work`` under these modes and a copy of this thread's context variables, for one other thread."""
        context = contextvars.copy_context()
        return lambda: context.run(self._under, work)

    def _under(self, work: Callable[[], _R]) -> _R:
        if self.stream is not None:
            # and the stream's device with it: without, a thread works on device 0
            torch.accelerator.set_stream(self.stream)
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(self.inference))
            modes.enter_context(torch.set_grad_enabled(self.grad))
            for device_type, dtype in self.autocast.items():
                modes.enter_context(torch.autocast(device_type, dtype))
            if self.device is not None:
                modes.enter_context(self.device)
            return work()


def _autocast() -> dict[str, torch.dtype]:
    accelerator = current_accelerator()
    types = ("cpu",) if accelerator is None else ("cpu", accelerator.type)
    return {name: torch.get_autocast_dtype(name) for name in types if torch.is_autocast_enabled(name)}


def _stream() -> torch.Stream | None:
    """The current stream, if this process uses an accelerator."""
    accelerator = current_accelerator()
    if accelerator is None:
        return None
    initialized: Callable[[], bool] | None = getattr(
        torch.get_device_module(accelerator), "is_initialized", None
    )
    return torch.accelerator.current_stream() if initialized is not None and initialized() else None
