"""The keyword options of the Azure classes, for type checkers. A test holds them to the dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from azure.core.credentials import TokenCredential

__all__ = ["AzureLoadKeywords", "AzureSaveKeywords"]


class _AzureKeywords(TypedDict, total=False):
    account: str | None
    account_url: str | None
    connection_string: str | None
    account_key: str | None
    sas_token: str | None
    credential: TokenCredential | None
    anonymous: bool
    access_tier: Literal["Hot", "Cool", "Cold", "Premium"] | None
    encryption_key: str | None
    encryption_scope: str | None
    tags: Mapping[str, str] | None
    transactional_checksum: Literal["crc64", "md5"] | None
    connect_timeout: float
    stall_timeout: float
    ca_bundle: str | None
    verify_tls: bool
    concurrency: int
    memory: int
    attempts: int
    deadline: float | None


class AzureSaveKeywords(_AzureKeywords, total=False):
    """Options of ``AzureStorageWriter``."""

    part_size: int
    overwrite: bool
    conditional_commit: bool


class AzureLoadKeywords(_AzureKeywords, total=False):
    """Options of ``AzureStorageReader``."""

    request_size: int
    gap: int
    verify: bool
    weights_only: bool
