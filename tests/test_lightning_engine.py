"""Lightning: the callback in `fit`, two ranks, checkpoints, metrics, what is left afterwards."""

import copy
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import (
    BATCH,
    EPOCHS,
    LR,
    PLAN,
    STEPS_PER_EPOCH,
    WEIGHT_DECAY,
    Net,
    Samples,
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
from freezekit.cache import ActivationCache

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
        "The dirpath has changed from",
        r"`\.fit\(ckpt_path=None\)` was called without a model",
        r"\.fit\(ckpt_path=\"last\"\) is set, but there is no last checkpoint",
    )
]

VALIDATION = torch.utils.data.DataLoader(Samples(), batch_size=BATCH)


class Loader:
    """The batches of an epoch, which know where they are in it."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        """Starts at the first."""
        self.batches = list(batches(rank, ranks))
        self.at = 0

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields those that are left, or all."""
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

    def configure_optimizers(self) -> dict[str, object]:
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

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.stop:
            trainer.save_checkpoint(self.path)
            raise Killed


class Killed(Exception):  # noqa: N818
    """The process ends here."""


def trainer(*others: Callback, **options: object) -> Trainer:
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
        "limit_val_batches": 1,
    }
    return Trainer(callbacks=list(others), **quiet | options)


def fit(*others: Callback, freeze: FreezeCallback | None = None, **options: object) -> list[Step]:
    """Trains anew and returns the record."""
    record = next((o for o in others if isinstance(o, Record)), None) or Record()
    freeze = freeze or FreezeCallback(PLAN, module="model", guard=True)
    ckpt = options.pop("ckpt_path", None)
    rest = [o for o in others if o is not record]
    trainer(freeze, record, *rest, **options).fit(Lit(), Loader(), VALIDATION, ckpt_path=ckpt)
    return record.steps


def in_ranks() -> dict[str, Any]:
    """Trains in one of several processes, as torchrun starts them; also what is refused there."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": "0"}
    train = Loader(int(os.environ["RANK"]), 2)
    record = Record()
    freeze = FreezeCallback(PLAN, module="model", guard=True)
    ours = trainer(freeze, record, devices=2, strategy="ddp_find_unused_parameters_true")
    ours.fit(Lit(), train, VALIDATION)
    assert ours.world_size == 2
    said = []
    for strategy in ("ddp", DDPStrategy(static_graph=True, find_unused_parameters=True)):
        ours = trainer(FreezeCallback(PLAN, module="model"), devices=2, strategy=strategy)
        with pytest.raises(FreezekitError) as caught:
            ours.fit(module := Lit(), train, VALIDATION)
        said.append(str(caught.value))
        assert all(each.requires_grad for each in module.parameters())
    fixed = FreezeCallback(FreezePlan().freeze("stem"), module="model")
    trainer(fixed, devices=2, strategy="ddp", max_epochs=1).fit(
        module := Scaled(), train, VALIDATION
    )
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
    bare.fit(module := Scaled(), Loader(), VALIDATION)
    bare.save_checkpoint(path)
    assert torch.load(path, weights_only=False)["callbacks"] == {}
    before = {name: each.detach().clone() for name, each in module.named_parameters()}
    freeze = FreezeCallback(FreezePlan().freeze("model", at_epoch=2).unfreeze("model.head"))
    after = trainer(freeze, max_epochs=3)
    after.fit(module := Scaled(), Loader(), VALIDATION, ckpt_path=path)
    moved = {n for n, each in module.named_parameters() if not torch.equal(each, before[n])}
    assert moved == {"scale", "model.head.weight", "model.head.bias"}


def test_a_plan_counts_optimizer_updates() -> None:
    """Accumulated batches are one step; a rule opens at the batch that begins its step."""
    plan = FreezePlan().freeze("stem", until_step=3).unfreeze("head", warmup_steps=2, at_step=0)

    class Flags(Callback):
        def __init__(self) -> None:
            self.seen: list[bool] = []

        def on_before_zero_grad(
            self, trainer: Trainer, pl_module: LightningModule, *_: object
        ) -> None:
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
    ours.fit(module := Two(), Loader(), VALIDATION)
    assert ours.global_step == 12
    assert module.seen == [False] * 2 + [True] * 4


class Waits(Lit):
    """Measures what is written here."""

    measured = (1.0, 0.5, 0.6, 0.4, 0.3)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        value = 0.1 if self.trainer.sanity_checking else self.measured[self.current_epoch]
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
    validates = [VALIDATION] if kind is Waits else []

    def run(folder: str, path: Path | None = None) -> list[Step]:
        freeze, record = FreezeCallback(WAITING[unit], module="model"), Record()
        saves = callbacks.ModelCheckpoint(
            tmp_path / folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=not validates
        )
        module = kind()
        if not validates:
            module.validation_step = None
        trainer(freeze, record, saves).fit(module, Loader(), *validates, ckpt_path=path)
        return record.steps

    whole = run("whole")
    assert ["stem.weight" in step.trainable for step in whole] == [False] * 9 + [True] * 6
    for epoch in (1, 2):
        resumed = run(f"resumed {epoch}", tmp_path / "whole" / f"epoch={epoch}.ckpt")
        assert len(resumed) == (EPOCHS - 1 - epoch) * STEPS_PER_EPOCH
        check_tail(resumed, whole)


def test_a_metric_is_not_seen_again_before_it_is_measured_again() -> None:
    """Where validation is rarer than epochs, nothing is counted twice."""

    class Rare(Waits):
        measured = (9.0, 0.5, 9.0, 0.4, 9.0)

    record = Record()
    freeze = FreezeCallback(STALL.freeze("blocks[0]", at_epoch=1), module="model")
    ours = trainer(freeze, record, check_val_every_n_epoch=2)
    ours.fit(Rare(), Loader(), VALIDATION)
    assert not any("stem.weight" in step.trainable for step in record.steps)
    assert freeze.state_dict()["plan"]["metrics"]["best"] == pytest.approx(0.4)


def test_of_several_validations_in_an_epoch_the_last_counts() -> None:
    """A plan that counts in epochs sees one value per epoch, that of its end."""

    class Often(Waits):
        def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
            step = self.trainer.global_step
            self.log("val_loss", 0.1 if step < 3 else 10.0 - step, batch_size=8)

    record = Record()
    freeze = FreezeCallback(STALL.freeze("blocks[0]", at_epoch=1), module="model")
    trainer(freeze, record, val_check_interval=1, max_epochs=3).fit(Often(), Loader(), VALIDATION)
    assert not any("stem.weight" in step.trainable for step in record.steps)
    assert freeze.state_dict()["plan"]["metrics"]["best"] == 4.0


def test_the_learning_rate_monitor_shows_the_groups(tmp_path: Path) -> None:
    """Lightning's own monitor logs the lr of each group under our name of it."""

    class Logs(Lit):
        def on_train_batch_start(self, batch: object, index: int) -> None:
            self.log_dict({f"lr/{name}": lr for name, lr in applied_to(self).lrs().items()})

    monitor = callbacks.LearningRateMonitor("step")
    logger = CSVLogger(tmp_path)
    freeze = FreezeCallback(PLAN, module="model")
    ours = trainer(freeze, monitor, logger=logger, log_every_n_steps=1, max_epochs=2)
    ours.fit(Logs(), Loader(), VALIDATION)
    with PLAN.apply(Net()) as applied:
        groups = {group["name"]: group["lr"] for group in applied.param_groups(lr=LR)}
    assert len(groups) == 8
    assert set(monitor.lrs) == {f"lr-AdamW/{name}" for name in groups}
    for name, lr in groups.items():
        assert monitor.lrs[f"lr-AdamW/{name}"] == pytest.approx([lr * decay(n) for n in range(6)])
    effective = {name: ours.logged_metrics[f"lr/{name}"].item() for name in groups}
    assert effective["head.weight"] == pytest.approx(LR * decay(5))
    assert effective["stem.weight"] == 0.0


class Watches(Scaled):
    """Notes modes and flags in each kind of step."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: dict[str, list[tuple[bool, bool]]] = {"fit": [], "validate": [], "test": []}

    def note(self, kind: str) -> None:
        self.modes[kind].append((self.model.stem.training, self.model.head.training))

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        self.note("fit")
        return super().training_step(batch, index)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.note("validate")

    def test_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.note("test")


def test_held_modules_stay_so_through_validation_and_all_is_given_back() -> None:
    """What is frozen is in eval in training, all is in validation; after `fit` no trace is left."""
    freeze = FreezeCallback(FreezePlan().freeze("stem", until_step=5), module="model")
    ours = trainer(freeze, max_epochs=3, val_check_interval=1)
    module = Watches()
    module.model.blocks[0].eval()
    ours.validate(module, VALIDATION, verbose=False)
    ours.fit(module, Loader(), VALIDATION)
    ours.test(module, VALIDATION, verbose=False)
    assert module.modes["fit"] == [(False, True)] * 5 + [(True, True)] * 4
    assert set(module.modes["validate"] + module.modes["test"]) == {(False, False)}
    assert len(module.modes["validate"]) == 1 + 1 + 9
    assert all(each.requires_grad for each in module.parameters())
    eval_only = {id(each) for each in module.model.blocks[0].modules()}
    assert all(each.training != (id(each) in eval_only) for each in module.modules())
    for each in module.modules():
        assert {"train", "_freezekit"}.isdisjoint(vars(each))
    with pytest.raises(FreezekitError, match=r"applied while Trainer\.fit runs"):
        freeze.applied  # noqa: B018


def test_a_second_fit_goes_on_with_the_plan() -> None:
    """The same Trainer goes on where it stopped, as in one fit; another one starts anew."""
    plan = STALL.freeze("blocks[0]", at_epoch=4)

    def run(*epochs: int) -> list[Step]:
        freeze, record, module = FreezeCallback(plan, module="model"), Record(), Waits()
        module.configure_optimizers = lambda: torch.optim.SGD(
            applied_to(module).param_groups(lr=LR)
        )
        ours = trainer(freeze, record)
        for end in epochs:
            ours.fit_loop.max_epochs = end
            ours.fit(module, Loader(), VALIDATION)
        assert freeze._trainer is ours
        return record.steps

    whole, parts = run(5), run(3, 5)
    assert len(whole) == len(parts) == 15
    check_tail(parts, whole)
    freeze = FreezeCallback(plan, module="model")
    first, second = (fit(freeze=freeze) for _ in range(2))
    assert furthest(first, second) == 0.0


def test_validate_is_not_the_plans_affair() -> None:
    """What `validate` measures before a fit does not count in it, and it works after a fit."""
    freeze, record, module = FreezeCallback(STALL, module="model"), Record(), Waits()
    module.measured = (*Waits.measured, 0.0)  # It is asked in the epoch after the last, too.
    ours = trainer(freeze, record)
    ours.validate(module, VALIDATION, verbose=False)
    ours.fit(module, Loader(), VALIDATION)
    ours.validate(module, VALIDATION, verbose=False)
    assert ["stem.weight" in step.trainable for step in record.steps] == [False] * 9 + [True] * 6


@pytest.mark.parametrize("settings", [{}, {"total_epochs": 3}])
def test_fractions_are_of_the_epochs_of_the_fit(settings: dict[str, int]) -> None:
    """`at_fraction` is of the Trainer's `max_epochs`, or of the total that is given."""
    plan = FreezePlan().freeze("stem").unfreeze("stem", at_fraction=0.5)
    steps = fit(freeze=FreezeCallback(plan, module="model", **settings), max_epochs=5)
    opened = ["stem.weight" in step.trainable for step in steps].index(True)
    assert opened == (2 if settings else 3) * STEPS_PER_EPOCH


def test_an_exception_releases_the_model(tmp_path: Path) -> None:
    """After a failed fit the model is as before, and what is saved then still has the state."""
    saves = callbacks.OnExceptionCheckpoint(tmp_path)
    module, freeze = Lit(), FreezeCallback(PLAN, module="model", guard=True)
    ours = trainer(freeze, Record(5, tmp_path / "x.ckpt"), saves)
    with pytest.raises(Killed):
        ours.fit(module, Loader(), VALIDATION)
    assert all(each.requires_grad and module.training for each in module.parameters())
    states = [
        torch.load(path, weights_only=True)["callbacks"]["FreezeCallback"]
        for path in (tmp_path / "x.ckpt", saves.ckpt_path)
    ]
    assert states[0] == states[1] == freeze.state_dict()
    assert states[0]["plan"]["clock"] == {"epoch": 1, "step": 4}
    ours = trainer(freeze)
    ours.fit(module, Loader(), VALIDATION)
    module.configure_optimizers = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        ours.fit(module, Loader(), VALIDATION)
    assert all(each.requires_grad and module.training for each in module.parameters())


def test_a_checkpoint_loads_without_the_callback(tmp_path: Path) -> None:
    """The weights that `ModelCheckpoint` saved load into a module that knows of no plan."""
    saves = callbacks.ModelCheckpoint(tmp_path)
    steps = fit(saves)
    module = Lit.load_from_checkpoint(saves.best_model_path, weights_only=True)
    assert all(each.requires_grad and each.is_leaf for each in module.parameters())
    for name, weight in module.model.named_parameters():
        assert torch.equal(weight, steps[-1].weights[name])


@pytest.mark.parametrize("late", [False, True])
def test_the_guard_sees_what_is_written_to_frozen_weights(late: bool) -> None:
    """What changes frozen weights, within an epoch or between two, ends the fit at that epoch."""

    class Writes(Callback):
        def write(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                pl_module.model.blocks[0].linear.bias.data.add_(1)

        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, *_: object
        ) -> None:
            if not late:
                self.write(trainer, pl_module)

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if late:
                self.write(trainer, pl_module)

    record = Record()
    with pytest.raises(FrozenChangedError) as caught:
        fit(record, Writes())
    assert caught.value.names == ("blocks.0.linear.bias",)
    assert len(record.steps) == 6
    assert len(fit(Writes(), freeze=FreezeCallback(PLAN, module="model"))) == 15


def test_the_guard_is_on_when_a_run_goes_on_within_an_epoch(tmp_path: Path) -> None:
    """The rest of an epoch that a checkpoint lies in is guarded too."""

    class Writes(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Lit, *_: object) -> None:
            pl_module.model.blocks[0].linear.bias.data.add_(1)

    path = tmp_path / "killed.ckpt"
    with pytest.raises(Killed):
        fit(Record(4, path))
    record = Record()
    with pytest.raises(FrozenChangedError):
        fit(Writes(), record, ckpt_path=path)
    assert len(record.steps) == 2


def test_an_optimizer_built_by_hand_is_attached() -> None:
    """What the plan does inside steps is done in those of the optimizer that the user builds."""

    class ByHand(Lit):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(applied_to(self).param_groups(lr=LR))

    plan, record = FreezePlan().group("head", lr_mult=0.5, at_epoch=1), Record()
    ours = trainer(FreezeCallback(plan, module="model"), record, max_epochs=2)
    ours.fit(ByHand(), Loader(), VALIDATION)
    assert [step.lrs["head.bias"] for step in record.steps] == [LR] * 3 + [LR / 2] * 3
    assert {step.lrs["stem.bias"] for step in record.steps} == {LR}


class Late(Lit):
    """Builds a layer when it is set up."""

    def setup(self, stage: str) -> None:
        self.extra = torch.nn.Linear(1, 1)


def test_mistakes_are_refused_with_the_way_out() -> None:
    """Two callbacks, layers that come late, a wrong path, no callback: each says what to do."""
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `FreezeCallb"):
        trainer(FreezeCallback(PLAN), FreezeCallback(PLAN))
    with pytest.raises(PatternError) as caught:
        trainer(FreezeCallback(FreezePlan().freeze("extra"))).fit(Late(), Loader(), VALIDATION)
    assert any("build them in __init__" in note for note in caught.value.__notes__)
    with pytest.raises(FreezekitError, match=r"not know 2 parameters: extra\.weight.*in __init__"):
        trainer(FreezeCallback(FreezePlan().freeze("model.stem"))).fit(Late(), Loader(), VALIDATION)
    with pytest.raises(FreezekitError, match=r"no part 'net'.*: model"):
        trainer(FreezeCallback(PLAN, module="net")).fit(Lit(), Loader(), VALIDATION)
    with pytest.raises(FreezekitError, match=r"^applied_to: this Trainer has no FreezeCallback"):
        trainer().fit(Lit(), Loader(), VALIDATION)
    with pytest.raises(FreezekitError, match=r"^FreezeCallback takes a FreezePlan, got str"):
        FreezeCallback("plan.yaml")


def test_a_callback_is_copied_and_pickled_without_what_it_works_on() -> None:
    """In the middle of a fit copies of it hold the plan and the settings alone."""
    made: list[FreezeCallback] = []

    class Copies(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            callback = trainer.callbacks[0]
            made.extend([copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))])

    steps = fit(Copies())
    assert len(made) == 10
    for each in made[-2:]:
        assert "log" not in vars(each)
        assert each.plan == PLAN
        assert furthest(fit(freeze=each), steps) == 0.0


class Cached(Record):
    """Keeps a cache on the model while it trains."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.cache = ActivationCache(applied_to(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stats = self.cache.stats()
        self.cache.close()


def test_a_cache_answers_in_a_fit() -> None:
    """Three phases come from one epoch over the store, and the course is the plain loop's."""
    cached = Cached()
    steps = fit(cached)
    check_same_course(steps, plain())
    assert furthest(steps, plain()) < 1e-6
    rows = STEPS_PER_EPOCH * BATCH
    assert cached.stats.misses == rows
    assert cached.stats.hits >= 2 * rows  # validation batches too
