"""Listings of a whole tree, taken apart by folder as they come. Pure.

Keys under one prefix follow each other, whether a store lists by the bytes of its keys or folder by folder.
A folder's own objects need not: ``run/.metadata``, ``run/A/…``, ``run/__0_0.….distcp``. A folder is therefore
open until a key outside of it comes, and what is held at a time belongs to one folder and to those around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from dcp_core.format.layout import is_data_name, is_metadata_name
from dcp_core.seam.store import ObjectInfo, UploadInfo

__all__ = ["Folder", "by_folder", "grouped", "is_old", "split", "uploads_by_folder"]

_T = TypeVar("_T")


@dataclass
class Folder:
    """What a listing showed of one folder.

    Attributes:
        prefix: what its keys begin with: empty, or ending in a slash.
        old: names of data objects last changed before the limit.
        records: names of commit records.
    """

    prefix: str
    old: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)


def split(key: str) -> tuple[str, str]:
    """The prefix of the folder that ``key`` lies in, and its name there."""
    head, slash, name = key.rpartition("/")
    return head + slash, name


def is_old(moment: datetime | None, before: datetime) -> bool:
    """Whether something last changed before the limit; what has no date counts as young."""
    return moment is not None and moment < before


def grouped(
    infos: Iterable[ObjectInfo], pick: Callable[[str, ObjectInfo], _T | None]
) -> Iterator[tuple[str, list[_T]]]:
    """What ``pick`` makes of each object, given its name in its folder, by the prefixes of folders."""
    opened: list[tuple[str, list[_T]]] = []
    for info in infos:
        prefix, name = split(info.key)
        while opened and not prefix.startswith(opened[-1][0]):
            yield opened.pop()
        picked = pick(name, info)
        if picked is None:
            continue
        if not opened or opened[-1][0] != prefix:
            opened.append((prefix, []))
        opened[-1][1].append(picked)
    while opened:
        yield opened.pop()


def by_folder(infos: Iterable[ObjectInfo], before: datetime) -> Iterator[Folder]:
    """Folders with data objects of this library that last changed before ``before``."""

    def pick(name: str, info: ObjectInfo) -> str | None:
        wanted = is_metadata_name(name) or (is_data_name(name) and is_old(info.modified, before))
        return name if wanted else None

    for prefix, names in grouped(infos, pick):
        folder = Folder(prefix)
        for name in names:
            (folder.records if is_metadata_name(name) else folder.old).append(name)
        if folder.old:
            yield folder


def uploads_by_folder(infos: Iterable[UploadInfo], before: datetime) -> Iterator[str]:
    """Prefixes of folders with unfinished uploads that began before ``before``; one may come again."""
    last: str | None = None
    for info in infos:
        prefix, name = split(info.upload.key)
        if prefix != last and is_data_name(name) and is_old(info.started, before):
            last = prefix
            yield prefix
