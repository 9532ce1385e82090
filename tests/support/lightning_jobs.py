"""What ranks run with Lightning: it takes the group that they have."""

from __future__ import annotations

import importlib
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
BATCHES = 3


class Net(torch.nn.Sequential):
    """Large enough that each of a few ranks has a part."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def shard(net: torch.nn.Module) -> torch.nn.Module:
    """As ``parallelize_fn`` does it, on the mesh of all ranks."""
    for layer in net.children():
        fully_shard(layer)
    return fully_shard(net)


class Model(LightningModule):
    def __init__(self, sharded: bool = False) -> None:
        super().__init__()
        seed_everything(7, verbose=False)
        self.net = Net()
        self.sharded = sharded
        self.losses: list[float] = []

    def configure_model(self) -> None:
        if self.sharded and not hasattr(self.net, "set_requires_gradient_sync"):
            shard(self.net)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.net(batch).square().mean()
        self.losses.append(loss.item())
        self.log("loss", loss, on_step=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def data() -> DataLoader[Any]:
    rows = torch.arange(BATCHES * 4 * 6).reshape(BATCHES * 4, 6) / 10
    return DataLoader(list(rows), batch_size=2)


def strategy(kind: str, world: int, front: str = "trainer", **options: Any) -> Any:
    """A strategy of ours that runs without a GPU."""
    found = importlib.import_module(f"dcp_core.frameworks.lightning.{front}")
    if kind == "fsdp":
        made = type("OnCPU", (_FSDPOnCPU, found.CloudFSDPStrategy), {})(**options)
    else:
        sizes = {"data_parallel_size": world, "tensor_parallel_size": 1}
        if front.endswith("fabric"):
            options["parallelize_fn"] = lambda net, mesh: shard(net)
        made = found.CloudModelParallelStrategy(**sizes, **options)
    return made


class _FSDPOnCPU:
    """torch's first FSDP runs on a CPU only if it is told so, which Lightning has no argument for."""

    def _setup_model(self, model: Any) -> Any:
        return super()._setup_model(self._wrapped(model))  # type: ignore[misc]

    def setup_module(self, module: Any) -> Any:
        return super().setup_module(self._wrapped(module))  # type: ignore[misc]

    def _wrapped(self, model: Any) -> Any:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


def trainer(world: int, strategy: Any, url: str | None, **options: Any) -> Trainer:
    """One that keeps the last two epochs in the folder ``url``."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    # those that Lightning and torch give each other
    warnings.simplefilter("ignore")
    keeping = [ModelCheckpoint(dirpath=url, save_top_k=2, monitor="epoch", mode="max")] if url else []
    return Trainer(
        accelerator="cpu",
        devices=world,
        strategy=strategy,
        callbacks=keeping,
        enable_checkpointing=bool(keeping),
        **{**QUIET, **options},
    )


def fit(kind: str, world: int, url: str, epochs: int, resume: str | None = None, **options: Any) -> Any:
    """Train; the losses of this rank, and all values in the end."""
    model = Model(sharded=kind == "model_parallel")
    running = trainer(world, strategy(kind, world, **options), url, max_epochs=epochs)
    running.fit(model, data(), ckpt_path=resume)
    return model.losses, values(running.strategy.model, running.strategy.optimizers)


def values(model: Any, optimizers: Any) -> dict[str, torch.Tensor]:
    """This rank's part of the values of a model and its optimizers, by name."""
    states = get_state_dict(model, list(optimizers))
    return dict(_tensors("", dict(zip(("model", "optimizer_0"), states, strict=True))))


def _tensors(name: str, value: Any) -> Any:
    if isinstance(value, ShardedTensor):
        for shard in value.local_shards():
            yield name.lstrip("."), shard.tensor.clone()
    elif isinstance(value, torch.Tensor):
        yield name.lstrip("."), getattr(value, "_local_tensor", value).clone()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _tensors(f"{name}.{number}", item)


def fit_stock(world: int, folder: str) -> Any:
    """Train and save with Lightning's own FSDP strategy, to a folder."""
    from lightning.pytorch.strategies import FSDPStrategy

    model = Model()
    own = type("OnCPU", (_FSDPOnCPU, FSDPStrategy), {})(state_dict_type="sharded")
    running = trainer(world, own, None, max_epochs=2)
    running.fit(model, data())
    running.save_checkpoint(Path(folder) / "stock.ckpt")
    return values(running.strategy.model, running.strategy.optimizers)


def save_with_trainer(kind: str, world: int, path: str, **options: Any) -> None:
    running = trainer(world, strategy(kind, world, **options), None, max_epochs=1, limit_train_batches=1)
    running.fit(Model(sharded=kind == "model_parallel"), data())
    running.save_checkpoint(path)


def fabric(kind: str, world: int, front: str, **options: Any) -> Any:
    package = "lightning_fabric" if front.startswith("standalone") else "lightning.fabric"
    made = importlib.import_module(package).Fabric(
        accelerator="cpu", devices=world, strategy=strategy(kind, world, front, **options)
    )
    made.launch()
    return made


class Counter:
    """Something with a state of its own."""

    def __init__(self, count: int) -> None:
        self.count = count

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def fabric_state(kind: str, made: Any, steps: int) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.manual_seed(steps)
    model = made.setup_module(Net())
    optimizer = made.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=0.1))
    for _ in range(steps):
        loss = model(torch.ones(2, 6) * (made.global_rank + 1)).square().mean()
        made.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer, "step": steps, "counter": Counter(steps)}


def save_with_fabric(kind: str, world: int, front: str, url: str, **options: Any) -> Any:
    made = fabric(kind, world, front, **options)
    state = fabric_state(kind, made, 3)
    made.save(url, {**state, "extra": [1, 2]})
    made.strategy.wait_for_saves()
    return plain_values(state)


def load_with_fabric(kind: str, world: int, front: str, url: str) -> Any:
    made = fabric(kind, world, front)
    state = fabric_state(kind, made, 1)
    rest = made.load(url, state)
    return plain_values(state), state["step"], state["counter"].count, rest


def plain_values(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    model, optimizer = state["model"], state["optimizer"]
    # Fabric's wrappers stand around what was given
    return values(model._forward_module, [optimizer.optimizer])


class Plain(Model):
    """On one device, where a checkpoint is one file."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()


def fit_plain(url: str, epochs: int, io: Any, resume: str | None = None) -> list[float]:
    model = Plain()
    running = trainer(1, "auto", url, max_epochs=epochs, plugins=[io])
    running.fit(model, data(), ckpt_path=resume)
    return model.losses
