"""DCP storage on Google Cloud Storage.

::

    from dcp_gcs import GCSStorageWriter

    GCSStorageWriter("gs://bucket/run/step-1000", storage_class="NEARLINE", user_project="billed-project")
"""

from dcp_gcs.backend import GCSBackend
from dcp_gcs.dcp import GCSStorageReader, GCSStorageWriter
from dcp_gcs.options import GCSOptions

__all__ = ["GCSOptions", "GCSStorageReader", "GCSStorageWriter", "backend"]

backend = GCSBackend()
