"""The contract on Google's emulator behind the gateway of this repository."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from support.gcs_bucket import GCSBucket

from dcp_core.seam.store import ObjectStore
from dcp_core.testing import ODD_KEYS, OpenStore, RawBucket, StoreContract, deviations
from dcp_gcs.options import GCSOptions
from dcp_gcs.store import GCSStore


def open_gcs(name: str) -> ObjectStore:
    return GCSStore(name, GCSOptions())


class TestGCS(StoreContract):
    odd_keys = (*ODD_KEYS, "a//b", "/leading", "trailing/", "../up")

    @pytest.fixture
    def raw(self, gcs_bucket: GCSBucket) -> RawBucket:
        return gcs_bucket

    @pytest.fixture
    def store(self, gcs_bucket: GCSBucket) -> Iterator[ObjectStore]:
        with contextlib.closing(open_gcs(gcs_bucket.name)) as store:
            yield store

    @pytest.fixture
    def open_store(self, gcs_bucket: GCSBucket) -> OpenStore:
        return open_gcs


def test_deviations_are_known() -> None:
    assert deviations(TestGCS) == {}
