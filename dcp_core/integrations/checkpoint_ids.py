"""URLs as ``checkpoint_id``, for code that calls ``dcp.save`` and ``dcp.load`` without a writer or reader.

torch chooses the writer for a ``checkpoint_id`` from a list inside a private function, so that trainers which
call ``dcp.save(state, checkpoint_id=...)`` themselves cannot be handed one. This is the explicit opt-in that
puts our classes before that list.
"""

from __future__ import annotations

import os
import re
from typing import Any

from dcp_core.errors import InvalidLocationError
from dcp_core.runtime.torch_private import look_at_folders, wrap_process_saves, wrap_storage_setup
from dcp_core.seam.location import Location, scheme_of
from dcp_core.seam.registry import known_schemes
from dcp_core.storage.reader import CloudStorageReader
from dcp_core.storage.writer import CloudStorageWriter

__all__ = ["is_url", "refuse_folded", "use_url_checkpoint_ids"]

_MARK = "_dcp_cloud"

#: A URL that went through ``pathlib``, which folds its two slashes into one.
_FOLDED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")

#: fsspec has file systems of its own for these, and much else reads through them.
_WEB = ("http", "https")


def use_url_checkpoint_ids(*, fsspec: bool = True, **options: Any) -> None:
    """Let ``dcp.save``, ``dcp.async_save`` and ``dcp.load`` take URLs of registered schemes in this process.

    Other ids, and calls that bring a writer or reader, go the way they went. Calling it again replaces the
    options. A URL that went through ``pathlib`` is refused: torch would write to a local folder of that name.
    So is a URL that torch's own writers and readers of local folders are given, ``HuggingFaceStorageWriter``
    and ``torch_save_to_dcp`` among them: :mod:`dcp_core.huggingface` and :mod:`dcp_core.convert` take URLs.

    Args:
        fsspec: also let fsspec look into buckets through this library, in place of the file systems of other
            packages, so that trainers that list and delete checkpoints through fsspec see what is there.
        **options: options of the backend, used for writers and readers alike.

    Raises:
        UnsupportedError: this release of torch chooses writers in another way; nothing was changed.
    """
    wrap_storage_setup(lambda current: _with_urls(getattr(current, _MARK, current), options))
    look_at_folders(_refuse_url)
    wrap_process_saves(lambda writer, checkpoint_id: writer or _writer_for(checkpoint_id, options))
    if fsspec:
        # fsspec comes with torch; whoever leaves it out need not have it
        from dcp_core.integrations.filesystem import register_file_systems

        register_file_systems([scheme for scheme in known_schemes() if scheme not in _WEB], options)


def _with_urls(original: Any, options: dict[str, Any]) -> Any:
    def storage_setup(
        storage: Any, checkpoint_id: str | os.PathLike[str] | None, reader: bool = False
    ) -> Any:
        if not storage and checkpoint_id is not None and is_url(checkpoint_id):
            return (
                CloudStorageReader(checkpoint_id, **options)
                if reader
                else _writer_for(checkpoint_id, options)
            )
        return original(storage, checkpoint_id, reader=reader)

    setattr(storage_setup, _MARK, original)
    return storage_setup


def _writer_for(
    checkpoint_id: str | os.PathLike[str] | None, options: dict[str, Any]
) -> CloudStorageWriter | None:
    known = checkpoint_id is not None and is_url(checkpoint_id)
    return CloudStorageWriter(checkpoint_id, **options) if known else None  # type: ignore[arg-type]


def is_url(checkpoint_id: str | os.PathLike[str]) -> bool:
    """Whether an installed backend serves ``checkpoint_id``.

    Raises:
        InvalidLocationError: one would, had it not lost a slash.
    """
    refuse_folded(checkpoint_id)
    return scheme_of(checkpoint_id) in known_schemes()


def _refuse_url(path: str | os.PathLike[str]) -> None:
    """Refuse what torch would take for a folder on this machine's disk.

    Raises:
        InvalidLocationError: it is a URL that an installed backend serves.
    """
    refuse_folded(path)
    if scheme_of(path) in known_schemes():
        raise InvalidLocationError(
            f"{os.fspath(path)} is no folder on a disk, which is all that torch's own class works on: use "
            "CloudStorageWriter, CloudStorageReader, the classes of dcp_core.huggingface or the functions of "
            "dcp_core.convert"
        )


def refuse_folded(path: str | os.PathLike[str]) -> None:
    """Refuse a path that was a URL of a scheme that is served, and lost a slash in ``pathlib``.

    Raises:
        InvalidLocationError: it is one.
    """
    folded = _FOLDED.match(os.fspath(path))
    if folded is not None and folded[1].lower() in known_schemes():
        # refuses it, and says why
        Location.parse(path)
