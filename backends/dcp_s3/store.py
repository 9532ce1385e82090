"""One S3 bucket, through boto3.

The SDK signs, resolves endpoints and credentials, and follows redirects. It does not retry: the core does,
because only the core can tell a repeated conditional write from a lost race.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from dcp_core.errors import ConfigurationError, ObjectNotFoundError, UnsupportedError
from dcp_core.seam.store import (
    Body,
    CommonPrefix,
    Condition,
    Limits,
    ObjectInfo,
    Part,
    Upload,
    UploadInfo,
)
from dcp_core.transport.cloud_store import CloudStore, condition_headers, only_given
from dcp_core.transport.error_table import Refusal
from dcp_core.transport.responses import StoreResponse
from dcp_s3.botocore_private import raw_response
from dcp_s3.client import S3Client, open_client
from dcp_s3.error_table import S3Errors
from dcp_s3.options import S3Options

__all__ = ["LIMITS", "S3Store"]

#: 48.8 TiB an object, "50 TB" in the announcement of December 2025: as many parts of the largest size.
LIMITS = Limits(
    min_part_size=5 << 20,
    max_part_size=5 << 30,
    max_parts=10_000,
    max_object_size=10_000 * (5 << 30),
    max_put_size=5 << 30,
    source="https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html",
    checked="2026-11",
)
_DELETE_BATCH = 1000


class S3Store(CloudStore[S3Client]):
    """A bucket of AWS S3 or of an S3-compatible store.

    Args:
        bucket: its name, or the ARN of an access point.
        options: how to reach it.
        concurrency: requests at a time; as many connections are kept open.
    """

    api = "S3"
    errors = S3Errors()
    request_id_header = "x-amz-request-id"

    def __init__(self, bucket: str, options: S3Options, *, concurrency: int = 8) -> None:
        super().__init__(bucket, partial(open_client, options, concurrency))
        self.limits = LIMITS.changed(options.limits)
        self._options = options
        self._common = {"Bucket": bucket, **_common(options)}
        self._new_object = _new_object(options)
        self._deletes_in_batches = True

    def _send(self, operation: str, key: str | None, **parameters: Any) -> StoreResponse:
        """One request, named as in the API, with the SDK's reading of the response as its ``raw``."""
        if key is not None and "Prefix" not in parameters:
            parameters["Key"] = key
        with self.client(operation, key) as client:
            found = client.call(operation, {**self._common, **parameters})
        return self.response(operation, key, found["ResponseMetadata"]["HTTPHeaders"], found)

    def head(self, key: str) -> ObjectInfo:
        response = self._send("HeadObject", key)
        return self.info(response, response.length)

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        response = self._send("GetObject", key)
        with self.translated("GetObject", key):
            data: bytes = response.raw["Body"].read()
        return data, self.info(response, len(data))

    def open_range(self, key: str, wanted: str, version: str | None) -> StoreResponse:
        response = self._send("GetObject", key, Range=wanted, **only_given({"IfMatch": version}))
        return replace(response, raw=raw_response(response.raw["Body"]))

    def put(self, key: str, body: Body, condition: Condition | None = None) -> ObjectInfo:
        conditional = condition_headers(condition, {"IfNoneMatch": "*"}, "IfMatch")
        response = self._send("PutObject", key, **self._new_object, **self._payload(body), **conditional)
        return ObjectInfo(key, body.size, self.version(response))

    def start_upload(self, key: str) -> Upload:
        checksum = {"ChecksumAlgorithm": "CRC32C"} if self._options.upload_checksum else {}
        response = self._send("CreateMultipartUpload", key, **self._new_object, **checksum)
        return Upload(key, response.field("UploadId"))

    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        target = {"UploadId": upload.upload_id, "PartNumber": number}
        response = self._send("UploadPart", upload.key, **target, **self._payload(body))
        return Part(number, body.size, self.version(response), body.crc32c)

    def finish_upload(self, upload: Upload, parts: Sequence[Part]) -> ObjectInfo:
        listed = {"UploadId": upload.upload_id, "MultipartUpload": {"Parts": list(map(self._entry, parts))}}
        response = self._send("CompleteMultipartUpload", upload.key, **listed)
        return ObjectInfo(upload.key, sum(part.size for part in parts), response.field("ETag"))

    def _entry(self, part: Part) -> dict[str, Any]:
        entry: dict[str, Any] = {"PartNumber": part.number, "ETag": part.tag}
        if self._options.upload_checksum:
            entry["ChecksumCRC32C"] = base64.b64encode(part.crc32c.to_bytes(4, "big")).decode()
        return entry

    def abort_upload(self, upload: Upload) -> None:
        try:
            self._send("AbortMultipartUpload", upload.key, UploadId=upload.upload_id)
        except ObjectNotFoundError:
            return

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._listing(prefix):
            yield from self._listed(page)

    def list_rolled(self, prefix: str, delimiter: str) -> Iterator[ObjectInfo | CommonPrefix]:
        for page in self._listing(prefix, Delimiter=delimiter):
            yield from self._listed(page)
            for entry in page.raw.get("CommonPrefixes", ()):
                yield CommonPrefix(page.field("Prefix", entry))

    def _listing(self, prefix: str, **wanted: str) -> Iterator[StoreResponse]:
        marker = {"ContinuationToken": "NextContinuationToken"}
        return self._pages("ListObjectsV2", prefix, marker, **wanted)

    def _listed(self, page: StoreResponse) -> Iterator[ObjectInfo]:
        for entry in page.raw.get("Contents", ()):
            key, size, etag = (page.field(name, entry) for name in ("Key", "Size", "ETag"))
            yield ObjectInfo(key, size, etag, entry.get("LastModified"))

    def list_uploads(self, prefix: str) -> Iterator[UploadInfo]:
        marker = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        for page in self._pages("ListMultipartUploads", prefix, marker):
            for entry in page.raw.get("Uploads", ()):
                upload = Upload(page.field("Key", entry), page.field("UploadId", entry))
                # some stores list uploads of the whole bucket whatever the prefix
                if upload.key.startswith(prefix):
                    yield UploadInfo(upload, entry.get("Initiated"))

    def _pages(
        self, operation: str, prefix: str, marker: Mapping[str, str], **wanted: str
    ) -> Iterator[StoreResponse]:
        """All pages of a list; ``marker`` has parameters that ask for the next and where they are said."""
        position: dict[str, Any] = {}
        while True:
            page = self._send(operation, prefix, Prefix=prefix, **wanted, **position)
            yield page
            if not page.raw.get("IsTruncated"):
                return
            following = {name: page.raw[said] for name, said in marker.items() if page.raw.get(said)}
            if following in ({}, position):
                raise page.unexpected("is truncated, and does not say where the list goes on")
            position = following

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = keys[start : start + _DELETE_BATCH]
            if self._deletes_in_batches:
                self._deletes_in_batches = self._delete_batch(batch)
            if not self._deletes_in_batches:
                for key in batch:
                    self._delete_one(key)

    def _delete_batch(self, keys: Sequence[str]) -> bool:
        """Delete at once; whether the store can do that."""
        try:
            listed = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            response = self._send("DeleteObjects", None, Delete=listed)
        except (UnsupportedError, ConfigurationError) as error:
            if type(error) in (UnsupportedError, ConfigurationError):
                return False
            raise
        for entry in response.raw.get("Errors", ()):
            if entry.get("Code") != "NoSuchKey":
                # as if the request for this key alone had failed; a code that is not known may pass
                refusal = Refusal(500, str(entry.get("Code", "")), str(entry.get("Message", "")))
                raise self.errors.for_refusal("DeleteObjects", refusal, self.bucket, entry.get("Key"))
        return True

    def _delete_one(self, key: str) -> None:
        try:
            self._send("DeleteObject", key)
        except ObjectNotFoundError:
            return

    def delete_version(self, key: str, version: str) -> None:
        self._send("DeleteObject", key, IfMatch=version)

    def _payload(self, body: Body) -> dict[str, Any]:
        checksum = {"ChecksumCRC32C": body.crc32c_base64} if self._options.upload_checksum else {}
        return {"Body": body.open(), "ContentLength": body.size, **checksum}


def _common(options: S3Options) -> dict[str, str]:
    """Parameters of every request."""
    payer = "requester" if options.requester_pays else None
    return only_given({"RequestPayer": payer, "ExpectedBucketOwner": options.expected_bucket_owner})


def _new_object(options: S3Options) -> dict[str, Any]:
    """Parameters of requests that make an object."""
    return only_given(
        {
            "ServerSideEncryption": options.sse,
            "SSEKMSKeyId": options.kms_key_id,
            "BucketKeyEnabled": options.bucket_key,
            "StorageClass": options.storage_class,
            "Tagging": urlencode(options.tags, quote_via=quote) if options.tags else None,
        }
    )
