"""Large answers over TLS with fewer calls.

TLS comes in records of 16 KiB. Left alone, OpenSSL asks the kernel twice for each, and Python's file objects
put six calls of their own on top: a fifth of the CPU time of a load over TLS.
"""

from __future__ import annotations

import ctypes
import http.client
import ssl
import sys
from functools import cache
from typing import Any

__all__ = ["READ_AHEAD", "TlsAnswer", "read_ahead"]

#: Bytes that OpenSSL asks the kernel for at once.
READ_AHEAD = 64 << 10

#: Pythons whose ``_ssl._SSLContext`` begins with the pointer to OpenSSL's context, as checked by a test.
_KNOWN = ((3, 10), (3, 11), (3, 12), (3, 13))

# of openssl/ssl.h
_SSL_CTRL_SET_READ_AHEAD = 41


class TlsAnswer:
    """Receives from the connection of ``response`` itself, but for what the response has in its buffer."""

    def __init__(self, response: http.client.HTTPResponse, connection: ssl.SSLSocket) -> None:
        self._response: Any = response
        self._read: Any = connection.read
        #: Bytes in the buffer; None is not known yet.
        self._buffered: int | None = None

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; less at the end of the buffer's bytes or of the answer.

        The response receives the last bytes, and closes itself.

        Raises:
            OSError: of the connection, ``TimeoutError`` and ``ssl.SSLError`` among them.
        """
        response, size = self._response, buffer.nbytes
        if self._buffered is None:
            self._buffered = len(response.fp.peek(1))
        if self._buffered:
            count = int(response.readinto(buffer[: self._buffered]))
            self._buffered -= count
            return count
        if response.length is None or size >= response.length:
            return int(response.readinto(buffer))
        received = 0
        while received < size:
            count = self._read(size - received, buffer[received:])
            if count == 0:
                break
            received += count
        response.length -= received
        return received


def read_ahead(context: Any) -> bool:
    """Let connections of ``context`` ask the kernel for :data:`READ_AHEAD` bytes at once.

    For connections that are made later, and in Pythons where it can be done; returns whether it was.
    ``ssl`` has no option for it.
    """
    library = _openssl()
    # of the C module's class, which others may have put their own on top of; isinstance believes a mere proxy
    if library is None or not issubclass(type(context), ssl._ssl._SSLContext):  # type: ignore[attr-defined]
        return False
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    library.SSL_CTX_set_default_read_buffer_len(pointer, READ_AHEAD)
    library.SSL_CTX_ctrl(pointer, _SSL_CTRL_SET_READ_AHEAD, 1, None)
    return True


@cache
def _openssl() -> Any:
    """The OpenSSL that ``ssl`` uses, or ``None`` where it is out of reach."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in _KNOWN:
        return None
    if not ssl.OPENSSL_VERSION.startswith(("OpenSSL 1.1.1", "OpenSSL 3.")):
        return None
    try:
        # by way of the module, for another library may have brought another OpenSSL
        library = ctypes.CDLL(ssl._ssl.__file__)  # type: ignore[attr-defined]
        # SSL_CTX *, size_t
        library.SSL_CTX_set_default_read_buffer_len.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        library.SSL_CTX_set_default_read_buffer_len.restype = None
        # SSL_CTX *, int, long, void *
        library.SSL_CTX_ctrl.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
        library.SSL_CTX_ctrl.restype = ctypes.c_long
    except (OSError, AttributeError):
        return None
    return library
