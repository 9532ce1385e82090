"""Writer and reader with S3's own options spelled out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dcp_core.reader import CloudStorageReader
from dcp_core.writer import CloudStorageWriter
from dcp_s3.backend import S3Backend

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dcp_s3.keywords import S3LoadKeywords, S3SaveKeywords

__all__ = ["S3StorageReader", "S3StorageWriter"]


class S3StorageWriter(CloudStorageWriter):
    """Saves DCP checkpoints to S3 or an S3-compatible store.

    Args:
        url: ``s3://bucket/prefix``.
        **options: fields of :class:`~dcp_core.config.SaveOptions` and :class:`~dcp_s3.options.S3Options`.
    """

    def __init__(self, url: str | os.PathLike[str], **options: Unpack[S3SaveKeywords]) -> None:
        self._set_up(url, dict(options), S3Backend())


class S3StorageReader(CloudStorageReader):
    """Loads DCP checkpoints from S3 or an S3-compatible store.

    Args:
        url: ``s3://bucket/prefix``.
        **options: fields of :class:`~dcp_core.config.LoadOptions` and :class:`~dcp_s3.options.S3Options`.
    """

    def __init__(self, url: str | os.PathLike[str], **options: Unpack[S3LoadKeywords]) -> None:
        self._set_up(url, dict(options), S3Backend())
