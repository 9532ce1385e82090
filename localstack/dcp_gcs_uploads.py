"""XML multipart uploads for the gateway to Google's emulator: parts in files until they are one object.

https://docs.cloud.google.com/storage/docs/multipart-uploads and the pages of the requests it links. A part is
a file of its own and not an object, so that lists do not show it, as Google's do not; the emulator's compose
would join at most 32 of them and read each again.

Not modelled: lifecycle rules, and MD5 as a part's ETag (it is made of size and CRC32C here; to clients it is
opaque).
"""

from __future__ import annotations

import itertools
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
#: https://docs.cloud.google.com/storage/quotas#requests
MIN_PART, MAX_PART, MAX_PARTS = 5 << 20, 5 << 30, 10_000
_PAGE = 1000


class UploadError(Exception):
    """A request about an upload that Google would refuse."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class StoredPart:
    path: Path
    size: int
    crc32c: int

    @property
    def etag(self) -> str:
        return f'"{self.size:x}-{self.crc32c:08x}"'


@dataclass
class StoredUpload:
    """An unfinished upload; ``attributes`` are those of the object it will be."""

    bucket: str
    key: str
    attributes: dict[str, str]
    folder: Path
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    parts: dict[int, StoredPart] = field(default_factory=dict)
    completing: bool = False


class Uploads:
    """All unfinished uploads, with their parts below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._uploads: dict[str, StoredUpload] = {}
        self._numbers = itertools.count()

    def start(self, bucket: str, key: str, attributes: dict[str, str]) -> bytes:
        """Begin an upload; returns the response's document."""
        upload_id = f"{next(self._numbers):08d}{secrets.token_urlsafe(24)}"
        folder = self._folder / upload_id
        folder.mkdir(parents=True)
        self._uploads[upload_id] = StoredUpload(bucket, key, attributes, folder)
        return text(document("InitiateMultipartUploadResult", Bucket=bucket, Key=key, UploadId=upload_id))

    def find(self, bucket: str, key: str, upload_id: str) -> StoredUpload:
        found = self._uploads.get(upload_id)
        if found is None or (found.bucket, found.key) != (bucket, key):
            raise UploadError(404, "NoSuchUpload", "The specified multipart upload does not exist.")
        return found

    def add(self, bucket: str, key: str, upload_id: str, number: int, part: StoredPart) -> StoredPart:
        """Keep a received part, in place of one with the same number."""
        upload = self.find(bucket, key, upload_id)
        if not 1 <= number <= MAX_PARTS:
            raise UploadError(400, "InvalidArgument", f"Part number must be between 1 and {MAX_PARTS}.")
        if part.size > MAX_PART:
            raise UploadError(400, "EntityTooLarge", "The part is larger than 5 GiB.")
        kept = StoredPart(
            part.path.rename(upload.folder / f"{number}.{part.path.name}"), part.size, part.crc32c
        )
        replaced = upload.parts.get(number)
        upload.parts[number] = kept
        if replaced is not None:
            replaced.path.unlink()
        return kept

    def remove(self, bucket: str, key: str, upload_id: str) -> None:
        """Drop an upload and its parts."""
        shutil.rmtree(self.find(bucket, key, upload_id).folder, ignore_errors=True)
        del self._uploads[upload_id]

    def list_parts(self, bucket: str, key: str, upload_id: str) -> bytes:
        """The document that lists the parts of an upload."""
        upload = self.find(bucket, key, upload_id)
        root = document("ListPartsResult", Bucket=bucket, Key=key, UploadId=upload_id)
        add(root, IsTruncated="false")
        for number, part in sorted(upload.parts.items()):
            add(
                ElementTree.SubElement(root, "Part"),
                PartNumber=str(number),
                ETag=part.etag,
                Size=str(part.size),
            )
        return text(root)

    def list_uploads(self, bucket: str, query: dict[str, str]) -> bytes:
        """One page of the unfinished uploads of a bucket, in order of their keys."""
        prefix, most = query.get("prefix", ""), min(int(query.get("max-uploads") or _PAGE), _PAGE)
        after = (query.get("key-marker", ""), query.get("upload-id-marker", ""))
        # without an upload's id the marker means: after all uploads of that key
        after_key = after[0] if after[0] and not after[1] else None
        found = sorted(
            (upload.key, upload_id)
            for upload_id, upload in self._uploads.items()
            if upload.bucket == bucket and upload.key.startswith(prefix)
        )
        rest = [one for one in found if one > after and one[0] != after_key]
        root = document("ListMultipartUploadsResult", Bucket=bucket, Prefix=prefix)
        add(root, IsTruncated="true" if len(rest) > most else "false")
        if len(rest) > most:
            add(root, NextKeyMarker=rest[most - 1][0], NextUploadIdMarker=rest[most - 1][1])
        for key, upload_id in rest[:most]:
            started = self._uploads[upload_id].started.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            add(ElementTree.SubElement(root, "Upload"), Key=key, UploadId=upload_id, Initiated=started)
        return text(root)


def chosen_parts(upload: StoredUpload, request: bytes) -> list[StoredPart]:
    """The parts that a request to complete names, checked as Google does."""
    try:
        entries = ElementTree.fromstring(request).findall("{*}Part")
        named = [
            (int(entry.findtext("{*}PartNumber", "")), entry.findtext("{*}ETag", "")) for entry in entries
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise UploadError(400, "MalformedXML", "The XML you provided was not well-formed.") from error
    if not named:
        raise UploadError(400, "MalformedXML", "The request names no parts.")
    numbers = [number for number, _ in named]
    if numbers != sorted(set(numbers)):
        raise UploadError(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
    chosen = []
    for number, etag in named:
        part = upload.parts.get(number)
        if part is None or part.etag.strip('"') != etag.strip('"'):
            raise UploadError(400, "InvalidPart", f"Part {number} could not be found or has another ETag.")
        chosen.append(part)
    if any(part.size < MIN_PART for part in chosen[:-1]):
        raise UploadError(400, "EntityTooSmall", "A part other than the last is smaller than 5 MiB.")
    return chosen


def stored_bytes(parts: Sequence[StoredPart], piece: int = 1 << 18) -> Iterator[bytes]:
    """The bytes of ``parts`` one after the other, a piece at a time."""
    for part in parts:
        with part.path.open("rb") as file:
            while data := file.read(piece):
                yield data


def document(name: str, **texts: str) -> ElementTree.Element:
    root = ElementTree.Element(name, xmlns=NAMESPACE)
    add(root, **texts)
    return root


def add(parent: ElementTree.Element, **texts: str) -> None:
    for name, value in texts.items():
        ElementTree.SubElement(parent, name).text = value


def text(root: ElementTree.Element) -> bytes:
    return ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
