"""Private names of google-cloud-storage, in no other file."""

from __future__ import annotations

from typing import Any

__all__ = ["credentials_of"]


def credentials_of(client: Any) -> Any:
    """The credentials that a client was given or found: every one of google-cloud's keeps them there."""
    return client._credentials
