"""Releases of torch: what a test needs that only some of them have."""

from __future__ import annotations

import pytest
import torch

__all__ = ["RELEASE", "since"]

#: Major and minor number of this torch, such as ``(2, 13)``.
RELEASE = tuple(int(number) for number in torch.__version__.split(".")[:2])


def since(major: int, minor: int, what: str) -> pytest.MarkDecorator:
    """Leave a test out where torch is older than the release in which ``what`` came."""
    return pytest.mark.skipif((major, minor) > RELEASE, reason=f"{what} came with torch {major}.{minor}")
