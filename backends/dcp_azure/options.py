"""Options of the Azure backend."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

from azure.core.credentials import TokenCredential

from dcp_core.config import BucketKeywords, BucketOptions, LoadKeywords, Renamed, SaveKeywords
from dcp_core.errors import ConfigurationError

__all__ = ["AzureLoadKeywords", "AzureOptions", "AzureSaveKeywords"]


@dataclass(frozen=True)
class AzureOptions(BucketOptions):
    """How to reach a container and how to store objects in it.

    What is left out comes from the variables of Azure's command line (``AZURE_STORAGE_CONNECTION_STRING``;
    ``AZURE_STORAGE_ACCOUNT`` or ``AZURE_STORAGE_SERVICE_ENDPOINT`` with ``AZURE_STORAGE_KEY`` or
    ``AZURE_STORAGE_SAS_TOKEN``, unless ``AZURE_STORAGE_AUTH_MODE`` is ``login``), and the credentials from
    there or from ``DefaultAzureCredential``. Variables count for the account they belong to only.

    Attributes:
        account: name of the storage account, in Azure's public cloud unless ``account_url`` says otherwise.
        account_url: blob endpoint, for other clouds, private endpoints and emulators.
        connection_string: endpoint and credentials in one.
        account_key: shared key of the account; never shown.
        sas_token: shared access signature, with or without the ``?``; never shown.
        credential: an ``azure-identity`` credential. It has to be picklable for saves in another process.
        anonymous: send unsigned requests, to a public container.
        access_tier: ``Hot``, ``Cool``, ``Cold`` or ``Premium``; the account's own if ``None``.
        encryption_key: customer-provided key, 32 bytes in base64; needed again to load; never shown.
        encryption_scope: name of an encryption scope of the account.
        tags: blob index tags.
        upload_checksum: what is sent with every part for Azure to check. ``crc64`` costs 0.07 CPU
            seconds a GiB, ``md5`` 1.3; ``None`` sends none and leaves damage to be found by loads.
    """

    RENAMED: ClassVar[Mapping[str, Renamed]] = MappingProxyType(
        {"transactional_checksum": Renamed("upload_checksum")}
    )

    account: str | None = None
    account_url: str | None = None
    connection_string: str | None = field(default=None, repr=False)
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    credential: TokenCredential | None = field(default=None, repr=False)
    anonymous: bool = False
    access_tier: Literal["Hot", "Cool", "Cold", "Premium"] | None = None
    encryption_key: str | None = field(default=None, repr=False)
    encryption_scope: str | None = None
    tags: Mapping[str, str] | None = None
    upload_checksum: Literal["crc64", "md5"] | None = "crc64"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_credentials()
        if self.account_url is not None and "?" in self.account_url:
            raise ConfigurationError("account_url has a query: pass a SAS as sas_token")
        # Archive too is a tier, but its blobs cannot be read, the commit record among them
        if self.access_tier not in (None, "Hot", "Cool", "Cold", "Premium"):
            raise ConfigurationError(
                f"access_tier must be Hot, Cool, Cold or Premium, got {self.access_tier!r}"
            )
        if self.encryption_key is not None and len(_decoded(self.encryption_key)) != 32:
            raise ConfigurationError("encryption_key must be 32 bytes in base64")
        if self.encryption_key is not None and self.encryption_scope is not None:
            raise ConfigurationError("encryption_key and encryption_scope exclude each other")
        if self.upload_checksum not in (None, "crc64", "md5"):
            raise ConfigurationError(
                f"upload_checksum must be crc64, md5 or None, got {self.upload_checksum!r}"
            )

    def _check_credentials(self) -> None:
        given = {
            "connection_string": self.connection_string,
            "account_key": self.account_key,
            "sas_token": self.sas_token,
            "credential": self.credential,
            "anonymous": self.anonymous or None,
        }
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ConfigurationError(f"{' and '.join(names)} exclude each other: give one")
        if self.account_key is not None and not _decoded(self.account_key):
            raise ConfigurationError("account_key is not base64: it is not an account's key")


def _decoded(text: str) -> bytes:
    """What ``text`` says in base64; nothing if it is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


class _AzureKeywords(BucketKeywords, total=False):
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
    upload_checksum: Literal["crc64", "md5"] | None


class AzureSaveKeywords(SaveKeywords, _AzureKeywords, total=False):
    """Options of ``AzureStorageWriter``."""


class AzureLoadKeywords(LoadKeywords, _AzureKeywords, total=False):
    """Options of ``AzureStorageReader``."""
