"""Frameworks that are not installed."""

from __future__ import annotations

from dcp_core.errors import MissingExtraError

__all__ = ["missing"]


def missing(package: str, error: ImportError) -> ImportError:
    """What to raise where ``package`` cannot be imported: how to install it, if that is what is missing."""
    if error.name is not None and error.name.partition(".")[0] != package:
        return error
    return MissingExtraError(f"{package} is not installed: pip install {package}")
