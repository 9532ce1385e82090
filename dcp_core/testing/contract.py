"""What every :class:`~dcp_core.seam.store.ObjectStore` has to do, as a pytest class.

A backend's tests subclass it, give it a store and raw access that bypasses the code under test::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self): ...          # an ObjectStore on an empty bucket

        @pytest.fixture
        def raw(self): ...            # a RawBucket on the same bucket

        @pytest.fixture
        def open_store(self): ...     # opens another store, by the name of its bucket

A store that cannot keep a clause overrides the test, marked with :func:`deviates` and the reason: the test
then says what happens instead. Replacing one without a reason is an error. A read-only store subclasses
:class:`~dcp_core.testing.reading.ReadContract`, the part that only needs raw access to have objects.

One clause uploads more than 100 MiB and is marked ``slow``: register that marker, and leave it out with
``-m "not slow"``.
"""

from __future__ import annotations

import pytest

from dcp_core.testing.deviation import deviates, deviations
from dcp_core.testing.listing import ListContract
from dcp_core.testing.material import (
    ODD_KEYS,
    OpenStore,
    RawBucket,
    body_of,
    in_threads,
    pattern,
    read_all,
)
from dcp_core.testing.reading import ReadContract
from dcp_core.testing.uploads import UploadContract
from dcp_core.testing.writing import WriteContract

__all__ = [
    "ODD_KEYS",
    "OpenStore",
    "RawBucket",
    "ReadContract",
    "StoreContract",
    "body_of",
    "deviates",
    "deviations",
    "in_threads",
    "pattern",
    "read_all",
]


class StoreContract(ReadContract, WriteContract, UploadContract, ListContract):
    """The whole contract. ``store``, ``raw`` and ``open_store`` are fixtures of the subclass."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """Opens another store of the kind under test, on the bucket of this name, there or not."""
        pytest.skip("the class gives no open_store: what several stores do on one bucket is not tested")
