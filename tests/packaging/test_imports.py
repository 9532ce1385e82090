"""Importing the core is cheap and brings in no SDK; the public surface is what it is meant to be."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dcp_azure
import dcp_core
import dcp_gcs
import dcp_http
import dcp_s3
from dcp_azure.options import AzureLoadKeywords, AzureOptions, AzureSaveKeywords
from dcp_core.config import LoadOptions, SaveOptions
from dcp_gcs.options import GCSLoadKeywords, GCSOptions, GCSSaveKeywords
from dcp_http.options import HTTPLoadKeywords, HTTPOptions
from dcp_s3.options import S3LoadKeywords, S3Options, S3SaveKeywords

SDKS = (
    *("boto3", "botocore", "aiohttp", "google.auth", "google.cloud.storage", "requests", "azure"),
    *("typer", "rich", "dcp_s3", "dcp_gcs", "dcp_azure", "dcp_http"),
)


def python(code: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout


def test_no_sdk_is_imported() -> None:
    code = (
        "import sys, dcp_core; from dcp_core.seam.registry import known_schemes\n"
        "assert {'s3', 'gs', 'az', 'https'} <= set(known_schemes())\n"
        f"print([name for name in {SDKS} if name in sys.modules])"
    )
    assert python(code).strip() == "[]"


def test_import_time_beyond_torch(tmp_path: Path) -> None:
    """CPU seconds, with compiled modules as an installer leaves them: the first run compiles."""
    code = (
        "import time, torch.distributed.checkpoint\n"
        "started = time.process_time(); import dcp_core; print(time.process_time() - started)"
    )
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    assert min(float(python(code, **compiled)) for _ in range(4)) < 0.05


def test_public_names() -> None:
    errors = {name for name in dcp_core.__all__ if name.endswith("Error")}
    assert set(dcp_core.__all__) - errors == {
        "Best", "CheckpointRun", "CloudStorageReader", "CloudStorageWriter", "LoadOptions", "SaveOptions",
        "use_url_checkpoint_ids",
    }  # fmt: skip
    assert dcp_azure.__all__ == ["AzureOptions", "AzureStorageReader", "AzureStorageWriter", "backend"]
    assert dcp_http.__all__ == ["HTTPOptions", "HTTPStorageReader", "backend"]
    assert dcp_s3.__all__ == ["S3Options", "S3StorageReader", "S3StorageWriter", "backend"]
    assert dcp_gcs.__all__ == ["GCSOptions", "GCSStorageReader", "GCSStorageWriter", "backend"]


@pytest.mark.parametrize(
    ("keywords", "options", "own"),
    [
        (S3SaveKeywords, SaveOptions, S3Options),
        (S3LoadKeywords, LoadOptions, S3Options),
        (GCSSaveKeywords, SaveOptions, GCSOptions),
        (GCSLoadKeywords, LoadOptions, GCSOptions),
        (AzureSaveKeywords, SaveOptions, AzureOptions),
        (AzureLoadKeywords, LoadOptions, AzureOptions),
        (HTTPLoadKeywords, LoadOptions, HTTPOptions),
    ],
)
def test_typed_keywords_are_the_options(keywords: Any, options: Any, own: Any) -> None:
    fields = {field.name for kind in (options, own) for field in dataclasses.fields(kind)}
    assert set(keywords.__optional_keys__) == fields


@pytest.mark.parametrize(
    ("url", "imported"),
    [
        ("s3://bucket/x", ["boto3", "botocore", "dcp_s3"]),
        ("gs://bucket/x", ["google.auth", "google.cloud.storage", "requests", "dcp_gcs"]),
        # azure-core imports aiohttp where it is installed
        ("az://bucket/x", ["aiohttp", "requests", "azure", "dcp_azure"]),
        ("http://host/x", ["aiohttp", "dcp_http"]),
    ],
)
def test_a_url_imports_its_own_sdk_only(url: str, imported: list[str]) -> None:
    code = (
        "import sys, dcp_core\n"
        f"dcp_core.CloudStorageReader({url!r})\n"
        f"print(*[name for name in {SDKS} if name in sys.modules])"
    )
    assert python(code).split() == imported


def test_public_names_for_authors_of_backends() -> None:
    import dcp_core.testing

    assert dcp_core.testing.__all__ == [
        "MemoryBackend", "MemoryStore", "ODD_KEYS", "OpenStore", "RawBucket", "ReadContract", "StoreContract",
        "body_of", "deviates", "deviations", "in_threads", "pattern", "read_all",
    ]  # fmt: skip
