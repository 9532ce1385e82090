"""TorchTitan's checkpoint managers on real ranks, with its real containers around a small sharded model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset

#: Steps of a job that nothing stops.
STEPS = 5


class Numbers(IterableDataset[Any]):
    """Batches that follow from their number, and that number."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.position += 1
            generator = torch.Generator().manual_seed(1000 * self.position + self.rank)
            yield torch.randn(8, generator=generator)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.position = state_dict["position"]


class TrainState:
    """As the trainer has it."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.step = state_dict["step"]


class Job:
    """One job on this rank: what TorchTitan's trainer builds, and its loop."""

    def __init__(self, config: Any, seed: int = 0) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torchtitan.components.dataloader import ParallelAwareDataloader
        from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw

        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        fully_shard(self.model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        self.optimizers = default_adamw(lr=1e-2).build(model_parts=[self.model])
        schedulers = LRSchedulersContainer.Config().build(optimizers=self.optimizers, training_steps=STEPS)
        self.schedulers = schedulers
        rank, ranks = dist.get_rank(), dist.get_world_size()
        self.loader = ParallelAwareDataloader(Numbers(rank), rank, ranks, batch_size=2)
        self.trained = TrainState()
        self.manager = config.build(
            dataloader=self.loader,
            model_parts=[self.model],
            optimizers=self.optimizers,
            lr_schedulers=schedulers,
            states={"train_state": self.trained},
            sd_adapter=_adapter(),
        )

    def train(self, until: int, steps: int = STEPS) -> dict[int, float]:
        """Train, as a job of ``steps`` steps, until one of them; returns the losses."""
        losses = {}
        batches = iter(self.loader)
        while self.trained.step < until:
            self.trained.step += 1
            loss = self.model(next(batches)).square().mean()
            loss.backward()
            self.manager.maybe_wait_for_staging()
            self.optimizers.step()
            self.schedulers.step()
            self.optimizers.zero_grad()
            losses[self.trained.step] = float(loss)
            self.manager.save(self.trained.step, last_step=self.trained.step == steps)
        self.manager.maybe_wait_for_saving()
        return losses

    def weights(self) -> dict[str, Any]:
        return {name: value.full_tensor().clone() for name, value in self.model.state_dict().items()}

    def close(self) -> None:
        self.manager.close()


def _adapter() -> Any:
    """Names of HuggingFace's for those of the model, in two files."""
    from torchtitan.protocols.state_dict_adapter import StateDictAdapter

    class Adapter(StateDictAdapter):  # type: ignore[misc]
        def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
            return {f"model.{name}": value for name, value in state_dict.items()}

        def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
            return {name.removeprefix("model."): value for name, value in hf_state_dict.items()}

    made = Adapter(None, None)
    made.fqn_to_index_mapping = {f"model.{at}.{kind}": at + 1 for at in (0, 1) for kind in ("weight", "bias")}
    return made


def config_of(kind: str, settings: dict[str, Any]) -> Any:
    """The configuration of TorchTitan's own manager, or of ours."""
    everything = {"enable": True, "interval": 1, "last_save_model_only": False, **settings}
    if kind == "theirs":
        from torchtitan.components.checkpointer import CheckpointManager

        from dcp_core import use_url_checkpoint_ids

        use_url_checkpoint_ids(**everything.pop("options", {}))
        return CheckpointManager.Config(**everything)
    from dcp_core.frameworks.torchtitan import CloudCheckpointManager

    return CloudCheckpointManager.Config(**everything)


@contextlib.contextmanager
def job(kind: str, settings: dict[str, Any], seed: int = 0) -> Iterator[Job]:
    made = Job(config_of(kind, settings), seed)
    if settings.get("async_mode") == "async_with_pinned_mem" and kind == "theirs":
        # as far as it goes without an accelerator: TorchTitan's asks for one
        from dcp_core.frameworks.torchtitan import _stager_without_accelerator

        made.manager.stager = _stager_without_accelerator()
    try:
        yield made
    finally:
        made.close()


def train(kind: str, settings: dict[str, Any], until: int = STEPS) -> dict[int, float]:
    """A new job; returns its losses."""
    with job(kind, settings) as running:
        running.manager.load(settings.get("load_step", -1))
        return running.train(until)


def resume(kind: str, settings: dict[str, Any], step: int = -1) -> tuple[bool, int, dict[int, float]]:
    """A job that begins otherwise, loads and trains on: whether it found anything, where, and its losses."""
    with job(kind, {**settings, "load_only": True}, seed=7) as running:
        found = running.manager.load(step)
        at = running.trained.step
        return found, at, running.train(STEPS)


def load(kind: str, settings: dict[str, Any], step: int = -1) -> tuple[bool, int, dict[str, Any]]:
    """A job that begins otherwise, and loads: whether it found anything, its step, its weights."""
    with job(kind, settings, seed=7) as running:
        found = running.manager.load(step)
        return found, running.trained.step, running.weights()


def save_seed(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What ``create_seed_checkpoint`` does; returns the weights."""
    with job(kind, settings, seed=3) as running:
        running.manager.save(0, last_step=True)
        return running.weights()


def weights_after(kind: str, settings: dict[str, Any], until: int) -> dict[str, Any]:
    """A new job; returns its weights at the end."""
    with job(kind, settings) as running:
        running.manager.load(-1)
        running.train(until)
        return running.weights()


def settings_of(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What is logged of a configuration."""
    logged: dict[str, Any] = config_of(kind, settings).to_dict()
    return logged


def from_command_line(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Our configuration with TorchTitan's command line: its class, and what it says."""
    from torchtitan.config.manager import custom_registry, tyro

    config = tyro.cli(type(config_of("ours", {})), args=arguments, registry=custom_registry)
    return type(config).__qualname__, config.to_dict()


def overridden(settings: dict[str, Any], target: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """TorchTitan's own configuration after ``--override.imports``: its class, what it says, its options."""
    from dataclasses import dataclass

    from torchtitan.config import Configurable
    from torchtitan.config.override import OverrideConfig, apply_overrides, parse_cli_imports

    @dataclass(kw_only=True, slots=True)
    class Tree(Configurable.Config):
        checkpoint: Any

    tree = Tree(checkpoint=config_of("theirs", settings))
    apply_overrides(OverrideConfig(imports=parse_cli_imports([target])), tree)
    return type(tree.checkpoint).__qualname__, tree.checkpoint.to_dict(), tree.checkpoint.options
