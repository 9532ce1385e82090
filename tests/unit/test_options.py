"""Options by their names of before: they work for a release, and say so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from dcp_azure import AzureOptions
from dcp_core import CheckpointRun, CloudStorageReader, CloudStorageWriter, ConfigurationError
from dcp_core.config import LoadOptions, SaveOptions, build_options
from dcp_s3 import S3Options, S3StorageReader

RENAMED: list[tuple[type, str, Any, str, Any]] = [
    (SaveOptions, "memory", 1 << 20, "memory_limit", 1 << 20),
    (SaveOptions, "attempts", 3, "max_attempts", 3),
    (LoadOptions, "memory", 1 << 20, "memory_limit", 1 << 20),
    (LoadOptions, "attempts", 3, "max_attempts", 3),
    (LoadOptions, "request_size", 5, "max_request_size", 5),
    (LoadOptions, "gap", 0, "max_gap", 0),
    (LoadOptions, "verify", False, "verify_checksums", False),
    (S3Options, "checksums", False, "upload_checksum", None),
    (S3Options, "checksums", True, "upload_checksum", "crc32c"),
    (AzureOptions, "transactional_checksum", "md5", "upload_checksum", "md5"),
    (AzureOptions, "transactional_checksum", None, "upload_checksum", None),
]


@pytest.mark.parametrize(("kind", "old", "value", "name", "meant"), RENAMED)
def test_an_old_name_works_with_a_warning(kind: type, old: str, value: Any, name: str, meant: Any) -> None:
    with pytest.warns(DeprecationWarning, match=f"^{old}= is now called {name}=$"):
        (options,) = build_options({old: value}, kind)
    assert options == kind(**{name: meant})
    with pytest.raises(ConfigurationError, match=f"{old}= is the old name of {name}=: give one of them"):
        build_options({old: value, name: meant}, kind)


def test_every_renamed_option_is_here() -> None:
    for kind in (SaveOptions, LoadOptions, S3Options, AzureOptions):
        assert set(kind.RENAMED) == {old for found, old, *_ in RENAMED if found is kind}


@pytest.mark.parametrize(
    "made",
    [
        lambda: CloudStorageWriter("s3://bucket/run", memory=1 << 20),
        lambda: CloudStorageReader("s3://bucket/run", gap=0),
        lambda: S3StorageReader("s3://bucket/run", gap=0),
        lambda: CheckpointRun("s3://bucket/run", part_size=5 << 20, verify=False),
    ],
)
def test_the_warning_is_about_the_callers_line(made: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made()
    found = [one for one in caught if issubclass(one.category, DeprecationWarning)]
    assert found
    assert {one.filename for one in found} == {__file__}
