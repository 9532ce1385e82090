"""The keyword options of the HTTP reader, for type checkers. A test holds them to the dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

__all__ = ["HTTPLoadKeywords"]


class HTTPLoadKeywords(TypedDict, total=False):
    """Options of ``HTTPStorageReader``."""

    headers: Mapping[str, str] | None
    token: str | None
    query: str | None
    urls: Mapping[str, str] | None
    max_redirects: int
    whole_object_limit: int
    connect_timeout: float
    stall_timeout: float
    ca_bundle: str | None
    verify_tls: bool
    concurrency: int
    memory: int
    attempts: int
    deadline: float | None
    request_size: int
    gap: int
    verify: bool
    weights_only: bool
