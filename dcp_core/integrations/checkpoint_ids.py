"""URLs as ``checkpoint_id``, for code that calls ``dcp.save`` and ``dcp.load`` without a writer or reader.

torch chooses the writer for a ``checkpoint_id`` from a list inside a private function, so that trainers which
call ``dcp.save(state, checkpoint_id=...)`` themselves cannot be handed one. This is the explicit opt-in that
puts our classes before that list.
"""

from __future__ import annotations

import os
from typing import Any

from dcp_core.runtime.torch_private import wrap_storage_setup
from dcp_core.seam.location import scheme_of
from dcp_core.seam.registry import known_schemes
from dcp_core.storage.reader import CloudStorageReader
from dcp_core.storage.writer import CloudStorageWriter

__all__ = ["use_url_checkpoint_ids"]

_MARK = "_dcp_cloud"


def use_url_checkpoint_ids(**options: Any) -> None:
    """Let ``dcp.save``, ``dcp.async_save`` and ``dcp.load`` take URLs of registered schemes in this process.

    Other ids, and calls that bring a writer or reader, go the way they went. Calling it again replaces the
    options. The process that ``async_save`` starts for ``AsyncCheckpointerType.PROCESS`` imports torch anew
    and does not know of this: pass it a writer.

    Args:
        **options: options of the backend, used for writers and readers alike.
    """
    wrap_storage_setup(lambda current: _with_urls(getattr(current, _MARK, current), options))


def _with_urls(original: Any, options: dict[str, Any]) -> Any:
    def storage_setup(
        storage: Any, checkpoint_id: str | os.PathLike[str] | None, reader: bool = False
    ) -> Any:
        if not storage and checkpoint_id is not None and scheme_of(checkpoint_id) in known_schemes():
            return (CloudStorageReader if reader else CloudStorageWriter)(checkpoint_id, **options)
        return original(storage, checkpoint_id, reader=reader)

    setattr(storage_setup, _MARK, original)
    return storage_setup
