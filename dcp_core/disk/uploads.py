"""Multipart uploads in a folder: a folder beside the file to be, with a file a part.

::

    <folder>/.<name>.<token>.upload/<number>-<crc32c>-<size>
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from dcp_core.disk.files import checked, settle, write_body
from dcp_core.errors import ObjectNotFoundError, TransientError
from dcp_core.seam.store import Body, Part, Upload

__all__ = ["PartFolder"]

_COPIED = 64 << 20


class PartFolder:
    """The parts of one upload, in the folder ``path``."""

    def __init__(self, bucket: str, upload: Upload, path: str) -> None:
        self._bucket = bucket
        self._upload = upload
        self._path = path

    def add(self, number: int, body: Body) -> Part:
        """Keep a part.

        Raises:
            TransientError: its bytes are not those that were to be sent.
            ObjectNotFoundError: the upload is gone.
        """
        checked(self._bucket, self._upload.key, body)
        part = Part(number, body.size, f"{number}-{body.crc32c:08x}-{body.size}", body.crc32c)
        arriving = os.path.join(self._path, f"arriving-{os.urandom(8).hex()}")
        write_body(arriving, body)
        os.replace(arriving, os.path.join(self._path, part.tag))
        return part

    def join(self, parts: Sequence[Part]) -> str:
        """The path of a file made of ``parts``, which are gone then.

        Raises:
            ObjectNotFoundError: the upload is gone.
            TransientError: a part was lost.
        """
        paths = [os.path.join(self._path, part.tag) for part in parts]
        there = set(self._names())
        for part in parts:
            if part.tag not in there:
                raise TransientError(f"part {part.number} is lost", bucket=self._bucket, key=self._upload.key)
        whole = os.path.join(self._path, "whole")
        os.replace(paths[0], whole)
        # buffered: a raw file may write less than it is given
        with open(whole, "r+b") as file:
            file.seek(0, os.SEEK_END)
            for path in paths[1:]:
                with open(path, "rb", buffering=0) as part_file:
                    shutil.copyfileobj(part_file, file, _COPIED)
                # no more than one part is on the disk twice
                os.unlink(path)
            file.flush()
            settle(file.fileno())
        return whole

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._path)
        except FileNotFoundError as error:
            raise ObjectNotFoundError(
                "the upload does not exist", bucket=self._bucket, key=self._upload.key
            ) from error

    def remove(self) -> None:
        """Drop everything; a folder that is gone already is no error."""
        shutil.rmtree(self._path, ignore_errors=True)
