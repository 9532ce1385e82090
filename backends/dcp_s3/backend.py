"""What the entry point ``s3`` names."""

from __future__ import annotations

import re
from typing import Any

from dcp_core.errors import InvalidLocationError
from dcp_core.location import Location
from dcp_core.store import ObjectStore
from dcp_s3.options import S3Options
from dcp_s3.store import S3Store

__all__ = ["S3Backend"]

#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, with the upper-case letters
#: and underscores that old buckets and other stores have. Access point ARNs and aliases pass too.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]|arn:[^/]+")
#: A key has at most 1,024 bytes; the longest name of ours takes 56 of them.
_LONGEST_PREFIX = 960


class S3Backend:
    """S3 and S3-compatible stores."""

    options_type: type[Any] = S3Options

    def locate(self, url: str) -> Location:
        """Parse ``s3://bucket/prefix``.

        Raises:
            InvalidLocationError: not a URL, not a bucket name, or a prefix too long for a key.
        """
        location = Location.parse(url)
        if not _BUCKET.fullmatch(location.bucket):
            raise InvalidLocationError(f"{location.bucket!r} in {url!r} is not a valid S3 bucket name")
        if len(location.prefix.encode()) > _LONGEST_PREFIX:
            raise InvalidLocationError(
                f"the prefix has {len(location.prefix.encode())} bytes; at most {_LONGEST_PREFIX} leave room "
                "for object names within S3's 1,024 bytes a key"
            )
        return location

    def open(self, location: Location, options: S3Options, *, concurrency: int) -> ObjectStore:
        """Open the bucket of ``location``."""
        return S3Store(location.bucket, options, concurrency=concurrency)
