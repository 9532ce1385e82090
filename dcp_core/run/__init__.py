"""A training run: checkpoints by step below one URL.

::

    layout.py      names: step-<n>, and the run's own objects
    steps.py       which steps are there: one listing
    owner.py       which job saves here
    leases.py      which steps are being loaded
    retention.py   which steps may go                          pure
    deletion.py    taking a step away, safely beside loads
    run.py         CheckpointRun
"""

from dcp_core.run.retention import Best
from dcp_core.run.run import CheckpointRun
from dcp_core.run.steps import StepInfo

__all__ = ["Best", "CheckpointRun", "StepInfo"]
