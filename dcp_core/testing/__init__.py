"""For authors of backends: a reference store and the contract every store has to keep. Needs pytest."""

import pytest

# before they are imported: a failed clause then shows the values it compared
_CLAUSES = ("reading", "writing", "uploads", "listing")
pytest.register_assert_rewrite(*(f"dcp_core.testing.{name}" for name in (*_CLAUSES, "material")))

from dcp_core.testing.contract import (  # noqa: E402
    ODD_KEYS,
    OpenStore,
    RawBucket,
    ReadContract,
    StoreContract,
    body_of,
    deviates,
    deviations,
    in_threads,
    pattern,
    read_all,
)
from dcp_core.testing.memory import MemoryBackend, MemoryStore  # noqa: E402

__all__ = [
    "MemoryBackend",
    "MemoryStore",
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
