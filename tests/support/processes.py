"""Processes forked by a server that has imported everything: each takes a part of a second, not seconds.

What they have in memory after the imports, they share.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

__all__ = ["replace_all_variables", "start"]

_TESTS = Path(__file__).parent.parent
#: Where the modules of the tests are.
_PATH = [str(_TESTS), str(_TESTS.parent / "localstack")]


def start(target: Callable[..., Any], *arguments: Any, daemon: bool = False) -> BaseProcess:
    """Have a new process call ``target(*arguments)``, with this one's environment."""
    _start_server()
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_call, args=(dict(os.environ), target, arguments), daemon=daemon)
    with _without_main():
        process.start()
    return process


def _call(variables: Mapping[str, str], target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    replace_all_variables(variables)
    target(*arguments)


def replace_all_variables(variables: Mapping[str, str]) -> None:
    """Give this process this environment."""
    for name in set(os.environ) - set(variables):
        del os.environ[name]
    os.environ.update(variables)


def _start_server() -> None:
    """Start the server that forks, unless it runs. Python hands its own path on to it only since 3.12."""
    multiprocessing.set_forkserver_preload(["support.warm"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*_PATH, *sys.path])
    try:
        with _without_main():
            multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Spare new processes the import of the program that starts them, which takes longer than all else."""
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
