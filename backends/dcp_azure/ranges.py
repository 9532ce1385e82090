"""The urllib3 answer below azure-core's.

The SDK's downloads copy every byte at least twice in user space. What
:class:`~dcp_core.store_http.HttpRangeReader` needs instead is reached through azure-core's private attribute
``_internal_response``, which is the answer of ``requests``; where it is missing, the SDK's public interface
serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["PublicAnswer", "raw_answer"]


def raw_answer(response: Any) -> Any:
    """What :class:`~dcp_core.store_http.HttpRangeReader` reads a streamed answer of the SDK from."""
    return getattr(getattr(response, "_internal_response", None), "raw", None) or PublicAnswer(response)


class PublicAnswer:
    """``readinto`` on the public interface, with its copies."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._chunks: Iterator[bytes] = response.iter_raw()
        self._left = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        """Receive into ``buffer``; 0 at the end."""
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        count = min(buffer.nbytes, self._left.nbytes)
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        """Give the connection back if everything was read, else drop it."""
        self._response.close()
