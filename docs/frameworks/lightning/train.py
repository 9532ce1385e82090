"""Train with Lightning, save each epoch at a URL, and go on from the newest whole checkpoint.

::

    torchrun --nproc-per-node=2 train.py s3://bucket/run --epochs 8

Kill it at any time, also while it saves, and start it again: it goes on where the last whole checkpoint was
made. The model is sharded over all ranks (FSDP2), and the last checkpoints are kept.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from dcp_core.frameworks.lightning.trainer import CloudModelParallelStrategy
from dcp_core.frameworks.newest import newest_checkpoint


class Sine(LightningModule):
    """Learns a sine."""

    def __init__(self) -> None:
        super().__init__()
        layers = [torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)]
        self.net = torch.nn.Sequential(*layers)
        self.losses: list[float] = []

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net[0], self.net[2], self.net):
            fully_shard(layer, mesh=mesh)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.net(x), y)
        self.losses.append(loss.item())
        return loss

    def on_train_epoch_end(self) -> None:
        self.print(f"epoch {self.current_epoch}: losses {self.losses}", flush=True)
        self.losses = []

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train at a URL.")
    parser.add_argument("url", help="the folder of the run, such as s3://bucket/run")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--keep", type=int, default=2, help="how many checkpoints to keep")
    given = parser.parse_args()
    given.url = given.url.rstrip("/")

    # before Lightning, which takes the group that is there: one rank looks into the bucket for all
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    newest = newest_checkpoint(given.url, suffix=".ckpt")
    if dist.get_rank() == 0:
        print(f"going on from {newest}", flush=True)

    seed_everything(0, verbose=False)
    x = torch.linspace(-3, 3, 64).unsqueeze(1)
    world = dist.get_world_size()
    trainer = Trainer(
        max_epochs=given.epochs,
        accelerator="auto",
        devices=torch.cuda.device_count() or world,
        num_nodes=world // (torch.cuda.device_count() or world),
        strategy=CloudModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1),
        callbacks=[
            ModelCheckpoint(
                dirpath=given.url,
                filename="{epoch}",
                monitor="epoch",
                mode="max",
                save_top_k=given.keep,
            )
        ],
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(Sine(), DataLoader(TensorDataset(x, x.sin()), batch_size=8, shuffle=True), ckpt_path=newest)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
