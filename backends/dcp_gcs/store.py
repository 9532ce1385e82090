"""One bucket of Google Cloud Storage.

Objects and multipart uploads go through the XML API: its errors have codes that tell a missing bucket from a
missing object, its multipart uploads take parts in parallel (the SDK's own transfer manager uses them), and
the body of a request is the object's bytes and nothing else. Lists and deletes go through the JSON API, which
names keys without XML's limits and deletes in batches.
"""

from __future__ import annotations

import base64
import email.utils
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

import requests
from google.api_core.datetime_helpers import from_rfc3339

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
from dcp_core.store_http import HttpRangeReader
from dcp_gcs.documents import BOUNDARY, batch_answers, batch_body, completion, text_of
from dcp_gcs.error_table import error_of_answer, mapped
from dcp_gcs.options import GCSOptions
from dcp_gcs.session import Session

__all__ = ["GCSStore"]

#: https://docs.cloud.google.com/storage/quotas#requests and #objects
_LIMITS = Limits(
    min_part_size=5 << 20,
    max_part_size=5 << 30,
    max_parts=10_000,
    max_object_size=5 << 40,
    max_put_size=5 << 40,
)
#: https://docs.cloud.google.com/storage/docs/batch#limitations
_DELETE_BATCH = 100
_PAGE = 1000
_GENERATION = "x-goog-generation"
#: "Cloud Storage can take several minutes to process a request to complete a multipart upload":
#: https://docs.cloud.google.com/storage/docs/xml-api/post-object-complete
_COMPLETION_TIMEOUT = 300.0


class GCSStore(ObjectStore):
    """A bucket of Google Cloud Storage.

    Args:
        bucket: its name.
        options: how to reach it.
        concurrency: requests at a time; as many connections are kept open.
    """

    limits = _LIMITS

    def __init__(self, bucket: str, options: GCSOptions, *, concurrency: int = 8) -> None:
        self.bucket = bucket
        self._completion_timeout = max(options.stall_timeout, _COMPLETION_TIMEOUT)
        with mapped("opening the client", bucket):
            self._session = Session(options, concurrency=concurrency)
        self._common = {"x-goog-user-project": options.user_project} if options.user_project else {}
        self._new_object = _new_object(options)

    def head(self, key: str) -> ObjectInfo:
        answer = self._send("HeadObject", "HEAD", key)
        return self._info(key, answer, int(self._header(key, answer, "Content-Length")))

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        answer = self._send("GetObject", "GET", key)
        self._require_plain(key, answer)
        return answer.content, self._info(key, answer, len(answer.content))

    @contextmanager
    def read_range(
        self, key: str, start: int, stop: int, *, version: str | None = None
    ) -> Iterator[HttpRangeReader]:
        wanted = {"Range": _http_range(start, stop)}
        if version is not None:
            wanted["x-goog-if-generation-match"] = version
        answer = self._send("GetObject", "GET", key, headers=wanted, stream=True)
        try:
            reader = self._range_reader(key, start, answer)
        except BaseException:
            answer.close()
            raise
        try:
            yield reader
        finally:
            reader.close()

    def _range_reader(self, key: str, start: int, answer: requests.Response) -> HttpRangeReader:
        self._require_plain(key, answer)
        length = int(self._header(key, answer, "Content-Length"))
        content_range = answer.headers.get("Content-Range")
        if content_range is None and start != 0:
            raise UnsupportedError(
                "GetObject: the store ignores the Range header and sent the whole object",
                bucket=self.bucket,
                key=key,
            )
        size = length if content_range is None else int(content_range.rpartition("/")[2])
        return HttpRangeReader(
            self._info(key, answer, size),
            answer.raw,
            length,
            operation="GetObject",
            bucket=self.bucket,
            mapped=functools.partial(mapped, "GetObject", self.bucket, key),
        )

    def _require_plain(self, key: str, answer: requests.Response) -> None:
        """Refuse objects stored with ``Content-Encoding: gzip``.

        They are decompressed on the way, which ignores ranges:
        https://docs.cloud.google.com/storage/docs/transcoding
        """
        encoding = answer.headers.get("x-goog-stored-content-encoding") or "identity"
        if encoding != "identity":
            raise UnsupportedError(
                f"GetObject: the object is stored with Content-Encoding {encoding!r}, so no range of it can "
                "be read; store it again without",
                bucket=self.bucket,
                key=key,
            )

    def put(self, key: str, body: Body, condition: Condition | None = None) -> ObjectInfo:
        headers = {**self._new_object, **_checksum(body), **_condition(condition)}
        answer = self._send("PutObject", "PUT", key, headers=headers, body=body)
        return ObjectInfo(key, body.size, self._header(key, answer, _GENERATION))

    def start_upload(self, key: str) -> Upload:
        answer = self._send("CreateMultipartUpload", "POST", key, query="uploads", headers=self._new_object)
        return Upload(key, text_of(self._document("CreateMultipartUpload", key, answer), "UploadId"))

    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        answer = self._send(
            "UploadPart",
            "PUT",
            upload.key,
            query=_query(partNumber=number, uploadId=upload.upload_id),
            headers=_checksum(body),
            body=body,
        )
        return Part(number, body.size, self._header(upload.key, answer, "ETag"), body.crc32c)

    def finish_upload(self, upload: Upload, parts: Sequence[Part]) -> ObjectInfo:
        answer = self._send(
            "CompleteMultipartUpload",
            "POST",
            upload.key,
            query=_query(uploadId=upload.upload_id),
            headers={"Content-Type": "application/xml"},
            body=completion(parts),
            stall_timeout=self._completion_timeout,
        )
        self._document("CompleteMultipartUpload", upload.key, answer)
        # the documentation does not promise the generation in this answer
        if _GENERATION not in answer.headers:
            return self.head(upload.key)
        return ObjectInfo(upload.key, sum(part.size for part in parts), answer.headers[_GENERATION])

    def abort_upload(self, upload: Upload) -> None:
        try:
            self._send("AbortMultipartUpload", "DELETE", upload.key, query=_query(uploadId=upload.upload_id))
        except ObjectNotFoundError:
            return

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        wanted = {
            "prefix": prefix,
            "maxResults": _PAGE,
            "fields": "nextPageToken,items(name,size,generation,updated)",
        }
        path = f"/storage/v1/b/{quote(self.bucket, safe='')}/o"
        while True:
            with mapped("ListObjects", self.bucket, prefix):
                answer = self._session.send("GET", f"{path}?{_query(**wanted)}", headers=dict(self._common))
                page: dict[str, Any] = answer.json()
            for entry in page.get("items", ()):
                modified = from_rfc3339(entry["updated"])
                yield ObjectInfo(entry["name"], int(entry["size"]), str(entry["generation"]), modified)
            if "nextPageToken" not in page:
                return
            wanted["pageToken"] = page["nextPageToken"]

    def list_uploads(self, prefix: str) -> Iterator[UploadInfo]:
        marker: dict[str, str] = {}
        while True:
            query = _query(uploads="", prefix=prefix, **{"max-uploads": _PAGE}, **marker)
            answer = self._send("ListMultipartUploads", "GET", None, query=query)
            page = self._document("ListMultipartUploads", prefix, answer)
            for entry in page.iterfind("{*}Upload"):
                upload = Upload(text_of(entry, "Key"), text_of(entry, "UploadId"))
                yield UploadInfo(upload, from_rfc3339(text_of(entry, "Initiated")))
            if text_of(page, "IsTruncated") != "true":
                return
            marker = {
                "key-marker": text_of(page, "NextKeyMarker"),
                "upload-id-marker": text_of(page, "NextUploadIdMarker"),
            }

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            self._delete_batch(keys[start : start + _DELETE_BATCH])

    def _delete_batch(self, keys: Sequence[str]) -> None:
        folder = f"/storage/v1/b/{quote(self.bucket, safe='')}/o/"
        with mapped("DeleteObjects", self.bucket):
            answer = self._session.send(
                "POST",
                "/batch/storage/v1",
                # headers of the batch apply to each request in it
                headers={**self._common, "Content-Type": f'multipart/mixed; boundary="{BOUNDARY}"'},
                body=batch_body(folder + quote(key, safe="") for key in keys),
            )
        answers = batch_answers(answer.headers.get("Content-Type", ""), answer.content)
        for one in answers:
            # an object that is gone already is no error
            if one.status >= 300 and one.status != 404:
                key = keys[one.number]
                raise error_of_answer("DeleteObjects", one.status, one.body, bucket=self.bucket, key=key)
        if len(answers) != len(keys):
            raise TransientError(
                f"DeleteObjects: {len(answers)} of {len(keys)} deletes were answered", bucket=self.bucket
            )

    def close(self) -> None:
        self._session.close()

    def _send(
        self,
        operation: str,
        method: str,
        key: str | None,
        *,
        query: str = "",
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> requests.Response:
        """One request of the XML API about ``key``, or about the bucket."""
        path = f"/{quote(self.bucket, safe='')}" + ("" if key is None else f"/{quote(key, safe='')}")
        with mapped(operation, self.bucket, key):
            return self._session.send(
                method,
                f"{path}?{query}" if query else path,
                headers={**self._common, **(headers or {})},
                **options,
            )

    def _info(self, key: str, answer: requests.Response, size: int) -> ObjectInfo:
        modified = answer.headers.get("Last-Modified")
        return ObjectInfo(
            key,
            size,
            self._header(key, answer, _GENERATION),
            email.utils.parsedate_to_datetime(modified) if modified else None,
        )

    def _header(self, key: str, answer: requests.Response, name: str) -> str:
        try:
            return str(answer.headers[name])
        except KeyError as error:
            raise UnsupportedError(
                f"the answer has no {name}: the endpoint is not Google's XML API", bucket=self.bucket, key=key
            ) from error

    def _document(self, operation: str, key: str, answer: requests.Response) -> ElementTree.Element:
        """The XML document that an answer consists of."""
        try:
            root = ElementTree.fromstring(answer.content)
        except ElementTree.ParseError as error:
            raise UnsupportedError(
                f"{operation}: the answer is no XML document: the endpoint is not Google's XML API",
                bucket=self.bucket,
                key=key,
            ) from error
        # S3's API reports what goes wrong late after a status of 200, and this one is modelled on it
        if root.tag.rpartition("}")[2] == "Error":
            raise error_of_answer(operation, answer.status_code, answer.content, bucket=self.bucket, key=key)
        return root


def _new_object(options: GCSOptions) -> dict[str, str]:
    """Headers of requests that make an object."""
    wanted = {
        "Content-Type": "application/octet-stream",
        # readable by everyone, an object would be served from caches for an hour after it was replaced:
        # https://docs.cloud.google.com/storage/docs/caching
        "Cache-Control": "no-store",
        "x-goog-storage-class": options.storage_class,
        "x-goog-encryption-kms-key-name": options.kms_key_name,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _checksum(body: Body) -> dict[str, str]:
    return {"x-goog-hash": "crc32c=" + base64.b64encode(body.crc32c.to_bytes(4, "big")).decode()}


def _condition(condition: Condition | None) -> dict[str, str]:
    if isinstance(condition, CreateOnly):
        return {"x-goog-if-generation-match": "0"}
    if isinstance(condition, ReplaceVersion):
        return {"x-goog-if-generation-match": condition.version}
    return {}


def _query(**parameters: object) -> str:
    return urlencode(parameters, quote_via=quote, safe="")


def _http_range(start: int, stop: int) -> str:
    """HTTP's ranges include their end; only this function knows."""
    return f"bytes={start}-{stop - 1}"
