"""Train with Accelerate, save at a URL, and go on from the newest whole checkpoint.

::

    accelerate launch --use_fsdp --fsdp_version 2 train.py s3://bucket/run      on GPUs
    torchrun --nproc-per-node=2 train.py s3://bucket/run                        anywhere

Kill it at any time, also while it saves, and start it again: it goes on where the last whole checkpoint was
made. The last checkpoints are kept.
"""

from __future__ import annotations

import argparse

import torch
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, TensorDataset

from dcp_core.frameworks.accelerate import CloudAccelerator
from dcp_core.frameworks.keep import keep_newest
from dcp_core.frameworks.newest import newest_checkpoint


class Progress:
    """How far the training is; Accelerate saves it with the rest."""

    def __init__(self) -> None:
        self.epoch = 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train at a URL.")
    parser.add_argument("url", help="the folder of the run, such as s3://bucket/run")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--keep", type=int, default=2, help="how many checkpoints to keep")
    given = parser.parse_args()
    given.url = given.url.rstrip("/")

    # so that an epoch's order of samples is the same again
    order = DataLoaderConfiguration(use_seedable_sampler=True)
    accelerator = CloudAccelerator(cpu=not torch.cuda.is_available(), dataloader_config=order)
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 64).unsqueeze(1)
    model = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = DataLoader(TensorDataset(x, x.sin()), batch_size=8, shuffle=True)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)

    # one rank looks for all
    newest = newest_checkpoint(given.url)
    accelerator.print(f"going on from {newest}", flush=True)
    if newest is not None:
        accelerator.load_state(newest)

    while progress.epoch < given.epochs:
        losses = []
        data.set_epoch(progress.epoch)
        for inputs, wanted in data:
            loss = torch.nn.functional.mse_loss(model(inputs), wanted)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        accelerator.print(f"epoch {progress.epoch}: losses {losses}", flush=True)
        progress.epoch += 1
        accelerator.save_state(f"{given.url}/epoch-{progress.epoch}")
        if accelerator.is_main_process:
            keep_newest(given.url, given.keep, "epoch-")
    accelerator.end_training()


if __name__ == "__main__":
    main()
