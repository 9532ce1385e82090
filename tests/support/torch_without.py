"""Run a scenario in a torch without some of its private names, as a release would be that lacks them.

::

    cd tests; python -m support.torch_without NAME[,NAME…] SCENARIO FOLDER

The names are gone for this library only: torch goes on with what it needs itself. The scenario prints what
it found as JSON.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import torch.distributed.tensor
from torch.distributed.checkpoint.planner import WriteItem

#: A field of torch's plan items, which is no name of a module.
_FIELD = "torch.distributed.checkpoint.planner.WriteItem.bytes_io_data"


class _Lacking(ModuleType):
    """A module of torch without names."""

    def __init__(self, real: ModuleType, lacking: frozenset[str]) -> None:
        super().__init__(real.__name__)
        self.__spec__ = real.__spec__
        self._real, self._lacking = real, lacking
        self._inner: dict[str, _Lacking] = {}

    def __getattr__(self, name: str) -> Any:
        full = f"{self._real.__name__}.{name}"
        if full in self._lacking:
            raise AttributeError(f"{full} was taken away")
        value = getattr(self._real, name)
        if not isinstance(value, ModuleType) or not any(n.startswith(f"{full}.") for n in self._lacking):
            return value
        return self._inner.setdefault(name, _Lacking(value, self._lacking))


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for end in range(1, len(parts)):
        yield ".".join(parts[:end])


@contextmanager
def _without(names: frozenset[str]) -> Iterator[None]:
    """What is imported meanwhile finds a torch that lacks ``names``, now and later."""
    before = dict(sys.modules)
    top = _Lacking(torch, names)
    for name in names:
        # a submodule could be imported by its own name
        sys.modules.update({name: None} if name in sys.modules else {})  # type: ignore[dict-item]
        for prefix in _prefixes(name):
            if isinstance(before.get(prefix), ModuleType):
                found: Any = top
                for part in prefix.split(".")[1:]:
                    found = getattr(found, part)
                sys.modules[prefix] = found
    try:
        yield
    finally:
        for name in list(sys.modules):
            if name.partition(".")[0] == "torch" and name in before:
                sys.modules[name] = before[name]


def _take_away_field() -> None:
    def get(self: WriteItem, name: str) -> Any:
        asking = sys._getframe(1).f_globals["__name__"]
        if name == "bytes_io_data" and asking.partition(".")[0] == "dcp_core":
            raise AttributeError(name)
        return object.__getattribute__(self, name)

    WriteItem.__getattribute__ = get  # type: ignore[method-assign, assignment]


def import_without(names: Sequence[str]) -> None:
    """Import the library into a torch that lacks ``names``."""
    for name in names:
        # what torch imports late must not be imported first by the library, into the torch that lacks names
        for prefix in (*_prefixes(name), name):
            try:
                importlib.import_module(prefix)
            except ImportError:
                break
    if _FIELD in names:
        _take_away_field()
    # the one package that uses such names; the others see torch as it is
    with _packages_unopened("dcp_core", "dcp_core.runtime"), _without(frozenset(names) - {_FIELD}):
        importlib.import_module("dcp_core.runtime.torch_private")
    importlib.import_module("dcp_core")


@contextmanager
def _packages_unopened(top: str, *below: str) -> Iterator[None]:
    """Modules of packages can be imported meanwhile without what the packages themselves import."""
    spec = importlib.util.find_spec(top)
    assert spec is not None
    assert spec.submodule_search_locations
    place = Path(spec.submodule_search_locations[0])
    for name in (top, *below):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(place.joinpath(*name.split(".")[1:]))]
    try:
        yield
    finally:
        for name in (top, *below):
            del sys.modules[name]


# --- scenarios


def _memory_url() -> str:
    from dcp_core import CloudStorageReader, CloudStorageWriter
    from dcp_core.testing import MemoryBackend, MemoryStore

    CloudStorageReader.backend = CloudStorageWriter.backend = MemoryBackend()
    MemoryStore.create_bucket("without")
    return "memory://without/run"


def _copy(folder: Path) -> None:
    from dcp_core.testing import MemoryStore

    store = MemoryStore("without")
    for info in store.list("run/"):
        (folder / info.key.removeprefix("run/")).write_bytes(store.get(info.key)[0])


def _put(folder: Path) -> None:
    from dcp_core.testing import MemoryStore, body_of

    for path in folder.iterdir():
        MemoryStore("without").put(f"run/{path.name}", body_of(path.read_bytes()))


def saves_and_loads(folder: Path) -> dict[str, Any]:
    """Bit for bit, by this library and by torch's own reader."""
    from dcp_core import CloudStorageReader, CloudStorageWriter
    from dcp_core.runtime.torch_private import write_zip
    from support import scenarios

    url = _memory_url()
    metadata = dcp.save(scenarios.plain_state(3), storage_writer=CloudStorageWriter(url))
    _copy(folder)
    for reader in (CloudStorageReader(url), dcp.FileSystemReader(folder)):
        target = scenarios.blanked(scenarios.plain_state(3))
        dcp.load(target, storage_reader=reader)
        scenarios.assert_same(target, scenarios.plain_state(3))
    with (folder / "frame").open("wb") as sink:
        without_crc = write_zip(torch.ones(5), sink)
    assert torch.equal(torch.load(folder / "frame"), torch.ones(5))
    return {"public": not without_crc, "version": getattr(metadata, "version", None)}


def loads_transformed(folder: Path) -> dict[str, Any]:
    """What a stock writer compressed, and beside it what it did not."""
    from torch.distributed.checkpoint._extension import ZStandard

    from dcp_core import CloudStorageReader

    found = {}
    for extensions in ([], [ZStandard()]):
        url = _memory_url()
        writer = dcp.FileSystemWriter(folder, _extensions=extensions)
        dcp.save({"weight": torch.ones(50)}, storage_writer=writer)
        _put(folder)
        state = {"weight": torch.zeros(50)}
        try:
            dcp.load(state, storage_reader=CloudStorageReader(url))
        except dcp.api.CheckpointException as error:
            found["compressed" if extensions else "plain"] = repr(error.failures[0][0])
        else:
            found["compressed" if extensions else "plain"] = state["weight"].tolist()
    return found


def urls_as_ids(folder: Path) -> dict[str, Any]:
    """Whether URLs can be made to work as ids, and whether torch stays as it was if not."""
    from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

    from dcp_core import UnsupportedError, use_url_checkpoint_ids

    before = state_dict_saver._storage_setup, state_dict_loader._storage_setup
    try:
        use_url_checkpoint_ids()
        said = ""
    except UnsupportedError as error:
        said = str(error)
    dcp.save({"weight": torch.ones(5)}, checkpoint_id=folder / "local")
    after = state_dict_saver._storage_setup, state_dict_loader._storage_setup
    return {"said": said, "unchanged": before == after and (folder / "local" / ".metadata").exists()}


if __name__ == "__main__":
    lacking, scenario, place = sys.argv[1:]
    import_without([name for name in lacking.split(",") if name])
    print(json.dumps(globals()[scenario](Path(place))))
