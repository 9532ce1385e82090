"""Writer and reader with Google's own options spelled out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dcp_core.reader import CloudStorageReader
from dcp_core.writer import CloudStorageWriter
from dcp_gcs.backend import GCSBackend

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dcp_gcs.keywords import GCSLoadKeywords, GCSSaveKeywords

__all__ = ["GCSStorageReader", "GCSStorageWriter"]


class GCSStorageWriter(CloudStorageWriter):
    """Saves DCP checkpoints to Google Cloud Storage.

    Args:
        url: ``gs://bucket/prefix``.
        **options: fields of :class:`~dcp_core.config.SaveOptions` and :class:`~dcp_gcs.options.GCSOptions`.
    """

    def __init__(self, url: str | os.PathLike[str], **options: Unpack[GCSSaveKeywords]) -> None:
        self._set_up(url, dict(options), GCSBackend())


class GCSStorageReader(CloudStorageReader):
    """Loads DCP checkpoints from Google Cloud Storage.

    Args:
        url: ``gs://bucket/prefix``.
        **options: fields of :class:`~dcp_core.config.LoadOptions` and :class:`~dcp_gcs.options.GCSOptions`.
    """

    def __init__(self, url: str | os.PathLike[str], **options: Unpack[GCSLoadKeywords]) -> None:
        self._set_up(url, dict(options), GCSBackend())
