"""Names below the URL of a run.

::

    <run>/step-<n>/…               the checkpoint of step n
    <run>/.run/owner               the job that saves here
    <run>/.run/leases/<n>/<id>     step n is being loaded
"""

from __future__ import annotations

import re

from dcp_core.errors import ConfigurationError

__all__ = ["LEASES", "OWNER", "lease_name", "step_name", "step_of", "step_of_lease"]

OWNER = ".run/owner"
LEASES = ".run/leases/"

_STEP = re.compile(r"step-(0|[1-9]\d*)")


def step_name(step: int) -> str:
    """The folder of ``step``, below the run's URL.

    Raises:
        ConfigurationError: ``step`` is not a whole number from 0.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ConfigurationError(f"a step is a whole number from 0, got {step!r}")
    return f"step-{step}"


def step_of(folder: str) -> int | None:
    """The step of a folder's name; ``None`` if it is no step's."""
    match = _STEP.fullmatch(folder)
    return int(match[1]) if match else None


def lease_name(step: int, lease: str) -> str:
    """The name of a lease on ``step``."""
    return f"{LEASES}{step}/{lease}"


def step_of_lease(name: str) -> int | None:
    """The step that the object ``name`` is a lease on."""
    step = name.removeprefix(LEASES).partition("/")[0]
    return int(step) if name.startswith(LEASES) and step.isdecimal() else None
