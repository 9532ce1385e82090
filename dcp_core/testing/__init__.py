"""For authors of backends: a reference store and the contract every store has to keep."""

from dcp_core.testing.contract import StoreContract
from dcp_core.testing.memory import MemoryBackend, MemoryStore

__all__ = ["MemoryBackend", "MemoryStore", "StoreContract"]
