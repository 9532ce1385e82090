"""What becomes of tensors of every kind in a save and a load, by stock torch and by this library.

Run as a program, it takes one request a line on stdin, ``{"name": …, "url": …, "admitted": …}``, and writes
one line to stdout: the outcome of each stage of :data:`GROUPS`. Stages run in processes that may die.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import boto3
import torch
import torch.distributed.checkpoint as dcp

from dcp_core import CloudStorageReader, CloudStorageWriter
from dcp_core.format.checksum import crc32c
from dcp_s3.store import S3Store
from support.odd_tensors import KINDS, TYPES, blank, full, holds

#: Outcomes, besides ``Type: message`` of an error.
SAVED, RIGHT, WRONG, DIED, ABSENT = "saved", "right", "wrong", "died", "nothing was saved"


class Places(NamedTuple):
    """Where checkpoints of one kind lie: a local folder for stock torch, a URL for us."""

    folder: Path
    url: str


def _save(name: str, writer: Any) -> str:
    with KINDS[name].around():
        dcp.save({"x": full(name)}, storage_writer=writer)
    return SAVED


def _load(name: str, reader: Any) -> str:
    with KINDS[name].around():
        target = blank(name)
        dcp.load({"x": target}, storage_reader=reader)
    return RIGHT if holds(name, target) else WRONG


def _copy_up(places: Places, what: str) -> str:
    bucket, prefix = _bucket_of(f"{places.url}/{what}")
    client = boto3.client("s3")
    for path in (places.folder / what).iterdir():
        client.upload_file(str(path), bucket, prefix + path.name)
    return SAVED


def _copy_down(places: Places, what: str) -> str:
    bucket, prefix = _bucket_of(f"{places.url}/{what}")
    client, target = boto3.client("s3"), places.folder / what
    target.mkdir()
    for entry in client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ()):
        client.download_file(bucket, entry["Key"], str(target / entry["Key"].removeprefix(prefix)))
    return SAVED


def _bucket_of(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, f"{prefix}/"


def _save_dense(name: str, places: Places) -> str:
    values = KINDS[name].values
    dcp.save({"x": values}, storage_writer=dcp.FileSystemWriter(places.folder / "dense"))
    return _copy_up(places, "dense")


def _save_stock(name: str, places: Places) -> str:
    _save(name, dcp.FileSystemWriter(places.folder / "stock"))
    return _copy_up(places, "stock")


def _save_ours(name: str, places: Places) -> str:
    _save(name, CloudStorageWriter(f"{places.url}/ours"))
    return _copy_down(places, "ours")


def _stock_loads(what: str) -> Callable[[str, Places], str]:
    return lambda name, places: _load(name, dcp.FileSystemReader(places.folder / what))


def _we_load(what: str) -> Callable[[str, Places], str]:
    return lambda name, places: _load(name, CloudStorageReader(f"{places.url}/{what}"))


class Stage(NamedTuple):
    """Something that is done with a kind, once the stage ``needs`` has saved something."""

    work: Callable[[str, Places], str]
    needs: str | None = None


#: In turn. ``dense`` is a checkpoint of the plain values, by stock torch. A group has processes of its own:
#: what stock torch writes out of bounds harms no other group.
GROUPS: list[dict[str, Stage]] = [
    {
        "stock saves dense": Stage(_save_dense),
        "stock saves": Stage(_save_stock),
        "stock loads dense": Stage(_stock_loads("dense"), "stock saves dense"),
        "stock loads stock's": Stage(_stock_loads("stock"), "stock saves"),
    },
    {
        "we save": Stage(_save_ours),
        "we load dense": Stage(_we_load("dense"), "stock saves dense"),
        "we load stock's": Stage(_we_load("stock"), "stock saves"),
        "we load ours": Stage(_we_load("ours"), "we save"),
    },
    {"stock loads ours": Stage(_stock_loads("ours"), "we save")},
]


def outcomes(name: str, places: Places, *, admitted: bool) -> dict[str, str]:
    """The outcome of each stage, in processes forked from this one; after a death the next one goes on."""
    found: dict[str, str] = {}
    for group in GROUPS:
        while left := {title: stage for title, stage in group.items() if title not in found}:
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                _run(left, name, places, found, writing, admitted=admitted)
            os.close(writing)
            with os.fdopen(reading) as lines:
                found.update(json.loads(line) for line in lines)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            unfinished = [title for title in left if title not in found]
            found.update(dict.fromkeys(unfinished[:1], f"{DIED}: {status}"))
    return found


def _run(
    stages: dict[str, Stage], name: str, places: Places, found: dict[str, str], pipe: int, *, admitted: bool
) -> NoReturn:
    warnings.simplefilter("ignore")
    if admitted:
        torch.serialization.add_safe_globals(TYPES)
    with os.fdopen(pipe, "w") as lines:
        for title, stage in stages.items():
            there = stage.needs is None or found[stage.needs] == SAVED
            found[title] = _outcome(stage, name, places) if there else ABSENT
            print(json.dumps([title, found[title]]), file=lines, flush=True)
    os._exit(0)


def _outcome(stage: Stage, name: str, places: Places) -> str:
    try:
        return stage.work(name, places)
    # torch may raise anything
    except BaseException as error:  # noqa: BLE001
        failures: dict[int, Any] = getattr(error, "failures", None) or {0: (error,)}
        real = failures[0][0]
        return f"{type(real).__name__}: {real}"


def _load_once() -> None:
    """Load what each of the processes would else load by itself."""
    crc32c(b"")
    assert S3Store
    boto3.client("s3").close()


def main() -> None:
    torch.set_num_threads(1)
    _load_once()
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            found = outcomes(asked["name"], Places(Path(folder), asked["url"]), admitted=asked["admitted"])
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
