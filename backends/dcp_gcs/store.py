"""One bucket of Google Cloud Storage.

Objects and multipart uploads go through the XML API: its errors have codes that tell a missing bucket from a
missing object, its multipart uploads take parts in parallel (the SDK's own transfer manager uses them), and
the body of a request is the object's bytes and nothing else. Lists and deletes go through the JSON API, which
names keys without XML's limits and deletes in batches.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

import requests

from dcp_core.errors import (
    ObjectNotFoundError,
    PermissionDeniedError,
    TransientError,
    UnsupportedError,
)
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
from dcp_gcs.documents import (
    BOUNDARY,
    batch_body,
    batch_responses,
    completion,
    error_details,
    texts_of,
    time_of,
)
from dcp_gcs.error_table import GCSErrors
from dcp_gcs.options import GCSOptions
from dcp_gcs.session import Session

__all__ = ["LIMITS", "GCSStore"]

LIMITS = Limits(
    min_part_size=5 << 20,
    max_part_size=5 << 30,
    max_parts=10_000,
    max_object_size=5 << 40,
    max_put_size=5 << 40,
    source="https://docs.cloud.google.com/storage/quotas",
    checked="2026-11",
)
#: https://docs.cloud.google.com/storage/docs/batch#limitations
_DELETE_BATCH = 100
_PAGE = 1000
#: "Cloud Storage can take several minutes to process a request to complete a multipart upload":
#: https://docs.cloud.google.com/storage/docs/xml-api/post-object-complete
_COMPLETION_TIMEOUT = 300.0


class GCSStore(CloudStore[Session]):
    """A bucket of Google Cloud Storage.

    Args:
        bucket: its name.
        options: how to reach it.
        concurrency: requests at a time; as many connections are kept open.
    """

    api = "Google Cloud Storage"
    errors = GCSErrors()
    version_header = "x-goog-generation"
    request_id_header = "x-guploader-uploadid"

    def __init__(self, bucket: str, options: GCSOptions, *, concurrency: int = 8) -> None:
        super().__init__(bucket, functools.partial(Session, options, concurrency=concurrency))
        self.limits = LIMITS.changed(options.limits)
        self._completion_timeout = max(options.stall_timeout, _COMPLETION_TIMEOUT)
        self._common = only_given({"x-goog-user-project": options.user_project})
        self._new_object = _new_object(options)

    def head(self, key: str) -> ObjectInfo:
        response = self._object("HeadObject", key, "HEAD")
        return self.info(response, response.length)

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        response = self._send("GetObject", "GET", key)
        info = self.info(self._stored_as_is(key, response), len(response.content))
        return response.content, info

    def open_range(self, key: str, wanted: str, version: str | None) -> StoreResponse:
        headers = {"Range": wanted, **only_given({"x-goog-if-generation-match": version})}
        response = self._send("GetObject", "GET", key, headers=headers, stream=True)
        try:
            return self._stored_as_is(key, response)
        except BaseException:
            response.close()
            raise

    def _stored_as_is(self, key: str, response: requests.Response) -> StoreResponse:
        """Refuse objects stored with ``Content-Encoding: gzip``.

        They are decompressed on the way, which ignores ranges:
        https://docs.cloud.google.com/storage/docs/transcoding
        """
        encoding = response.headers.get("x-goog-stored-content-encoding") or "identity"
        if encoding != "identity":
            raise UnsupportedError(
                f"GetObject: the object is stored with Content-Encoding {encoding!r}, so no range of it can "
                "be read; store it again without",
                bucket=self.bucket,
                key=key,
            )
        return self.response("GetObject", key, response.headers, response.raw)

    def put(self, key: str, body: Body, condition: Condition | None = None) -> ObjectInfo:
        generation = "x-goog-if-generation-match"
        conditional = condition_headers(condition, {generation: "0"}, generation)
        headers = {**self._new_object, **_checksum(body), **conditional}
        response = self._object("PutObject", key, "PUT", headers=headers, body=body)
        return ObjectInfo(key, body.size, self.version(response))

    def start_upload(self, key: str) -> Upload:
        response = self._send("CreateMultipartUpload", "POST", key, query="uploads", headers=self._new_object)
        found = self._document("CreateMultipartUpload", key, response, "InitiateMultipartUploadResult")
        return Upload(key, found.field("UploadId"))

    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        query = _query(partNumber=number, uploadId=upload.upload_id)
        response = self._object(
            "UploadPart", upload.key, "PUT", query=query, headers=_checksum(body), body=body
        )
        return Part(number, body.size, response.header("etag"), body.crc32c)

    def finish_upload(self, upload: Upload, parts: Sequence[Part]) -> ObjectInfo:
        response = self._send(
            "CompleteMultipartUpload",
            "POST",
            upload.key,
            query=_query(uploadId=upload.upload_id),
            headers={"Content-Type": "application/xml"},
            body=completion(parts),
            stall_timeout=self._completion_timeout,
        )
        self._document("CompleteMultipartUpload", upload.key, response, "CompleteMultipartUploadResult")
        size = sum(part.size for part in parts)
        # the documentation does not promise the generation in this response
        return ObjectInfo(
            upload.key, size, response.headers.get(self.version_header) or self._asked(upload.key)
        )

    def _asked(self, key: str) -> str:
        """The version of an object; empty to those who may create objects and not read them."""
        try:
            return self.head(key).version
        except PermissionDeniedError:
            return ""

    def abort_upload(self, upload: Upload) -> None:
        try:
            self._send("AbortMultipartUpload", "DELETE", upload.key, query=_query(uploadId=upload.upload_id))
        except ObjectNotFoundError:
            return

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages(prefix):
            yield from _listed(page)

    def list_rolled(self, prefix: str, delimiter: str) -> Iterator[ObjectInfo | CommonPrefix]:
        for page in self._pages(prefix, delimiter=delimiter):
            yield from _listed(page)
            for rolled in page.raw.get("prefixes", ()):
                yield CommonPrefix(rolled)

    def _pages(self, prefix: str, **more: str) -> Iterator[StoreResponse]:
        wanted = {
            "prefix": prefix,
            "maxResults": _PAGE,
            "fields": "nextPageToken,prefixes,items(name,size,generation,updated)",
            **more,
        }
        while True:
            page = self._page(prefix, _query(**wanted))
            yield page
            following = page.raw.get("nextPageToken")
            if following is None:
                return
            if following == wanted.get("pageToken"):
                raise page.unexpected("repeats its page token")
            wanted["pageToken"] = following

    def _page(self, prefix: str, query: str) -> StoreResponse:
        path = f"/storage/v1/b/{quote(self.bucket, safe='')}/o?{query}"
        with self.client("ListObjects", prefix) as session:
            response = session.send("GET", path, headers=self._common)
        try:
            page = json.loads(response.content)
        except ValueError:
            page = None
        found = self.response("ListObjects", prefix, response.headers, page)
        if not isinstance(page, dict) or not isinstance(page.get("items", []), list):
            raise found.unexpected("is no JSON document of a list")
        return found

    def list_uploads(self, prefix: str) -> Iterator[UploadInfo]:
        marker: dict[str, str] = {}
        while True:
            query = _query(uploads="", prefix=prefix, **{"max-uploads": _PAGE}, **marker)
            response = self._send("ListMultipartUploads", "GET", None, query=query)
            page = self._document("ListMultipartUploads", prefix, response, "ListMultipartUploadsResult")
            for entry in page.raw["Upload"]:
                upload = Upload(page.field("Key", entry), page.field("UploadId", entry))
                yield UploadInfo(upload, time_of(entry.get("Initiated")))
            if page.raw.get("IsTruncated") != "true":
                return
            following = {
                "key-marker": page.field("NextKeyMarker"),
                "upload-id-marker": page.field("NextUploadIdMarker"),
            }
            if following == marker:
                raise page.unexpected("repeats its markers")
            marker = following

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            self._delete_batch(keys[start : start + _DELETE_BATCH])

    def _delete_batch(self, keys: Sequence[str]) -> None:
        folder = f"/storage/v1/b/{quote(self.bucket, safe='')}/o/"
        with self.client("DeleteObjects") as session:
            whole = session.send(
                "POST",
                "/batch/storage/v1",
                # headers of the batch apply to each request in it
                headers={**self._common, "Content-Type": f'multipart/mixed; boundary="{BOUNDARY}"'},
                body=batch_body(folder + quote(key, safe="") for key in keys),
            )
        responses = batch_responses(whole.headers.get("Content-Type", ""), whole.content)
        for one in responses:
            # an object that is gone already is no error
            if one.status >= 300 and one.status != 404:
                raise self._refused("DeleteObjects", keys[one.number], one.status, one.body)
        if not responses:
            found = self.response("DeleteObjects", keys[0], whole.headers)
            raise found.unexpected("is none to a batch of requests")
        if len(responses) != len(keys):
            raise TransientError(
                f"DeleteObjects: {len(responses)} of {len(keys)} deletes got a response", bucket=self.bucket
            )

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
        with self.client(operation, key) as session:
            return session.send(
                method,
                f"{path}?{query}" if query else path,
                headers={**self._common, **(headers or {})},
                **options,
            )

    def _object(self, operation: str, key: str, method: str, **options: Any) -> StoreResponse:
        """One request of the XML API whose response has no body."""
        return self.response(operation, key, self._send(operation, method, key, **options).headers)

    def _document(
        self, operation: str, key: str, response: requests.Response, expected: str
    ) -> StoreResponse:
        """A response that is an XML document, with the texts of its elements as its ``raw``."""
        found = self.response(operation, key, response.headers)
        try:
            root = ElementTree.fromstring(response.content)
        except ElementTree.ParseError as error:
            raise found.unexpected("is no XML document") from error
        name = root.tag.rpartition("}")[2]
        # S3's API reports what goes wrong late after a status of 200, and this one is modelled on it
        if name == "Error":
            raise self._refused(operation, key, response.status_code, response.content)
        if name != expected:
            raise found.unexpected(f"is a document {name[:40]!r}")
        uploads = [texts_of(entry) for entry in root.iterfind("{*}Upload")]
        return replace(found, raw={**texts_of(root), "Upload": uploads})

    def _refused(self, operation: str, key: str, status: int, body: bytes) -> Exception:
        return self.errors.for_refusal(operation, Refusal(status, *error_details(body)), self.bucket, key)


def _new_object(options: GCSOptions) -> dict[str, str]:
    """Headers of requests that make an object."""
    return only_given(
        {
            "Content-Type": "application/octet-stream",
            # readable by everyone, an object would be served from caches for an hour after it was replaced:
            # https://docs.cloud.google.com/storage/docs/caching
            "Cache-Control": "no-store",
            "x-goog-storage-class": options.storage_class,
            "x-goog-encryption-kms-key-name": options.kms_key_name,
        }
    )


def _checksum(body: Body) -> dict[str, str]:
    return {"x-goog-hash": f"crc32c={body.crc32c_base64}"}


def _listed(page: StoreResponse) -> Iterator[ObjectInfo]:
    for entry in page.raw.get("items", ()):
        name, size, version = (page.field(one, entry) for one in ("name", "size", "generation"))
        yield ObjectInfo(name, int(size), str(version), time_of(entry.get("updated")))


def _query(**parameters: object) -> str:
    return urlencode(parameters, quote_via=quote, safe="")
