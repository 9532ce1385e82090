"""What the entry point ``gs`` names."""

from __future__ import annotations

import re
from typing import Any

from dcp_core.errors import InvalidLocationError
from dcp_core.seam.backend import Backend
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectStore
from dcp_gcs.options import GCSOptions
from dcp_gcs.store import GCSStore

__all__ = ["GCSBackend"]

#: https://docs.cloud.google.com/storage/docs/buckets#naming. Names that new buckets may not have, such as
#: "goog…", exist as Google's own and can be read.
_BUCKET = re.compile(r"(?=.{3,222}$)[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_LONGEST_LABEL = 63
_IP_ADDRESS = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
#: Bytes: https://docs.cloud.google.com/storage/docs/objects#naming
_LONGEST_KEY = 1024
_RESERVED_PREFIX = ".well-known/acme-challenge/"


class GCSBackend(Backend):
    """Google Cloud Storage."""

    options_type: type[Any] = GCSOptions

    def locate(self, url: str) -> Location:
        """Parse ``gs://bucket/prefix``.

        Raises:
            InvalidLocationError: not a URL, not a bucket name, or a prefix that objects cannot have.
        """
        location = Location.parse(url)
        if not _is_bucket_name(location.bucket):
            raise InvalidLocationError(
                f"{location.bucket!r} in {url!r} is not a bucket name of Google Cloud Storage: 3 to 63 "
                "lower-case letters, digits, '-', '_' and '.' (each label of a dotted name up to 63)"
            )
        location.check_prefix("Google Cloud Storage", _LONGEST_KEY)
        if f"{location.prefix}/".startswith(_RESERVED_PREFIX):
            raise InvalidLocationError(f"{url!r}: Google reserves object names under {_RESERVED_PREFIX}")
        return location

    def open(self, location: Location, options: GCSOptions, *, concurrency: int) -> ObjectStore:
        """Open the bucket of ``location``."""
        return GCSStore(location.bucket, options, concurrency=concurrency)


def _is_bucket_name(name: str) -> bool:
    return (
        _BUCKET.fullmatch(name) is not None
        and _IP_ADDRESS.fullmatch(name) is None
        and all(0 < len(label) <= _LONGEST_LABEL for label in name.split("."))
    )
