"""Access points of S3 in the place of a bucket: URLs with ARNs, and where requests to them go.

No server here has access points. What the SDK is about to send is looked at instead.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from dcp_core.errors import InvalidLocationError, ObjectNotFoundError
from dcp_core.testing import body_of
from dcp_s3 import S3StorageReader, S3StorageWriter
from dcp_s3.backend import S3Backend
from dcp_s3.options import S3Options
from dcp_s3.store import S3Store

ACCOUNT = "123456789012"
POINT = f"arn:aws:s3:us-west-2:{ACCOUNT}:accesspoint/my-ap"
OUTPOST = "op-01ac5d28a6a232904"
#: ARN → the host that AWS documents for it.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-points-naming.html
HOSTS = {
    POINT: f"my-ap-{ACCOUNT}.s3-accesspoint.us-west-2.amazonaws.com",
    f"arn:aws:s3:us-west-2:{ACCOUNT}:accesspoint:my-ap": (
        f"my-ap-{ACCOUNT}.s3-accesspoint.us-west-2.amazonaws.com"
    ),
    f"arn:aws-cn:s3:cn-north-1:{ACCOUNT}:accesspoint/my-ap": (
        f"my-ap-{ACCOUNT}.s3-accesspoint.cn-north-1.amazonaws.com.cn"
    ),
    f"arn:aws:s3::{ACCOUNT}:accesspoint/abcdefghijklm.mrap": (
        "abcdefghijklm.mrap.accesspoint.s3-global.amazonaws.com"
    ),
    f"arn:aws:s3::{ACCOUNT}:accesspoint:abcdefghijklm.mrap": (
        "abcdefghijklm.mrap.accesspoint.s3-global.amazonaws.com"
    ),
    f"arn:aws:s3-object-lambda:us-west-2:{ACCOUNT}:accesspoint/lambda": (
        f"lambda-{ACCOUNT}.s3-object-lambda.us-west-2.amazonaws.com"
    ),
    f"arn:aws:s3-outposts:us-west-2:{ACCOUNT}:outpost/{OUTPOST}/accesspoint/mine": (
        f"mine-{ACCOUNT}.{OUTPOST}.s3-outposts.us-west-2.amazonaws.com"
    ),
    f"arn:aws:s3-outposts:us-west-2:{ACCOUNT}:outpost:{OUTPOST}:accesspoint:mine": (
        f"mine-{ACCOUNT}.{OUTPOST}.s3-outposts.us-west-2.amazonaws.com"
    ),
}


class _Raw(io.BytesIO):
    """A body as the SDK reads it."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


class Network:
    """Takes the requests of a store, and says 404 to each."""

    def __init__(self, store: S3Store) -> None:
        self.sent: list[AWSPreparedRequest] = []
        store.clients.get().sdk.meta.events.register("before-send.s3", self._take)

    def _take(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        self.sent.append(request)
        missing = b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>"
        return AWSResponse(request.url, 404, {}, _Raw(missing))


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("arn", HOSTS)
def test_requests_go_to_the_access_point(arn: str) -> None:
    """Signed, with the key behind the ARN, and with nothing of the ARN in the path."""
    location = S3Backend().locate(f"s3://{arn}/run/step-1")
    assert (location.bucket, location.prefix) == (arn, "run/step-1")
    region = "cn-north-1" if "aws-cn" in arn else "us-west-2"
    store = S3Store(location.bucket, S3Options(region=region, access_key_id="a", secret_access_key="b"))
    network = Network(store)
    key = location.key(".metadata")
    with pytest.raises(ObjectNotFoundError) as caught:
        store.get(key)
    assert (caught.value.bucket, caught.value.key) == (arn, key)
    with pytest.raises(ObjectNotFoundError):
        store.put(key, body_of(b"data"))
    store.close()
    assert [request.method for request in network.sent] == ["GET", "PUT"]
    for request in network.sent:
        url = urlsplit(request.url)
        assert (url.scheme, url.netloc, url.path) == ("https", HOSTS[arn], "/run/step-1/.metadata")
        assert request.headers["Authorization"]


@pytest.mark.parametrize("end", ["", "/"])
def test_an_access_point_without_a_prefix(end: str) -> None:
    location = S3Backend().locate(f"s3://{POINT}{end}")
    assert (location.bucket, location.prefix) == (POINT, "")
    assert location.key(".metadata") == ".metadata"
    assert location.url == f"s3://{POINT}"


def test_names_below_an_access_point() -> None:
    """Of writers and readers; a name of an ARN's own is no name below another."""
    writer, reader = S3StorageWriter(f"s3://{POINT}/runs"), S3StorageReader(f"s3://{POINT}/runs")
    for one in (writer, reader):
        one.reset("step-1")
        assert one.checkpoint_id == f"s3://{POINT}/runs/step-1"
        one.reset("step-2")
        assert one.checkpoint_id == f"s3://{POINT}/runs/step-2"
        one.reset(f"s3://{POINT}-2/step-3")
        assert one.checkpoint.location.bucket == f"{POINT}-2"
        one.close()


@pytest.mark.parametrize(
    "url",
    [
        f"s3://arn:aws:s3:us-west-2:{ACCOUNT}:accesspoint",
        f"s3://arn:aws:s3:us-west-2:{ACCOUNT}:accesspoint/",
        f"s3://arn:aws:s3:us-west-2:{ACCOUNT}:bucket/name",
        f"s3://arn:aws:s3-outposts:us-west-2:{ACCOUNT}:outpost/op-1/bucket/name",
        "s3://arn:aws:s3:::bucket/prefix",
        "s3://arn:other/prefix",
    ],
)
def test_other_arns_are_refused(url: str) -> None:
    """With the form that is expected, rather than by the SDK in the middle of a save."""
    with pytest.raises(InvalidLocationError, match="does not name an access point: expected s3://arn:aws:s3"):
        S3Backend().locate(url)


def test_a_prefix_behind_an_arn_has_the_rules_of_any_other() -> None:
    backend = S3Backend()
    with pytest.raises(InvalidLocationError, match="control character"):
        backend.locate(f"s3://{POINT}/a\nb")
    with pytest.raises(InvalidLocationError, match="the prefix has 1000 bytes"):
        backend.locate(f"s3://{POINT}/{'x' * 1000}")
    location = backend.locate(f"s3://{POINT}/a:b@c/ü%20//d/")
    assert location.prefix == "a:b@c/ü%20//d"
    assert location.url == f"s3://{POINT}/a:b@c/ü%20//d"
