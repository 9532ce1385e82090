"""What stores allow: where it is documented, and how users say that theirs differs."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

import pytest

import dcp_azure
import dcp_gcs
import dcp_s3
from dcp_azure.store import LIMITS as AZURE
from dcp_core.config import GIB, LIMITS, MIB, BucketOptions
from dcp_core.errors import ConfigurationError
from dcp_core.save.plan import part_size_for
from dcp_core.seam.store import Limits, ObjectStore
from dcp_gcs.store import LIMITS as GCS
from dcp_s3.store import LIMITS as S3

CLOUDS: dict[str, tuple[Limits, Any, str, dict[str, Any]]] = {
    "s3": (S3, dcp_s3.backend, "s3://bucket/run", {}),
    "gcs": (GCS, dcp_gcs.backend, "gs://bucket/run", {}),
    "azure": (
        AZURE,
        dcp_azure.backend,
        "abfss://container@account.dfs.core.windows.net/run",
        {"anonymous": True},
    ),
}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_limits_have_a_source_and_a_month(cloud: str) -> None:
    """Stores raise theirs: whoever reads a number can look it up, and see how old it is."""
    limits = CLOUDS[cloud][0]
    assert limits.source.startswith("https://")
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", limits.checked)
    assert limits.checked <= datetime.now(timezone.utc).strftime("%Y-%m")
    assert 0 < limits.min_part_size < limits.max_part_size <= limits.max_put_size
    assert limits.max_object_size <= limits.max_parts * limits.max_part_size


def test_the_largest_objects() -> None:
    """Those of the documentation; and parts can be planned that make up such an object."""
    assert (S3.max_object_size, S3.max_parts, S3.max_part_size) == (50_000 * GIB, 10_000, 5 * GIB)
    assert (GCS.max_object_size, GCS.max_parts, GCS.max_part_size) == (5 * 1024 * GIB, 10_000, 5 * GIB)
    assert (AZURE.max_object_size, AZURE.max_parts) == (50_000 * 4000 * MIB, 50_000)
    for limits in (S3, GCS, AZURE):
        size = part_size_for(limits.max_object_size, 64 * MIB, limits, 8)
        assert limits.min_part_size <= size <= limits.max_part_size
        assert size * limits.max_parts >= limits.max_object_size


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_store_that_differs(cloud: str) -> None:
    """What is said of it holds; the rest is the cloud's own."""
    limits, backend, url, options = CLOUDS[cloud]
    for differs in ({}, {"max_parts": 1000, "max_put_size": 5 * MIB}):
        given = backend.options_type(**options, limits=differs or None)
        store: ObjectStore = backend.open(backend.locate(url), given, concurrency=2)
        try:
            assert store.limits == limits.changed(differs)
            assert store.limits.max_parts == differs.get("max_parts", limits.max_parts)
            assert store.limits.min_part_size == limits.min_part_size
        finally:
            store.close()


def test_the_options_are_the_limits() -> None:
    """Each number of a store may differ, and nothing else."""
    numbers = {name for name, kind in Limits.__annotations__.items() if kind == "int"}
    assert numbers == LIMITS
    BucketOptions(limits=dict.fromkeys(LIMITS, 1))


@pytest.mark.parametrize(
    ("limits", "named"),
    [({"max_size": 1}, "'max_size'"), ({"max_parts": 0}, "max_parts"), ({"max_parts": 1.5}, "max_parts")],
)
def test_limits_that_are_none(limits: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        BucketOptions(limits=limits)
