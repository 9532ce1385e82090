"""Deleting the oldest checkpoints of a folder."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from typing import Any

from dcp_core.config import SaveOptions
from dcp_core.errors import CloudCheckpointError
from dcp_core.frameworks.deletion import delete_checkpoint, register_schemes
from dcp_core.frameworks.newest import whole_checkpoints
from dcp_core.storage.checkpoint_store import CheckpointStore, split_options
from dcp_core.transfer.transfer import Transfer

__all__ = ["keep_newest"]

logger = logging.getLogger("dcp_core")


def keep_newest(url: str, count: int, prefix: str, spare: Container[str] = (), **options: Any) -> None:
    """Of the checkpoints ``<prefix><number>`` in the folder ``url`` delete all but the ``count`` newest ones,
    by number, and those in ``spare``.

    Only what is whole counts, and is deleted; what failed saves left is not. Errors are the log's: training
    must not end because something old is there. For one rank to call.

    Args:
        **options: of saving, of loading and of the backend.
    """
    saving, _ = split_options(options)
    register_schemes(saving)
    try:
        for name in _superseded(url, count, prefix, saving):
            if name not in spare:
                logger.info("deleting %s/%s: the newest %d are kept", url, name, count)
                delete_checkpoint(f"{url}/{name}", saving)
    except CloudCheckpointError:
        logger.exception("checkpoints below %s could not be deleted", url)


def _superseded(url: str, count: int, prefix: str, options: Mapping[str, Any]) -> list[str]:
    place = CheckpointStore(url, SaveOptions, options)
    try:
        found = whole_checkpoints(place.writable_store(), place.location, Transfer(place.options, None))
    finally:
        place.close()
    numbers = [one.name.removeprefix(prefix) for one in found if one.name.startswith(prefix)]
    ordered = sorted((number for number in numbers if number.isdecimal()), key=int)
    return [f"{prefix}{number}" for number in ordered[: max(0, len(ordered) - count)]]
