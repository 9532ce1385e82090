"""The main job: worlds of different sizes save to and load from real stores, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Bucket
from support import scenarios
from support.ranks import Ranks

World = Callable[[int], Ranks]


def test_four_to_two_to_one(bucket: Bucket, worlds: World) -> None:
    worlds(4).run(scenarios.save_full, f"{bucket.url}/run/a", 7)
    worlds(2).run(scenarios.load_full, f"{bucket.url}/run/a", 7)
    worlds(2).run(scenarios.save_full, f"{bucket.url}/run/b", 8)
    worlds(1).run(scenarios.load_full, f"{bucket.url}/run/b", 8)
    assert bucket.uploads() == []


def test_one_to_four(bucket: Bucket, worlds: World) -> None:
    # parts of 5 MiB: the large tensor goes through the multipart path
    worlds(1).run(scenarios.save_full, f"{bucket.url}/run", 9, {"part_size": 5 << 20})
    worlds(4).run(scenarios.load_full, f"{bucket.url}/run", 9, {"max_request_size": 1 << 20})
    assert bucket.uploads() == []


@pytest.mark.parametrize(
    "prefix", ["with space", "ümläut/日本", "100%", "a%20b+c", "q?x=1&y#z", "'quotes\"", "a//b", "/lead", ""]
)
@pytest.mark.parametrize("server", ["localstack", "gcs", "azure"])
def test_odd_prefixes(request: pytest.FixtureRequest, worlds: World, server: str, prefix: str) -> None:
    """The prefix of the URL is the prefix of the keys, character by character."""
    bucket: Bucket = request.getfixturevalue(f"{server}_bucket")
    url = f"{bucket.url}/{prefix}"
    worlds(1).run(scenarios.save_full, url, 3)
    worlds(1).run(scenarios.load_full, url, 3)
    keys = bucket.keys()
    assert len(keys) == 2
    assert all(key.startswith(f"{prefix}/" if prefix else "") for key in keys)


@pytest.mark.parametrize(
    ("server", "saved", "loaded"),
    [
        *(("seaweedfs", 4, 2), ("seaweedfs", 2, 4), ("seaweedfs", 4, 1)),
        *(("gcs", 4, 2), ("gcs", 2, 4), ("azure", 4, 2)),
    ],
)
def test_fsdp2_training_state(
    request: pytest.FixtureRequest, worlds: World, server: str, saved: int, loaded: int
) -> None:
    bucket: Bucket = request.getfixturevalue(f"{server}_bucket")
    url = f"{bucket.url}/fsdp"
    before = worlds(saved).run(scenarios.save_training, url, "fsdp2")
    after = worlds(loaded).run(scenarios.load_training, url, "fsdp2")
    for state in after:
        scenarios.assert_same(state, before[0])


def test_ddp_and_fsdp2_read_each_other(seaweedfs_bucket: Bucket, worlds: World) -> None:
    url = seaweedfs_bucket.url
    ddp = worlds(4).run(scenarios.save_training, f"{url}/ddp", "ddp")
    assert_all_same(worlds(2).run(scenarios.load_training, f"{url}/ddp", "fsdp2"), ddp[0])
    assert_all_same(worlds(2).run(scenarios.load_training, f"{url}/ddp", "ddp"), ddp[0])


def assert_all_same(states: list[object], expected: object) -> None:
    for state in states:
        scenarios.assert_same(state, expected)
