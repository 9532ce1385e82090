"""DCP storage on Amazon S3 and S3-compatible stores.

::

    from dcp_s3 import S3StorageWriter

    S3StorageWriter("s3://bucket/run/step-1000", sse="aws:kms", requester_pays=True)
"""

from dcp_s3.backend import S3Backend
from dcp_s3.dcp import S3StorageReader, S3StorageWriter
from dcp_s3.options import S3Options

__all__ = ["S3Options", "S3StorageReader", "S3StorageWriter", "backend"]

backend = S3Backend()
