"""What the other tests rely on in Google's emulator and its gateway, asked with Google's own SDK."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import requests
from dcp_gcs_servers import GCSServer
from google.api_core.exceptions import NotFound, PreconditionFailed
from google.cloud.storage import transfer_manager
from support.gcs_bucket import GCSBucket

from dcp_core.testing import pattern

MIB = 1 << 20


def refused(response: requests.Response) -> tuple[int, str]:
    """Status and code of an XML error."""
    return response.status_code, ElementTree.fromstring(response.content).findtext("Code", "")


class Raw:
    """The XML API without any SDK."""

    def __init__(self, bucket: GCSBucket) -> None:
        self.url = f"{bucket.server.endpoint}/{bucket.name}"

    def start(self, key: str) -> str:
        response = requests.post(f"{self.url}/{key}?uploads", timeout=30)
        return ElementTree.fromstring(response.content).findtext("{*}UploadId", "")

    def part(self, key: str, upload: str, number: int, data: bytes, **headers: str) -> requests.Response:
        url = f"{self.url}/{key}?partNumber={number}&uploadId={upload}"
        return requests.put(url, data=data, headers=headers, timeout=30)

    def complete(self, key: str, upload: str, parts: list[tuple[int, str]]) -> requests.Response:
        entries = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>" for number, etag in parts
        )
        body = f"<CompleteMultipartUpload>{entries}</CompleteMultipartUpload>"
        return requests.post(f"{self.url}/{key}?uploadId={upload}", data=body, timeout=30)


def test_the_sdks_own_multipart_upload(gcs_bucket: GCSBucket, tmp_path: Path) -> None:
    """The transfer manager of google-cloud-storage, which checks every part's checksum in the response."""
    path = tmp_path / "file"
    path.write_bytes(pattern(12 * MIB))
    blob = gcs_bucket.client.bucket(gcs_bucket.name).blob("a b/ü")
    transfer_manager.upload_chunks_concurrently(
        str(path), blob, chunk_size=5 * MIB, worker_type=transfer_manager.THREAD, max_workers=2
    )
    assert gcs_bucket.read("a b/ü") == pattern(12 * MIB)
    assert gcs_bucket.uploads() == []


def test_parts_are_no_objects(gcs_bucket: GCSBucket) -> None:
    raw = Raw(gcs_bucket)
    upload = raw.start("k")
    etags = [raw.part("k", upload, number, b"data %d" % number).headers["ETag"] for number in (1, 2)]
    assert gcs_bucket.keys() == []
    assert gcs_bucket.uploads() == ["k"]
    listed = ElementTree.fromstring(requests.get(f"{raw.url}/k?uploadId={upload}", timeout=30).content)
    assert [part.findtext("{*}ETag") for part in listed.findall("{*}Part")] == etags


def test_completion_is_checked(gcs_bucket: GCSBucket) -> None:
    raw = Raw(gcs_bucket)
    upload = raw.start("k")
    small = [(number, raw.part("k", upload, number, b"x").headers["ETag"]) for number in (1, 2)]
    assert refused(raw.complete("k", upload, small)) == (400, "EntityTooSmall")
    assert refused(raw.complete("k", upload, small[::-1])) == (400, "InvalidPartOrder")
    assert refused(raw.complete("k", upload, [(1, "no-such-etag")])) == (400, "InvalidPart")
    assert refused(raw.complete("k", upload, [(7, small[0][1])])) == (400, "InvalidPart")
    assert refused(raw.complete("k", upload, [])) == (400, "MalformedXML")
    assert refused(raw.complete("other", upload, small[:1])) == (404, "NoSuchUpload")
    assert gcs_bucket.keys() == []
    assert raw.complete("k", upload, small[1:]).status_code == 200
    assert gcs_bucket.read("k") == b"x"
    assert refused(raw.complete("k", upload, small[1:])) == (404, "NoSuchUpload")


def test_checksums_are_checked(gcs_bucket: GCSBucket) -> None:
    raw = Raw(gcs_bucket)
    upload = raw.start("k")
    # CRC32C of b"123456789", from RFC 3720's polynomial
    right = {"x-goog-hash": "crc32c=4waSgw=="}
    assert raw.part("k", upload, 1, b"123456789", **right).headers["x-goog-hash"] == "crc32c=4waSgw=="
    assert refused(raw.part("k", upload, 2, b"damaged", **right)) == (400, "BadDigest")
    response = requests.put(f"{raw.url}/other", data=b"damaged", headers=right, timeout=30)
    assert refused(response) == (400, "BadDigest")
    assert refused(raw.part("k", upload, 10_001, b"x")) == (400, "InvalidArgument")
    assert gcs_bucket.keys() == []


def test_lists_of_uploads_have_pages(gcs_bucket: GCSBucket) -> None:
    raw = Raw(gcs_bucket)
    started = sorted((key, raw.start(key)) for key in ("b", "a", "a", "c", "other"))[:4]
    found: list[tuple[str, str]] = []
    query = {"uploads": "", "max-uploads": "1"}
    for _ in range(4):
        page = ElementTree.fromstring(requests.get(raw.url, params=query, timeout=30).content)
        (entry,) = page.findall("{*}Upload")
        found.append((entry.findtext("{*}Key", ""), entry.findtext("{*}UploadId", "")))
        assert page.findtext("{*}IsTruncated") == "true"
        query |= {
            "key-marker": page.findtext("{*}NextKeyMarker", ""),
            "upload-id-marker": page.findtext("{*}NextUploadIdMarker", ""),
        }
    assert found == started


def test_codes_of_the_xml_api(gcs_bucket: GCSBucket) -> None:
    raw = Raw(gcs_bucket)
    nowhere = f"{gcs_bucket.server.endpoint}/no-such-bucket/k"
    assert refused(requests.get(f"{raw.url}/k", timeout=30)) == (404, "NoSuchKey")
    assert refused(requests.delete(f"{raw.url}/k", timeout=30)) == (404, "NoSuchKey")
    for request in (requests.get, requests.put, requests.delete):
        assert refused(request(nowhere, timeout=30)) == (404, "NoSuchBucket")
    assert refused(requests.post(f"{nowhere}?uploads", timeout=30)) == (404, "NoSuchBucket")
    assert refused(requests.put(raw.url, timeout=30)) == (501, "NotImplemented")


def test_conditions(gcs_bucket: GCSBucket) -> None:
    """On every request about an object, in both APIs."""
    raw, blob = Raw(gcs_bucket), gcs_bucket.client.bucket(gcs_bucket.name).blob("k")
    url = f"{raw.url}/k"

    def on(generation: int) -> dict[str, str]:
        return {"x-goog-if-generation-match": str(generation)}

    first = requests.put(url, data=b"1", headers=on(0), timeout=30)
    assert first.status_code == 200
    generation = int(first.headers["x-goog-generation"])
    failed = (412, "PreconditionFailed")
    for wrong in (0, generation + 1):
        assert refused(requests.put(url, data=b"2", headers=on(wrong), timeout=30)) == failed
        assert refused(requests.get(url, headers=on(wrong), timeout=30)) == failed
        assert refused(requests.delete(url, headers=on(wrong), timeout=30)) == failed
        for work in (blob.upload_from_string, blob.download_as_bytes, blob.delete, blob.reload):
            arguments = ["2"] if work == blob.upload_from_string else []
            with pytest.raises(PreconditionFailed):
                work(*arguments, if_generation_match=wrong)
    assert requests.get(url, headers=on(generation), timeout=30).content == b"1"
    assert blob.download_as_bytes(if_generation_match=generation) == b"1"
    blob.reload(if_generation_match=generation)
    assert blob.generation == generation
    blob.delete(if_generation_match=generation)
    with pytest.raises(NotFound):
        blob.reload()


def test_policies(gcs_bucket: GCSBucket) -> None:
    gcs_bucket.write("k", b"data")
    gcs_bucket.allow(objectViewer=["allUsers"])
    raw = Raw(gcs_bucket)
    assert gcs_bucket.read("k") == b"data"
    assert refused(requests.put(f"{raw.url}/k", data=b"", timeout=30)) == (403, "AccessDenied")
    assert refused(requests.post(f"{raw.url}/k?uploads", timeout=30)) == (403, "AccessDenied")
    assert refused(requests.get(f"{raw.url}?uploads", timeout=30)) == (403, "AccessDenied")
    bearer = {"Authorization": "Bearer made-up"}
    assert refused(requests.get(f"{raw.url}/k", headers=bearer, timeout=30)) == (
        401, "AuthenticationRequired",
    )  # fmt: skip
    # whoever may create may not replace
    gcs_bucket.allow(objectCreator=["allUsers"])
    assert requests.put(f"{raw.url}/new", data=b"", timeout=30).status_code == 200
    assert refused(requests.put(f"{raw.url}/new", data=b"", timeout=30)) == (403, "AccessDenied")


def running_under(pid: int) -> list[int]:
    """A process and the children of its main thread."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("end", ["stop", "supervisor", "emulator"])
def test_gateway_and_emulator_end_together(end: str) -> None:
    server = GCSServer()
    server.start()
    try:
        folder, pids = server.folder, running_under(server.pid)
        server.make_bucket("some-bucket")
        assert len(pids) == 2
        assert all(map(is_running, pids))
        if end == "stop":
            server.stop()
            assert not folder.exists()
        elif end == "supervisor":
            assert server._supervisor is not None
            server._supervisor.kill()
        else:
            # the gateway is the parent, and reaps it
            os.kill(pids[1], signal.SIGKILL)
        ends_at = time.monotonic() + 20
        while any(map(is_running, pids)) and time.monotonic() < ends_at:
            time.sleep(0.02)
        assert not any(map(is_running, pids))
    finally:
        server.stop()
