"""DCP checkpoints behind a web server, a CDN or presigned URLs. Read-only.

::

    from dcp_http import HTTPStorageReader

    HTTPStorageReader("https://models.example.com/run/step-1000", token="...")
"""

from dcp_http.backend import HTTPBackend
from dcp_http.dcp import HTTPStorageReader
from dcp_http.options import HTTPOptions

__all__ = ["HTTPOptions", "HTTPStorageReader", "backend"]

backend = HTTPBackend()
