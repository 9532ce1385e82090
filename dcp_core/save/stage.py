"""Elements that cannot be sent from where they are: on a device, or not contiguous.

They are copied block by block, in C order, into buffers of bounded size that live until their part is
uploaded. Copies from a device go to pinned memory on a side stream, one block ahead of the one that is
handed out, so that the device copies while workers upload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from dcp_core.transfer import tensor_bytes

__all__ = ["row_blocks", "staged_bytes"]


def staged_bytes(tensor: torch.Tensor, block_size: int) -> Iterator[memoryview]:
    """The elements of ``tensor`` in C order, as views of fresh buffers of about ``block_size`` bytes."""
    blocks = row_blocks(tensor, block_size)
    if tensor.device.type == "cpu":
        for block in blocks:
            yield tensor_bytes(block.contiguous())
        return
    copy = _device_copier(tensor.device)
    pending: Callable[[], torch.Tensor] | None = None
    for block in blocks:
        following = copy(block)
        if pending is not None:
            yield tensor_bytes(pending())
        pending = following
    if pending is not None:
        yield tensor_bytes(pending())


def row_blocks(tensor: torch.Tensor, block_size: int) -> Iterator[torch.Tensor]:
    """Cut ``tensor`` into views that follow one another in C order, of at most ``block_size`` bytes each
    unless a single element is larger."""
    if tensor.nbytes <= block_size or tensor.dim() == 0:
        yield tensor
        return
    row_bytes = tensor.nbytes // tensor.shape[0]
    if row_bytes > block_size:
        for row in tensor.unbind(0):
            yield from row_blocks(row, block_size)
        return
    yield from torch.split(tensor, block_size // row_bytes)


def _device_copier(device: torch.device) -> Callable[[torch.Tensor], Callable[[], torch.Tensor]]:
    """Start a copy to the host; what it returns waits for that copy."""
    # what the training loop queued on its own stream must be done before another stream reads it
    torch.accelerator.synchronize(device)
    stream = torch.Stream(device)

    def copy(block: torch.Tensor) -> Callable[[], torch.Tensor]:
        staged = torch.empty(block.shape, dtype=block.dtype, device="cpu", pin_memory=True)
        with stream:
            # a strided source is made contiguous on the device, where it is cheap
            staged.copy_(block, non_blocking=True)
            done = stream.record_event()

        def wait() -> torch.Tensor:
            done.synchronize()
            return staged

        return wait

    return copy
