"""Lightning's fit with finetuning-scheduler or `BackboneFinetuning`, beside `FreezeCallback`."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import torch

from freezekit import FreezePlan
from freezekit.cache import ActivationCache

from .minilm import HEADS, Batch, Task, load_task, losses_of
from .peers_timing import Rounds, Show, Turn

SENTENCES, BATCH, RATE = 32, 8, 1e-4
STAGE, IN_STAGES, AT_ONCE = 2, 6, 3
"""Epochs of a phase, of a fit in three phases, and of one that opens the backbone at once."""
_LAYER = r"model\.backbone\.encoder\.layer\.{}\..*"
_HEADS = [r"model\.cls_head\..*", r"model\.sent_head\..*"]

Optimizer = Callable[[Any], torch.optim.Optimizer]


class Fit(NamedTuple):
    """What the hook that enters each epoch took, and the loss of each step."""

    entering: list[float]
    losses: list[float]


class Way(NamedTuple):
    """A way to fit: the callbacks, of which the first enters the epochs, and the optimizer."""

    callbacks: Callable[[], list[Any]]
    optimizer: Optimizer
    epochs: int = IN_STAGES


@cache
def _module() -> type[Any]:
    """Returns the LightningModule; its class is made once Lightning is asked for."""
    from lightning.pytorch import LightningModule

    class Sentences(LightningModule):
        """Trains the example's model; `backbone` is where BackboneFinetuning looks for it."""

        def __init__(self, model: torch.nn.Module, optimizer: Optimizer) -> None:
            super().__init__()
            self.model = model
            self.losses: list[float] = []
            self._optimizer = optimizer

        @property
        def backbone(self) -> torch.nn.Module:
            return self.model.backbone

        def training_step(self, batch: Batch, index: int) -> torch.Tensor:
            total = sum(losses_of(self.model(batch.input_ids, batch.mask), batch.labels))
            self.losses.append(total.item())
            return total

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self._optimizer(self)

    return Sentences


def stages(mode: str | None = None) -> FreezePlan:
    """Returns the plan of three phases."""
    held = FreezePlan().freeze("backbone", frozen_mode=mode) if mode else HEADS
    top = held.unfreeze("backbone.encoder.layer[-1]", at_epoch=STAGE)
    return top.unfreeze("backbone.encoder.layer[-2]", at_epoch=2 * STAGE)


def at_once(mode: str | None = None) -> FreezePlan:
    """Returns the plan that opens all of the backbone but its pooler, at a tenth of the rate."""
    held = FreezePlan().freeze("backbone", frozen_mode=mode) if mode else HEADS
    return held.unfreeze("backbone", lr_mult=0.1, at_epoch=STAGE)


def _by_hand(module: Any, *, fused: bool) -> torch.optim.Optimizer:  # noqa: ANN401
    """Returns an optimizer over what is trainable as the fit begins, as both peers want it."""
    trained = [each for each in module.parameters() if each.requires_grad]
    return torch.optim.AdamW(trained, lr=RATE, fused=fused or None)


def _by_plan(module: Any, *, fused: bool) -> torch.optim.Optimizer:  # noqa: ANN401
    """Returns the optimizer with the plan's groups."""
    from freezekit.integrations.lightning import applied_to

    return applied_to(module).optimizer(torch.optim.AdamW, lr=RATE, fused=fused or None)


def _ours(plan: FreezePlan, *, cached: bool = False) -> list[Any]:
    """Returns freezekit's callback, and on demand one that answers from a cache."""
    from lightning.pytorch import Callback

    from freezekit.integrations.lightning import FreezeCallback, applied_to

    class Caching(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401
            self._cache = ActivationCache(applied_to(pl_module))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401
            assert self._cache.stats().hits > self._cache.stats().misses
            self._cache.close()

    return [FreezeCallback(plan, module="model"), *([Caching()] if cached else [])]


def _scheduler() -> list[Any]:
    """Returns finetuning-scheduler's callback, going by epochs and restoring nothing."""
    peer = import_module("finetuning_scheduler")
    schedule = {
        0: {"params": _HEADS, "max_transition_epoch": STAGE},
        1: {"params": [_LAYER.format(5)], "max_transition_epoch": 2 * STAGE, "lr": RATE},
        2: {"params": [_LAYER.format(4)], "max_transition_epoch": IN_STAGES, "lr": RATE},
    }
    made = peer.FinetuningScheduler(
        ft_schedule=schedule, epoch_transitions_only=True, restore_best=False
    )
    return [made, peer.FTSCheckpoint(monitor="loss", save_top_k=0)]


def _backbone() -> list[Any]:
    """Returns Lightning's own callback, with a rate of the backbone that stays what it is."""
    from lightning.pytorch.callbacks import BackboneFinetuning

    return [
        BackboneFinetuning(
            STAGE, lambda epoch: 1.0, backbone_initial_ratio_lr=0.1, initial_denom_lr=1.0
        )
    ]


def fit(task: Task, batches: Sequence[Batch], way: Way, rests: Callable[[], None]) -> Fit:
    """Fits a copy of the model, and rests after each batch."""
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Resting(Callback):
        def on_train_batch_end(self, *_: Any) -> None:  # noqa: ANN401
            rests()

    module = _module()(copy.deepcopy(task.model).train(), way.optimizer)
    callbacks: list[Any] = [*way.callbacks(), Resting()]
    entering: list[float] = []
    enters = callbacks[0].on_train_epoch_start

    def timed(*arguments: Any) -> None:  # noqa: ANN401
        start = process_time()
        enters(*arguments)
        entering.append(process_time() - start)

    callbacks[0].on_train_epoch_start = timed
    if not any(isinstance(each, ModelCheckpoint) for each in callbacks):
        callbacks.append(ModelCheckpoint(save_top_k=0))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=way.epochs, accelerator="cpu", logger=False, callbacks=callbacks,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return Fit(entering, module.losses)


def ways(*, fused: bool) -> tuple[dict[str, Way], dict[str, Way]]:
    """Returns the ways to fit in three phases, and those that open the backbone at once."""
    by_hand, by_plan = partial(_by_hand, fused=fused), partial(_by_plan, fused=fused)
    return {
        "peer": Way(_scheduler, by_hand),
        "plan, train": Way(partial(_ours, stages("train")), by_plan),
        "plan": Way(partial(_ours, stages()), by_plan),
        "cached": Way(partial(_ours, stages(), cached=True), by_plan),
    }, {
        "peer": Way(_backbone, by_hand, AT_ONCE),
        "plan, train": Way(partial(_ours, at_once("train")), by_plan, AT_ONCE),
        "plan": Way(partial(_ours, at_once()), by_plan, AT_ONCE),
    }


def units(rounds: int) -> int:
    """Returns how many batches a measurement goes over, each counted once for all ways."""
    counted, warming = SENTENCES // BATCH, 1
    return ((rounds + 1) * counted + warming) * (IN_STAGES + AT_ONCE)


def measured(rounds: int, show: Show) -> dict[str, float]:
    """Returns all ratios: default AdamW over all rounds, fused AdamW over one."""
    logging.disable(logging.WARNING)
    task = load_task(SENTENCES)
    order = torch.randperm(SENTENCES, generator=torch.Generator().manual_seed(0))
    batches = [task.data.batch(rows) for rows in order.split(BATCH)]
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mostly what Lightning says of modules in eval mode
        for each in ways(fused=False):
            _beside(task, batches[:1], each, 1, show)  # what only the first fit costs
        for fused, many in ((False, rounds), (True, 1)):
            for peer, each in zip(("scheduler", "backbone"), ways(fused=fused), strict=True):
                ratios = _beside(task, batches, each, many, show)
                found |= {f"{peer}: {name}{', fused' * fused}": x for name, x in ratios.items()}
    logging.disable(logging.NOTSET)
    return found


def _beside(
    task: Task, batches: Sequence[Batch], ways: dict[str, Way], rounds: int, show: Show
) -> dict[str, float]:
    """Returns what each way takes beside the peer: all of the fit, and entering epochs."""
    whole, due, idle = Rounds(), Rounds(), Rounds()
    for _ in range(rounds):
        turns = {name: Turn(partial(fit, task, batches, way)) for name, way in ways.items()}
        while sum(turn.goes_on() for turn in turns.values()):
            show("batch")
        fits: dict[str, Fit] = {name: turn.result for name, turn in turns.items()}
        _check(fits)
        moments = range(STAGE, ways["peer"].epochs, STAGE)
        whole.add({name: turn.seconds for name, turn in turns.items()})
        due.add({n: median(each.entering[at] for at in moments) for n, each in fits.items()})
        idle.add({name: each.entering[1] for name, each in fits.items()})
    ours = [name for name in ways if name != "peer"]
    return {
        **{name: whole.ratio(name, "peer") for name in ours},
        "due": due.ratio("plan", "peer"),
        "nothing due": idle.ratio("plan", "peer"),
    }


def _check(fits: dict[str, Fit]) -> None:
    """Asserts that what trains the same, with the same dropout, has the same losses."""
    for one, other in (("peer", "plan, train"), ("plan", "cached")):
        if other in fits:
            torch.testing.assert_close(fits[one].losses, fits[other].losses, rtol=0, atol=1e-5)
