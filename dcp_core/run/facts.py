"""What is worth knowing of a save later: when, where, of which code, with which metrics."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dcp_core.errors import ConfigurationError
from dcp_core.run.ranks import world_size

__all__ = ["gather_facts"]


def gather_facts(
    step: int, metrics: Mapping[str, float] | None, own: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The facts of a save that starts now.

    Raises:
        ConfigurationError: a metric is no number, or a fact of the user's is none of JSON's types.
    """
    found = {
        "step": step,
        "time": time.time(),
        "metrics": _numbers(metrics or {}),
        "world_size": world_size(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "dcp_cloud": _version("dcp-cloud"),
        "git": _commit(),
        "own": dict(own or {}),
    }
    try:
        json.dumps(found)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"facts must be of JSON's types: {error}") from error
    return {name: value for name, value in found.items() if value not in (None, {})}


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"a metric is a number: {error}") from error


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@cache
def _commit() -> str | None:
    """The commit of the repository that the job was started in, if it was."""
    # --exclude=* leaves tags out: the hash alone
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
