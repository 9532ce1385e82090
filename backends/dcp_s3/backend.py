"""What the entry point ``s3`` names."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from dcp_core.errors import InvalidLocationError
from dcp_core.seam.backend import Backend
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectStore
from dcp_s3.options import S3Options
from dcp_s3.store import S3Store

__all__ = ["S3Backend"]

#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, with the upper-case letters
#: and underscores that old buckets and other stores have. Aliases of access points pass too.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
#: An access point in the forms in which AWS writes it, here and on Outposts; the region of a multi-region one
#: is empty. https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html
_ARN = re.compile(
    r"(?i:s3)://(?P<arn>arn:[^:/]+:(?:"
    r"s3(?:-object-lambda)?:[^:/]*:\d*:accesspoint"
    r"|s3-outposts:[^:/]*:\d*:outpost[:/][^:/]+[:/]accesspoint"
    r")[:/][^:/]+)(?P<rest>/.*)?",
    re.DOTALL,
)
#: Bytes: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
_LONGEST_KEY = 1024


class S3Backend(Backend):
    """S3 and S3-compatible stores."""

    options_type: type[Any] = S3Options

    def locate(self, url: str) -> Location:
        """Parse ``s3://bucket/prefix`` or ``s3://arn:aws:s3:region:account:accesspoint/name/prefix``.

        Raises:
            InvalidLocationError: not a URL, not a bucket or access point, or a prefix too long for a key.
        """
        arn = _ARN.fullmatch(url)
        if arn is not None:
            location = replace(Location.parse(f"s3://arn{arn['rest'] or ''}"), bucket=arn["arn"])
        else:
            location = Location.parse(url)
            if location.bucket.startswith("arn:"):
                raise InvalidLocationError(
                    f"{url!r} does not name an access point: expected s3://arn:aws:s3:REGION:ACCOUNT:"
                    "accesspoint/NAME/prefix"
                )
            if not _BUCKET.fullmatch(location.bucket):
                raise InvalidLocationError(f"{location.bucket!r} in {url!r} is not a valid S3 bucket name")
        location.check_prefix("S3", _LONGEST_KEY)
        return location

    def open(self, location: Location, options: S3Options, *, concurrency: int) -> ObjectStore:
        """Open the bucket of ``location``."""
        return S3Store(location.bucket, options, concurrency=concurrency)
