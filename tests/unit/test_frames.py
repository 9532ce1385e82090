"""Frames: torch.save is the reference."""

from __future__ import annotations

import io

import pytest
import torch
from support import scenarios

from dcp_core.format.frames import find_payload, frame_template
from dcp_core.runtime.tensor_memory import tensor_bytes

SHAPES = [(), (1,), (7,), (3, 5), (2, 1, 4), (0,), (3, 0)]


def framed(tensor: torch.Tensor) -> bytes:
    template = frame_template(tensor.dtype, tuple(tensor.shape))
    return template.header + bytes(tensor_bytes(tensor)) + template.tail


def saved(tensor: torch.Tensor, *, zip_crc: bool) -> bytes:
    buffer = io.BytesIO()
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(zip_crc)
    try:
        torch.save(tensor, buffer)
    finally:
        torch.serialization.set_crc32_options(before)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", scenarios.DTYPES, ids=str)
def test_a_template_is_what_torch_saves(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        tensor = scenarios.noise(1, shape, dtype)
        assert framed(tensor) == saved(tensor, zip_crc=False), shape


@pytest.mark.parametrize("dtype", scenarios.DTYPES, ids=str)
def test_stock_torch_loads_a_template(dtype: torch.dtype) -> None:
    tensor = scenarios.noise(2, (5, 3), dtype)
    loaded = torch.load(io.BytesIO(framed(tensor)), weights_only=True)
    scenarios.assert_same(loaded, tensor)


@pytest.mark.parametrize("zip_crc", [False, True])
@pytest.mark.parametrize("dtype", scenarios.DTYPES, ids=str)
def test_elements_are_found_in_frames_of_torch(dtype: torch.dtype, zip_crc: bool) -> None:
    for shape in ((), (4, 6), (3000,)):
        tensor = scenarios.noise(3, shape, dtype)
        frame = saved(tensor, zip_crc=zip_crc)
        offset = find_payload(frame[:8192], dtype, shape)
        assert offset is not None
        assert frame[offset : offset + tensor.nbytes] == scenarios.bits(tensor)


def test_elements_are_not_found_where_they_are_not() -> None:
    """Strided, offset, differently typed or shaped tensors need torch.load."""
    base = torch.arange(24.0).view(4, 6)
    for tensor in (base.t(), base[1:], base[:, 1:], base.requires_grad_()):
        assert find_payload(saved(tensor, zip_crc=True)[:8192], tensor.dtype, tuple(tensor.shape)) is None
    frame = saved(base.detach(), zip_crc=True)
    assert find_payload(frame, torch.int32, (4, 6)) is None
    assert find_payload(frame, torch.float32, (6, 4)) is None
    assert find_payload(b"", torch.float32, (6, 4)) is None
    assert find_payload(frame[:200], torch.float32, (4, 6)) is None
    assert find_payload(b"PK\x03\x04" + b"\xff" * 60, torch.float32, (4, 6)) is None


def test_a_template_costs_no_memory() -> None:
    """A tensor of 64 GiB, which no test machine could hold."""
    template = frame_template(torch.float32, (1 << 34,))
    assert template.payload_size == 1 << 36
    assert len(template.header) + len(template.tail) < 4096


def test_tensor_bytes_are_the_tensor() -> None:
    tensor = torch.zeros(4, dtype=torch.bfloat16)
    view = tensor_bytes(tensor)
    view[:2] = b"\x80\x3f"
    assert tensor[0] == 1.0
    half = view[4:]
    del tensor, view
    assert bytes(half) == b"\0\0\0\0"  # the slice keeps the memory alive
    with pytest.raises(ValueError, match="contiguous"):
        tensor_bytes(torch.zeros(3, 3).t()[1:])
