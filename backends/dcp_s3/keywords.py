"""The keyword options of the S3 classes, for type checkers. A test holds them to the dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

__all__ = ["S3LoadKeywords", "S3SaveKeywords"]


class _S3Keywords(TypedDict, total=False):
    endpoint_url: str | None
    region: str | None
    profile: str | None
    access_key_id: str | None
    secret_access_key: str | None
    session_token: str | None
    anonymous: bool
    addressing_style: Literal["auto", "path", "virtual"]
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None
    kms_key_id: str | None
    bucket_key: bool | None
    storage_class: str | None
    tags: Mapping[str, str] | None
    requester_pays: bool
    expected_bucket_owner: str | None
    checksums: bool
    connect_timeout: float
    stall_timeout: float
    ca_bundle: str | None
    verify_tls: bool
    concurrency: int
    memory: int
    attempts: int
    deadline: float | None


class S3SaveKeywords(_S3Keywords, total=False):
    """Options of ``S3StorageWriter``."""

    part_size: int
    overwrite: bool
    conditional_commit: bool


class S3LoadKeywords(_S3Keywords, total=False):
    """Options of ``S3StorageReader``."""

    request_size: int
    gap: int
    verify: bool
    weights_only: bool
