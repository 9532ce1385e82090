"""Deleting a checkpoint that a trainer no longer wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fsspec

from dcp_core.errors import ObjectNotFoundError
from dcp_core.integrations.filesystem import register_file_systems
from dcp_core.seam.location import scheme_of
from dcp_core.seam.registry import known_schemes

__all__ = ["delete_checkpoint", "register_schemes"]

#: fsspec has file systems of its own for these, and much else reads through them.
_WEB = ("http", "https")


def register_schemes(options: Mapping[str, Any]) -> None:
    """Let fsspec, through which trainers list and delete, look into buckets through this library.

    Args:
        options: of saving and of the backend.
    """
    register_file_systems([scheme for scheme in known_schemes() if scheme not in _WEB], options)


def delete_checkpoint(url: str, options: Mapping[str, Any]) -> None:
    """Delete the file or folder at ``url``, a folder's commit record first; nothing if it is gone.

    Args:
        options: of saving and of the backend.
    """
    files = fsspec.filesystem(scheme_of(url), **options)
    try:
        files.rm(url, recursive=True)
    except ObjectNotFoundError:
        return
