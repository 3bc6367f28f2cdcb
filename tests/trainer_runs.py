"""Trainings with the Trainer of transformers that several tests look at."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import engines
import torch
from engines import BATCH, EPOCHS, LR, PLAN, WEIGHT_DECAY, Net, Samples, Step
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from freezekit import FreezekitError, FreezePlan
from freezekit.integrations.transformers import FreezeCallback

UNRATED = (
    FreezePlan()
    .freeze("**")
    .unfreeze("head")
    .unfreeze("blocks", at_epoch=1)
    .unfreeze("stem", at_epoch=2)
    .freeze("blocks[0]", at_epoch=4)
)
"""Says what trains when and nothing about rates, so that Trainer's own optimizer will do."""


def arguments(folder: Path | str, **options: object) -> TrainingArguments:
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

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LambdaLR:
        """Makes it once."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(optimizer, engines.decay)
            self._created_lr_scheduler = True
        return self.lr_scheduler


class Recorder(TrainerCallback):
    """Keeps a record of each step."""

    def __init__(self, freeze: FreezeCallback) -> None:
        self.freeze = freeze
        self.steps: list[Step] = []

    def on_optimizer_step(self, *_: object, **known: Any) -> None:  # noqa: ANN401
        optimizer = known["optimizer"].optimizer
        for index, group in enumerate(optimizer.param_groups):
            group.setdefault("name", f"group {index}")
        self.steps.append(engines.seen(known["model"], self.freeze.applied, optimizer))


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
        """Returns how many there are."""
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns one, as the arguments of the model."""
        return self.samples[self.order[index]]


class Texts(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random token ids with a label each."""

    def __init__(self, count: int = 12) -> None:
        generator = torch.Generator().manual_seed(3)
        self.ids = torch.randint(5, 30, (count, 6), generator=generator)

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns one, as the arguments of the model."""
        return {"input_ids": self.ids[index], "labels": self.ids[index, 0] % 2}


def bert() -> BertForSequenceClassification:
    """Returns a tiny BERT with dropout, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=30,
                hidden_size=8,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=8,
                max_position_embeddings=8,
            )
        )


def trainer(
    freeze: FreezeCallback,
    folder: Path | str,
    *others: TrainerCallback,
    model: torch.nn.Module | None = None,
    own_groups: bool = True,
    more: Mapping[str, Any] | None = None,
    **options: object,
) -> Decaying:
    """Returns a Trainer for the shared model or another one.

    Args:
        freeze: the plan.
        folder: for its checkpoints.
        *others: further callbacks.
        model: another model than the shared one, which is fed with texts then.
        own_groups: whether the optimizer has the plan's groups, rather than Trainer's two.
        more: further arguments of Trainer.
        **options: further arguments of the training.
    """
    known: dict[str, Any] = {"train_dataset": Samples() if model is None else Texts()}
    if own_groups:
        known["optimizer_cls_and_kwargs"] = freeze.optimizer()
    known |= more or {}
    if "model_init" not in known:
        known["model"] = Net() if model is None else model
    return Decaying(args=arguments(folder, **options), callbacks=[freeze, *others], **known)


def course(ranks: int = 1, plan: FreezePlan = PLAN, **options: Any) -> list[Step]:  # noqa: ANN401
    """Trains the shared model under a plan and returns its steps.

    Args:
        ranks: how many processes train.
        plan: the plan.
        **options: further arguments of `trainer`.
    """
    freeze = FreezeCallback(plan, guard=True)
    recorder = Recorder(freeze)
    options = {"per_device_train_batch_size": BATCH // ranks, "more": {}} | options
    options["more"] = {"train_dataset": Rows(ranks)} | options["more"]
    with TemporaryDirectory() as folder:
        trainer(freeze, folder, recorder, **options).train()
    return recorder.steps


def in_ranks() -> dict[str, Any]:
    """Returns several courses and what is refused, in one of two processes."""
    with TemporaryDirectory() as folder:
        return {
            "course": course(2),
            "made anew": course(2, more={"model_init": Net}),
            "own optimizer": course(2, UNRATED, own_groups=False),
            "sharded": sharded(folder, swapped=True),
            "sharded of old": sharded(folder, swapped=False),
            "checkpointed": checkpointed(folder),
            "refused": {
                "unused": refusal(folder, ddp_find_unused_parameters=False),
                "static": refusal(folder, ddp_static_graph=True),
                "size": refusal(folder, auto_find_batch_size=True),
                "checkpointed": refusal(folder, bert(), activation_checkpointing=True),
                "frozen at wrap": late(folder),
            },
        }


def checkpointed(folder: str) -> dict[str, torch.Tensor]:
    """Returns a tiny BERT that was trained under activation checkpointing."""
    plan = FreezePlan().freeze("bert").unfreeze("bert.encoder.layer[1:]", at_epoch=1)
    options = {"activation_checkpointing": True, "ddp_find_unused_parameters": True}
    model = bert()
    made = trainer(
        FreezeCallback(plan, guard=True), folder, model=model, num_train_epochs=2,
        per_device_train_batch_size=3, **options,
    )  # fmt: skip
    made.train()
    return model.state_dict()


def sharded(folder: str, *, swapped: bool) -> list[Step]:
    """Trains a sharded model as Trainer does, which needs an accelerator for that.

    Args:
        folder: for nothing.
        swapped: shard parameters by themselves (FSDP2), after the optimizer is built, and give
            them to it; otherwise wrap the model (FSDP1) before.
    """
    rank, freeze, model = torch.distributed.get_rank(), FreezeCallback(PLAN), Net()
    args, state, control = arguments(folder, fsdp=True), TrainerState(), TrainerControl()
    freeze.on_init_end(args, state, control, model=model)
    factory, options = freeze.optimizer()
    whole: Any = model
    if swapped:
        optimizer = factory()(model, **options)
        for part in (*model.blocks, model):
            fully_shard(part)
        named = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [named[name] for name in group["param_names"]]
    else:
        whole = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        optimizer = factory()(whole, **options)
    scheduler = LambdaLR(optimizer, engines.decay)
    batches = list(engines.batches(rank, 2))
    freeze.on_train_begin(
        args, state, control, model=whole, optimizer=optimizer, train_dataloader=batches
    )
    steps = []
    for _ in range(EPOCHS):
        freeze.on_epoch_begin(args, state, control)
        for batch in batches:
            freeze.on_step_begin(args, state, control)
            whole.train()
            whole(**batch)["loss"].backward()
            optimizer.step()
            step = engines.seen(model, freeze.applied, optimizer)
            steps.append(step._replace(weights=gathered(whole, model)))
            scheduler.step()
            optimizer.zero_grad()
            state.global_step += 1
    return steps


def gathered(whole: torch.nn.Module, model: Net) -> dict[str, torch.Tensor]:
    """Returns the whole weights of a sharded model."""
    if isinstance(whole, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(whole):
            return {name: each.detach().clone() for name, each in model.named_parameters()}
    return {name: each.detach().full_tensor() for name, each in model.named_parameters()}


def refusal(folder: str, model: torch.nn.Module | None = None, **options: object) -> str:
    """Returns what is said to a training that would go wrong."""
    plan = PLAN if model is None else FreezePlan().freeze("bert").unfreeze("bert", at_epoch=1)
    try:
        trainer(FreezeCallback(plan), folder, model=model, **options)
    except FreezekitError as error:
        return str(error)
    return ""


def late(folder: str) -> str:
    """Returns what is said where model_init returns a model of which a part is frozen."""

    def frozen() -> Net:
        model = Net()
        model.blocks.requires_grad_(False)
        return model

    made = trainer(FreezeCallback(UNRATED), folder, own_groups=False, more={"model_init": frozen})
    try:
        made.train()
    except FreezekitError as error:
        return str(error)
    return ""
