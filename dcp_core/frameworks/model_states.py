"""Models and their optimizers as state dicts, whatever they are sharded with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import Module
from torch.optim import Optimizer

from dcp_core.errors import ConfigurationError

__all__ = ["get_states", "owners", "set_states"]


def owners(models: Sequence[Module], optimizers: Sequence[Optimizer]) -> list[tuple[Module, Optimizer]]:
    """Each optimizer with the model whose parameters it has.

    Raises:
        ConfigurationError: there are several models, and not as many optimizers.
    """
    if len(models) == 1:
        return [(models[0], one) for one in optimizers]
    if optimizers and len(models) != len(optimizers):
        raise ConfigurationError(
            f"{len(optimizers)} optimizers of {len(models)} models: which belongs to which is not known"
        )
    return list(zip(models, optimizers, strict=False))


def get_states(
    models: Mapping[str, Module],
    optimizers: Mapping[str, tuple[Module, Optimizer]],
    *,
    to_cpu: bool = False,
) -> dict[str, Any]:
    """State dicts by name, with this rank's part of the tensors.

    Args:
        to_cpu: copies on the CPU, to be saved; otherwise what is loaded goes straight into place.
    """
    options = StateDictOptions(cpu_offload=to_cpu)
    found: dict[str, Any] = {
        name: get_model_state_dict(model, options=options) for name, model in models.items()
    }
    for name, (model, optimizer) in optimizers.items():
        found[name] = get_optimizer_state_dict(model, optimizer, options=options)
    return found


def set_states(
    states: Mapping[str, Any],
    models: Mapping[str, Module],
    optimizers: Mapping[str, tuple[Module, Optimizer]],
    *,
    strict: bool = True,
) -> None:
    """Put states that were loaded into models and optimizers."""
    for name, model in models.items():
        set_model_state_dict(model, states[name], options=StateDictOptions(strict=strict))
    for name, (model, optimizer) in optimizers.items():
        set_optimizer_state_dict(model, optimizer, states[name])
