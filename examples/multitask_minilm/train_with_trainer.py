"""The training of `train.py` in the Trainer of transformers, with its options but `--resume`.

Run `python train_with_trainer.py --plan gradual.yaml`, or put it behind `torchrun`.
"""

import os
import sys
from pathlib import Path

import torch
from config import HERE, Config, UserError
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
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
from transformers import Trainer, TrainingArguments

from freezekit import FreezekitError
from freezekit.integrations.transformers import FreezeCallback


def rows_of(data: TensorDataset) -> list[dict[str, Tensor]]:
    """Returns the rows with the names that the model gives its inputs; `labels` has both tasks."""
    names = ("input_ids", "attention_mask", "labels")
    *inputs, topic, sentiment = data.tensors
    columns = zip(*inputs, torch.stack([topic, sentiment], dim=1), strict=True)
    return [dict(zip(names, row, strict=True)) for row in columns]


def loss_of(both: tuple[Tensor, Tensor], labels: Tensor, **_: object) -> Tensor:
    """Returns the sum of both losses, from the logits and the labels (B, 2)."""
    return sum(losses_of(both, labels.unbind(dim=1)))


def arguments_of(config: Config, output: Path) -> TrainingArguments:
    """Returns what Trainer has to be told to train as `train.py` does."""
    settings, processes = config.training, int(os.environ.get("WORLD_SIZE", 1))
    return TrainingArguments(
        str(output),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size // processes,
        lr_scheduler_type="linear",
        max_grad_norm=0,
        seed=settings.seed,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def train(config: Config, plan_file: Path, output: Path) -> Trainer:
    """Trains under a plan and prints how well the model does on the held-out rows."""
    parts = load(config)
    totals = totals_of(config, len(parts.train))
    freeze = FreezeCallback(load_plan(plan_file, parts.model, totals), **totals, guard=True)
    trainer = Trainer(
        parts.model,
        arguments_of(config, output),
        train_dataset=rows_of(parts.train),
        callbacks=[freeze],
        compute_loss_func=loss_of,
        # One learning rate for the backbone and one for the heads; with a single one it is
        # optimizer_cls_and_kwargs=freeze.optimizer(torch.optim.AdamW, lr=5e-5).
        optimizer_cls_and_kwargs=(lambda: lambda model: make_optimizer(config, freeze.applied), {}),
    )
    trainer.train()
    scores = score(parts.model, DataLoader(parts.test, config.training.batch_size))
    if trainer.is_world_process_zero():
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
