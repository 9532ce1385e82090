"""The keyword options of the Google classes, for type checkers. A test holds them to the dataclasses."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["GCSLoadKeywords", "GCSSaveKeywords"]


class _GCSKeywords(TypedDict, total=False):
    endpoint_url: str | None
    credentials_file: str | None
    access_token: str | None
    anonymous: bool
    user_project: str | None
    kms_key_name: str | None
    storage_class: str | None
    connect_timeout: float
    stall_timeout: float
    ca_bundle: str | None
    verify_tls: bool
    concurrency: int
    memory: int
    attempts: int
    deadline: float | None


class GCSSaveKeywords(_GCSKeywords, total=False):
    """Options of ``GCSStorageWriter``."""

    part_size: int
    overwrite: bool
    conditional_commit: bool


class GCSLoadKeywords(_GCSKeywords, total=False):
    """Options of ``GCSStorageReader``."""

    request_size: int
    gap: int
    verify: bool
    weights_only: bool
