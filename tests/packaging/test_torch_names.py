"""Names of torch's that are not public: in one package only, and each of them may go."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.torch_releases import since

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = ROOT / "dcp_core" / "runtime" / "torch_private"
SOURCES = sorted(
    path
    for folder in ("dcp_core", "backends")
    for path in (ROOT / folder).rglob("*.py")
    if PRIVATE not in path.parents
)
#: Attributes that begin with an underscore and are public all the same: those of named tuples, what fsspec
#: documents for file systems to override, and what TorchTitan's manager has for its subclasses.
DOCUMENTED = frozenset(
    {
        *("_asdict", "_fields", "_make", "_replace"),
        *("_open", "_strip_protocol"),
        *("_states_to_load", "_find_load_step", "_create_checkpoint_id"),
    }
)


# --- what a source names


def private_names(source: str) -> list[str]:
    """Every name of torch's in ``source`` with a part that begins with an underscore."""
    tree = ast.parse(source)
    known = _Aliases(tree)
    found = [name for node in ast.walk(tree) for name in _names(node, known)]
    longest = {name for name in found if not any(other.startswith(f"{name}.") for other in found)}
    return sorted(name for name in longest if _is_private(name))


def _is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


class _Aliases:
    """What of torch the names of a source stand for."""

    def __init__(self, tree: ast.AST) -> None:
        self._names: dict[str, str] = {}
        for node in ast.walk(tree):
            for alias in getattr(node, "names", ()) if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if isinstance(node, ast.ImportFrom):
                    self._names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                elif alias.asname:
                    self._names[alias.asname] = alias.name
                else:
                    self._names[alias.name.partition(".")[0]] = alias.name.partition(".")[0]

    def dotted(self, node: ast.AST) -> str | None:
        """The name of torch's that an expression is, if it is one."""
        if isinstance(node, ast.Attribute):
            inner = self.dotted(node.value)
            return inner and f"{inner}.{node.attr}"
        name = self._names.get(node.id) if isinstance(node, ast.Name) else None
        return name if name is not None and name.partition(".")[0] == "torch" else None


def _names(node: ast.AST, known: _Aliases) -> Iterator[str]:
    """The names of torch's that one node brings in."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "torch")
    elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Attribute):
        yield known.dotted(node) or ""
    elif isinstance(node, ast.Call):
        yield from _called(node, known)
    elif isinstance(node, ast.Subscript):
        yield from _looked_up(node, known)


def _called(node: ast.Call, known: _Aliases) -> Iterator[str]:
    """Names in strings: ``getattr(module, "name")`` and ``import_module("name")``."""
    texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    owner = known.dotted(node.args[0]) if node.args else None
    function = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    if owner and texts:
        yield f"{owner}.{texts[0]}"
    if function in ("import_module", "__import__") and texts and texts[0].partition(".")[0] == "torch":
        yield texts[0]


def _looked_up(node: ast.Subscript, known: _Aliases) -> Iterator[str]:
    """``vars(module)["name"]`` and ``module.__dict__["name"]``."""
    owner: ast.AST = node.value
    if isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "vars" and owner.args:
        owner = owner.args[0]
    elif isinstance(owner, ast.Attribute) and owner.attr == "__dict__":
        owner = owner.value
    name = known.dotted(owner)
    if name and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        yield f"{name}.{node.slice.value}"


@cache
def defined_here() -> frozenset[str]:
    """Names that begin with an underscore and that this library defines itself."""
    return frozenset(name for path in SOURCES for name in _defined(ast.parse(path.read_text())))


def _defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        # __slots__
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


def foreign_attributes(path: Path, ours: frozenset[str]) -> list[str]:
    """Attributes that begin with an underscore and are not of this library, of whatever object."""
    return [
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and node.attr not in ours | DOCUMENTED
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_torch_are_used_in_one_package_only(path: Path) -> None:
    assert private_names(path.read_text()) == []
    if path.parts[-2] != "transport" and "backends" not in path.parts:
        assert foreign_attributes(path, defined_here()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._C._cuda_init()",
        "import torch.distributed._shard",
        "import torch.serialization as s\ns._save(1)",
        "from torch import serialization\nserialization._save",
        "from torch.distributed._shard import utils",
        "from torch.distributed.checkpoint.filesystem import _StorageInfo as Info",
        "from torch.distributed.checkpoint import metadata as md\nx = {md._MEM_FORMAT_ENCODING: 1}",
        "import torch\ngetattr(torch.serialization, '_save', None)",
        "import importlib\nimportlib.import_module('torch._utils')",
        "from torch.distributed.checkpoint import state_dict_saver as s\nvars(s)['_storage_setup'] = 1",
        "def late():\n    from torch._utils import _flatten_dense_tensors",
    ],
)
def test_every_way_to_a_private_name_is_seen(source: str) -> None:
    assert len(private_names(source)) == 1


def test_public_names_are_not_private() -> None:
    source = (
        "import torch\nimport torch.distributed as dist\nfrom torch.distributed.checkpoint import metadata\n"
        "from dcp_core.runtime import torch_private as private\nimport numpy\n"
        "torch.Tensor.__torch_function__\ndist.get_rank()\nself._torch._save\nprivate._needed\n"
        "getattr(torch, 'float8_e8m0fnu')\nvars(metadata)['Metadata']\nnumpy._core\n"
        "name = 'torch.distributed._shard.sharded_tensor.metadata'\n"
    )
    assert private_names(source) == []


# --- a torch without them

CHECKPOINT = "torch.distributed.checkpoint"


def found_without(names: list[str], scenario: str, folder: Path) -> dict[str, Any]:
    """What a scenario of ``torch_without`` finds where ``names`` are gone."""
    done = run_without(names, scenario, folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_without(names: list[str], scenario: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "support.torch_without",
        ",".join(names),
        scenario,
        str(folder),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT / "tests")


#: Names that saving and loading do without, and whether frames then come from the public ``torch.save``.
SPARED: list[tuple[str, tuple[str, ...], bool]] = [
    ("torch.serialization", ("_save",), True),
    ("torch._C", ("PyTorchFileWriter",), True),
    ("torch.serialization", ("_get_storage_alignment",), False),
    (CHECKPOINT, ("planner.WriteItem.bytes_io_data",), False),
    (CHECKPOINT, ("filesystem.CURRENT_DCP_VERSION", "_extension"), False),
    ("torch.distributed", ("_functional_collectives.AsyncCollectiveTensor",), False),
    ("torch.distributed", ("distributed_c10d._get_default_store",), False),
    (
        "torch",
        (
            *("_C._len_torch_dispatch_stack", "_C._len_torch_function_stack", "_C._get_function_stack_at"),
            *("_C.DisableTorchFunction", "_C.DisableTorchFunctionSubclass"),
            "utils._python_dispatch._disable_current_modes",
            *("_C._disabled_torch_function_impl", "_C._disabled_torch_dispatch_impl"),
        ),
        False,
    ),
]
NEEDED = ["filesystem._StorageInfo", "metadata._MEM_FORMAT_ENCODING"]
OF_CHECKPOINT_IDS = [
    f"{CHECKPOINT}.state_dict_saver._storage_setup",
    f"{CHECKPOINT}.state_dict_loader._storage_setup",
    f"{CHECKPOINT}.state_dict_saver._ProcessBasedAsyncCheckpointExecutor",
]


def test_each_private_name_is_taken_away_here() -> None:
    taken = {f"{module}.{name}" for module, names, _ in SPARED for name in names}
    taken |= {f"{CHECKPOINT}.{name}" for name in NEEDED} | set(OF_CHECKPOINT_IDS)
    used = {name for path in PRIVATE.glob("*.py") for name in private_names(path.read_text())}
    assert "torch.serialization._save" in used
    assert {name for name in used if not any(name.startswith(other) for other in taken)} == set()


@pytest.mark.parametrize(
    ("module", "names", "public"), SPARED, ids=[f"{module}-{'+'.join(names)}" for module, names, _ in SPARED]
)
def test_saves_and_loads_without(tmp_path: Path, module: str, names: tuple[str, ...], public: bool) -> None:
    found = found_without([f"{module}.{name}" for name in names], "saves_and_loads", tmp_path)
    assert found["public"] == public


@since(2, 9, "the version of a record")
def test_a_record_has_no_version_where_torch_has_none(tmp_path: Path) -> None:
    name = f"{CHECKPOINT}.filesystem.CURRENT_DCP_VERSION"
    assert found_without([name], "saves_and_loads", tmp_path)["version"] is None
    assert found_without([], "saves_and_loads", tmp_path)["version"]


@pytest.mark.parametrize("name", NEEDED)
def test_without_what_records_name_the_import_says_so(tmp_path: Path, name: str) -> None:
    done = run_without([f"{CHECKPOINT}.{name}"], "saves_and_loads", tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dcp_core.errors.UnsupportedError: torch ")
    assert f"has no {CHECKPOINT}.{name}" in last


@since(2, 7, "stream extensions")
def test_without_extensions_what_they_changed_is_refused(tmp_path: Path) -> None:
    found = found_without([f"{CHECKPOINT}._extension"], "loads_transformed", tmp_path)
    assert found["plain"] == [1.0] * 50
    assert found["compressed"].startswith("UnsupportedError(")
    assert f"{CHECKPOINT}._extension" in found["compressed"]
    found = found_without([], "loads_transformed", tmp_path)
    assert found == {"plain": [1.0] * 50, "compressed": [1.0] * 50}


@pytest.mark.parametrize("name", OF_CHECKPOINT_IDS[:2])
def test_without_the_setup_function_urls_are_refused_as_ids(tmp_path: Path, name: str) -> None:
    found = found_without([name], "urls_as_ids", tmp_path)
    assert f"has no {name}" in found["said"]
    assert found["unchanged"]
    found = found_without([], "urls_as_ids", tmp_path)
    assert (found["said"], found["unchanged"]) == ("", False)
