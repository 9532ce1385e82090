"""Locations keep what they are given, character by character."""

from __future__ import annotations

import pickle
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dcp_azure
import dcp_gcs
import dcp_s3
from dcp_core import InvalidLocationError
from dcp_core.format.layout import data_name, metadata_name, new_token
from dcp_core.seam.backend import Backend
from dcp_core.seam.location import NAME_ROOM, Location, scheme_of
from dcp_http.location import HTTPLocation, encoded

text = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40)
names = text.filter(
    lambda name: name and not name.startswith("/") and ".." not in name.split("/") and ":/" not in name
)


@given(text)
def test_prefixes_are_kept(prefix: str) -> None:
    location = Location.parse(f"s3://bucket/{prefix}")
    assert location.prefix == prefix.removesuffix("/")
    assert location.key("x") == (f"{location.prefix}/x" if location.prefix else "x")
    assert Location.parse(location.url + "/") == location
    assert pickle.loads(pickle.dumps(location)) == location


@given(text, names)
def test_children(prefix: str, name: str) -> None:
    parent = Location.parse(f"s3://bucket/{prefix}")
    assert parent.child(name).prefix == parent.key(name).removesuffix("/")
    assert parent.child(name).bucket == "bucket"


numbers = st.integers(0, 10**14 - 1)


@given(numbers, numbers)
def test_names_fit_into_the_room_that_is_kept_for_them(rank: int, number: int) -> None:
    for name in (data_name(rank, number, new_token()), metadata_name(), metadata_name(rank)):
        assert name.isascii()
        assert len(f"/{name}") <= NAME_ROOM


@pytest.mark.parametrize(
    ("backend", "base", "letter", "most"),
    [
        # 1,024 bytes
        (dcp_s3.backend, "s3://bucket/", "a", 960),
        (dcp_s3.backend, "s3://bucket/", "ü", 480),
        (dcp_gcs.backend, "gs://bucket/", "ü", 480),
        # 1,024 characters
        (dcp_azure.backend, "az://container/", "ü", 960),
    ],
)
def test_prefixes_leave_room_for_names(backend: Backend, base: str, letter: str, most: int) -> None:
    location = backend.locate(base + letter * most)
    assert location.prefix == letter * most
    with pytest.raises(InvalidLocationError, match=r"at most \d+ leave room for object names"):
        backend.locate(base + letter * (most + 1))


@given(st.text(max_size=30))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        location = Location.parse(text)
    except InvalidLocationError:
        return
    assert scheme_of(text) == location.scheme
    assert location.bucket


@pytest.mark.parametrize(
    "url", ["", "bucket/key", "s3:/b/k", "s3//b", "://b", "s3://", "s3:///k", "s3://b/\0", "1s://b"]
)
def test_refused(url: str) -> None:
    with pytest.raises(InvalidLocationError):
        Location.parse(url)


@pytest.mark.parametrize("name", ["", "/abs", "../up", "a/../b", "..", "s3:/b/k"])
def test_refused_children(name: str) -> None:
    with pytest.raises(InvalidLocationError):
        Location.parse("s3://bucket/run").child(name)


def test_pathlib_is_explained() -> None:
    with pytest.raises(InvalidLocationError, match="pathlib"):
        Location.parse(PurePosixPath("s3://bucket/key"))


@given(text, names, st.sampled_from(["", "?", "?sig=a%2Bb", "?a=1?b"]))
def test_web_urls_name_every_key(key: str, name: str, query: str) -> None:
    """Whatever a key is, its encoded form leads back to it, and the query stays apart from it."""
    location = HTTPLocation.parse_url(f"http://Host:80/{encoded(key)}{query}")
    assert (location.bucket, location.prefix) == ("host:80", key.removesuffix("/"))
    assert location.query == query.removeprefix("?")
    assert encoded(key).isascii()
    child = location.child(name)
    assert (child.query, child.prefix) == (location.query, location.key(name).removesuffix("/"))
    assert HTTPLocation.parse_url(child.url).prefix == child.prefix
    assert pickle.loads(pickle.dumps(child)) == child
    assert "sig" not in repr(child) or "sig" in name + key


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8080", "[::1]:8080", "[fe80::1]", "a-b.example.com"]
)
def test_hosts(host: str) -> None:
    assert HTTPLocation.parse_url(f"https://{host}/run").bucket == host
