"""DCP checkpoints behind a web server, a CDN or presigned URLs. Read-only.

::

    from dcp_http import HTTPStorageReader

    HTTPStorageReader("https://models.example.com/run/step-1000", token="...")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcp_core.storage.reader import CloudStorageReader
from dcp_http.backend import HTTPBackend
from dcp_http.options import HTTPOptions

if TYPE_CHECKING:
    import os

    from typing_extensions import Unpack

    from dcp_http.options import HTTPLoadKeywords

__all__ = ["HTTPOptions", "HTTPStorageReader", "backend"]

backend = HTTPBackend()


class HTTPStorageReader(CloudStorageReader):
    """A :class:`~dcp_core.CloudStorageReader` that loads from ``http[s]://host[:port]/path[?query]``.

    Its options are those of :class:`~dcp_core.LoadOptions` and of :class:`HTTPOptions`.
    """

    backend = backend

    if TYPE_CHECKING:

        def __init__(self, url: str | os.PathLike[str], **options: Unpack[HTTPLoadKeywords]) -> None: ...
