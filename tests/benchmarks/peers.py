"""The systems that are measured, each in an environment of its own.

Peers pin what they like, so each gets a virtual environment under ``.servers/`` (``dcp_server.install``),
with the torch release that this project is developed with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcp_server import REPOSITORY, install

OURS = "dcp-cloud"
S3TORCHCONNECTOR = "s3torchconnector"
FSSPEC = "fsspec + s3fs"
MSC = "MSC"
TORCH_FILES = "torch files on a RAM disk"
CURL = "curl to /dev/null"


def _pinned(name: str) -> str:
    """The line of a package in the development constraints."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


@dataclass(frozen=True)
class Environment:
    """What ``dcp_server.install`` needs to know."""

    name: str
    requirements: Sequence[str] = ()
    npm_requirements: Sequence[str] = ()


#: https://pypi.org/project/multi-storage-client/ reads where a profile's bucket is from $MSC_CONFIG.
_ENVIRONMENTS: Mapping[str, Environment] = {
    S3TORCHCONNECTOR: Environment(
        "bench-s3torchconnector", (_pinned("torch"), "numpy", "s3torchconnector[dcp]==1.5.0")
    ),
    FSSPEC: Environment("bench-fsspec", (_pinned("torch"), "numpy", "s3fs==2026.9.0")),
    MSC: Environment("bench-msc", (_pinned("torch"), "numpy", "multi-storage-client[boto3]==1.3.1")),
}


def python_of(system: str) -> str:
    """The interpreter to run ``system`` with; installs what is missing."""
    environment = _ENVIRONMENTS.get(system)
    return sys.executable if environment is None else str(install(environment) / "bin" / "python")


def version_of(system: str) -> str:
    """What is measured, with its version."""
    environment = _ENVIRONMENTS.get(system)
    return system if environment is None else environment.requirements[-1].replace("==", " ")


def write_msc_configuration(path: Path, endpoint: str, bucket: str) -> None:
    """The profile that ``msc://bench/`` names in job.py."""
    options = {"base_path": bucket, "endpoint_url": endpoint, "region_name": "us-east-1"}
    profile = {"storage_provider": {"type": "s3", "options": options}}
    path.write_text(json.dumps({"profiles": {"bench": profile}}))
