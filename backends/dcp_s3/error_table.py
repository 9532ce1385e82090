"""From botocore's errors to ours: the only place that knows either by name.

S3 error codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import urllib3.exceptions
from botocore import exceptions as sdk
from urllib3.util.ssl_match_hostname import CertificateError

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

__all__ = ["mapped"]

_Kind = type[CloudCheckpointError]

_UNTRUSTED = (ssl.SSLCertVerificationError, CertificateError)

_NO_CONDITIONS = (
    "the store refuses a feature this request uses. If it lacks conditional writes, set "
    "conditional_commit=False (the last of two concurrent saves then wins); if it lacks checksums, "
    "set checksums=False"
)

#: S3 error code → (our error, what to do).
_CODES: dict[str, tuple[_Kind, str]] = {
    "NoSuchBucket": (BucketNotFoundError, "the bucket does not exist: create it or correct the URL"),
    "InvalidBucketName": (BucketNotFoundError, "this is not a valid bucket name: correct the URL"),
    "NoSuchKey": (ObjectNotFoundError, "the object does not exist"),
    "NoSuchUpload": (ObjectNotFoundError, "the multipart upload does not exist: finished or aborted"),
    "InvalidAccessKeyId": (PermissionDeniedError, "the store does not know the access key"),
    "SignatureDoesNotMatch": (PermissionDeniedError, "the secret key does not fit the access key"),
    "ExpiredToken": (PermissionDeniedError, "the session token has expired: renew the credentials"),
    "InvalidToken": (PermissionDeniedError, "the session token is not valid: renew the credentials"),
    "TokenRefreshRequired": (PermissionDeniedError, "the session token has expired: renew the credentials"),
    "RequestTimeTooSkewed": (ConfigurationError, "this machine's clock is wrong by minutes: set it"),
    "AccessDenied": (PermissionDeniedError, "the credentials may not do this: extend their policy"),
    "AllAccessDisabled": (PermissionDeniedError, "all access to this bucket is disabled"),
    "InvalidObjectState": (PermissionDeniedError, "the object is archived: restore it first"),
    "KMS.DisabledException": (ConfigurationError, "the KMS key is disabled"),
    "KMS.NotFoundException": (ConfigurationError, "the KMS key does not exist: correct kms_key_id"),
    "PreconditionFailed": (ConflictError, "another writer changed the object first"),
    # S3 answers 409 when another conditional write to the key was under way, or the object was deleted
    # meanwhile; it says to try again. The next attempt then finds the winner's object: 412.
    "ConditionalRequestConflict": (TransientError, "another conditional write was under way"),
    "OperationAborted": (TransientError, "another operation on this key was under way"),
    "NotImplemented": (UnsupportedError, _NO_CONDITIONS),
    "MethodNotAllowed": (UnsupportedError, "the store does not allow this operation"),
    "InvalidArgument": (
        ConfigurationError,
        "the store does not take a header or value of this request: one without CRC32C needs checksums=False",
    ),
    "InvalidRange": (CheckpointCorruptError, "the object ends before the range that the record names"),
    "InvalidPart": (TransientError, "the store lost a part"),
    "EntityTooLarge": (UnsupportedError, "the object or part is larger than the store allows"),
    "EntityTooSmall": (ConfigurationError, "parts are smaller than the store allows: raise part_size"),
    "BadDigest": (TransientError, "the bytes changed on their way to the store"),
    "XAmzContentChecksumMismatch": (TransientError, "the bytes changed on their way to the store"),
    "IncompleteBody": (TransientError, "the store received too few bytes"),
    "SlowDown": (ThrottledError, "the store asks for fewer requests"),
    "ServiceUnavailable": (ThrottledError, "the store is overloaded"),
    "Throttling": (ThrottledError, "the store asks for fewer requests"),
    "ThrottlingException": (ThrottledError, "the store asks for fewer requests"),
    "RequestLimitExceeded": (ThrottledError, "the store asks for fewer requests"),
    "TooManyRequests": (ThrottledError, "the store asks for fewer requests"),
    "RequestTimeout": (TransientError, "the store waited too long for bytes"),
    "InternalError": (TransientError, "the store had an internal error"),
    "PermanentRedirect": (ConfigurationError, "the bucket is in another region: set region="),
    "AuthorizationHeaderMalformed": (ConfigurationError, "the bucket is in another region: set region="),
    "IllegalLocationConstraintException": (
        ConfigurationError,
        "the bucket is in another region: set region=",
    ),
}

#: HTTP status → (our error, what to do), for codes that are not listed and answers without a body.
_STATUSES: dict[int, tuple[_Kind, str]] = {
    301: (ConfigurationError, "the bucket is in another region: set region="),
    401: (PermissionDeniedError, "the store wants credentials"),
    403: (PermissionDeniedError, "the credentials may not do this"),
    404: (ObjectNotFoundError, "the object does not exist"),
    405: (UnsupportedError, "the store does not allow this operation"),
    408: (TransientError, "the store waited too long for bytes"),
    409: (ConflictError, "another writer was faster"),
    412: (ConflictError, "another writer changed the object first"),
    416: (CheckpointCorruptError, "the object ends before the range that the record names"),
    429: (ThrottledError, "the store asks for fewer requests"),
    501: (UnsupportedError, _NO_CONDITIONS),
    503: (ThrottledError, "the store is overloaded"),
}

#: Exceptions raised before or instead of an answer, most specific first.
_EXCEPTIONS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], _Kind, str], ...] = (
    (
        (sdk.NoCredentialsError, sdk.PartialCredentialsError),
        CredentialsError,
        "no credentials were found: set AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or pass "
        "anonymous=True for a public bucket",
    ),
    (
        (sdk.CredentialRetrievalError, sdk.TokenRetrievalError, sdk.SSOError, sdk.UnauthorizedSSOTokenError),
        CredentialsError,
        "the credentials could not be obtained: log in again",
    ),
    (sdk.ProfileNotFound, ConfigurationError, "the profile is not in the shared configuration"),
    ((sdk.NoRegionError, sdk.InvalidRegionError), ConfigurationError, "no usable region: set region="),
    (sdk.InvalidEndpointDiscoveryConfigurationError, ConfigurationError, "the endpoint is not usable"),
    (
        _UNTRUSTED,
        ConfigurationError,
        "the endpoint's certificate is not trusted: set ca_bundle= or AWS_CA_BUNDLE, or correct the endpoint",
    ),
    (sdk.SSLError, TransientError, "the TLS connection failed"),
    (
        (sdk.EndpointConnectionError, sdk.ConnectTimeoutError),
        TransientError,
        "the endpoint could not be reached",
    ),
    (sdk.ReadTimeoutError, TransientError, "no byte moved within stall_timeout"),
    ((sdk.ConnectionClosedError, sdk.HTTPClientError), TransientError, "the connection broke"),
    ((sdk.IncompleteReadError, sdk.ResponseStreamingError), TransientError, "the answer ended early"),
    (sdk.ChecksumError, TransientError, "the bytes changed on their way"),
    (sdk.ParamValidationError, ConfigurationError, "an option has a value that S3 does not take"),
    (urllib3.exceptions.TimeoutError, TransientError, "no byte moved within stall_timeout"),
    (urllib3.exceptions.HTTPError, TransientError, "the connection broke"),
    (http.client.HTTPException, TransientError, "the connection broke"),
    (TimeoutError, TransientError, "no byte moved within stall_timeout"),
    (OSError, TransientError, "the connection broke"),
    (sdk.BotoCoreError, ConfigurationError, "the SDK refused the request"),
)


@contextmanager
def mapped(operation: str, bucket: str, key: str | None = None) -> Iterator[None]:
    """Turn the errors of one request into ours, chained to the original."""
    try:
        yield
    except sdk.ClientError as error:
        raise _from_answer(error, operation, bucket, key) from error
    except CloudCheckpointError:
        raise
    except (sdk.BotoCoreError, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
        raise _from_exception(error, operation, bucket, key) from error


def _from_answer(
    error: sdk.ClientError, operation: str, bucket: str, key: str | None
) -> CloudCheckpointError:
    answer: Any = error.response
    details, meta = answer.get("Error", {}), answer.get("ResponseMetadata", {})
    code, status = str(details.get("Code", "")), int(meta.get("HTTPStatusCode") or 0)
    kind, advice = _CODES.get(code) or _STATUSES.get(status) or _by_class(status)
    said = details.get("Message") or ""
    return kind(
        f"{operation}: {advice} (S3 says {code or status}{': ' + said if said and said != code else ''})",
        bucket=bucket,
        key=key,
        request_id=meta.get("RequestId") or None,
    )


def _by_class(status: int) -> tuple[_Kind, str]:
    if status >= 500:
        return TransientError, "the store had an internal error"
    return ConfigurationError, "the store refused the request"


def _certificate_problem(error: Exception) -> Exception | None:
    """The reason why a certificate is not trusted, for which botocore has no type of its own."""
    if not isinstance(error, sdk.SSLError):
        return None
    # botocore keeps urllib3's error, which has that of ssl, or of its own comparison of host names
    reason = next(iter(getattr(error.kwargs.get("error"), "args", ())), None)
    return reason if isinstance(reason, _UNTRUSTED) else None


def _from_exception(error: Exception, operation: str, bucket: str, key: str | None) -> CloudCheckpointError:
    known = _certificate_problem(error) or error
    for kinds, kind, advice in _EXCEPTIONS:
        if isinstance(known, kinds):
            return kind(f"{operation}: {advice} ({error})", bucket=bucket, key=key)
    return ConfigurationError(f"{operation}: the SDK failed ({error})", bucket=bucket, key=key)
