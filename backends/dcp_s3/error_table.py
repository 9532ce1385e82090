"""From botocore's errors to ours: the only place that knows either by name.

S3 error codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import urllib3.exceptions
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError
from urllib3.util.ssl_match_hostname import CertificateError

from dcp_core.errors import (
    ConfigurationError,
    ConflictError,
    CredentialsError,
    PermissionDeniedError,
    TransientError,
    UnsupportedError,
)
from dcp_core.transport import verdicts
from dcp_core.transport.error_table import ErrorTable, ExceptionVerdicts, Refusal
from dcp_core.transport.verdicts import Verdict
from dcp_s3.credentials import METADATA_SERVICE

__all__ = ["S3Errors"]

_LACKS = Verdict(
    UnsupportedError, f"{verdicts.NO_CONDITIONS.advice}; if it lacks checksums, set upload_checksum=None"
)
_OTHER_REGION = Verdict(ConfigurationError, "the bucket is in another region: set region=")
_EXPIRED = Verdict(PermissionDeniedError, "the session token has expired: renew the credentials", renew=True)
_DENIED = Verdict(PermissionDeniedError, "the credentials may not do this: extend their policy", denied=True)
_UNOBTAINABLE = Verdict(CredentialsError, "the credentials could not be obtained: log in again", renew=True)
_UNTRUSTED = Verdict(
    ConfigurationError,
    "the endpoint's certificate is not trusted: set ca_bundle= or AWS_CA_BUNDLE, or correct the endpoint",
)

_CODES: Mapping[str, Verdict] = {
    "NoSuchBucket": verdicts.NO_BUCKET,
    "InvalidBucketName": verdicts.BAD_BUCKET_NAME,
    "NoSuchKey": verdicts.GONE,
    "NoSuchUpload": verdicts.UPLOAD_GONE,
    "InvalidAccessKeyId": Verdict(
        PermissionDeniedError, "the store does not know the access key", renew=True
    ),
    "SignatureDoesNotMatch": Verdict(PermissionDeniedError, "the secret key does not match the access key"),
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "InvalidToken": Verdict(
        PermissionDeniedError, "the session token is not valid: renew the credentials", renew=True
    ),
    "RequestTimeTooSkewed": verdicts.WRONG_CLOCK,
    "AccessDenied": _DENIED,
    "AllAccessDisabled": Verdict(PermissionDeniedError, "all access to this bucket is disabled"),
    "InvalidObjectState": Verdict(PermissionDeniedError, "the object is archived: restore it first"),
    "KMS.DisabledException": Verdict(ConfigurationError, "the KMS key is disabled"),
    "KMS.NotFoundException": Verdict(ConfigurationError, "the KMS key does not exist: correct kms_key_id"),
    "PreconditionFailed": verdicts.CHANGED,
    # S3 responds with 409 when another conditional write to the key was under way, or the object was deleted
    # meanwhile; it says to try again. The next attempt then finds the winner's object: 412.
    "ConditionalRequestConflict": Verdict(TransientError, "another conditional write was under way"),
    "OperationAborted": Verdict(TransientError, "another operation on this key was under way"),
    "NotImplemented": _LACKS,
    "MethodNotAllowed": verdicts.NOT_ALLOWED,
    "InvalidArgument": Verdict(
        ConfigurationError,
        "the store does not take a header or value of this request: one without CRC32C needs "
        "upload_checksum=None",
    ),
    "InvalidRange": verdicts.OUT_OF_RANGE,
    "InvalidPart": verdicts.PART_LOST,
    "EntityTooLarge": verdicts.TOO_LARGE,
    "EntityTooSmall": verdicts.TOO_SMALL,
    "BadDigest": verdicts.DAMAGED,
    "XAmzContentChecksumMismatch": verdicts.DAMAGED,
    "IncompleteBody": verdicts.TOO_FEW_BYTES,
    "SlowDown": verdicts.SLOW_DOWN,
    "ServiceUnavailable": verdicts.OVERLOADED,
    "Throttling": verdicts.SLOW_DOWN,
    "ThrottlingException": verdicts.SLOW_DOWN,
    "RequestLimitExceeded": verdicts.SLOW_DOWN,
    "TooManyRequests": verdicts.SLOW_DOWN,
    "RequestTimeout": verdicts.WAITED,
    "InternalError": verdicts.INTERNAL,
    "PermanentRedirect": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "IllegalLocationConstraintException": _OTHER_REGION,
}

_STATUSES: Mapping[int, Verdict] = {
    301: _OTHER_REGION,
    403: _DENIED,
    409: Verdict(ConflictError, "another writer was faster"),
    501: _LACKS,
}

_EXCEPTIONS: ExceptionVerdicts = (
    (
        (sdk.NoCredentialsError, sdk.PartialCredentialsError),
        Verdict(
            CredentialsError,
            "no credentials were found: set AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "pass anonymous=True for a public bucket",
        ),
    ),
    (
        (sdk.SSOError, sdk.UnauthorizedSSOTokenError),
        Verdict(CredentialsError, "the login has ended: log in again"),
    ),
    ((sdk.CredentialRetrievalError, sdk.TokenRetrievalError, sdk.ClientError), _UNOBTAINABLE),
    # botocore has no type of its own for credentials that are expired when they come
    (RuntimeError, _UNOBTAINABLE),
    (ResponseParserError, verdicts.UNEXPECTED),
    (
        sdk.ProfileNotFound,
        Verdict(ConfigurationError, "the profile is not in the shared configuration"),
    ),
    (
        (sdk.NoRegionError, sdk.InvalidRegionError),
        Verdict(ConfigurationError, "no usable region: set region="),
    ),
    (
        sdk.InvalidEndpointDiscoveryConfigurationError,
        Verdict(ConfigurationError, "the endpoint is not usable"),
    ),
    (sdk.SSLError, verdicts.TLS_FAILED),
    (
        (sdk.EndpointConnectionError, sdk.ProxyConnectionError, sdk.ConnectTimeoutError),
        verdicts.UNREACHABLE,
    ),
    ((sdk.ReadTimeoutError, urllib3.exceptions.TimeoutError), verdicts.STALLED),
    ((sdk.IncompleteReadError, sdk.ResponseStreamingError), verdicts.ENDED_EARLY),
    (
        (sdk.ConnectionClosedError, sdk.HTTPClientError, urllib3.exceptions.HTTPError),
        verdicts.BROKEN,
    ),
    (sdk.ChecksumError, verdicts.DAMAGED),
    (
        sdk.ParamValidationError,
        Verdict(ConfigurationError, "an option has a value that S3 does not take"),
    ),
    (sdk.BotoCoreError, Verdict(ConfigurationError, "the SDK refused the request")),
)


#: https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html
_PERMISSIONS: Mapping[str, str] = {
    # without the permission to list, S3 responds with 403 rather than 404
    "HeadObject": "s3:GetObject, or with s3:ListBucket if the object does not exist",
    "GetObject": "s3:GetObject, or with s3:ListBucket if the object does not exist",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "DeleteObjects": "s3:DeleteObject",
    "DeleteObject": "s3:DeleteObject",
}
#: Requests that an SDK makes to obtain credentials.
_OF_CREDENTIALS = frozenset(
    {"AssumeRole", "AssumeRoleWithSAML", "AssumeRoleWithWebIdentity", "GetRoleCredentials", "CreateToken"}
)
_PASSING = frozenset({"Throttling", "ThrottlingException", "RequestLimitExceeded", "IDPCommunicationError"})
_NO_SERVICE = Verdict(TransientError, "the service that gives credentials failed")


class S3Errors(ErrorTable):
    """The errors of S3 and of botocore."""

    service = "S3"
    codes = _CODES
    statuses = _STATUSES
    # urllib3 compares host names with the certificate itself where it was built so
    causes = ((CertificateError, _UNTRUSTED),)
    exceptions = _EXCEPTIONS
    permissions = _PERMISSIONS

    def refusal_of(self, error: BaseException) -> Refusal | None:
        if not isinstance(error, sdk.ClientError) or error.operation_name in _OF_CREDENTIALS:
            return None
        response: Any = error.response
        details, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
        return Refusal(
            int(meta.get("HTTPStatusCode") or 0),
            str(details.get("Code", "")),
            details.get("Message") or "",
            meta.get("RequestId") or None,
            meta.get("HTTPHeaders", {}),
        )

    def verdict_on_exception(self, error: BaseException, found: list[BaseException]) -> Verdict:
        if isinstance(error, sdk.CredentialRetrievalError) and error.kwargs["provider"] == METADATA_SERVICE:
            return _NO_SERVICE
        if isinstance(error, sdk.ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status >= 500 or error.response.get("Error", {}).get("Code") in _PASSING:
                return _NO_SERVICE
        return super().verdict_on_exception(error, found)
