"""fake-gcs-server, as the gateway before it uses it, and the errors of both."""

from __future__ import annotations

import base64
import ctypes
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import aiohttp
from dcp_gcs_uploads import StoredPart, stored_bytes
from yarl import URL

__all__ = ["Emulator", "Failed", "Target", "changed", "encoded", "no_bucket", "no_key", "start_emulator"]


class Failed(Exception):
    """A request that ends with an error of ``status`` and XML ``code``."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def no_bucket() -> Failed:
    return Failed(404, "NoSuchBucket", "The specified bucket does not exist.")


def no_key() -> Failed:
    return Failed(404, "NoSuchKey", "The specified key does not exist.")


def changed() -> Failed:
    return Failed(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")


@dataclass(frozen=True)
class Target:
    """What a request is about, decoded; ``key`` is empty for the bucket itself."""

    bucket: str
    key: str
    query: dict[str, str]

    @classmethod
    def of_xml(cls, raw_path: str) -> Target:
        """``/bucket/key``"""
        parts = urlsplit(raw_path)
        bucket, _, key = parts.path.removeprefix("/").partition("/")
        return cls(unquote(bucket), unquote(key), dict(parse_qsl(parts.query, keep_blank_values=True)))

    @classmethod
    def of_json(cls, raw_path: str) -> Target:
        """``…/storage/v1/b/bucket/o/key``"""
        parts = urlsplit(raw_path)
        rest = parts.path.partition("/storage/v1/b/")[2]
        bucket, _, key = rest.partition("/o/")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return cls(unquote(bucket.partition("/")[0]), unquote(key), query)

    @property
    def metadata_path(self) -> str:
        """Where the emulator has the object's metadata."""
        return f"/storage/v1/b/{quote(self.bucket, safe='')}/o/{quote(self.key, safe='')}"


class Emulator:
    """The requests that the gateway itself makes of the emulator."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    async def open(self) -> None:
        self._client = aiohttp.ClientSession(
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def close(self) -> None:
        await self._client.close()

    def request(self, method: str, path: str, **options: Any) -> Any:
        """A request as it is, to be entered."""
        return self._client.request(
            method,
            URL(self._endpoint + path, encoded=True),
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            **options,
        )

    async def require_bucket(self, bucket: str) -> None:
        async with self.request("GET", f"/storage/v1/b/{quote(bucket, safe='')}") as found:
            if found.status != 200:
                raise no_bucket()

    async def generation(self, target: Target) -> int:
        """Generation of the live object; 0 if there is none."""
        async with self.request("GET", target.metadata_path) as found:
            return int((await found.json())["generation"]) if found.status == 200 else 0

    async def delete(self, target: Target) -> int:
        async with self.request("DELETE", target.metadata_path) as found:
            await found.read()
            status: int = found.status
            return status

    async def write(
        self, target: Target, parts: list[StoredPart], attributes: dict[str, str], condition: str | None
    ) -> dict[str, Any]:
        """Make an object of ``parts``; ``condition`` is the generation it may replace."""
        boundary = secrets.token_hex(16)
        metadata: dict[str, str] = {"name": target.key, **attributes}
        if len(parts) == 1:
            metadata["crc32c"] = encoded(parts[0].crc32c)
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(metadata)}\r\n"
            f"--{boundary}\r\nContent-Type: {attributes['contentType']}\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        size = len(head) + sum(part.size for part in parts) + len(tail)

        async def body() -> AsyncIterator[bytes]:
            yield head
            for data in stored_bytes(parts):
                yield data
            yield tail

        query = {"uploadType": "multipart", "name": target.key}
        if condition is not None:
            query["ifGenerationMatch"] = condition
        async with self.request(
            "POST",
            f"/upload/storage/v1/b/{quote(target.bucket, safe='')}/o?{urlencode(query, quote_via=quote)}",
            data=body(),
            headers={"Content-Type": f"multipart/related; boundary={boundary}", "Content-Length": str(size)},
        ) as found:
            if found.status == 412:
                raise changed()
            if found.status != 200:
                raise Failed(500, "InternalError", f"the emulator says {found.status}")
            made: dict[str, Any] = await found.json()
            return made


def encoded(crc32c: int) -> str:
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def start_emulator(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start the emulator that the gateway was ordered to stand before."""
    address = f"127.0.0.1:{order['emulator_port']}"
    return subprocess.Popen(
        [
            order["binary"],
            *("-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"),
            *("-port", str(order["emulator_port"]), "-public-host", address),
            *("-external-url", f"http://127.0.0.1:{order['port']}", "-log-level", "warn"),
        ],
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,  # noqa: PLW1509  # no other thread runs yet
    )
