"""The checksums that Azure checks of what it receives.

Azure's CRC64 is CRC-64/NVME: the same polynomial, initial value and final inversion, sent as eight
little-endian bytes. So the core's own library computes it, in 0.03 CPU seconds a GiB; Microsoft's
``azure-storage-extensions`` takes 0.40 and wants ``bytes``, MD5 takes 1.3 (all measured on one machine).
A test holds the two implementations to each other's values.

The seam hands over a CRC32C, which Azure does not know. It is checked here, in the same pass and from the
cache (0.03 more), so that what Azure vouches for is what the commit record will vouch for.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from dcp_core.errors import TransientError
from dcp_core.seam.store import Body

__all__ = ["checksum_headers"]

#: Stays in the second-level cache between the two sums.
_STEP = 1 << 20


@cache
def _library() -> Any:
    import awscrt.checksums

    return awscrt.checksums


def checksum_headers(body: Body, kind: str | None) -> dict[str, str]:
    """The header with which Azure checks ``body``; none for ``None``.

    Raises:
        TransientError: the bytes do not have the CRC32C that they came with.
    """
    if kind is None:
        return {}
    library, crc32c, crc64, md5 = _library(), 0, 0, hashlib.md5(usedforsecurity=False)
    for buffer in body.buffers:
        for start in range(0, buffer.nbytes, _STEP):
            view = buffer[start : start + _STEP]
            crc32c = library.crc32c(view, crc32c)
            if kind == "crc64":
                crc64 = library.crc64nvme(view, crc64)
            else:
                md5.update(view)
    if crc32c != body.crc32c:
        raise TransientError("the bytes changed in memory since their checksum was taken")
    if kind == "crc64":
        return {"x-ms-content-crc64": _base64(crc64.to_bytes(8, "little"))}
    return {"Content-MD5": _base64(md5.digest())}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
