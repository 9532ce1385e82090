"""What is compared: a digest of every value of a state dict."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch.distributed.tensor import DTensor


def digests(state: dict[Any, Any], prefix: str = "") -> dict[str, str]:
    """SHA-256 of every whole tensor and the text of everything else, by name. All ranks must take part."""
    found: dict[str, str] = {}
    for key, item in state.items():
        name, value = f"{prefix}{key}", dict(enumerate(item)) if isinstance(item, list) else item
        if isinstance(value, dict):
            found.update(digests(value, f"{name}."))
        elif isinstance(value, torch.Tensor):
            found[name] = tensor_digest(value.full_tensor() if isinstance(value, DTensor) else value)
        else:
            found[name] = repr(value)
    return found


def tensor_digest(tensor: torch.Tensor) -> str:
    """Type, shape and bytes."""
    content = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(content).hexdigest()}"
