"""Folders that frameworks write beside tensors, in a checkpoint: each rank's own, and the first's for all.

A file ``name`` of rank ``r`` is the item ``files/<r>/<name>``. A rank gets what the first one wrote, and over
it what it wrote itself: some files are of one rank (random numbers), some are written by one for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from dcp_core.errors import CheckpointCorruptError

__all__ = ["files_in", "lay_out", "wanted_by"]

_PREFIX = "files/"


def files_in(folder: str | os.PathLike[str], rank: int) -> dict[str, bytes]:
    """The files in ``folder`` and below it, as items of ``rank``."""
    root = Path(folder)
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return {f"{_PREFIX}{rank}/{path.relative_to(root).as_posix()}": path.read_bytes() for path in found}


def wanted_by(rank: int) -> Callable[[str], bool]:
    """Whether ``rank`` gets an item."""
    return lambda name: name.startswith((f"{_PREFIX}0/", f"{_PREFIX}{rank}/"))


def lay_out(files: Mapping[str, bytes], folder: str | os.PathLike[str]) -> None:
    """Write items of :func:`wanted_by` into ``folder``; those of the first rank first.

    Raises:
        CheckpointCorruptError: a name leads out of the folder.
    """
    root = Path(folder)
    for item in sorted(files, key=lambda name: (not name.startswith(f"{_PREFIX}0/"), name)):
        name = item.removeprefix(_PREFIX).partition("/")[2]
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise CheckpointCorruptError(f"the checkpoint has a file {name!r}, which is no name in a folder")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[item])
