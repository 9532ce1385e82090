"""The staging ring."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from dcp_core.save.stage import Ring, Staging


def test_a_ring_waits_for_its_blocks() -> None:
    ring = Ring(64, 2)
    first, second = ring.take(), ring.take()
    taken = []
    waiting = threading.Thread(target=lambda: taken.append(ring.take()))
    waiting.start()
    time.sleep(0.05)
    assert not taken
    ring.hold(first)
    ring.release(first)
    time.sleep(0.05)
    assert not taken, "a block with a holder left"
    ring.release(first)
    waiting.join(5)
    assert taken == [first]
    ring.release(first)
    ring.release(second)
    assert ring.idle


def test_a_ring_makes_no_more_blocks_than_it_may() -> None:
    """Whatever the order of taking and giving, by many threads."""
    ring = Ring(64, 3)
    held, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal held, most
        for _ in range(200):
            block = ring.take()
            with lock:
                held += 1
                most = max(most, held)
            with lock:
                held -= 1
            ring.release(block)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 3
    assert ring.idle


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.bool, torch.float8_e4m3fn])
def test_bytes_are_staged_at_any_place(dtype: torch.dtype) -> None:
    """Small elements follow what is there without a gap, so that their frames are gathered in one piece."""
    staging = Staging(Ring(1 << 12, 1))
    staging.renew()
    raw = torch.arange(64, dtype=torch.uint8) % 2
    source = raw.view(dtype).view(2, -1).t()
    staging.fill = 3
    staging.copy_bytes(source)
    assert staging.block is not None
    assert bytes(staging.block.view[3:67]) == bytes(source.contiguous().view(-1).view(torch.uint8).numpy())
    assert staging.fill == 67
