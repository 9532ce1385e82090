"""Options of the Google Cloud Storage backend."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dcp_core.config import BucketKeywords, BucketOptions, LoadKeywords, SaveKeywords
from dcp_core.errors import ConfigurationError

__all__ = ["GCSLoadKeywords", "GCSOptions", "GCSSaveKeywords"]

#: https://docs.cloud.google.com/kms/docs/getting-resource-ids
_KMS_KEY = re.compile(r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+")

#: What a header can carry without quotes.
_HEADER_VALUE = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class GCSOptions(BucketOptions):
    """How to reach a bucket and how to store objects in it.

    What is left out comes from where Google's SDK looks: Application Default Credentials
    (``GOOGLE_APPLICATION_CREDENTIALS``, ``gcloud auth application-default login``, the metadata server), and
    ``STORAGE_EMULATOR_HOST`` for an emulator, which gets anonymous requests unless credentials are given.

    Attributes:
        endpoint_url: another endpoint, such as a private or a regional one; ``None`` is Google's.
        credentials_file: file with a service account's key, or any other kind the SDK knows.
        access_token: an OAuth 2.0 access token, for as long as it is valid; never shown.
        anonymous: send requests without credentials, for public buckets.
        user_project: project that is billed for requests to a requester-pays bucket.
        kms_key_name: Cloud KMS key that encrypts every object, ``projects/…/cryptoKeys/…``; the bucket's own
            if ``None``.
        storage_class: such as ``NEARLINE``; the bucket's own if ``None``.
    """

    endpoint_url: str | None = None
    credentials_file: str | None = None
    access_token: str | None = field(default=None, repr=False)
    anonymous: bool = False
    user_project: str | None = None
    kms_key_name: str | None = None
    storage_class: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum((self.credentials_file is not None, self.access_token is not None, self.anonymous)) > 1:
            raise ConfigurationError("of credentials_file, access_token and anonymous only one can be given")
        if self.kms_key_name is not None and not _KMS_KEY.fullmatch(self.kms_key_name):
            raise ConfigurationError(
                "kms_key_name must be projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY, "
                f"got {self.kms_key_name!r}"
            )
        if self.endpoint_url is not None and not self.endpoint_url.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"endpoint_url must start with http:// or https://, got {self.endpoint_url!r}"
            )
        for name in ("access_token", "user_project", "storage_class", "kms_key_name"):
            value = getattr(self, name)
            # not shown: it may be the token, with the line end of the file that it was read from
            if value is not None and not _HEADER_VALUE.fullmatch(value):
                raise ConfigurationError(
                    f"{name} is empty, or has white space or other characters than ASCII's"
                )


class _GCSKeywords(BucketKeywords, total=False):
    endpoint_url: str | None
    credentials_file: str | None
    access_token: str | None
    anonymous: bool
    user_project: str | None
    kms_key_name: str | None
    storage_class: str | None


class GCSSaveKeywords(SaveKeywords, _GCSKeywords, total=False):
    """Options of ``GCSStorageWriter``."""


class GCSLoadKeywords(LoadKeywords, _GCSKeywords, total=False):
    """Options of ``GCSStorageReader``."""
