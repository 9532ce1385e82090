"""Folders behind web servers, for the tests of the HTTP backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conftest import Bucket


@dataclass
class Folder:
    """Raw access to what a web server serves."""

    path: Path

    def read(self, key: str) -> bytes:
        return (self.path / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        file = self.path / key
        file.parent.mkdir(parents=True, exist_ok=True)
        # a new file under the old name, as a careful server's administrator would
        beside = file.with_name("beside")
        beside.write_bytes(data)
        beside.replace(file)

    def keys(self) -> list[str]:
        return [str(file.relative_to(self.path)) for file in self.path.rglob("*") if file.is_file()]

    def copy(self, bucket: Bucket, prefix: str) -> None:
        """Download every object below ``prefix``, as any copying tool does."""
        for key in bucket.keys(prefix):
            self.write(key, bucket.read(key))
