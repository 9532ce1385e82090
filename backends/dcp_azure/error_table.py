"""From azure-core's errors to ours: the only place that knows either by name.

Error codes: https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes and
https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes
"""

from __future__ import annotations

import socket
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import requests.exceptions
import urllib3.exceptions
from azure.core import exceptions as sdk

from dcp_azure.account import token_provider_is_configured
from dcp_core.errors import (
    BucketNotFoundError,
    ConfigurationError,
    ConflictError,
    CredentialsError,
    ObjectNotFoundError,
    PermissionDeniedError,
    TransientError,
    UnsupportedError,
)
from dcp_core.transport import verdicts
from dcp_core.transport.error_table import ErrorTable, ExceptionVerdicts, Refusal
from dcp_core.transport.responses import parse_date
from dcp_core.transport.verdicts import Verdict

__all__ = ["AzureErrors", "refusal_by_headers"]

_CREDENTIALS = Verdict(
    PermissionDeniedError,
    "the store does not accept the credentials: the account key belongs to another account, or the SAS has "
    "expired, is for another container or was changed",
    renew=True,
)
_PERMISSION = Verdict(
    PermissionDeniedError,
    "the credentials may not do this: assign Storage Blob Data Contributor, or extend the role or SAS",
    denied=True,
)
_OTHER_KEY = Verdict(
    ConfigurationError,
    "the object is encrypted with a key of the customer: pass the encryption_key it was saved with",
)
_LEASED = Verdict(ConflictError, "another client holds a lease on the object")
_TOO_MANY_BLOCKS = Verdict(UnsupportedError, "the object has more blocks than Azure allows")
_NO_OPTION = Verdict(UnsupportedError, "the account does not support an option of this request")
_NOT_A_URL = Verdict(ConfigurationError, "account_url is not a URL")

_CODES: Mapping[str, Verdict] = {
    "ContainerNotFound": Verdict(
        BucketNotFoundError, "the container does not exist: create it or correct the URL"
    ),
    "ContainerBeingDeleted": Verdict(BucketNotFoundError, "the container is being deleted"),
    "ContainerDisabled": Verdict(BucketNotFoundError, "the container is disabled"),
    "InvalidResourceName": Verdict(
        BucketNotFoundError, "this is not a valid container name: correct the URL"
    ),
    "BlobNotFound": verdicts.GONE,
    "ResourceNotFound": verdicts.GONE,
    "InvalidBlockList": Verdict(
        ObjectNotFoundError, "the blocks do not exist: committed, discarded or expired"
    ),
    "AuthenticationFailed": _CREDENTIALS,
    "InvalidAuthenticationInfo": _CREDENTIALS,
    "NoAuthenticationInformation": Verdict(
        PermissionDeniedError, "the store wants credentials, or the container is not public"
    ),
    "PublicAccessNotPermitted": Verdict(PermissionDeniedError, "the account allows no anonymous access"),
    "AuthorizationFailure": Verdict(
        PermissionDeniedError,
        "the account refuses the request: the credentials (account key, SAS, login) do not fit it or have "
        "expired, or its network rules do not allow it",
        renew=True,
    ),
    "AuthorizationPermissionMismatch": _PERMISSION,
    "AuthorizationProtocolMismatch": Verdict(PermissionDeniedError, "the SAS allows HTTPS only"),
    "AuthorizationResourceTypeMismatch": Verdict(
        PermissionDeniedError, "the SAS is for another kind of resource"
    ),
    "AuthorizationServiceMismatch": Verdict(PermissionDeniedError, "the SAS is not for the blob service"),
    "AuthorizationSourceIPMismatch": Verdict(
        PermissionDeniedError, "the SAS is not for this machine's address"
    ),
    "InsufficientAccountPermissions": _PERMISSION,
    "UnauthorizedBlobOverwrite": Verdict(
        PermissionDeniedError, "the SAS may create objects but not replace them"
    ),
    "AccountIsDisabled": Verdict(PermissionDeniedError, "the storage account is disabled"),
    "KeyBasedAuthenticationNotPermitted": Verdict(
        PermissionDeniedError, "the account allows no shared keys: use an azure-identity credential"
    ),
    "BlobImmutableDueToPolicy": Verdict(PermissionDeniedError, "an immutability policy protects the object"),
    "BlobArchived": Verdict(PermissionDeniedError, "the object is archived: rehydrate it first"),
    "BlobBeingRehydrated": Verdict(PermissionDeniedError, "the object is being rehydrated: wait for it"),
    "ConditionNotMet": verdicts.CHANGED,
    "TargetConditionNotMet": verdicts.CHANGED,
    "BlobAlreadyExists": Verdict(ConflictError, "another writer created the object first"),
    "LeaseIdMissing": _LEASED,
    "LeaseAlreadyPresent": _LEASED,
    "SnapshotsPresent": Verdict(ConflictError, "the object has snapshots: delete them first"),
    "BlobUsesCustomerSpecifiedEncryption": _OTHER_KEY,
    "BlobCustomerSpecifiedEncryptionMismatch": _OTHER_KEY,
    "BlobDoesNotUseCustomerSpecifiedEncryption": Verdict(
        ConfigurationError,
        "the object is not encrypted with a key of the customer: leave encryption_key out",
    ),
    "InvalidRange": verdicts.OUT_OF_RANGE,
    "RequestBodyTooLarge": verdicts.TOO_LARGE,
    "BlockCountExceedsLimit": _TOO_MANY_BLOCKS,
    "BlockListTooLong": _TOO_MANY_BLOCKS,
    "InvalidBlobType": Verdict(UnsupportedError, "the object is a page or append blob"),
    "InvalidBlobOrBlock": Verdict(ConflictError, "the name has unfinished blocks of another tool"),
    "APINotImplemented": Verdict(UnsupportedError, "the store does not implement this request"),
    "UnsupportedHeader": _NO_OPTION,
    "FeatureNotSupported": _NO_OPTION,
    "FeatureVersionMismatch": _NO_OPTION,
    "Md5Mismatch": verdicts.DAMAGED,
    "Crc64Mismatch": verdicts.DAMAGED,
    "ServerBusy": verdicts.SLOW_DOWN,
    "AccountBeingCreated": Verdict(TransientError, "the account is being created"),
    "OperationTimedOut": Verdict(TransientError, "the store ran out of time"),
    "InternalError": verdicts.INTERNAL,
}

_STATUSES: Mapping[int, Verdict] = {
    403: _PERMISSION,
    409: Verdict(ConflictError, "another operation on the object was faster"),
}

_CAUSES: ExceptionVerdicts = (
    (
        (
            urllib3.exceptions.LocationParseError,
            requests.exceptions.InvalidURL,
            requests.exceptions.MissingSchema,
        ),
        _NOT_A_URL,
    ),
    # the SDK makes an HttpResponseError of some, as of what it refuses itself
    (requests.exceptions.ChunkedEncodingError, verdicts.ENDED_EARLY),
)
_NO_SUCH_HOST = Verdict(ConfigurationError, "no such host: correct the name of the storage account")

_EXCEPTIONS: ExceptionVerdicts = (
    (
        sdk.ClientAuthenticationError,
        Verdict(
            CredentialsError,
            "no usable credentials: set AZURE_STORAGE_CONNECTION_STRING, log in for DefaultAzureCredential, "
            "pass account_key, sas_token or credential, or anonymous=True for a public container",
        ),
    ),
    ((sdk.ServiceRequestTimeoutError, sdk.ServiceRequestError), verdicts.UNREACHABLE),
    (
        (
            sdk.ServiceResponseTimeoutError,
            requests.exceptions.Timeout,
            urllib3.exceptions.TimeoutError,
        ),
        verdicts.STALLED,
    ),
    (
        (sdk.ServiceResponseError, sdk.IncompleteReadError, urllib3.exceptions.HTTPError),
        verdicts.BROKEN,
    ),
    (sdk.AzureError, Verdict(ConfigurationError, "the SDK refused the request")),
    (ValueError, Verdict(ConfigurationError, "an option has a value that the SDK does not take")),
)

#: The service refuses requests whose date is 15 minutes off.
_SKEW = timedelta(minutes=10)


_READ, _WRITE = "blobs/read (SAS: r)", "blobs/write (SAS: c to create, w to replace)"
#: https://learn.microsoft.com/rest/api/storageservices/authorize-with-azure-active-directory, where the
#: actions are those of Microsoft.Storage/storageAccounts/blobServices/containers, and
#: https://learn.microsoft.com/rest/api/storageservices/create-service-sas
_PERMISSIONS: Mapping[str, str] = {
    "Get Blob": _READ,
    "Get Blob Properties": _READ,
    "Get Block List": _READ,
    "Put Blob": _WRITE,
    "Put Block": _WRITE,
    "Put Block List": _WRITE,
    "Delete Blob": "blobs/delete (SAS: d)",
    "List Blobs": "blobs/read on the container (SAS: l)",
}
_TOKEN_SERVICE_FAILED = Verdict(TransientError, "the service that gives tokens failed")
_UNOBTAINABLE = Verdict(CredentialsError, "the credentials could not be obtained", renew=True)


class AzureErrors(ErrorTable):
    """The errors of Azure Blob Storage and azure-core."""

    service = "Azure"
    codes = _CODES
    statuses = _STATUSES
    causes = _CAUSES
    exceptions = _EXCEPTIONS
    permissions = _PERMISSIONS

    def refusal_of(self, error: BaseException) -> Refusal | None:
        response: Any = error.response if isinstance(error, sdk.HttpResponseError) else None
        if response is None or (
            # the response of the service that hands out tokens
            isinstance(error, sdk.ClientAuthenticationError) and "x-ms-error-code" not in response.headers
        ):
            return None
        said = "" if response.status_code in (401, 403) else _message(response)
        return refusal_by_headers(response.status_code, response.headers, said)

    def verdict_on(self, operation: str, refusal: Refusal) -> Verdict:
        skew = _clock_skew(refusal.headers) if refusal.code == "AuthenticationFailed" else None
        if skew is not None:
            return Verdict(ConfigurationError, f"this machine's clock is {skew} from the store's: set it")
        return super().verdict_on(operation, refusal)

    def verdict_on_exception(self, error: BaseException, found: list[BaseException]) -> Verdict:
        # EAI_AGAIN may be a name server that does not respond
        if any(isinstance(one, socket.gaierror) and one.errno != socket.EAI_AGAIN for one in found):
            return _NO_SUCH_HOST
        if isinstance(error, sdk.ClientAuthenticationError):
            status = getattr(error.response, "status_code", 0)
            if status == 429 or status >= 500:
                return _TOKEN_SERVICE_FAILED
            # one of azure-identity's own is of a credential that was chosen, and is not there at present
            chosen = type(error) is not sdk.ClientAuthenticationError or token_provider_is_configured()
            if status == 0 and chosen:
                return _UNOBTAINABLE
        return super().verdict_on_exception(error, found)


def refusal_by_headers(status: int, headers: Mapping[str, str], said: str = "") -> Refusal:
    """A response that is no success; Azure's headers have the code."""
    return Refusal(status, headers.get("x-ms-error-code", ""), said, headers.get("x-ms-request-id"), headers)


def _message(response: Any) -> str:
    """The first line of what the service says; where credentials are refused it may hold parts of them."""
    try:
        found = ET.fromstring(response.body()).findtext("Message")
    # no body, not read, or not XML: the code has to do
    except (ET.ParseError, sdk.AzureError, requests.exceptions.RequestException, OSError, TypeError):
        return ""
    return (found or "").partition("\n")[0]


def _clock_skew(headers: Mapping[str, str]) -> str | None:
    """How far this machine's clock is from the service's, if that is why it refuses a signature."""
    there = parse_date(headers.get("Date", ""))
    if there is None:
        return None
    skew = datetime.now(timezone.utc) - there
    return f"{skew.total_seconds() / 60:+.0f} minutes" if abs(skew) > _SKEW else None
