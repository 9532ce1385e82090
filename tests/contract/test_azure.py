"""The contract on Azure's emulator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from support.azure_bucket import AzureBucket

from dcp_azure.options import AzureOptions
from dcp_azure.store import AzureStore
from dcp_core.errors import ObjectNotFoundError
from dcp_core.seam.store import ObjectStore
from dcp_core.testing import (
    ODD_KEYS,
    OpenStore,
    RawBucket,
    StoreContract,
    body_of,
    deviates,
    deviations,
)


def open_azure(name: str) -> ObjectStore:
    return AzureStore(name, AzureOptions())


class TestAzurite(StoreContract):
    # "\\" becomes "/"; URLs with one are refused
    odd_keys = (*(key for key in ODD_KEYS if "\\" not in key), "a//b", "/leading", "trailing/")

    @pytest.fixture
    def raw(self, azure_bucket: AzureBucket) -> RawBucket:
        return azure_bucket

    @pytest.fixture
    def store(self, azure_bucket: AzureBucket) -> Iterator[ObjectStore]:
        with contextlib.closing(open_azure(azure_bucket.name)) as store:
            yield store

    @pytest.fixture
    def open_store(self, azure_bucket: AzureBucket) -> OpenStore:
        return open_azure

    @deviates("Azure has no uploads, only blocks of a name: a part sent after the abort is staged anew")
    def test_abort(self, store: ObjectStore, raw: RawBucket) -> None:
        upload = store.start_upload("key")
        part = store.put_part(upload, 1, body_of(b"data"))
        assert [found.upload for found in store.list_uploads("k")] == [upload]
        assert list(store.list_uploads("other")) == []
        store.abort_upload(upload)
        store.abort_upload(upload)
        assert list(store.list_uploads("")) == []
        with pytest.raises(ObjectNotFoundError):
            store.finish_upload(upload, [part])
        assert raw.keys() == []
        # it shows nothing to anyone, is found like any unfinished upload, and goes the same way
        store.put_part(upload, 1, body_of(b"late"))
        assert raw.keys() == []
        assert [found.upload for found in store.list_uploads("k")] == [upload]
        store.abort_upload(upload)
        assert list(store.list_uploads("")) == []
        assert raw.keys() == []


def test_deviations_are_known() -> None:
    assert list(deviations(TestAzurite)) == ["test_abort"]
