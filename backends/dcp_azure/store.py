"""One container of Azure Blob Storage.

The SDK signs, finds credentials and knows endpoints. It does not retry: the core does, because only the core
can tell a repeated conditional write from a lost race.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from dcp_azure.account import find_account
from dcp_azure.blocks import MAX_BLOCKS, block_id, block_list, new_upload_id, started_at, upload_ids
from dcp_azure.checksum import checksum_headers
from dcp_azure.client import AzureClient
from dcp_azure.error_table import mapped, refusal
from dcp_azure.options import AzureOptions
from dcp_azure.ranges import raw_answer
from dcp_core.errors import (
    CheckpointCorruptError,
    ConfigurationError,
    ConflictError,
    ObjectNotFoundError,
    UnsupportedError,
)
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

__all__ = ["AzureStore"]

#: https://learn.microsoft.com/azure/storage/blobs/scalability-targets
_LIMITS = Limits(
    # Azure takes any; a request for less than this costs more than its bytes
    min_part_size=1 << 20,
    max_part_size=4000 << 20,
    max_parts=MAX_BLOCKS,
    max_object_size=MAX_BLOCKS * (4000 << 20),
    max_put_size=5000 << 20,
)
_DELETE_BATCH = 256
_BINARY = "application/octet-stream"
#: Metadata of the empty blob that an abort makes, with the id of the upload.
_ABANDONED = "x-ms-meta-dcpabandoned"


class AzureStore(ObjectStore):
    """A container of Azure Blob Storage, or of a store that speaks its protocol.

    Args:
        bucket: the container's name.
        options: how to reach it.
        endpoint: the blob endpoint, where the checkpoint's URL names the account.
        concurrency: requests at a time; as many connections are kept open.
    """

    limits = _LIMITS

    def __init__(
        self, bucket: str, options: AzureOptions, *, endpoint: str | None = None, concurrency: int = 8
    ) -> None:
        self.bucket = bucket
        self._checksum = options.transactional_checksum
        with mapped("opening the client", bucket):
            account = find_account(options, endpoint)
            _refuse_clear_text(account.endpoint, options)
            self._client = AzureClient(bucket, account, options, concurrency)
        self._sealed = _encryption_key(options)
        self._written = self._sealed | _scope(options)
        self._new_object = self._written | _new_object(options)

    def head(self, key: str) -> ObjectInfo:
        with mapped("Get Blob Properties", self.bucket, key):
            answer = self._client.send("HEAD", key, self._sealed, expected=(200,))
        return _info(key, int(answer.headers["Content-Length"]), answer)

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        with mapped("Get Blob", self.bucket, key):
            answer = self._client.send("GET", key, self._plain, expected=(200,), stream=True)
            data: bytes = answer.read()
        return data, _info(key, len(data), answer)

    @property
    def _plain(self) -> dict[str, str]:
        return {**self._sealed, "Accept-Encoding": "identity"}

    @contextmanager
    def read_range(
        self, key: str, start: int, stop: int, *, version: str | None = None
    ) -> Iterator[HttpRangeReader]:
        wanted = {**self._plain, "x-ms-range": _http_range(start, stop)}
        if version is not None:
            wanted["If-Match"] = _etag(version)
        with mapped("Get Blob", self.bucket, key):
            answer = self._client.send("GET", key, wanted, expected=(200, 206), stream=True)
        reader = self._range_reader(key, start, answer)
        try:
            yield reader
        finally:
            reader.close()

    def _range_reader(self, key: str, start: int, answer: Any) -> HttpRangeReader:
        length = int(answer.headers["Content-Length"])
        content_range = answer.headers.get("Content-Range")
        if content_range is None and start != 0:
            answer.close()
            raise UnsupportedError(
                "Get Blob: the store ignores the range and sent the whole object", bucket=self.bucket, key=key
            )
        size = length if content_range is None else int(content_range.rpartition("/")[2])
        if size <= start:
            # a 416 where the protocol is kept; the emulator sends an empty object whole
            answer.close()
            raise CheckpointCorruptError(
                f"Get Blob: the object has {size} bytes, the range starts at {start}",
                bucket=self.bucket,
                key=key,
            )
        return HttpRangeReader(
            _info(key, size, answer),
            raw_answer(answer),
            length,
            operation="Get Blob",
            bucket=self.bucket,
            mapped=partial(mapped, "Get Blob", self.bucket, key),
        )

    def put(self, key: str, body: Body, condition: Condition | None = None) -> ObjectInfo:
        headers = {**self._new_object, **_condition(condition), "x-ms-blob-type": "BlockBlob"}
        with mapped("Put Blob", self.bucket, key):
            answer = self._send_body(key, headers, body)
        return _info(key, body.size, answer)

    def start_upload(self, key: str) -> Upload:
        upload = Upload(key, new_upload_id())
        # CRC32C of one zero byte
        self._put_block(upload, 0, Body([b"\0"], 0x527D5351))
        return upload

    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        return Part(number, body.size, self._put_block(upload, number, body), body.crc32c)

    def _put_block(self, upload: Upload, number: int, body: Body) -> str:
        with mapped("Put Block", self.bucket, upload.key):
            name = block_id(upload.upload_id, number)
            self._send_body(upload.key, self._written, body, f"?comp=block&blockid={quote(name, safe='')}")
        return name

    def _send_body(self, key: str, headers: dict[str, str], body: Body, query: str = "") -> Any:
        """Store ``body``. It is sent buffer by buffer: nothing on the way reads it into ``bytes``."""
        described = {
            **headers,
            **checksum_headers(body, self._checksum),
            "Content-Length": str(body.size),
            "Content-Type": _BINARY,
        }
        return self._client.send("PUT", key, described, query=query, body=body, expected=(201,))

    def finish_upload(self, upload: Upload, parts: Sequence[Part]) -> ObjectInfo:
        answer = self._put_block_list(upload.key, [part.tag for part in parts], {})
        return _info(upload.key, sum(part.size for part in parts), answer)

    def _put_block_list(self, key: str, block_ids: Sequence[str], headers: dict[str, str]) -> Any:
        listed = block_list(block_ids)
        described = {
            **self._new_object,
            **headers,
            "x-ms-blob-content-type": _BINARY,
            "Content-Type": "application/xml",
            "Content-MD5": base64.b64encode(hashlib.md5(listed, usedforsecurity=False).digest()).decode(),
        }
        with mapped("Put Block List", self.bucket, key):
            return self._client.send(
                "PUT", key, described, query="?comp=blocklist", body=listed, expected=(201,)
            )

    def abort_upload(self, upload: Upload) -> None:
        """Drop an upload and its blocks.

        Azure drops blocks only when their blob is written, or after a week. So an empty blob is made of them,
        if the name holds no object, and deleted again, if it is still that one: nobody sees a half object,
        and an object that is there stays as it is, the blocks beside it until they expire.
        """
        try:
            if upload.upload_id in self._uploads(upload.key):
                self._put_block_list(upload.key, [], {"If-None-Match": "*", _ABANDONED: upload.upload_id})
            self._delete_abandoned(upload)
        except (ObjectNotFoundError, ConflictError):
            return

    def _delete_abandoned(self, upload: Upload) -> None:
        with mapped("Delete Blob", self.bucket, upload.key):
            found = self._client.send("HEAD", upload.key, self._sealed, expected=(200,))
            if found.headers.get(_ABANDONED) == upload.upload_id:
                self._client.send("DELETE", upload.key, {"If-Match": found.headers["ETag"]}, expected=(202,))

    def _uploads(self, key: str) -> list[str]:
        """Ids of the uploads that have blocks staged under ``key``."""
        with mapped("Get Block List", self.bucket, key):
            query = "?comp=blocklist&blocklisttype=uncommitted"
            return upload_ids(self._client.send("GET", key, {}, query=query, expected=(200,)).body())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for entry in self._entries(prefix, ["metadata"]):
            yield ObjectInfo(entry.name, entry.size, _version(entry.etag), entry.last_modified)

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

    def _entries(self, prefix: str, include: Sequence[str]) -> Iterator[Any]:
        with mapped("List Blobs", self.bucket, prefix):
            entries = iter(
                self._client.container.list_blobs(name_starts_with=prefix or None, include=include)
            )
        while True:
            with mapped("List Blobs", self.bucket, prefix):
                entry = next(entries, None)
            if entry is None:
                return
            # what accounts with a hierarchical namespace show for a directory
            if (entry.metadata or {}).get("hdi_isfolder") != "true":
                yield entry

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = keys[start : start + _DELETE_BATCH]
            with mapped("Delete Blob", self.bucket, batch[0]):
                answers = self._client.container.delete_blobs(*batch, raise_on_any_failure=False)
                for key, answer in zip(batch, answers, strict=True):
                    if answer.status_code not in (202, 404):
                        raise refusal("Delete Blob", self.bucket, key, answer.status_code, answer.headers)

    def close(self) -> None:
        self._client.close()


def _info(key: str, size: int, answer: Any) -> ObjectInfo:
    return ObjectInfo(
        key, size, _version(answer.headers["ETag"]), parsedate_to_datetime(answer.headers["Last-Modified"])
    )


def _version(etag: str) -> str:
    """Headers have the ETag in quotes, listings without."""
    return etag.strip('"')


def _etag(version: str) -> str:
    return f'"{version}"'


def _condition(condition: Condition | None) -> dict[str, str]:
    if isinstance(condition, CreateOnly):
        return {"If-None-Match": "*"}
    if isinstance(condition, ReplaceVersion):
        return {"If-Match": _etag(condition.version)}
    return {}


def _http_range(start: int, stop: int) -> str:
    """HTTP's ranges include their end; only this function knows."""
    return f"bytes={start}-{stop - 1}"


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


def _refuse_clear_text(endpoint: str, options: AzureOptions) -> None:
    url = urlsplit(endpoint)
    safe = url.scheme == "https" or url.hostname in ("127.0.0.1", "localhost")
    if options.encryption_key is not None and not safe:
        raise ConfigurationError("encryption_key would be sent in clear text: use an https:// endpoint")


def _scope(options: AzureOptions) -> dict[str, str]:
    """Headers of every request that sends data."""
    return {} if options.encryption_scope is None else {"x-ms-encryption-scope": options.encryption_scope}


def _new_object(options: AzureOptions) -> dict[str, str]:
    """Headers of requests that make an object."""
    headers: dict[str, str] = {}
    if options.access_tier is not None:
        headers["x-ms-access-tier"] = options.access_tier
    if options.tags:
        headers["x-ms-tags"] = urlencode(options.tags, quote_via=quote)
    return headers
