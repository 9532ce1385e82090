"""A tensor's own memory as bytes."""

from __future__ import annotations

import ctypes

import torch

__all__ = ["tensor_bytes"]


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a C-contiguous CPU tensor as a writable byte view, without a copy.

    The view, and every slice of it, keeps the tensor alive. Works for dtypes that no other exporter of
    Python's buffer protocol knows, such as bfloat16 and float8, and without NumPy.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"needs a contiguous CPU tensor, got {tensor.device} strides {tensor.stride()}")
    if tensor.nbytes == 0:
        return memoryview(b"")
    memory = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    memory.owner = tensor  # type: ignore[attr-defined]  # what keeps the tensor alive
    return memoryview(memory).cast("B")
