"""Private names of azure-core and of the blob client: the only file that has them.

The SDK's downloads copy every byte at least twice in user space, and its uploads read a body into ``bytes``
first. What lies below both is reached here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["PublicResponse", "raw_response", "run_pipeline"]


def run_pipeline(client: Any, request: Any, *, stream: bool) -> Any:
    """Send ``request`` as the client's own methods do: the pipeline signs, and adds dates and ids."""
    return client._pipeline.run(request, stream=stream).http_response


def raw_response(response: Any) -> Any:
    """The urllib3 response of a streamed one of azure-core; where it is missing, the public one."""
    return getattr(getattr(response, "_internal_response", None), "raw", None) or PublicResponse(response)


class PublicResponse:
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
