"""From the errors of Google's APIs and SDK to ours: the only place that knows either by name.

Codes of the XML API: https://docs.cloud.google.com/storage/docs/xml-api/reference-status, reasons of the
JSON API: https://docs.cloud.google.com/storage/docs/json_api/v1/status-codes. Lists and deletes go through
the JSON API, everything else through the XML API.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import google.auth.exceptions as auth
import requests.exceptions as sdk
import urllib3.exceptions

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
from dcp_gcs.documents import error_details

__all__ = ["error_of_answer", "mapped"]

_Kind = type[CloudCheckpointError]

_NO_BUCKET = (BucketNotFoundError, "the bucket does not exist: create it or correct the URL")
_CHANGED = (ConflictError, "another writer changed the object first")
_DAMAGED = (TransientError, "the bytes changed on their way to the store")
_SLOW_DOWN = (ThrottledError, "the store asks for fewer requests")
_FORBIDDEN = (PermissionDeniedError, "the credentials may not do this: grant a role with this permission")
_NO_TOKEN = (
    PermissionDeniedError,
    "the store does not accept the access token, or wants one: renew the credentials, or set this machine's "
    "clock if it is wrong",
)
_WANTS_PROJECT = (ConfigurationError, "the bucket is requester-pays: set user_project=")
_KMS = (ConfigurationError, "the Cloud KMS key cannot be used: correct kms_key_name, the key or its location")
_LACKS = (
    UnsupportedError,
    "the store lacks a feature that this request uses. If an emulator lacks conditional writes, set "
    "conditional_commit=False (the last of two concurrent saves then wins)",
)
_INTERNAL = (TransientError, "the store had an internal error")

#: Code or reason → (our error, what to do).
_CODES: dict[str, tuple[_Kind, str]] = {
    # the XML API
    "NoSuchBucket": _NO_BUCKET,
    "InvalidBucketName": (BucketNotFoundError, "this is not a valid bucket name: correct the URL"),
    "NoSuchKey": (ObjectNotFoundError, "the object does not exist"),
    "NoSuchUpload": (ObjectNotFoundError, "the multipart upload does not exist: finished or aborted"),
    "PreconditionFailed": _CHANGED,
    "AccessDenied": _FORBIDDEN,
    "AuthenticationRequired": _NO_TOKEN,
    "ExpiredToken": _NO_TOKEN,
    "InvalidSecurity": _NO_TOKEN,
    "RequestTimeTooSkewed": (ConfigurationError, "this machine's clock is wrong by minutes: set it"),
    "AccountProblem": (PermissionDeniedError, "the project's account has a problem: see its billing"),
    "UserAccountProblem": (PermissionDeniedError, "the account of the caller has a problem"),
    "UserProjectMissing": _WANTS_PROJECT,
    "UserProjectInvalid": (ConfigurationError, "user_project does not name a project"),
    "UserProjectAccessDenied": (PermissionDeniedError, "the credentials may not bill user_project"),
    "UserProjectAccountProblem": (ConfigurationError, "user_project has no working billing account"),
    "CloudKmsBadKey": _KMS,
    "CloudKmsDisabledKey": _KMS,
    "CloudKmsEncryptionKeyNotFound": _KMS,
    "CloudKmsDecryptionKeyNotFound": _KMS,
    "CloudKmsKeyLocationNotAllowed": _KMS,
    "InvalidStorageClass": (ConfigurationError, "storage_class is none that the store has"),
    "BadDigest": _DAMAGED,
    "CrcMismatch": _DAMAGED,
    "IncompleteBody": (TransientError, "the store received too few bytes"),
    "InvalidPart": (TransientError, "the store lost a part"),
    "InvalidRange": (CheckpointCorruptError, "the object ends before the range that the record names"),
    "EntityTooLarge": (UnsupportedError, "the object or part is larger than the store allows"),
    "EntityTooSmall": (ConfigurationError, "parts are smaller than the store allows: raise part_size"),
    "KeyTooLong": (ConfigurationError, "the object's name is longer than the store allows: shorten the URL"),
    "MethodNotAllowed": (UnsupportedError, "the store does not allow this operation"),
    "NotImplemented": _LACKS,
    "ObjectUnderActiveHold": (PermissionDeniedError, "the object is under a hold and cannot be changed"),
    "RetentionPolicyNotMet": (PermissionDeniedError, "the retention policy forbids to change the object yet"),
    "RequestTimeout": (TransientError, "the store waited too long for bytes"),
    "SlowDown": _SLOW_DOWN,
    "ServiceUnavailable": (ThrottledError, "the store is overloaded"),
    "InternalError": _INTERNAL,
    # the JSON API; of the requests sent there only those about the bucket itself can end in "notFound"
    "notFound": _NO_BUCKET,
    "conditionNotMet": _CHANGED,
    "forbidden": _FORBIDDEN,
    "insufficientPermissions": _FORBIDDEN,
    "required": _NO_TOKEN,
    "authError": _NO_TOKEN,
    "userProjectMissing": _WANTS_PROJECT,
    "objectUnderActiveHold": (PermissionDeniedError, "the object is under a hold and cannot be deleted"),
    "retentionPolicyNotMet": (PermissionDeniedError, "the retention policy forbids to delete the object yet"),
    "rateLimitExceeded": _SLOW_DOWN,
    "userRateLimitExceeded": _SLOW_DOWN,
    "backendError": _INTERNAL,
    "internalError": _INTERNAL,
}

#: HTTP status → (our error, what to do), for codes that are not listed and answers without a body.
_STATUSES: dict[int, tuple[_Kind, str]] = {
    401: _NO_TOKEN,
    403: _FORBIDDEN,
    404: (ObjectNotFoundError, "the object does not exist"),
    405: (UnsupportedError, "the store does not allow this operation"),
    408: (TransientError, "the store waited too long for bytes"),
    409: (TransientError, "another operation on this name was under way"),
    412: _CHANGED,
    416: (CheckpointCorruptError, "the object ends before the range that the record names"),
    429: _SLOW_DOWN,
    501: _LACKS,
    503: (ThrottledError, "the store is overloaded"),
}

#: Requests about a bucket alone: their 404 is the bucket's. JSON has one code, ``notFound``, for both.
_OF_BUCKETS = {"ListObjects"}

_NO_CREDENTIALS = (
    "no usable credentials: log in with `gcloud auth application-default login`, set "
    "GOOGLE_APPLICATION_CREDENTIALS or credentials_file=, or pass anonymous=True for a public bucket"
)

#: Exceptions raised before or instead of an answer, most specific first.
_EXCEPTIONS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], _Kind, str], ...] = (
    (auth.MutualTLSChannelError, ConfigurationError, "the client certificate cannot be used"),
    (
        auth.RefreshError,
        CredentialsError,
        "no access token could be obtained: log in again, replace the key, or set this machine's clock",
    ),
    (auth.TransportError, TransientError, "the token server could not be reached"),
    (auth.GoogleAuthError, CredentialsError, _NO_CREDENTIALS),
    (
        (sdk.InvalidURL, sdk.MissingSchema, sdk.InvalidSchema),
        ConfigurationError,
        "the endpoint is no URL: endpoint_url and STORAGE_EMULATOR_HOST start with http:// or https://",
    ),
    (
        ssl.SSLCertVerificationError,
        ConfigurationError,
        "the endpoint's certificate is not trusted: set ca_bundle=, or correct the endpoint",
    ),
    (sdk.SSLError, TransientError, "the TLS connection failed"),
    (sdk.ConnectTimeout, TransientError, "the endpoint could not be reached"),
    (sdk.ReadTimeout, TransientError, "no byte moved within stall_timeout"),
    (sdk.ConnectionError, TransientError, "the connection broke or could not be made"),
    (sdk.RequestException, TransientError, "the answer ended early"),
    (urllib3.exceptions.TimeoutError, TransientError, "no byte moved within stall_timeout"),
    (urllib3.exceptions.HTTPError, TransientError, "the connection broke"),
    (http.client.HTTPException, TransientError, "the connection broke"),
    (TimeoutError, TransientError, "no byte moved within stall_timeout"),
    (OSError, TransientError, "the connection broke"),
)


@contextmanager
def mapped(operation: str, bucket: str, key: str | None = None) -> Iterator[None]:
    """Turn the errors of one request into ours, chained to the original."""
    try:
        yield
    except sdk.HTTPError as error:
        answer = error.response
        assert answer is not None, "raised by the session, which always has an answer"
        raise error_of_answer(
            operation,
            answer.status_code,
            answer.content,
            bucket=bucket,
            key=key,
            request_id=answer.headers.get("x-guploader-uploadid"),
        ) from error
    except CloudCheckpointError:
        raise
    except (
        auth.GoogleAuthError,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
    ) as error:
        raise _from_exception(error, operation, bucket, key) from error


def error_of_answer(
    operation: str,
    status: int,
    body: bytes,
    *,
    bucket: str,
    key: str | None = None,
    request_id: str | None = None,
) -> CloudCheckpointError:
    """The error that an answer of ``status`` with ``body`` stands for."""
    code, said = error_details(body)
    kind, advice = _CODES.get(code) or _STATUSES.get(status) or _by_class(status)
    if status == 404 and operation in _OF_BUCKETS:
        kind, advice = _NO_BUCKET
    return kind(
        f"{operation}: {advice} (Google says {code or status}{': ' + said if said and said != code else ''})",
        bucket=bucket,
        key=key,
        request_id=request_id,
    )


def _by_class(status: int) -> tuple[_Kind, str]:
    return _INTERNAL if status >= 500 else (ConfigurationError, "the store refused the request")


def _root(error: BaseException) -> BaseException:
    """What ``error`` was raised for in the first place; not what the caller is handling meanwhile."""
    while error.__context__ is not None and not isinstance(error.__context__, CloudCheckpointError):
        error = error.__context__
    return error


def _from_exception(error: Exception, operation: str, bucket: str, key: str | None) -> CloudCheckpointError:
    if isinstance(error, auth.GoogleAuthError) and error.retryable:
        return TransientError(f"{operation}: the token server failed ({error})", bucket=bucket, key=key)
    root = _root(error)
    # requests has no types of its own for a certificate that is not trusted and a send that timed out
    untrusted = isinstance(root, ssl.SSLCertVerificationError)
    stalled = type(error) is sdk.ConnectionError and isinstance(root, TimeoutError)
    known = root if untrusted or stalled else error
    for kinds, kind, advice in _EXCEPTIONS:
        if isinstance(known, kinds):
            return kind(f"{operation}: {advice} ({error})", bucket=bucket, key=key)
    return ConfigurationError(f"{operation}: the SDK failed ({error})", bucket=bucket, key=key)
