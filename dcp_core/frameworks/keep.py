"""Deleting the oldest checkpoints of a folder."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from typing import Any

from dcp_core.config import SaveOptions
from dcp_core.frameworks.deletion import delete_checkpoint, register_schemes
from dcp_core.frameworks.newest import Checkpoint, saved_at, whole_checkpoints
from dcp_core.storage.checkpoint_store import CheckpointStore, split_options
from dcp_core.transfer.transfer import Transfer

__all__ = ["keep_newest"]

logger = logging.getLogger("dcp_core")


def keep_newest(url: str, count: int, prefix: str, spare: Container[str] = (), **options: Any) -> None:
    """Of the checkpoints ``<prefix><number>`` in the folder ``url`` delete all but the ``count`` that were
    committed last, and those in ``spare``. Numbers do not count: training may have begun anew at a lower one.

    Only what is whole counts, and is deleted; what failed saves left is not. Errors are the log's: training
    must not end because something old is there. For one rank to call.

    Args:
        **options: of saving, of loading and of the backend.
    """
    saving, _ = split_options(options)
    url = url.rstrip("/")
    register_schemes(saving)
    try:
        for name in _superseded(url, count, prefix, saving):
            if name not in spare:
                logger.info("deleting %s/%s: the newest %d are kept", url, name, count)
                delete_checkpoint(f"{url}/{name}", saving)
    # whatever it is: training goes on
    except Exception:
        logger.exception("checkpoints below %s could not be deleted", url)


def _superseded(url: str, count: int, prefix: str, options: Mapping[str, Any]) -> list[str]:
    place = CheckpointStore(url, SaveOptions, options)
    try:
        found = whole_checkpoints(place.writable_store(), place.location, Transfer(place.options, None))
    finally:
        place.close()
    numbered = [one for one in found if one.name.startswith(prefix) and _number(one, prefix).isdecimal()]
    # stores count in seconds
    ordered = sorted(numbered, key=lambda one: (saved_at(one), int(_number(one, prefix))))
    return [one.name for one in ordered[: max(0, len(ordered) - count)]]


def _number(checkpoint: Checkpoint, prefix: str) -> str:
    return checkpoint.name.removeprefix(prefix)
