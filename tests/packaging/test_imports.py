"""Importing the core is cheap and brings in no SDK; the public surface is what it is meant to be."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import dcp_core
import dcp_http
import dcp_s3
from dcp_core.config import LoadOptions, SaveOptions
from dcp_http.keywords import HTTPLoadKeywords
from dcp_http.options import HTTPOptions
from dcp_s3.keywords import S3LoadKeywords, S3SaveKeywords
from dcp_s3.options import S3Options

SDKS = ("boto3", "botocore", "aiohttp", "google.cloud", "azure", "typer", "rich", "dcp_s3", "dcp_http")


def python(code: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout


def test_no_sdk_is_imported() -> None:
    code = (
        "import sys, dcp_core; from dcp_core.registry import known_schemes\n"
        "assert {'s3', 'http', 'https'} <= set(known_schemes())\n"
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
        "CloudStorageReader", "CloudStorageWriter", "LoadOptions", "SaveOptions", "use_url_checkpoint_ids",
    }  # fmt: skip
    assert dcp_http.__all__ == ["HTTPOptions", "HTTPStorageReader", "backend"]
    assert dcp_s3.__all__ == ["S3Options", "S3StorageReader", "S3StorageWriter", "backend"]


def test_typed_keywords_are_the_options() -> None:
    for keywords, *options in (
        (S3SaveKeywords, SaveOptions, S3Options),
        (S3LoadKeywords, LoadOptions, S3Options),
        (HTTPLoadKeywords, LoadOptions, HTTPOptions),
    ):
        fields = {field.name for kind in options for field in dataclasses.fields(kind)}
        assert set(keywords.__optional_keys__) == fields


def test_a_url_imports_its_own_sdk_only() -> None:
    code = (
        "import sys, dcp_core\n"
        "dcp_core.CloudStorageReader(URL)\n"
        f"print(*[name for name in {SDKS} if name in sys.modules])"
    )
    assert python(code.replace("URL", "'http://host/x'")).split() == ["aiohttp", "dcp_http"]
    assert python(code.replace("URL", "'s3://bucket/x'")).split() == ["boto3", "botocore", "dcp_s3"]


def test_public_names_for_authors_of_backends() -> None:
    import dcp_core.testing

    assert dcp_core.testing.__all__ == [
        "MemoryBackend", "MemoryStore", "ODD_KEYS", "OpenStore", "RawBucket", "ReadContract", "StoreContract",
        "body_of", "deviates", "deviations", "in_threads", "pattern", "read_all",
    ]  # fmt: skip
