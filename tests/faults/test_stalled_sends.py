"""Servers that stop reading: a send that stands still is cut after ``stall_timeout``, and no earlier."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.sockets import not_reading

from dcp_azure.options import AzureOptions
from dcp_azure.store import AzureStore
from dcp_core import ThrottledError, TransientError
from dcp_core.seam.store import ObjectStore
from dcp_core.testing import body_of, pattern
from dcp_gcs.options import GCSOptions
from dcp_gcs.store import GCSStore
from dcp_s3.options import S3Options
from dcp_s3.store import S3Store

KEY = "bm90IGEga2V5"
OPEN: dict[str, Callable[..., ObjectStore]] = {
    "s3": lambda url, **limits: S3Store(
        "bucket", S3Options(endpoint_url=url, access_key_id="a", secret_access_key="b", **limits)
    ),
    "gcs": lambda url, **limits: GCSStore("bucket", GCSOptions(endpoint_url=url, anonymous=True, **limits)),
    "azure": lambda url, **limits: AzureStore(
        "bucket", AzureOptions(account_url=f"{url}/account", account_key=KEY, **limits)
    ),
}
#: More than the kernel's buffers of both ends take.
DATA = pattern(48 << 20)


@pytest.fixture(params=OPEN)
def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a store of each cloud at the port of a server."""
    for variable in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(variable, raising=False)
    return lambda port, scheme="http", **options: contextlib.closing(
        OPEN[request.param](f"{scheme}://127.0.0.1:{port}", **options)
    )


def test_a_server_that_stops_reading(opened: Any) -> None:
    with not_reading() as port, opened(port, connect_timeout=60.0, stall_timeout=1.0) as store:
        started = time.monotonic()
        with pytest.raises(TransientError) as caught:
            store.put("key", body_of(DATA))
        assert time.monotonic() - started < 50
    assert type(caught.value) is TransientError
    assert (caught.value.bucket, caught.value.key) == ("bucket", "key")


def test_a_server_that_reads_late(opened: Any) -> None:
    """The limit for connecting is none for sending."""
    response = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with (
        not_reading(3.0, response) as port,
        opened(port, connect_timeout=1.0, stall_timeout=30.0) as store,
        pytest.raises(ThrottledError),
    ):
        store.put("key", body_of(DATA))
