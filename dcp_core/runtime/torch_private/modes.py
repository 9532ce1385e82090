"""Tensors, modes and devices: what the calling thread has, and what a tensor is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch

try:
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
except ImportError:
    AsyncCollectiveTensor = None  # type: ignore[assignment,misc]

__all__ = [
    "changes_operations",
    "current_accelerator",
    "default_device_mode",
    "has_foreign_modes",
    "is_fake",
    "on_stream",
    "subclasses_off",
    "waited_for",
    "without_modes",
]


def waited_for(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` itself, or what it wraps once the collective that brings it is done."""
    if AsyncCollectiveTensor is not None and isinstance(tensor, AsyncCollectiveTensor):
        return tensor.wait()
    return tensor


def current_accelerator() -> torch.device | None:
    """The kind of accelerator that this torch was built for, if one is there."""
    try:
        return torch.accelerator.current_accelerator()
    # where none is: 2.6 alone raises
    except RuntimeError:
        return None


@contextmanager
def on_stream(stream: torch.Stream) -> Iterator[None]:
    """Queue work on ``stream`` of its device."""
    if hasattr(stream, "__enter__"):
        with stream:
            yield
        return
    accelerator: Any = torch.accelerator
    device, before = accelerator.current_device_idx(), accelerator.current_stream(stream.device)
    accelerator.set_stream(stream)
    try:
        yield
    finally:
        accelerator.set_stream(before)
        accelerator.set_device_idx(device)


def default_device_mode() -> torch.device | None:
    """The device that ``torch.set_default_device`` or ``with torch.device(…)`` set in this thread.

    ``None`` where there is none, or the name is gone: :func:`has_foreign_modes` then counts it among those.
    """
    for mode in _function_modes():
        if type(mode).__name__ == "DeviceContext":
            device: torch.device | None = getattr(mode, "device", None)
            return device
    return None


def has_foreign_modes() -> bool:
    """Whether a ``TorchDispatchMode`` is active in this thread, or a ``TorchFunctionMode`` that is not the
    default device.

    ``False`` where the names are gone: work of other threads then goes past such modes.
    """
    dispatch = getattr(torch._C, "_len_torch_dispatch_stack", None)
    if dispatch is not None and dispatch():
        return True
    modes = _function_modes()
    return len(modes) > (default_device_mode() is not None)


def _function_modes() -> list[Any]:
    length = getattr(torch._C, "_len_torch_function_stack", None)
    item = getattr(torch._C, "_get_function_stack_at", None)
    if length is None or item is None:
        return []
    return [item(number) for number in range(length())]


@contextmanager
def without_modes() -> Iterator[None]:
    """torch as it is by itself, for memory of this library's own: whatever modes this thread has are off.

    Where the names are gone, function and dispatch modes of the caller see such memory being made.
    """
    with ExitStack() as stack:
        if has_foreign_modes():
            off = getattr(torch.utils._python_dispatch, "_disable_current_modes", None)
            if off is not None:
                stack.enter_context(off())
        functions_off = getattr(torch._C, "DisableTorchFunction", None)
        if functions_off is not None:
            stack.enter_context(functions_off())
        stack.enter_context(torch.inference_mode(False))
        yield


def subclasses_off() -> Any:
    """A context in which methods of tensors are torch's, whatever ``__torch_function__`` a subclass has."""
    return getattr(torch._C, "DisableTorchFunctionSubclass", nullcontext)()


@lru_cache(maxsize=1024)
def changes_operations(kind: type[torch.Tensor]) -> bool:
    """Whether a subclass of tensors may do something else than torch where it is copied.

    True for all that do not say, where the names are gone: they are then copied by their own type.
    """
    function = getattr(kind, "__torch_function__", None)
    plain_functions = (
        getattr(torch.Tensor.__torch_function__, "__func__", None),
        getattr(torch._C, "_disabled_torch_function_impl", None),
    )
    return (
        getattr(function, "__func__", function) not in plain_functions
        or kind.__torch_dispatch__ is not getattr(torch._C, "_disabled_torch_dispatch_impl", None)
        or kind.copy_ is not torch.Tensor.copy_
    )


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is one of ``FakeTensorMode``, which has a shape and no data."""
    return any(kind.__name__ == "FakeTensor" for kind in type(tensor).__mro__)
