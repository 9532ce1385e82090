"""DCP storage on Amazon S3 and S3-compatible stores.

::

    from dcp_s3 import S3StorageWriter

    S3StorageWriter("s3://bucket/run/step-1000", sse="aws:kms", requester_pays=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcp_core.storage.reader import CloudStorageReader
from dcp_core.storage.writer import CloudStorageWriter
from dcp_s3.backend import S3Backend
from dcp_s3.options import S3Options

if TYPE_CHECKING:
    import os

    from typing_extensions import Unpack

    from dcp_s3.options import S3LoadKeywords, S3SaveKeywords

__all__ = ["S3Options", "S3StorageReader", "S3StorageWriter", "backend"]

backend = S3Backend()


class S3StorageWriter(CloudStorageWriter):
    """A :class:`~dcp_core.CloudStorageWriter` that saves to ``s3://bucket/prefix``.

    Its options are those of :class:`~dcp_core.SaveOptions` and of :class:`S3Options`.
    """

    backend = backend

    if TYPE_CHECKING:

        def __init__(self, url: str | os.PathLike[str], **options: Unpack[S3SaveKeywords]) -> None: ...


class S3StorageReader(CloudStorageReader):
    """A :class:`~dcp_core.CloudStorageReader` that loads from ``s3://bucket/prefix``.

    Its options are those of :class:`~dcp_core.LoadOptions` and of :class:`S3Options`.
    """

    backend = backend

    if TYPE_CHECKING:

        def __init__(self, url: str | os.PathLike[str], **options: Unpack[S3LoadKeywords]) -> None: ...
