"""Which warnings end a test: all but those that torch gives of itself.

A warning is attributed to the line that calls what is deprecated, so where this library or its tests do, it
is an error.
"""

from __future__ import annotations

import warnings

import pytest

CATEGORIES = [FutureWarning, DeprecationWarning, UserWarning]


def warn(category: type[Warning], module: str) -> None:
    """What Python does for a warning that is attributed to a line of ``module``."""
    warnings.warn_explicit("this is deprecated", category, f"{module}.py", 1, module=module, registry={})


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("module", ["torch", "torch.distributed.checkpoint.staging"])
def test_torch_may_warn_of_itself(module: str, category: type[Warning]) -> None:
    warn(category, module)


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("module", ["dcp_core.load.fetch", "dcp_s3.store", "test_frames", "torchvision"])
def test_calling_what_is_deprecated_fails(module: str, category: type[Warning]) -> None:
    with pytest.raises(category, match="this is deprecated"):
        warn(category, module)
