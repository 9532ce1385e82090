"""From the errors of Google's APIs and SDK to ours: the only place that knows either by name.

Codes of the XML API: https://docs.cloud.google.com/storage/docs/xml-api/reference-status, reasons of the
JSON API: https://docs.cloud.google.com/storage/docs/json_api/v1/status-codes. Lists and deletes go through
the JSON API, everything else through the XML API.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import google.auth.exceptions as auth
import requests.exceptions as sdk
import urllib3.exceptions

from dcp_core.errors import ConfigurationError, CredentialsError, PermissionDeniedError, TransientError
from dcp_core.transport import verdicts
from dcp_core.transport.error_table import ErrorTable, ExceptionVerdicts, Refusal
from dcp_core.transport.verdicts import Verdict
from dcp_gcs.documents import error_details

__all__ = ["GCSErrors"]

_FORBIDDEN = Verdict(PermissionDeniedError, "the credentials may not do this: grant a role", denied=True)
_NO_TOKEN = Verdict(
    PermissionDeniedError,
    "the store does not accept the access token, or wants one: renew the credentials, or set this machine's "
    "clock if it is wrong",
    renew=True,
)
_WANTS_PROJECT = Verdict(ConfigurationError, "the bucket is requester-pays: set user_project=")
_KMS = Verdict(
    ConfigurationError, "the Cloud KMS key cannot be used: correct kms_key_name, the key or its location"
)
_HELD = Verdict(PermissionDeniedError, "the object is under a hold and cannot be changed or deleted")
_RETAINED = Verdict(PermissionDeniedError, "the retention policy forbids to change or delete the object yet")

#: Codes of the XML API and reasons of the JSON API.
_CODES: Mapping[str, Verdict] = {
    "NoSuchBucket": verdicts.NO_BUCKET,
    "InvalidBucketName": verdicts.BAD_BUCKET_NAME,
    "NoSuchKey": verdicts.GONE,
    "NoSuchUpload": verdicts.UPLOAD_GONE,
    "PreconditionFailed": verdicts.CHANGED,
    "AccessDenied": _FORBIDDEN,
    "AuthenticationRequired": _NO_TOKEN,
    "ExpiredToken": _NO_TOKEN,
    "InvalidSecurity": _NO_TOKEN,
    "RequestTimeTooSkewed": verdicts.WRONG_CLOCK,
    "AccountProblem": Verdict(PermissionDeniedError, "the project's account has a problem: see its billing"),
    "UserAccountProblem": Verdict(PermissionDeniedError, "the account of the caller has a problem"),
    "UserProjectMissing": _WANTS_PROJECT,
    "UserProjectInvalid": Verdict(ConfigurationError, "user_project does not name a project"),
    "UserProjectAccessDenied": Verdict(PermissionDeniedError, "the credentials may not bill user_project"),
    "UserProjectAccountProblem": Verdict(ConfigurationError, "user_project has no working billing account"),
    "CloudKmsBadKey": _KMS,
    "CloudKmsDisabledKey": _KMS,
    "CloudKmsEncryptionKeyNotFound": _KMS,
    "CloudKmsDecryptionKeyNotFound": _KMS,
    "CloudKmsKeyLocationNotAllowed": _KMS,
    "InvalidStorageClass": Verdict(ConfigurationError, "unknown storage class: correct storage_class="),
    "BadDigest": verdicts.DAMAGED,
    "CrcMismatch": verdicts.DAMAGED,
    "IncompleteBody": verdicts.TOO_FEW_BYTES,
    "InvalidPart": verdicts.PART_LOST,
    "InvalidRange": verdicts.OUT_OF_RANGE,
    "EntityTooLarge": verdicts.TOO_LARGE,
    "EntityTooSmall": verdicts.TOO_SMALL,
    "KeyTooLong": Verdict(
        ConfigurationError, "the object's name is longer than the store allows: shorten the URL"
    ),
    "MethodNotAllowed": verdicts.NOT_ALLOWED,
    "NotImplemented": verdicts.NO_CONDITIONS,
    "ObjectUnderActiveHold": _HELD,
    "RetentionPolicyNotMet": _RETAINED,
    "RequestTimeout": verdicts.WAITED,
    "SlowDown": verdicts.SLOW_DOWN,
    "ServiceUnavailable": verdicts.OVERLOADED,
    "InternalError": verdicts.INTERNAL,
    # the JSON API; of the requests sent there only those about the bucket itself can end in "notFound"
    "notFound": verdicts.NO_BUCKET,
    "conditionNotMet": verdicts.CHANGED,
    "forbidden": _FORBIDDEN,
    "insufficientPermissions": _FORBIDDEN,
    "required": _NO_TOKEN,
    "authError": _NO_TOKEN,
    "userProjectMissing": _WANTS_PROJECT,
    "objectUnderActiveHold": _HELD,
    "retentionPolicyNotMet": _RETAINED,
    "rateLimitExceeded": verdicts.SLOW_DOWN,
    "userRateLimitExceeded": verdicts.SLOW_DOWN,
    "backendError": verdicts.INTERNAL,
    "internalError": verdicts.INTERNAL,
}

_STATUSES: Mapping[int, Verdict] = {
    401: _NO_TOKEN,
    403: _FORBIDDEN,
    409: Verdict(TransientError, "another operation on this name was under way"),
}

_TOKEN_SERVER_FAILED = Verdict(TransientError, "the token server failed")

_NO_ACCESS_TOKEN = Verdict(
    CredentialsError,
    "no access token could be obtained: log in again, replace the key, or set this machine's clock",
)

_EXCEPTIONS: ExceptionVerdicts = (
    (
        auth.MutualTLSChannelError,
        Verdict(ConfigurationError, "the client certificate cannot be used"),
    ),
    (auth.RefreshError, _NO_ACCESS_TOKEN._replace(renew=True)),
    (auth.TransportError, Verdict(TransientError, "the token server could not be reached")),
    (
        auth.GoogleAuthError,
        Verdict(
            CredentialsError,
            "no usable credentials: log in with `gcloud auth application-default login`, set "
            "GOOGLE_APPLICATION_CREDENTIALS or credentials_file=, or pass anonymous=True for a public bucket",
        ),
    ),
    (
        (sdk.InvalidURL, sdk.MissingSchema, sdk.InvalidSchema),
        Verdict(
            ConfigurationError,
            "the endpoint is no URL: endpoint_url and STORAGE_EMULATOR_HOST start with http:// or https://",
        ),
    ),
    (sdk.SSLError, verdicts.TLS_FAILED),
    (sdk.ConnectTimeout, verdicts.UNREACHABLE),
    ((sdk.ReadTimeout, urllib3.exceptions.TimeoutError), verdicts.STALLED),
    (
        sdk.ConnectionError,
        Verdict(TransientError, "the connection broke or could not be made"),
    ),
    (sdk.RequestException, verdicts.ENDED_EARLY),
    (urllib3.exceptions.HTTPError, verdicts.BROKEN),
)


#: https://docs.cloud.google.com/storage/docs/access-control/iam-permissions
_PERMISSIONS: Mapping[str, str] = {
    # without the permission to list, Google responds with 403 rather than 404
    "HeadObject": "storage.objects.get, or with storage.objects.list if the object does not exist",
    "GetObject": "storage.objects.get, or with storage.objects.list if the object does not exist",
    "PutObject": "storage.objects.create, and storage.objects.delete to replace an object",
    "CreateMultipartUpload": "storage.multipartUploads.create and storage.objects.create",
    "UploadPart": "storage.multipartUploads.create and storage.objects.create",
    "CompleteMultipartUpload": "storage.multipartUploads.create and storage.objects.create",
    "AbortMultipartUpload": "storage.multipartUploads.abort",
    "ListObjects": "storage.objects.list",
    "ListMultipartUploads": "storage.multipartUploads.list",
    "DeleteObjects": "storage.objects.delete",
}
#: Where google-auth is told to find a metadata server, besides the machines that it knows to have one.
_METADATA_SERVER = ("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP")


class GCSErrors(ErrorTable):
    """The errors of Google Cloud Storage, google-auth and requests."""

    service = "Google"
    codes = _CODES
    statuses = _STATUSES
    exceptions = _EXCEPTIONS
    permissions = _PERMISSIONS

    def refusal_of(self, error: BaseException) -> Refusal | None:
        if not isinstance(error, sdk.HTTPError):
            return None
        response = error.response
        assert response is not None, "raised by the session, which always has a response"
        code, said = error_details(response.content)
        headers = response.headers
        return Refusal(response.status_code, code, said, headers.get("x-guploader-uploadid"), headers)

    def verdict_on(self, operation: str, refusal: Refusal) -> Verdict:
        # a request about the bucket alone; the JSON API has one code for missing buckets and objects
        if refusal.status == 404 and operation == "ListObjects":
            return verdicts.NO_BUCKET
        return super().verdict_on(operation, refusal)

    def verdict_on_exception(self, error: BaseException, found: list[BaseException]) -> Verdict:
        if isinstance(error, auth.GoogleAuthError) and (error.retryable or _may_pass(error, found)):
            return _TOKEN_SERVER_FAILED
        if isinstance(error, auth.RefreshError) and _is_definite(error):
            return _NO_ACCESS_TOKEN
        # requests has no type of its own for a send that timed out
        if type(error) is sdk.ConnectionError and any(isinstance(one, TimeoutError) for one in found):
            return verdicts.STALLED
        return super().verdict_on_exception(error, found)


def _may_pass(error: auth.GoogleAuthError, found: list[BaseException]) -> bool:
    """Whether the metadata server failed, rather than that there is none or that it has no credentials."""
    if isinstance(error, auth.DefaultCredentialsError):
        return any(os.environ.get(name) for name in _METADATA_SERVER)
    if not isinstance(error, auth.RefreshError):
        return False
    failed = next((one for one in found if isinstance(one, auth.TransportError)), None)
    # a definite refusal comes with its response
    statuses = [getattr(one, "status", 0) for one in failed.args[1:]] if failed is not None else []
    return failed is not None and not any(400 <= status < 500 and status != 429 for status in statuses)


def _is_definite(error: BaseException) -> bool:
    """Whether a token server said that it takes these credentials for none: RFC 6749, section 5.2."""
    return any(isinstance(one, Mapping) and "error" in one for one in error.args)
