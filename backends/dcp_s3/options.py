"""Options of the S3 backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

from dcp_core.config import BucketKeywords, BucketOptions, LoadKeywords, Renamed, SaveKeywords
from dcp_core.errors import ConfigurationError

__all__ = ["S3LoadKeywords", "S3Options", "S3SaveKeywords"]


@dataclass(frozen=True)
class S3Options(BucketOptions):
    """How to reach a bucket and how to store objects in it.

    What is left out comes from where every AWS SDK looks: environment variables, the shared configuration
    files and the instance's metadata service.

    Attributes:
        endpoint_url: an S3-compatible store; ``None`` is AWS, or ``AWS_ENDPOINT_URL``.
        region: region of the bucket.
        profile: name of a profile in the shared configuration.
        access_key_id, secret_access_key, session_token: explicit credentials; never shown.
        anonymous: send unsigned requests.
        addressing_style: ``path`` (endpoint/bucket/key), ``virtual`` (bucket.endpoint/key) or ``auto``;
            ``None`` is what the shared configuration says.
        sse: server-side encryption of every object: ``AES256``, ``aws:kms`` or ``aws:kms:dsse``.
        kms_key_id: key for the ``aws:kms`` kinds; the bucket's own if ``None``.
        bucket_key: use an S3 Bucket Key with KMS, which cuts the calls to KMS.
        storage_class: such as ``STANDARD_IA`` or ``EXPRESS_ONEZONE``.
        tags: object tags.
        requester_pays: agree to pay for requests to a requester-pays bucket.
        expected_bucket_owner: account id that must own the bucket.
        upload_checksum: what is sent with every part for the store to check. ``None`` sends none, for stores
            that refuse the header; loads are checked all the same.
    """

    RENAMED: ClassVar[Mapping[str, Renamed]] = MappingProxyType(
        {"checksums": Renamed("upload_checksum", MappingProxyType({True: "crc32c", False: None}))}
    )

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    anonymous: bool = False
    addressing_style: Literal["auto", "path", "virtual"] | None = None
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: str | None = None
    bucket_key: bool | None = None
    storage_class: str | None = None
    tags: Mapping[str, str] | None = None
    requester_pays: bool = False
    expected_bucket_owner: str | None = None
    upload_checksum: Literal["crc32c"] | None = "crc32c"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.addressing_style not in (None, "auto", "path", "virtual"):
            raise ConfigurationError(
                f"addressing_style must be auto, path or virtual, got {self.addressing_style!r}"
            )
        if self.sse not in (None, "AES256", "aws:kms", "aws:kms:dsse"):
            raise ConfigurationError(f"sse must be AES256, aws:kms or aws:kms:dsse, got {self.sse!r}")
        if self.kms_key_id is not None and not (self.sse or "").startswith("aws:kms"):
            raise ConfigurationError("kms_key_id needs sse='aws:kms' or sse='aws:kms:dsse'")
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ConfigurationError("access_key_id and secret_access_key go together")
        if self.upload_checksum not in (None, "crc32c"):
            raise ConfigurationError(f"upload_checksum must be crc32c or None, got {self.upload_checksum!r}")


class _S3Keywords(BucketKeywords, total=False):
    endpoint_url: str | None
    region: str | None
    profile: str | None
    access_key_id: str | None
    secret_access_key: str | None
    session_token: str | None
    anonymous: bool
    addressing_style: Literal["auto", "path", "virtual"] | None
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None
    kms_key_id: str | None
    bucket_key: bool | None
    storage_class: str | None
    tags: Mapping[str, str] | None
    requester_pays: bool
    expected_bucket_owner: str | None
    upload_checksum: Literal["crc32c"] | None


class S3SaveKeywords(SaveKeywords, _S3Keywords, total=False):
    """Options of ``S3StorageWriter``."""


class S3LoadKeywords(LoadKeywords, _S3Keywords, total=False):
    """Options of ``S3StorageReader``."""
