"""Trainings with the Trainer of transformers that several tests look at."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import engines
import torch
from engines import BATCH, EPOCHS, LR, PLAN, WEIGHT_DECAY, Net, Samples, Step
from transformers import Trainer, TrainerCallback, TrainingArguments

from freezekit import FreezePlan
from freezekit.integrations.transformers import FreezeCallback


def arguments(folder: Path | str, **options: Any) -> TrainingArguments:
    """Returns the arguments of the shared training, or of one that differs from it."""
    shared: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": 0,
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**shared | options)


class Decaying(Trainer):
    """A Trainer with the LR scheduler that all engines share."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Makes it once."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, engines.decay)
            self._created_lr_scheduler = True
        return self.lr_scheduler


class Recorder(TrainerCallback):
    """Keeps a record of each step."""

    def __init__(self, freeze: FreezeCallback) -> None:
        self.freeze = freeze
        self.steps: list[Step] = []

    def on_optimizer_step(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
        self.steps.append(engines.seen(model, self.freeze.applied, optimizer.optimizer))


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The samples of an epoch in the order in which the ranks' loaders give `engines.batches`."""

    def __init__(self, ranks: int) -> None:
        self.samples = Samples()
        self.order = [
            row
            for start in range(0, len(self.samples), BATCH)
            for rank in range(ranks)
            for row in range(start + rank, start + BATCH, ranks)
        ]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.samples[self.order[index]]


def course(
    ranks: int = 1, plan: FreezePlan = PLAN, *, own_groups: bool = True, **options: Any
) -> list[Step]:
    """Trains the shared model under a plan and returns its steps.

    Args:
        ranks: how many processes train.
        plan: the plan.
        own_groups: whether the optimizer has the plan's groups, rather than Trainer's two.
        **options: further arguments of the training.
    """
    freeze = FreezeCallback(plan, guard=True)
    recorder = Recorder(freeze)
    more = {"optimizer_cls_and_kwargs": freeze.optimizer()} if own_groups else {}
    options = {"per_device_train_batch_size": BATCH // ranks} | options
    with TemporaryDirectory() as folder:
        Decaying(
            Net(),
            arguments(folder, **options),
            train_dataset=Rows(ranks),
            callbacks=[freeze, recorder],
            **more,
        ).train()
    return recorder.steps


def in_ranks() -> list[Step]:
    """Trains in one of two processes."""
    return course(2)


def names(steps: Sequence[Step]) -> list[int]:
    """Returns how many parameters train at each step."""
    return [len(step.trainable) for step in steps]
