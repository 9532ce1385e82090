"""The reference store beside others that use its bucket."""

from __future__ import annotations

import pytest

from dcp_core.testing import MemoryStore, body_of


@pytest.fixture
def store() -> MemoryStore:
    MemoryStore.create_bucket("bucket")
    return MemoryStore("bucket")


def test_a_listing_goes_on_beside_deletes_and_writes(store: MemoryStore) -> None:
    """It shows what was there when it began, or less; it does not fail."""
    keys = [f"run/{number}" for number in range(9)]
    for key in keys:
        store.put(key, body_of(b"data"))
    listing = store.list("run/")
    assert next(listing).key == keys[0]
    store.delete(keys[1:8])
    store.put("run/5a", body_of(b"data"))
    rest = [info.key for info in listing]
    assert rest[-1] == keys[8]
    assert set(rest) <= {*keys, "run/5a"}
    assert [info.key for info in store.list("run/")] == [keys[0], "run/5a", keys[8]]


def test_uploads_are_listed_beside_aborts(store: MemoryStore) -> None:
    uploads = [store.start_upload(f"run/{number}") for number in range(5)]
    listing = store.list_uploads("run/")
    assert next(listing).upload == uploads[0]
    for upload in uploads[1:4]:
        store.abort_upload(upload)
    assert uploads[4] in [info.upload for info in listing]
    assert [info.upload for info in store.list_uploads("")] == [uploads[0], uploads[4]]
