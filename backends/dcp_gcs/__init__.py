"""DCP storage on Google Cloud Storage.

::

    from dcp_gcs import GCSStorageWriter

    GCSStorageWriter("gs://bucket/run/step-1000", storage_class="NEARLINE", user_project="billed-project")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcp_core.storage.reader import CloudStorageReader
from dcp_core.storage.writer import CloudStorageWriter
from dcp_gcs.backend import GCSBackend
from dcp_gcs.options import GCSOptions

if TYPE_CHECKING:
    import os

    from typing_extensions import Unpack

    from dcp_gcs.options import GCSLoadKeywords, GCSSaveKeywords

__all__ = ["GCSOptions", "GCSStorageReader", "GCSStorageWriter", "backend"]

backend = GCSBackend()


class GCSStorageWriter(CloudStorageWriter):
    """A :class:`~dcp_core.CloudStorageWriter` that saves to ``gs://bucket/prefix``.

    Its options are those of :class:`~dcp_core.SaveOptions` and of :class:`GCSOptions`.
    """

    backend = backend

    if TYPE_CHECKING:

        def __init__(self, url: str | os.PathLike[str], **options: Unpack[GCSSaveKeywords]) -> None: ...


class GCSStorageReader(CloudStorageReader):
    """A :class:`~dcp_core.CloudStorageReader` that loads from ``gs://bucket/prefix``.

    Its options are those of :class:`~dcp_core.LoadOptions` and of :class:`GCSOptions`.
    """

    backend = backend

    if TYPE_CHECKING:

        def __init__(self, url: str | os.PathLike[str], **options: Unpack[GCSLoadKeywords]) -> None: ...
