"""The training of `train.py` in Lightning, with its options but `--resume`.

Run `python train_with_lightning.py --plan gradual.yaml`, or put it behind `torchrun`.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from config import HERE, Config, UserError
from lightning.pytorch import LightningModule, Trainer
from model import MultiTaskMiniLM
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader
from train import (
    choose,
    load,
    load_plan,
    losses_of,
    make_optimizer,
    parse,
    print_scores,
    score,
    totals_of,
)

from freezekit import FreezekitError
from freezekit.integrations.lightning import FreezeCallback, applied_to


class Training(LightningModule):
    """How the model is trained. Its optimizer is that of `train.py`."""

    def __init__(self, model: MultiTaskMiniLM, config: Config) -> None:
        """Takes the model and the settings."""
        super().__init__()
        self.model = model
        self.settings = config

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Returns the sum of both losses."""
        input_ids, mask, *labels = batch
        return sum(losses_of(self.model(input_ids, mask), labels))

    def configure_optimizers(self) -> dict[str, Any]:
        """Returns the optimizer, with the groups of the plan, and a scheduler of torch."""
        optimizer = make_optimizer(self.settings, applied_to(self))
        steps = self.trainer.estimated_stepping_batches
        scheduler = LinearLR(optimizer, start_factor=1, end_factor=0, total_iters=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def train(config: Config, plan_file: Path, output: Path) -> Trainer:
    """Trains under a plan and prints how well the model does on the held-out rows."""
    parts, settings = load(config), config.training
    totals = totals_of(config, len(parts.train))
    plan = load_plan(plan_file, parts.model, totals)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer = Trainer(
        default_root_dir=output,
        max_epochs=settings.epochs,
        devices=processes,
        strategy="ddp_find_unused_parameters_true" if processes > 1 else "auto",
        callbacks=[FreezeCallback(plan, module="model", **totals, guard=True)],
        logger=False,
        enable_checkpointing=False,
    )
    order = torch.Generator().manual_seed(settings.seed)
    batch_size = settings.batch_size // processes
    loader = DataLoader(parts.train, batch_size, shuffle=True, generator=order)
    trainer.fit(Training(parts.model, config), loader)
    scores = score(parts.model, DataLoader(parts.test, settings.batch_size))
    if trainer.is_global_zero:
        print_scores(scores)
    return trainer


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    options = parse(arguments)
    try:
        train(*choose(options), HERE / options.output)
    except (UserError, FreezekitError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
