"""One S3 bucket, through boto3.

The SDK signs, resolves endpoints and credentials, and follows redirects. It does not retry: the core does,
because only the core can tell a repeated conditional write from a lost race.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from urllib.parse import quote, urlencode

import boto3
import botocore.loaders
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config

from dcp_core.errors import ObjectNotFoundError, TransientError, UnsupportedError
from dcp_core.store import (
    Body,
    Condition,
    CreateOnly,
    Limits,
    ObjectInfo,
    ObjectStore,
    Part,
    ReplaceVersion,
    Upload,
    UploadInfo,
)
from dcp_core.store_http import HttpRangeReader, tuned_pools
from dcp_s3.error_table import mapped
from dcp_s3.options import S3Options

__all__ = ["S3Store"]

#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_LIMITS = Limits(
    min_part_size=5 << 20,
    max_part_size=5 << 30,
    max_parts=10_000,
    max_object_size=5 << 40,
    max_put_size=5 << 30,
)
_DELETE_BATCH = 1000


class S3Store(ObjectStore):
    """A bucket of AWS S3 or of an S3-compatible store.

    Args:
        bucket: its name.
        options: how to reach it.
        concurrency: requests at a time; as many connections are kept open.
    """

    limits = _LIMITS

    def __init__(self, bucket: str, options: S3Options, *, concurrency: int = 8) -> None:
        self.bucket = bucket
        self._options = options
        with mapped("opening the client", bucket):
            self._client = _client(options, concurrency)
        self._common: dict[str, Any] = {"Bucket": bucket, **_common(options)}
        self._new_object = _new_object(options)

    def head(self, key: str) -> ObjectInfo:
        with mapped("HeadObject", self.bucket, key):
            answer = self._client.head_object(**self._common, Key=key)
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"], answer["LastModified"])

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        with mapped("GetObject", self.bucket, key):
            answer = self._client.get_object(**self._common, Key=key)
            data: bytes = answer["Body"].read()
        return data, ObjectInfo(key, len(data), answer["ETag"], answer["LastModified"])

    @contextmanager
    def read_range(
        self, key: str, start: int, stop: int, *, version: str | None = None
    ) -> Iterator[HttpRangeReader]:
        wanted: dict[str, Any] = {"Range": _http_range(start, stop)}
        if version is not None:
            wanted["IfMatch"] = version
        with mapped("GetObject", self.bucket, key):
            answer = self._client.get_object(**self._common, **wanted, Key=key)
        reader = self._range_reader(key, start, answer)
        try:
            yield reader
        finally:
            reader.close()

    def _range_reader(self, key: str, start: int, answer: dict[str, Any]) -> HttpRangeReader:
        length, content_range = answer["ContentLength"], answer.get("ContentRange")
        if content_range is None and start != 0:
            answer["Body"].close()
            raise UnsupportedError(
                "GetObject: the store ignores the Range header and sent the whole object",
                bucket=self.bucket,
                key=key,
            )
        size = length if content_range is None else int(content_range.rpartition("/")[2])
        info = ObjectInfo(key, size, answer["ETag"], answer["LastModified"])
        return HttpRangeReader(
            info,
            # botocore's StreamingBody copies; the urllib3 answer in it has kept this name since botocore 1.10
            getattr(answer["Body"], "_raw_stream", answer["Body"]),
            length,
            operation="GetObject",
            bucket=self.bucket,
            mapped=partial(mapped, "GetObject", self.bucket, key),
        )

    def put(self, key: str, body: Body, condition: Condition | None = None) -> ObjectInfo:
        with mapped("PutObject", self.bucket, key):
            answer = self._client.put_object(
                **self._common,
                **self._new_object,
                **self._payload(body),
                **_condition(condition),
                Key=key,
            )
        return ObjectInfo(key, body.size, answer["ETag"])

    def start_upload(self, key: str) -> Upload:
        checksum = {"ChecksumAlgorithm": "CRC32C"} if self._options.checksums else {}
        with mapped("CreateMultipartUpload", self.bucket, key):
            answer = self._client.create_multipart_upload(
                **self._common, **self._new_object, **checksum, Key=key
            )
        return Upload(key, answer["UploadId"])

    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        with mapped("UploadPart", self.bucket, upload.key):
            answer = self._client.upload_part(
                **self._common,
                **self._payload(body),
                Key=upload.key,
                UploadId=upload.upload_id,
                PartNumber=number,
            )
        return Part(number, body.size, answer["ETag"], body.crc32c)

    def finish_upload(self, upload: Upload, parts: Sequence[Part]) -> ObjectInfo:
        with mapped("CompleteMultipartUpload", self.bucket, upload.key):
            answer = self._client.complete_multipart_upload(
                **self._common,
                Key=upload.key,
                UploadId=upload.upload_id,
                MultipartUpload={"Parts": [self._part_entry(part) for part in parts]},
            )
        return ObjectInfo(upload.key, sum(part.size for part in parts), answer["ETag"])

    def _part_entry(self, part: Part) -> dict[str, Any]:
        entry: dict[str, Any] = {"PartNumber": part.number, "ETag": part.tag}
        if self._options.checksums:
            entry["ChecksumCRC32C"] = _base64(part.crc32c)
        return entry

    def abort_upload(self, upload: Upload) -> None:
        try:
            with mapped("AbortMultipartUpload", self.bucket, upload.key):
                self._client.abort_multipart_upload(**self._common, Key=upload.key, UploadId=upload.upload_id)
        except ObjectNotFoundError:
            return

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages("list_objects_v2", prefix):
            for entry in page.get("Contents", ()):
                yield ObjectInfo(entry["Key"], entry["Size"], entry["ETag"], entry["LastModified"])

    def list_uploads(self, prefix: str) -> Iterator[UploadInfo]:
        for page in self._pages("list_multipart_uploads", prefix):
            for entry in page.get("Uploads", ()):
                # some stores list uploads of the whole bucket whatever the prefix
                if entry["Key"].startswith(prefix):
                    yield UploadInfo(Upload(entry["Key"], entry["UploadId"]), entry.get("Initiated"))

    def _pages(self, operation: str, prefix: str) -> Iterator[dict[str, Any]]:
        pages = iter(self._client.get_paginator(operation).paginate(**self._common, Prefix=prefix))
        while True:
            with mapped(operation, self.bucket, prefix):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = [{"Key": key} for key in keys[start : start + _DELETE_BATCH]]
            with mapped("DeleteObjects", self.bucket):
                answer = self._client.delete_objects(**self._common, Delete={"Objects": batch, "Quiet": True})
            failed = [entry for entry in answer.get("Errors", ()) if entry.get("Code") != "NoSuchKey"]
            if failed:
                first = failed[0]
                raise TransientError(
                    f"DeleteObjects: {len(failed)} of {len(batch)} objects were not deleted "
                    f"({first.get('Code')}: {first.get('Message')})",
                    bucket=self.bucket,
                    key=first.get("Key"),
                )

    def close(self) -> None:
        self._client.close()

    def _payload(self, body: Body) -> dict[str, Any]:
        payload: dict[str, Any] = {"Body": body, "ContentLength": body.size}
        if self._options.checksums:
            payload["ChecksumCRC32C"] = _base64(body.crc32c)
        return payload


def _core_session() -> Any:
    """A session of its own, for environments change, with service models that all sessions share.

    Parsing the models of S3 takes 50 of the 60 CPU milliseconds that a client costs.
    """
    session = botocore.session.Session()
    session.register_component("data_loader", _service_models(session.get_config_variable("data_path")))
    return session


@cache
def _service_models(path: str | None) -> Any:
    return botocore.loaders.create_loader(path)


def _client(options: S3Options, concurrency: int) -> Any:
    session = boto3.Session(
        botocore_session=_core_session(),
        profile_name=options.profile,
        region_name=options.region,
        aws_access_key_id=options.access_key_id,
        aws_secret_access_key=options.secret_access_key,
        aws_session_token=options.session_token,
    )
    # the SDK insists on a region even where an endpoint makes it meaningless
    region = session.region_name or ("us-east-1" if options.endpoint_url else None)
    # The SDK sends parts with "Expect: 100-continue". It costs a round trip a part, and lets a store refuse
    # with a 403 or 503 before the part is sent, rather than by breaking the connection in the middle of it.
    client = session.client(
        "s3",
        region_name=region,
        endpoint_url=options.endpoint_url,
        verify=options.ca_bundle if options.verify_tls else False,
        config=Config(
            signature_version=UNSIGNED if options.anonymous else None,
            connect_timeout=options.connect_timeout,
            read_timeout=options.stall_timeout,
            max_pool_connections=concurrency + 2,
            tcp_keepalive=True,
            retries={"mode": "standard", "total_max_attempts": 1},
            # every body carries a CRC32C of ours; anything else would read it once more
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": options.addressing_style, "payload_signing_enabled": False},
        ),
    )
    _tune_connections(client, options.stall_timeout)
    return client


def _tune_connections(client: Any, stall_timeout: float) -> None:
    """Let no send stand still longer than ``stall_timeout`` seconds, and receive more with a call.

    botocore has no option for either; these private names are those since 1.11. Where one is missing, sends
    keep the time limit for connecting.
    """
    http: Any = getattr(getattr(client, "_endpoint", None), "http_session", None)
    pools = getattr(http, "_pool_classes_by_scheme", None)
    manager = getattr(http, "_manager", None)
    if pools is not None and manager is not None:
        # a manager for a proxy is made on first use, from the same classes
        http._pool_classes_by_scheme = manager.pool_classes_by_scheme = tuned_pools(pools, stall_timeout)


def _common(options: S3Options) -> dict[str, Any]:
    """Parameters of every request."""
    common: dict[str, Any] = {}
    if options.requester_pays:
        common["RequestPayer"] = "requester"
    if options.expected_bucket_owner:
        common["ExpectedBucketOwner"] = options.expected_bucket_owner
    return common


def _new_object(options: S3Options) -> dict[str, Any]:
    """Parameters of requests that make an object."""
    wanted: dict[str, Any] = {
        "ServerSideEncryption": options.sse,
        "SSEKMSKeyId": options.kms_key_id,
        "BucketKeyEnabled": options.bucket_key,
        "StorageClass": options.storage_class,
        "Tagging": urlencode(options.tags, quote_via=quote) if options.tags else None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _condition(condition: Condition | None) -> dict[str, str]:
    if isinstance(condition, CreateOnly):
        return {"IfNoneMatch": "*"}
    if isinstance(condition, ReplaceVersion):
        return {"IfMatch": condition.version}
    return {}


def _http_range(start: int, stop: int) -> str:
    """HTTP's ranges include their end; only this function knows."""
    return f"bytes={start}-{stop - 1}"


def _base64(crc32c: int) -> str:
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()
