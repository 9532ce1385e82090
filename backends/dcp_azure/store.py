"""One container of Azure Blob Storage.

The SDK signs, finds credentials and knows endpoints. It does not retry: the core does, because only the core
can tell a repeated conditional write from a lost race.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from azure.storage.blob import BlobPrefix

from dcp_azure.account import find_account
from dcp_azure.azure_private import raw_response
from dcp_azure.blocks import (
    ABORTED,
    MAX_BLOCKS,
    block_id,
    block_list,
    new_upload_id,
    running_uploads,
    started_at,
)
from dcp_azure.checksum import checksum_headers
from dcp_azure.client import AzureClient
from dcp_azure.error_table import AzureErrors, refusal_by_headers
from dcp_azure.options import AzureOptions
from dcp_core.errors import ConfigurationError, ConflictError, ObjectNotFoundError
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
from dcp_core.transport.responses import StoreResponse

__all__ = ["LIMITS", "AzureStore"]

LIMITS = Limits(
    # Azure takes any; a request for less than this costs more than its bytes
    min_part_size=1 << 20,
    max_part_size=4000 << 20,
    max_parts=MAX_BLOCKS,
    max_object_size=MAX_BLOCKS * (4000 << 20),
    max_put_size=5000 << 20,
    source="https://learn.microsoft.com/azure/storage/blobs/scalability-targets",
    checked="2026-11",
)
_DELETE_BATCH = 256
_BINARY = "application/octet-stream"
#: Metadata of the empty blob that an abort makes, with the id of the upload.
_ABANDONED = "x-ms-meta-dcpabandoned"


class AzureStore(CloudStore[AzureClient]):
    """A container of Azure Blob Storage, or of a store that speaks its protocol.

    Args:
        bucket: the container's name.
        options: how to reach it.
        endpoint: the blob endpoint, where the checkpoint's URL names the account.
        concurrency: requests at a time; as many connections are kept open.
    """

    api = "Azure Blob Storage"
    errors = AzureErrors()
    get_operation = "Get Blob"
    request_id_header = "x-ms-request-id"

    def __init__(
        self, bucket: str, options: AzureOptions, *, endpoint: str | None = None, concurrency: int = 8
    ) -> None:
        super().__init__(bucket, partial(_open, bucket, options, endpoint, concurrency))
        self.limits = LIMITS.changed(options.limits)
        self._checksum = options.upload_checksum
        # without a request: what is wrong with the configuration is said at once
        with self.translated("opening the client"):
            self.clients.get()
        self._encryption = _encryption_key(options)
        self._written = self._encryption | only_given({"x-ms-encryption-scope": options.encryption_scope})
        self._new_object = self._written | _new_object(options)

    def _send(
        self, operation: str, method: str, key: str, headers: dict[str, str], *expected: int, **options: Any
    ) -> Any:
        """One request about ``key``, whose response has one of the statuses ``expected``."""
        with self.client(operation, key) as client:
            return client.send(method, key, headers, expected=expected, **options)

    def version(self, response: StoreResponse) -> str:
        return _version(super().version(response))

    def head(self, key: str) -> ObjectInfo:
        found = self._send("Get Blob Properties", "HEAD", key, self._encryption, 200)
        response = self.response("Get Blob Properties", key, found.headers)
        return self.info(response, response.length)

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        found = self._send("Get Blob", "GET", key, self._reading, 200, stream=True)
        with self.translated("Get Blob", key):
            data: bytes = found.read()
        return data, self.info(self.response("Get Blob", key, found.headers), len(data))

    @property
    def _reading(self) -> dict[str, str]:
        return {**self._encryption, "Accept-Encoding": "identity"}

    def open_range(self, key: str, wanted: str, version: str | None) -> StoreResponse:
        condition = {} if version is None else {"If-Match": f'"{version}"'}
        headers = {**self._reading, "x-ms-range": wanted, **condition}
        found = self._send("Get Blob", "GET", key, headers, 200, 206, stream=True)
        return self.response("Get Blob", key, found.headers, raw_response(found))

    def put(self, key: str, body: Body, condition: Condition | None = None) -> ObjectInfo:
        conditional = condition_headers(condition, {"If-None-Match": "*"}, "If-Match", '"{}"')
        headers = {**self._new_object, **conditional, "x-ms-blob-type": "BlockBlob"}
        return self._written_info("Put Blob", key, body.size, self._put("Put Blob", key, headers, body))

    def _written_info(self, operation: str, key: str, size: int, found: Any) -> ObjectInfo:
        return self.info(self.response(operation, key, found.headers), size)

    def start_upload(self, key: str) -> Upload:
        upload = Upload(key, new_upload_id())
        self._put_mark(upload, 0)
        return upload

    def _put_mark(self, upload: Upload, number: int) -> None:
        """Stage a block that no block list names."""
        # CRC32C of one zero byte
        self._put_block(upload, number, Body([b"\0"], 0x527D5351))

    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        return Part(number, body.size, self._put_block(upload, number, body), body.crc32c)

    def _put_block(self, upload: Upload, number: int, body: Body) -> str:
        with self.translated("Put Block", upload.key):
            name = block_id(upload.upload_id, number)
        query = f"?comp=block&blockid={quote(name, safe='')}"
        self._put("Put Block", upload.key, self._written, body, query=query)
        return name

    def _put(self, operation: str, key: str, headers: dict[str, str], body: Body, query: str = "") -> Any:
        """Store ``body``. It is sent buffer by buffer: nothing on the way reads it into ``bytes``."""
        with self.translated(operation, key):
            described = {
                **headers,
                **checksum_headers(body, self._checksum),
                "Content-Length": str(body.size),
                "Content-Type": _BINARY,
            }
        return self._send(operation, "PUT", key, described, 201, query=query, body=body.open())

    def finish_upload(self, upload: Upload, parts: Sequence[Part]) -> ObjectInfo:
        found = self._put_block_list(upload.key, [part.tag for part in parts], {})
        return self._written_info("Put Block List", upload.key, sum(part.size for part in parts), found)

    def _put_block_list(self, key: str, block_ids: Sequence[str], headers: dict[str, str]) -> Any:
        listed = block_list(block_ids)
        described = {
            **self._new_object,
            **headers,
            "x-ms-blob-content-type": _BINARY,
            "Content-Type": "application/xml",
            "Content-MD5": base64.b64encode(hashlib.md5(listed, usedforsecurity=False).digest()).decode(),
        }
        query = "?comp=blocklist"
        return self._send("Put Block List", "PUT", key, described, 201, query=query, body=listed)

    def abort_upload(self, upload: Upload) -> None:
        """Drop an upload and its blocks.

        Azure drops blocks only when their blob is written, or after a week. So an empty blob is made of them,
        if the name holds no object, and deleted again, if it is still that one: nobody sees a half object,
        and an object that is there stays as it is, the blocks beside it until they expire.

        That would drop the blocks of other uploads of the name too. While there are any, this one is only
        marked, and its blocks go with the last of them.
        """
        try:
            running = self._uploads(upload.key)
            if upload.upload_id in running:
                if len(running) == 1:
                    self._put_block_list(upload.key, [], {"If-None-Match": "*", _ABANDONED: upload.upload_id})
                elif upload.upload_id:
                    self._put_mark(upload, ABORTED)
            self._delete_abandoned(upload)
        except (ObjectNotFoundError, ConflictError):
            return

    def _delete_abandoned(self, upload: Upload) -> None:
        found = self._send("Delete Blob", "HEAD", upload.key, self._encryption, 200).headers
        if found.get(_ABANDONED) == upload.upload_id:
            self._send("Delete Blob", "DELETE", upload.key, {"If-Match": found["ETag"]}, 202)

    def _uploads(self, key: str) -> list[str]:
        """Ids of the uploads that have blocks staged under ``key`` and are not aborted."""
        query = "?comp=blocklist&blocklisttype=uncommitted"
        found = self._send("Get Block List", "GET", key, {}, 200, query=query)
        try:
            return running_uploads(found.body())
        except ValueError as error:
            response = self.response("Get Block List", key, found.headers)
            raise response.unexpected("is no list of blocks") from error

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for entry in self._entries(prefix, ["metadata"]):
            yield _listed(entry)

    def list_rolled(self, prefix: str, delimiter: str) -> Iterator[ObjectInfo | CommonPrefix]:
        for entry in self._entries(prefix, ["metadata"], delimiter):
            yield CommonPrefix(entry.name) if isinstance(entry, BlobPrefix) else _listed(entry)

    def list_uploads(self, prefix: str) -> Iterator[UploadInfo]:
        """All unfinished uploads whose key starts with ``prefix`` and holds no object yet.

        Blocks staged beside an existing object are not found; saves never do that.
        """
        for entry in self._entries(prefix, ["metadata", "uncommittedblobs"]):
            # the listing does not say which are uncommitted, but those have no bytes
            if entry.size:
                continue
            try:
                found = self._uploads(entry.name)
            except ObjectNotFoundError:
                continue
            for upload_id in found:
                started: datetime | None = started_at(upload_id) if upload_id else entry.last_modified
                yield UploadInfo(Upload(entry.name, upload_id), started)

    def _entries(self, prefix: str, include: Sequence[str], delimiter: str | None = None) -> Iterator[Any]:
        """Every blob, through all pages; directories of a hierarchical namespace are left out.

        With a delimiter, blobs that have it in the rest of their names are rolled up, as a ``BlobPrefix``.
        """
        wanted: dict[str, Any] = {"name_starts_with": prefix or None, "include": include}
        position: str | None = None
        while True:
            with self.client("List Blobs", prefix) as client:
                listed = (
                    client.container.list_blobs(**wanted)
                    if delimiter is None
                    else client.container.walk_blobs(delimiter=delimiter, **wanted)
                )
                pages = listed.by_page(continuation_token=position)
                try:
                    entries = list(next(pages, ()))
                except ValueError as error:
                    # the SDK's own error for what it cannot read is private; requests' are of addresses
                    if isinstance(error, OSError):
                        raise
                    raise self.response("List Blobs", prefix, {}).unexpected("is no list of blobs") from error
            for entry in entries:
                if isinstance(entry, BlobPrefix):
                    yield entry
                    continue
                self._require_described(prefix, entry)
                if (entry.metadata or {}).get("hdi_isfolder") != "true":
                    yield entry
            if not pages.continuation_token:
                return
            if pages.continuation_token == position:
                raise self.response("List Blobs", prefix, {}).unexpected("repeats its marker")
            position = pages.continuation_token

    def _require_described(self, prefix: str, entry: Any) -> None:
        for name in ("name", "size", "etag"):
            if getattr(entry, name, None) is None:
                raise self.response("List Blobs", prefix, {}).unexpected(f"has an entry without {name}")

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = keys[start : start + _DELETE_BATCH]
            with self.client("Delete Blob", batch[0]) as client:
                responses = list(client.container.delete_blobs(*batch, raise_on_any_failure=False))
            if len(responses) != len(batch):
                found = self.response("Delete Blob", batch[0], {})
                raise found.unexpected(f"has {len(responses)} responses to {len(batch)} requests")
            for key, one in zip(batch, responses, strict=True):
                if one.status_code not in (202, 404):
                    refusal = refusal_by_headers(one.status_code, one.headers)
                    raise self.errors.for_refusal("Delete Blob", refusal, self.bucket, key)

    def delete_version(self, key: str, version: str) -> None:
        self._send("Delete Blob", "DELETE", key, {"If-Match": f'"{version}"'}, 202)


def _listed(entry: Any) -> ObjectInfo:
    return ObjectInfo(entry.name, entry.size, _version(entry.etag), entry.last_modified)


def _version(etag: str) -> str:
    """Headers have the ETag in quotes, listings without."""
    return etag.strip('"')


def _encryption_key(options: AzureOptions) -> dict[str, str]:
    """Headers of every request for an object under a customer-provided key."""
    if options.encryption_key is None:
        return {}
    key = base64.b64decode(options.encryption_key)
    return {
        "x-ms-encryption-key": options.encryption_key,
        "x-ms-encryption-key-sha256": base64.b64encode(hashlib.sha256(key).digest()).decode(),
        "x-ms-encryption-algorithm": "AES256",
    }


def _open(bucket: str, options: AzureOptions, endpoint: str | None, concurrency: int) -> AzureClient:
    account = find_account(options, endpoint)
    _refuse_clear_text(account.endpoint, options)
    return AzureClient(bucket, account, options, concurrency)


def _refuse_clear_text(endpoint: str, options: AzureOptions) -> None:
    url = urlsplit(endpoint)
    safe = url.scheme == "https" or url.hostname in ("127.0.0.1", "localhost")
    if options.encryption_key is not None and not safe:
        raise ConfigurationError("encryption_key would be sent in clear text: use an https:// endpoint")


def _new_object(options: AzureOptions) -> dict[str, str]:
    """Headers of requests that make an object."""
    tags = urlencode(options.tags, quote_via=quote) if options.tags else None
    return only_given({"x-ms-access-tier": options.access_tier, "x-ms-tags": tags})
