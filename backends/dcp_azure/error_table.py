"""From azure-core's errors to ours: the only place that knows either by name.

Error codes: https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes and
https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes
"""

from __future__ import annotations

import http.client
import socket
import ssl
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import requests.exceptions
import urllib3.exceptions
from azure.core import exceptions as sdk

from dcp_core.errors import (
    BucketNotFoundError,
    CheckpointCorruptError,
    CloudCheckpointError,
    ConfigurationError,
    ConflictError,
    CredentialsError,
    ObjectNotFoundError,
    PermissionDeniedError,
    ThrottledError,
    TransientError,
    UnsupportedError,
)

__all__ = ["mapped", "refusal"]

_Kind = type[CloudCheckpointError]

_CREDENTIALS = (
    "the store does not accept the credentials: the account key belongs to another account, or the SAS has "
    "expired, is for another container or was changed"
)
_PERMISSION = "the credentials may not do this: assign Storage Blob Data Contributor, or extend the SAS"
_OTHER_KEY = "the object is encrypted with a key of the customer: pass the encryption_key it was saved with"

#: Azure error code → (our error, what to do).
_CODES: dict[str, tuple[_Kind, str]] = {
    "ContainerNotFound": (BucketNotFoundError, "the container does not exist: create it or correct the URL"),
    "ContainerBeingDeleted": (BucketNotFoundError, "the container is being deleted"),
    "ContainerDisabled": (BucketNotFoundError, "the container is disabled"),
    "InvalidResourceName": (BucketNotFoundError, "this is not a valid container name: correct the URL"),
    "BlobNotFound": (ObjectNotFoundError, "the object does not exist"),
    "ResourceNotFound": (ObjectNotFoundError, "the object does not exist"),
    "InvalidBlockList": (ObjectNotFoundError, "the blocks do not exist: committed, discarded or expired"),
    "AuthenticationFailed": (PermissionDeniedError, _CREDENTIALS),
    "InvalidAuthenticationInfo": (PermissionDeniedError, _CREDENTIALS),
    "NoAuthenticationInformation": (
        PermissionDeniedError,
        "the store wants credentials, or the container is not public",
    ),
    "PublicAccessNotPermitted": (PermissionDeniedError, "the account allows no anonymous access"),
    "AuthorizationFailure": (
        PermissionDeniedError,
        "the account refuses the request: the credentials (account key, SAS, login) do not fit it or have "
        "expired, or its network rules do not allow it",
    ),
    "AuthorizationPermissionMismatch": (PermissionDeniedError, _PERMISSION),
    "AuthorizationProtocolMismatch": (PermissionDeniedError, "the SAS allows HTTPS only"),
    "AuthorizationResourceTypeMismatch": (PermissionDeniedError, "the SAS is for another kind of resource"),
    "AuthorizationServiceMismatch": (PermissionDeniedError, "the SAS is not for the blob service"),
    "AuthorizationSourceIPMismatch": (PermissionDeniedError, "the SAS is not for this machine's address"),
    "InsufficientAccountPermissions": (PermissionDeniedError, _PERMISSION),
    "UnauthorizedBlobOverwrite": (PermissionDeniedError, "the SAS may create objects but not replace them"),
    "AccountIsDisabled": (PermissionDeniedError, "the storage account is disabled"),
    "KeyBasedAuthenticationNotPermitted": (
        PermissionDeniedError,
        "the account allows no shared keys: use an azure-identity credential",
    ),
    "BlobImmutableDueToPolicy": (PermissionDeniedError, "an immutability policy protects the object"),
    "BlobArchived": (PermissionDeniedError, "the object is archived: rehydrate it first"),
    "BlobBeingRehydrated": (PermissionDeniedError, "the object is being rehydrated: wait for it"),
    "ConditionNotMet": (ConflictError, "another writer changed the object first"),
    "TargetConditionNotMet": (ConflictError, "another writer changed the object first"),
    "BlobAlreadyExists": (ConflictError, "another writer created the object first"),
    "LeaseIdMissing": (ConflictError, "another client holds a lease on the object"),
    "LeaseAlreadyPresent": (ConflictError, "another client holds a lease on the object"),
    "SnapshotsPresent": (ConflictError, "the object has snapshots: delete them first"),
    "BlobUsesCustomerSpecifiedEncryption": (ConfigurationError, _OTHER_KEY),
    "BlobCustomerSpecifiedEncryptionMismatch": (ConfigurationError, _OTHER_KEY),
    "BlobDoesNotUseCustomerSpecifiedEncryption": (
        ConfigurationError,
        "the object is not encrypted with a key of the customer: leave encryption_key out",
    ),
    "InvalidRange": (CheckpointCorruptError, "the object ends before the range that the record names"),
    "RequestBodyTooLarge": (UnsupportedError, "the part is larger than Azure allows"),
    "BlockCountExceedsLimit": (UnsupportedError, "the object has more blocks than Azure allows"),
    "BlockListTooLong": (UnsupportedError, "the object has more blocks than Azure allows"),
    "InvalidBlobType": (UnsupportedError, "the object is a page or append blob"),
    "InvalidBlobOrBlock": (ConflictError, "the name has unfinished blocks of another tool"),
    "APINotImplemented": (UnsupportedError, "the store does not implement this request"),
    "UnsupportedHeader": (UnsupportedError, "the account does not support an option of this request"),
    "FeatureNotSupported": (UnsupportedError, "the store does not support an option of this request"),
    "FeatureVersionMismatch": (UnsupportedError, "the account does not support this request"),
    "Md5Mismatch": (TransientError, "the bytes changed on their way to the store"),
    "Crc64Mismatch": (TransientError, "the bytes changed on their way to the store"),
    "ServerBusy": (ThrottledError, "the store asks for fewer requests"),
    "AccountBeingCreated": (TransientError, "the account is being created"),
    "OperationTimedOut": (TransientError, "the store ran out of time"),
    "InternalError": (TransientError, "the store had an internal error"),
}

#: HTTP status → (our error, what to do), for codes that are not listed and answers without one.
_STATUSES: dict[int, tuple[_Kind, str]] = {
    401: (PermissionDeniedError, "the store wants credentials"),
    403: (PermissionDeniedError, _PERMISSION),
    404: (ObjectNotFoundError, "the object does not exist"),
    405: (UnsupportedError, "the store does not allow this operation"),
    408: (TransientError, "the store waited too long for bytes"),
    409: (ConflictError, "another operation on the object was faster"),
    412: (ConflictError, "another writer changed the object first"),
    413: (UnsupportedError, "the part is larger than Azure allows"),
    416: (CheckpointCorruptError, "the object ends before the range that the record names"),
    429: (ThrottledError, "the store asks for fewer requests"),
    501: (
        UnsupportedError,
        "the store does not implement this request: one without conditional writes needs "
        "conditional_commit=False",
    ),
    503: (ThrottledError, "the store is overloaded"),
}

#: What lies at the bottom of a failed request, most specific first.
_CAUSES: tuple[tuple[type[BaseException], _Kind, str], ...] = (
    (
        ssl.SSLCertVerificationError,
        ConfigurationError,
        "the server's certificate is not trusted: set ca_bundle=",
    ),
    (urllib3.exceptions.LocationParseError, ConfigurationError, "account_url is not a URL"),
    (requests.exceptions.InvalidURL, ConfigurationError, "account_url is not a URL"),
    (requests.exceptions.MissingSchema, ConfigurationError, "account_url is not a URL"),
)

#: Exceptions raised before or instead of an answer, most specific first.
_EXCEPTIONS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], _Kind, str], ...] = (
    (
        sdk.ClientAuthenticationError,
        CredentialsError,
        "no usable credentials: set AZURE_STORAGE_CONNECTION_STRING, log in for DefaultAzureCredential, pass "
        "account_key, sas_token or credential, or anonymous=True for a public container",
    ),
    (sdk.ServiceRequestTimeoutError, TransientError, "the endpoint could not be reached"),
    (sdk.ServiceRequestError, TransientError, "the endpoint could not be reached"),
    (sdk.ServiceResponseTimeoutError, TransientError, "no byte moved within stall_timeout"),
    ((sdk.ServiceResponseError, sdk.IncompleteReadError), TransientError, "the connection broke"),
    ((requests.exceptions.Timeout, urllib3.exceptions.TimeoutError), TransientError, "no byte moved in time"),
    ((urllib3.exceptions.HTTPError, http.client.HTTPException), TransientError, "the connection broke"),
    (TimeoutError, TransientError, "no byte moved within stall_timeout"),
    (OSError, TransientError, "the connection broke"),
    (sdk.AzureError, ConfigurationError, "the SDK refused the request"),
    (ValueError, ConfigurationError, "an option has a value that the SDK does not take"),
)

#: The service refuses requests whose date is 15 minutes off.
_SKEW = timedelta(minutes=10)


@contextmanager
def mapped(operation: str, bucket: str, key: str | None = None) -> Iterator[None]:
    """Turn the errors of one request into ours, chained to the original."""
    try:
        yield
    except CloudCheckpointError as error:
        error.bucket, error.key = error.bucket or bucket, error.key or key
        raise
    except sdk.HttpResponseError as error:
        raise _from_answer(error, operation, bucket, key) from error
    except (
        sdk.AzureError,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
        ValueError,
    ) as error:
        raise _from_exception(error, operation, bucket, key) from error


def refusal(
    operation: str, bucket: str, key: str | None, status: int, headers: Mapping[str, str], *, said: str = ""
) -> CloudCheckpointError:
    """The error of ours for an answer of the service."""
    code = headers.get("x-ms-error-code", "")
    kind, advice = _CODES.get(code) or _STATUSES.get(status) or _by_class(status)
    if code == "AuthenticationFailed" and (skew := _clock_skew(headers)) is not None:
        kind, advice = ConfigurationError, f"this machine's clock is {skew} from the store's: set it"
    return kind(
        f"{operation}: {advice} (Azure says {code or status}{': ' + said if said else ''})",
        bucket=bucket,
        key=key,
        request_id=headers.get("x-ms-request-id"),
    )


def _from_answer(
    error: sdk.HttpResponseError, operation: str, bucket: str, key: str | None
) -> CloudCheckpointError:
    response: Any = error.response
    if response is None or (
        # the answer of the service that hands out tokens
        isinstance(error, sdk.ClientAuthenticationError) and "x-ms-error-code" not in response.headers
    ):
        return _from_exception(error, operation, bucket, key)
    said = "" if response.status_code in (401, 403) else _message(response)
    return refusal(operation, bucket, key, response.status_code, response.headers, said=said)


def _message(response: Any) -> str:
    """The first line of what the service says; where credentials are refused it may hold parts of them."""
    try:
        found = ET.fromstring(response.body()).findtext("Message")
    # no body, not read, or not XML: the code has to do
    except (ET.ParseError, sdk.AzureError, requests.exceptions.RequestException, OSError, TypeError):
        return ""
    return (found or "").partition("\n")[0]


def _by_class(status: int) -> tuple[_Kind, str]:
    if status >= 500:
        return TransientError, "the store had an internal error"
    return ConfigurationError, "the store refused the request"


def _clock_skew(headers: Mapping[str, str]) -> str | None:
    """How far this machine's clock is from the service's, if that is why it refuses a signature."""
    try:
        there = parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        return None
    if there.tzinfo is None:
        return None
    skew = datetime.now(timezone.utc) - there
    return f"{skew.total_seconds() / 60:+.0f} minutes" if abs(skew) > _SKEW else None


def _from_exception(
    error: BaseException, operation: str, bucket: str, key: str | None
) -> CloudCheckpointError:
    causes = list(_causes(error))
    for cause in causes:
        # EAI_AGAIN may be a name server that does not answer
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            advice = "no such host: correct the name of the storage account"
            return ConfigurationError(f"{operation}: {advice} ({error})", bucket=bucket, key=key)
        for wanted, kind, advice in _CAUSES:
            if isinstance(cause, wanted):
                return kind(f"{operation}: {advice} ({error})", bucket=bucket, key=key)
    for kinds, kind, advice in _EXCEPTIONS:
        if isinstance(error, kinds):
            return kind(f"{operation}: {advice} ({error})", bucket=bucket, key=key)
    return ConfigurationError(f"{operation}: the SDK failed ({error})", bucket=bucket, key=key)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it wraps: by chaining, as an argument, or as azure-core's ``inner_exception``."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        inner = (one.__cause__, one.__context__, getattr(one, "inner_exception", None), *one.args)
        waiting += [other for other in inner if isinstance(other, BaseException)]
