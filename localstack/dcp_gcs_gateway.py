"""Google Cloud Storage in front of fake-gcs-server: what the emulator lacks, it does itself.

Runs in the emulator's own environment, starts it, and ends when it ends::

    python dcp_gcs_gateway.py '{"port": …, "emulator_port": …, "binary": …, "folder": …, "accounts": {…}}'

Added to the emulator, as Google's documentation describes it:

- the XML API for objects, with its error codes: get, head, put and delete
  (https://docs.cloud.google.com/storage/docs/xml-api/reference-methods), ``x-goog-hash`` checked, storage
  class kept;
- XML multipart uploads (``dcp_gcs_uploads.py``). The response to their completion carries no generation: the
  documentation does not promise one;
- generation preconditions of every request about an object, XML's ``x-goog-if-generation-match`` and JSON's
  ``ifGenerationMatch`` (https://docs.cloud.google.com/storage/docs/request-preconditions);
- who may do what (``dcp_gcs_access.py``);
- batches, of deletes only (https://docs.cloud.google.com/storage/docs/batch).

Everything else of the JSON API passes to the emulator as it is: buckets, metadata, lists, versions, uploads.
Bodies are streamed; a body that must be checked before it may become an object waits in a file.

Not modelled: metagenerations, soft delete, holds and retention, encryption keys (accepted and forgotten),
requester-pays, signed URLs, XML lists of objects, customer-supplied ETags, rate limits, and buckets called
storage, upload, download, batch, token or revoke.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.parser
import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from xml.sax.saxutils import escape

import aiohttp
import google_crc32c
from aiohttp import web
from dcp_gcs_access import Access, Refused
from dcp_gcs_emulator import Emulator, Failed, Target, changed, encoded, no_key, start_emulator
from dcp_gcs_responses import (
    attributes_of,
    document,
    json_error,
    json_response,
    object_headers,
    respond,
    xml_error,
)
from dcp_gcs_uploads import StoredPart, UploadError, Uploads, chosen_parts

_CHUNK = 1 << 18
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "host"}
_CONDITION = "x-goog-if-generation-match"
#: XML's codes by status, where the request says no more.
_REFUSED = {401: "AuthenticationRequired", 403: "AccessDenied"}


class Gateway:
    """The requests that clients make."""

    def __init__(self, emulator: Emulator, access: Access, folder: Path) -> None:
        self._emulator = emulator
        self._access = access
        self._folder = folder
        self._uploads = Uploads(folder / "uploads")
        # a condition is checked and then relied on; writes of one object wait for each other
        self._writing: dict[tuple[str, str], asyncio.Lock] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = urlsplit(request.raw_path).path
        is_json = path.startswith(("/storage/", "/upload/", "/download/", "/batch/", "/_internal/"))
        try:
            if path == "/token":
                return await self._token(request)
            if path == "/revoke":
                self._access.revoke((await request.post())["token"])  # type: ignore[arg-type]
                return web.Response()
            if path == "/batch/storage/v1":
                return await self._batch(request)
            return await (self._json(request) if is_json else self._xml(request))
        except Refused as error:
            status, message, code = error.status, error.message, _REFUSED[error.status]
        except (Failed, UploadError) as error:
            status, message, code = error.status, error.message, error.code
        body = json_error(status, message) if is_json else xml_error(code, message)
        kind = "application/json" if is_json else "application/xml"
        sent = b"" if request.method == "HEAD" else body.encode()
        return respond(status, sent, **{"Content-Type": f"{kind}; charset=UTF-8"})

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        try:
            return web.json_response(self._access.token_for(str(form.get("assertion"))))
        except ValueError as error:
            said = {"error": "invalid_grant", "error_description": str(error)}
            return web.json_response(said, status=400)

    def _check(self, request: web.Request, bucket: str, permission: str) -> None:
        self._access.check(bucket, f"storage.{permission}", request.headers.get("Authorization"))

    # the JSON API

    async def _json(self, request: web.Request) -> web.StreamResponse:
        target = Target.of_json(request.raw_path)
        path = urlsplit(request.raw_path).path
        if path.endswith("/iam") and not target.key:
            return await self._policy(request, target.bucket)
        if path.startswith("/upload/"):
            self._check(request, target.bucket, "objects.create")
        elif target.key:
            self._check(
                request, target.bucket, "objects.delete" if request.method == "DELETE" else "objects.get"
            )
            wanted = target.query.get("ifGenerationMatch")
            if wanted is not None:
                async with self._lock(target):
                    if int(wanted) != await self._emulator.generation(target):
                        raise changed()
                    return await self._forward(request, request.raw_path)
        elif path.endswith("/o"):
            self._check(request, target.bucket, "objects.list")
        return await self._forward(request, request.raw_path)

    async def _policy(self, request: web.Request, bucket: str) -> web.Response:
        await self._emulator.require_bucket(bucket)
        if request.method == "PUT":
            self._access.set_policy(bucket, await request.json())
        return web.json_response(self._access.policy(bucket))

    async def _batch(self, request: web.Request) -> web.Response:
        content_type = request.headers["Content-Type"].encode()
        parsed = email.parser.BytesParser().parsebytes(
            b"Content-Type: " + content_type + b"\r\n\r\n" + await request.read()
        )
        boundary = f"batch_{secrets.token_hex(8)}"
        lines = []
        for part in parsed.walk():
            if not part.is_multipart():
                status = await self._batched(request, str(part.get_payload()).lstrip())
                number = str(part["Content-ID"]).strip("<>")
                lines += [f"--{boundary}", "Content-Type: application/http"]
                lines += [f"Content-ID: <response-{number}>", "", *json_response(status), ""]
        body = "\r\n".join([*lines, f"--{boundary}--", ""]).encode()
        return web.Response(body=body, headers={"Content-Type": f"multipart/mixed; boundary={boundary}"})

    async def _batched(self, request: web.Request, text: str) -> tuple[int, str]:
        """Status and message of one request of a batch."""
        method, url, _ = text.split(None, 2)
        if method != "DELETE":
            return 501, "this gateway takes deletes only in a batch"
        target = Target.of_json(url)
        try:
            self._check(request, target.bucket, "objects.delete")
        except Refused as error:
            return error.status, error.message
        status = await self._emulator.delete(target)
        return (404, f"No such object: {target.bucket}") if status == 404 else (204, "No Content")

    # the XML API

    async def _xml(self, request: web.Request) -> web.StreamResponse:
        target = Target.of_xml(request.raw_path)
        if not target.key:
            return await self._list_uploads(request, target)
        if {"uploads", "uploadId"} & target.query.keys():
            return await self._multipart(request, target)
        actions = {"GET": self._get, "HEAD": self._get, "PUT": self._put, "DELETE": self._delete}
        if request.method not in actions:
            raise Failed(405, "MethodNotAllowed", "The method is not allowed against this resource.")
        return await actions[request.method](request, target)

    async def _get(self, request: web.Request, target: Target) -> web.StreamResponse:
        self._check(request, target.bucket, "objects.get")
        path = f"/download{target.metadata_path}?{urlencode({'alt': 'media', **target.query})}"
        return await self._forward(request, path, target)

    async def _put(self, request: web.Request, target: Target) -> web.Response:
        self._check(request, target.bucket, "objects.create")
        await self._emulator.require_bucket(target.bucket)
        if await self._emulator.generation(target):
            self._check(request, target.bucket, "objects.delete")
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            part = await self._received(request, Path(folder))
            async with self._lock(target):
                made = await self._emulator.write(
                    target, [part], attributes_of(request), request.headers.get(_CONDITION)
                )
        return respond(200, **object_headers(made))

    async def _delete(self, request: web.Request, target: Target) -> web.Response:
        self._check(request, target.bucket, "objects.delete")
        wanted = request.headers.get(_CONDITION)
        async with self._lock(target):
            if wanted is not None and int(wanted) != await self._emulator.generation(target):
                raise changed()
            if await self._emulator.delete(target) == 404:
                await self._emulator.require_bucket(target.bucket)
                raise no_key()
        return respond(204)

    async def _list_uploads(self, request: web.Request, target: Target) -> web.Response:
        if request.method != "GET" or "uploads" not in target.query:
            raise Failed(501, "NotImplemented", "this gateway has the XML API for objects only")
        self._check(request, target.bucket, "multipartUploads.list")
        await self._emulator.require_bucket(target.bucket)
        return document(self._uploads.list_uploads(target.bucket, target.query))

    async def _multipart(self, request: web.Request, target: Target) -> web.Response:
        where = (target.bucket, target.key, target.query.get("uploadId", ""))
        if request.method == "GET":
            self._check(request, target.bucket, "multipartUploads.listParts")
            return document(self._uploads.list_parts(*where))
        if request.method == "DELETE":
            self._check(request, target.bucket, "multipartUploads.abort")
            self._uploads.remove(*where)
            return respond(204)
        self._check(request, target.bucket, "multipartUploads.create")
        self._check(request, target.bucket, "objects.create")
        if "uploads" in target.query:
            await self._emulator.require_bucket(target.bucket)
            return document(self._uploads.start(target.bucket, target.key, attributes_of(request)))
        if request.method == "PUT":
            return await self._put_part(request, where, int(target.query.get("partNumber", "0")))
        return await self._complete(request, target, where)

    async def _put_part(self, request: web.Request, where: tuple[str, str, str], number: int) -> web.Response:
        self._uploads.find(*where)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            part = self._uploads.add(*where, number, await self._received(request, Path(folder)))
        return respond(200, **{"ETag": part.etag, "x-goog-hash": f"crc32c={encoded(part.crc32c)}"})

    async def _complete(
        self, request: web.Request, target: Target, where: tuple[str, str, str]
    ) -> web.Response:
        upload = self._uploads.find(*where)
        parts = chosen_parts(upload, await request.read())
        if await self._emulator.generation(target):
            self._check(request, target.bucket, "objects.delete")
        async with self._lock(target):
            # another request may have completed or aborted it meanwhile
            self._uploads.find(*where)
            made = await self._emulator.write(target, parts, upload.attributes, None)
            self._uploads.remove(*where)
        return document(
            f'<CompleteMultipartUploadResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Bucket>{escape(target.bucket)}</Bucket><Key>{escape(target.key)}</Key>"
            f"<ETag>{escape(made['etag'])}</ETag></CompleteMultipartUploadResult>".encode(),
            **{"x-goog-hash": f"crc32c={made['crc32c']}"},
        )

    # shared

    @contextlib.asynccontextmanager
    async def _lock(self, target: Target) -> AsyncIterator[None]:
        async with self._writing.setdefault((target.bucket, target.key), asyncio.Lock()):
            yield

    @staticmethod
    async def _received(request: web.Request, folder: Path) -> StoredPart:
        """The request's body in a file, its length and checksum checked."""
        crc, size, path = 0, 0, folder / secrets.token_hex(8)
        with path.open("wb") as file:
            async for chunk in request.content.iter_chunked(_CHUNK):
                crc = google_crc32c.extend(crc, chunk)
                size += len(chunk)
                file.write(chunk)
        if request.content_length is not None and size != request.content_length:
            raise Failed(400, "IncompleteBody", "The body is shorter than Content-Length.")
        for given in request.headers.get("x-goog-hash", "").split(","):
            kind, _, value = given.strip().partition("=")
            if kind == "crc32c" and value != encoded(crc):
                raise Failed(400, "BadDigest", f"The CRC32C you specified did not match ({encoded(crc)}).")
        return StoredPart(path, size, crc)

    async def _forward(
        self, request: web.Request, path: str, xml: Target | None = None
    ) -> web.StreamResponse:
        """Pass a request on and stream the response back; ``xml`` is what it is about in the XML API."""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        headers.pop("Authorization", None)
        data = request.content if request.can_read_body else None
        async with self._emulator.request(request.method, path, headers=headers, data=data) as got:
            if xml is not None:
                await self._require_expected(request, xml, got)
            response = web.StreamResponse(status=got.status, reason=got.reason)
            for name, value in got.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    response.headers.add(name, value)
            response.headers["x-guploader-uploadid"] = secrets.token_hex(8)
            await response.prepare(request)
            async for chunk in got.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def _require_expected(
        self, request: web.Request, target: Target, got: aiohttp.ClientResponse
    ) -> None:
        if got.status == 404:
            await self._emulator.require_bucket(target.bucket)
            raise no_key()
        wanted = request.headers.get(_CONDITION)
        if wanted is not None and wanted != got.headers.get("X-Goog-Generation"):
            raise changed()


async def _serve(order: dict[str, Any], process: subprocess.Popen[bytes]) -> int:
    emulator = Emulator(f"http://127.0.0.1:{order['emulator_port']}")
    await emulator.open()
    gateway = Gateway(emulator, Access(order["accounts"]), Path(order["folder"]))
    application = web.Application(client_max_size=64 << 20)
    application.router.add_route("*", "/{path:.*}", gateway.handle)
    runner = web.AppRunner(application, auto_decompress=False, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", order["port"]).start()
    status = await asyncio.to_thread(process.wait)
    await runner.cleanup()
    await emulator.close()
    return status


def main() -> None:
    order = json.loads(sys.argv[1])
    process = start_emulator(order)
    sys.exit(asyncio.run(_serve(order, process)))


if __name__ == "__main__":
    main()
