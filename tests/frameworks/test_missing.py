"""Frameworks that are not installed: each says how to install it."""

from __future__ import annotations

import importlib
import sys

import pytest

from dcp_core import MissingExtraError
from dcp_core.frameworks.packages import missing


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("accelerate", "accelerate"),
        ("transformers", "transformers"),
        ("torchtitan", "torchtitan"),
        ("torch_checkpointing", "torch_checkpointing"),
        ("lightning.trainer", "lightning"),
    ],
)
def test_a_missing_package_is_one_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    for name in list(sys.modules):
        if name.startswith("dcp_core.frameworks"):
            monkeypatch.delitem(sys.modules, name)
    for name in (package, "pytorch_lightning", "lightning_fabric"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=f"{package}.* is not installed: pip install {package}$"):
        importlib.import_module(f"dcp_core.frameworks.{module}")


def test_what_a_package_itself_lacks_is_not_blamed_on_it() -> None:
    error = ModuleNotFoundError("No module named 'tyro'", name="tyro")
    assert missing("torchtitan", error) is error
