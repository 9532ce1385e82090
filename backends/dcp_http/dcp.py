"""Reader with HTTP's own options spelled out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dcp_core.reader import CloudStorageReader
from dcp_http.backend import HTTPBackend

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dcp_http.keywords import HTTPLoadKeywords

__all__ = ["HTTPStorageReader"]


class HTTPStorageReader(CloudStorageReader):
    """Loads DCP checkpoints from a web server, a CDN or presigned URLs.

    Args:
        url: ``http[s]://host[:port]/path``; a query in it goes with every request.
        **options: fields of :class:`~dcp_core.config.LoadOptions` and
            :class:`~dcp_http.options.HTTPOptions`.
    """

    def __init__(self, url: str | os.PathLike[str], **options: Unpack[HTTPLoadKeywords]) -> None:
        self._set_up(url, dict(options), HTTPBackend())
