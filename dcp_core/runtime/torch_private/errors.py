"""What is said where torch has not what is needed, or does something else."""

from __future__ import annotations

import torch

from dcp_core.errors import UnsupportedError

__all__ = ["differs", "lacks"]

_ADVICE = "Use a release of dcp-cloud that knows this torch: docs/compatibility.md has the tested ones"


def lacks(name: str, consequence: str) -> UnsupportedError:
    """The error for a ``name`` that torch does not have, and what follows."""
    return UnsupportedError(f"torch {torch.__version__} has no {name}: {consequence}. {_ADVICE}")


def differs(name: str, what: str) -> UnsupportedError:
    """The error for ``name`` of torch that does something else than in the releases that are known."""
    return UnsupportedError(f"{name} of torch {torch.__version__} {what}. {_ADVICE}")
