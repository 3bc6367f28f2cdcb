"""Lightning: the callback in `fit`, two ranks, checkpoints, metrics, what comes before and after."""

import copy
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import (
    EPOCHS,
    LR,
    PLAN,
    STEPS_PER_EPOCH,
    WEIGHT_DECAY,
    Net,
    Step,
    batches,
    check_same_course,
    decay,
    furthest,
    plain,
    seen,
)
from ranks import run_ranks

from freezekit import FreezekitError, FreezePlan, FrozenChangedError, PatternError

pytest.importorskip("lightning")

from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from freezekit.integrations.lightning import FreezeCallback, applied_to

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "Found .* in eval mode at the start of training",
        "The '.*_dataloader' does not have many workers",
        "`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
        "The dataloader.s .* found",
    )
]


class Loader:
    """The batches of an epoch, which know where they are in it."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        """Starts at the first."""
        self.batches = list(batches(rank, ranks))
        self.at = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for index in range(self.at % len(self), len(self)):
            self.at = index + 1
            yield self.batches[index]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Lit(LightningModule):
    """The shared training as a LightningModule."""

    def __init__(self) -> None:
        """Builds the model."""
        super().__init__()
        self.model = Net()

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return self.model(**batch)["loss"]

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.log("val_loss", self.model(**batch)["loss"], batch_size=len(batch["x"]))

    def configure_optimizers(self) -> Any:
        optimizer = applied_to(self).optimizer(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, decay)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Scaled(Lit):
    """Has a parameter outside of the part that the plan is about, and torch's own optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return self.scale * self.model(**batch)["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=LR)


class Record(Callback):
    """Keeps a record of each step, and may end the process after one, as it were."""

    def __init__(self, stop: int | None = None, path: Path | None = None) -> None:
        self.steps: list[Step] = []
        self.stop, self.path = stop, path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
            self.steps.append(seen(pl_module.model, applied_to(pl_module), optimizer))

        self.record = record

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].register_step_post_hook(self.record)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.stop:
            trainer.save_checkpoint(self.path)
            raise Killed


class Killed(Exception):  # noqa: N818
    """The process ends here."""


def trainer(*others: Callback, **options: Any) -> Trainer:
    """Returns a quiet Trainer."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(o, callbacks.Checkpoint) for o in others),
        "max_epochs": EPOCHS,
        "use_distributed_sampler": False,
    }
    return Trainer(callbacks=list(others), **quiet | options)


def fit(*others: Callback, freeze: FreezeCallback | None = None, **options: Any) -> list[Step]:
    """Trains anew and returns the record."""
    record = next((o for o in others if isinstance(o, Record)), None) or Record()
    freeze = freeze or FreezeCallback(PLAN, module="model", guard=True)
    ckpt = options.pop("ckpt_path", None)
    rest = [o for o in others if o is not record]
    trainer(freeze, record, *rest, **options).fit(Lit(), Loader(), Loader(), ckpt_path=ckpt)
    return record.steps


def in_ranks() -> dict[str, Any]:
    """Trains in one of several processes, as torchrun starts them; also what is refused there."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": "0"}
    train = Loader(int(os.environ["RANK"]), 2)
    record = Record()
    freeze = FreezeCallback(PLAN, module="model", guard=True)
    ours = trainer(freeze, record, devices=2, strategy="ddp_find_unused_parameters_true")
    ours.fit(Lit(), train, Loader())
    assert ours.world_size == 2
    said = []
    for strategy in ("ddp", DDPStrategy(static_graph=True, find_unused_parameters=True)):
        ours = trainer(FreezeCallback(PLAN, module="model"), devices=2, strategy=strategy)
        with pytest.raises(FreezekitError) as caught:
            ours.fit(module := Lit(), train, Loader())
        said.append(str(caught.value))
        assert all(each.requires_grad for each in module.parameters())
    fixed = FreezeCallback(FreezePlan().freeze("stem"), module="model")
    trainer(fixed, devices=2, strategy="ddp", max_epochs=1).fit(module := Scaled(), train, Loader())
    return {"steps": record.steps, "said": said, "scale": module.scale.item()}


def test_two_ranks_train_all_phases_as_one_process_does() -> None:
    """Two ranks stay bit-identical through all phases, and agree with the plain loop."""
    first, second = run_ranks("test_lightning_engine:in_ranks")
    alone = plain()
    assert furthest(first["steps"], second["steps"]) == 0.0
    assert furthest(first["steps"], alone) < 1e-5
    check_same_course(first["steps"], alone)
    check_same_course(second["steps"], alone)
    assert first["said"] == second["said"]
    for message, name in zip(first["said"], ("find_unused_", "static_graph"), strict=True):
        assert message.startswith(f"DDP with {name}")
        assert message.endswith("Trainer(strategy='ddp_find_unused_parameters_true')")
    assert first["scale"] == second["scale"] != 1.0


def test_one_process_is_the_plain_loop() -> None:
    """In one process every weight is that of the plain loop at every step, bit for bit."""
    steps, alone = fit(), plain()
    check_same_course(steps, alone)
    assert furthest(steps, alone) == 0.0


@pytest.mark.parametrize("stop", [3, 4, 8, 12])
def test_a_killed_run_goes_on_bit_for_bit(stop: int, tmp_path: Path) -> None:
    """What was saved at the end or in the middle of an epoch goes on as if never stopped."""
    whole, path = fit(), tmp_path / "killed.ckpt"
    with pytest.raises(Killed):
        fit(Record(stop, path))
    check_tail(fit(ckpt_path=path), whole)


def check_tail(resumed: list[Step], whole: list[Step]) -> None:
    """Checks that a run is the end of another, bit for bit."""
    rest = whole[-len(resumed) :]
    for one, other in zip(resumed, rest, strict=True):
        assert (one.trainable, one.lrs) == (other.trainable, other.lrs)
        for name, weight in one.weights.items():
            assert torch.equal(weight, other.weights[name]), name


def test_a_state_of_the_plan_is_not_needed(tmp_path: Path) -> None:
    """A checkpoint that was written without the callback goes on in the phase of its moment."""
    path = tmp_path / "without.ckpt"
    bare = trainer(max_epochs=2)
    bare.fit(module := Scaled(), Loader(), Loader())
    bare.save_checkpoint(path)
    assert torch.load(path, weights_only=False)["callbacks"] == {}
    before = {name: each.detach().clone() for name, each in module.named_parameters()}
    freeze = FreezeCallback(FreezePlan().freeze("model", at_epoch=2).unfreeze("model.head"))
    after = trainer(freeze, max_epochs=3)
    after.fit(module := Scaled(), Loader(), Loader(), ckpt_path=path)
    moved = {n for n, each in module.named_parameters() if not torch.equal(each, before[n])}
    assert moved == {"scale", "model.head.weight", "model.head.bias"}


def test_a_plan_counts_optimizer_updates() -> None:
    """Accumulated batches are one step; a rule opens at the batch that begins its step."""
    plan = FreezePlan().freeze("stem", until_step=3).unfreeze("head", warmup_steps=2, at_step=0)

    class Flags(Callback):
        seen: list[bool] = []

        def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            assert trainer.global_step == len(self.seen)
            self.seen.append(pl_module.model.stem.weight.requires_grad)

    flags = Flags()
    steps = fit(
        flags, freeze=FreezeCallback(plan, module="model"), accumulate_grad_batches=2, max_epochs=3
    )
    assert flags.seen == [False, False, False, True, True, True]
    assert [round(step.lrs["head.weight"] / LR, 2) for step in steps][:3] == [0.5, 0.97, 0.93]


class Two(Lit):
    """Two optimizers, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seen: list[bool] = []

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.seen.append(self.model.stem.weight.requires_grad)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.model(**batch)["loss"])
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        applied = applied_to(self)
        return [
            applied.optimizer(torch.optim.SGD, "head", lr=LR),
            applied.optimizer(torch.optim.SGD, "{stem,blocks}", lr=LR),
        ]


def test_two_optimizers_are_one_update() -> None:
    """With several optimizers a step of the plan is one update of each."""
    plan = FreezePlan().freeze("stem", until_step=2)
    ours = trainer(FreezeCallback(plan, module="model"), max_epochs=2)
    ours.fit(module := Two(), Loader(), Loader())
    assert ours.global_step == 12
    assert module.seen == [False] * 2 + [True] * 4


class Waits(Lit):
    """Measures what is written here."""

    measured = (1.0, 0.5, 0.6, 0.4, 0.3)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        value = 9.0 if self.trainer.sanity_checking else self.measured[self.current_epoch]
        self.log("val_loss", value, batch_size=8)


class WaitsInTraining(Waits):
    """Measures the same at the end of a training epoch."""

    def on_train_epoch_end(self) -> None:
        self.log("val_loss", self.measured[self.current_epoch])


STALL = FreezePlan().freeze("stem").unfreeze("stem", at_metric={"monitor": "val_loss"})
WAITING = {
    "alone": STALL,
    "epochs": STALL.freeze("blocks[0]", at_epoch=1),
    "steps": STALL.freeze("blocks[0]", at_step=3),
}


@pytest.mark.parametrize("unit", WAITING)
@pytest.mark.parametrize("kind", [Waits, WaitsInTraining])
def test_a_metric_opens_once_and_so_after_a_resume(
    unit: str, kind: type[Lit], tmp_path: Path
) -> None:
    """What was measured counts once, at the next moment, also if a checkpoint lies between."""
    validates = [Loader()] if kind is Waits else []

    def run(path: Path | None, *others: Callback, epochs: int = EPOCHS) -> list[Step]:
        freeze, record = FreezeCallback(WAITING[unit], module="model"), Record()
        module = kind()
        if not validates:
            module.validation_step = None
        trainer(freeze, record, *others, max_epochs=epochs).fit(
            module, Loader(), *validates, ckpt_path=path
        )
        return record.steps

    saves = callbacks.ModelCheckpoint(
        tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=kind is not Waits
    )
    whole = run(None, saves)
    assert ["stem.weight" in step.trainable for step in whole] == [False] * 9 + [True] * 6
    for epoch in (1, 2, 3):
        resumed = run(tmp_path / f"epoch={epoch}.ckpt")
        assert len(resumed) == (EPOCHS - 1 - epoch) * STEPS_PER_EPOCH
        check_tail(resumed, whole)
