"""The text that the demo trains on: the sources of Python's own library, as bytes."""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path

import torch
from model import CONTEXT


def corpus() -> list[torch.Tensor]:
    """The top-level modules that are long enough to cut a passage from."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [bytearray(file.read_bytes()) for file in files]
    return [torch.frombuffer(text, dtype=torch.uint8) for text in texts if len(text) > CONTEXT]


def global_batch(sources: list[torch.Tensor], size: int) -> torch.Tensor:
    """The next batch of all ranks together, the same on each of them.

    Python's generator picks the modules and torch's the passages, so training goes on as before only if
    a checkpoint brings back both.
    """
    passages = []
    for source in random.choices(sources, k=size):
        start = int(torch.randint(len(source) - CONTEXT, ()))
        passages.append(source[start : start + CONTEXT + 1])
    return torch.stack(passages).long()
