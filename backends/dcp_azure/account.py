"""Which storage account, with which credentials: options first, then the environment.

::

    endpoint      account_url · the URL's · account · connection string · AZURE_STORAGE_SERVICE_ENDPOINT
                  · AZURE_STORAGE_ACCOUNT
    credentials   an option · connection string · AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN, unless
                  AZURE_STORAGE_AUTH_MODE is "login" · DefaultAzureCredential

What the environment has counts for its own account only: a key is not sent to another one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.storage.blob import BlobServiceClient

from dcp_azure.options import AzureOptions
from dcp_core.errors import ConfigurationError, MissingExtraError

__all__ = ["Account", "find_account", "token_provider_is_configured"]

#: Service principal, workload identity, and managed identities, of which a virtual machine's need none:
#: https://learn.microsoft.com/python/api/azure-identity/azure.identity.defaultazurecredential
_TOKEN_PROVIDERS = (
    *("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_FEDERATED_TOKEN_FILE"),
    *("IDENTITY_ENDPOINT", "MSI_ENDPOINT", "AZURE_POD_IDENTITY_AUTHORITY_HOST"),
)
#: Virtual machines of Azure have this in their firmware:
#: https://github.com/canonical/cloud-init/blob/main/tools/ds-identify
_ASSET_TAG = Path("/sys/class/dmi/id/chassis_asset_tag")
_AZURE_MACHINE = "7783-7084-3265-9085-8269-3286-77"


@dataclass(frozen=True)
class Account:
    """A blob endpoint and what to authenticate with: anything the SDK takes, or ``None`` for nothing."""

    endpoint: str
    name: str
    credential: Any = None

    @property
    def secret(self) -> str | None:
        """The key or signature, empty for requests without; ``None`` where tokens are fetched."""
        if self.credential is None:
            return ""
        if isinstance(self.credential, AzureNamedKeyCredential):
            return str(self.credential.named_key.key)
        return getattr(self.credential, "signature", None) or getattr(self.credential, "account_key", None)


def find_account(options: AzureOptions, named: str | None) -> Account:
    """The account of ``options``, or of the endpoint that a checkpoint's URL names.

    Raises:
        ConfigurationError: no account is named, or two.
        MissingExtraError: azure-identity is needed and not installed.
    """
    if named is not None and options.account not in (None, _name(named)):
        raise ConfigurationError(f"the URL names the account {_name(named)!r}, account= {options.account!r}")
    held = _held(options)
    found = _chosen(named or _public(options.account), held, options)
    if options.anonymous:
        return replace(found, credential=None)
    credential = _given(options, found.name)
    if credential is None and held is not None and held.name == found.name:
        credential = held.credential
    return replace(found, credential=_default_credential() if credential is None else credential)


def _chosen(named: str | None, held: Account | None, options: AzureOptions) -> Account:
    """The account, without its credentials."""
    endpoint = options.account_url or named
    if endpoint is None:
        if held is None:
            raise ConfigurationError(
                "no storage account is named: set account=, AZURE_STORAGE_CONNECTION_STRING or "
                "AZURE_STORAGE_ACCOUNT, or use abfss://container@account.dfs.core.windows.net/prefix"
            )
        return held
    wanted = Account(endpoint, options.account or _name(endpoint))
    if held is None:
        return wanted
    if options.connection_string is not None and held.name != wanted.name:
        raise ConfigurationError(
            f"the connection string is for the account {held.name!r}, not for {wanted.name!r}"
        )
    # of an account that is only named, a connection string knows where it is: private endpoints, emulators
    return held if options.account_url is None and held.name == wanted.name else wanted


def _name(endpoint: str) -> str:
    """The account's name: the first label of the host; for a host without names, of the path."""
    url = urlsplit(endpoint)
    host = url.hostname or ""
    if host == "localhost" or host.replace(".", "").isdigit():
        return url.path.strip("/").partition("/")[0]
    return host.partition(".")[0]


def _public(name: str | None) -> str | None:
    return None if name is None else f"https://{name}.blob.core.windows.net"


def _held(options: AzureOptions) -> Account | None:
    """The account that the connection string or the environment describes."""
    text = options.connection_string or os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    if text:
        return _from_connection_string(text)
    account = os.environ.get("AZURE_STORAGE_ACCOUNT") or None
    endpoint = os.environ.get("AZURE_STORAGE_SERVICE_ENDPOINT") or _public(account)
    if endpoint is None:
        return None
    endpoint, name = endpoint.rstrip("/"), account or _name(endpoint)
    if os.environ.get("AZURE_STORAGE_AUTH_MODE") == "login":
        return Account(endpoint, name)
    sas = os.environ.get("AZURE_STORAGE_SAS_TOKEN")
    key = os.environ.get("AZURE_STORAGE_KEY")
    return Account(endpoint, name, AzureNamedKeyCredential(name, key) if key else _sas(sas) if sas else None)


def _from_connection_string(text: str) -> Account:
    try:
        service = BlobServiceClient.from_connection_string(text)
    except ValueError as error:
        raise ConfigurationError(
            "the connection string is malformed: it names no account, or has parts without '='"
        ) from error
    with service:
        endpoint, _, query = service.primary_endpoint.partition("?")
        name = service.account_name or _name(endpoint)
        return Account(endpoint.rstrip("/"), name, _sas(query) if query else service.credential)


def _given(options: AzureOptions, name: str) -> Any:
    if options.sas_token is not None:
        return _sas(options.sas_token)
    if options.account_key is not None:
        return AzureNamedKeyCredential(name, options.account_key)
    return options.credential


def _sas(token: str) -> AzureSasCredential:
    return AzureSasCredential(token.lstrip("?"))


def token_provider_is_configured() -> bool:
    """Whether DefaultAzureCredential ought to find a token here: then its failure may pass."""
    named = any(os.environ.get(name) for name in _TOKEN_PROVIDERS)
    try:
        return named or _ASSET_TAG.read_text().strip() == _AZURE_MACHINE
    except OSError:
        return named


def _default_credential() -> Any:
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise MissingExtraError(
            "DefaultAzureCredential needs azure-identity: pip install 'dcp-cloud[azure]'"
        ) from error
    return DefaultAzureCredential()
