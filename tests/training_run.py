"""Training that a signal may end at any step: what the killed and the resumed processes run.

Run as a script it trains through chains of processes. Each takes up the checkpoint that the one
before it left and is ended by SIGKILL at a given step, or trains to the end.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

from freezekit import AppliedPlan, FreezePlan

STEPS = 22
STEPS_PER_EPOCH = 4
MICRO_BATCHES = 2
PLACES = ("backward", "stepped", "saving", "saved")
"""Where in a step it may end: after backward, after the optimizer's step, before the checkpoint
takes the place of the one before, after it has."""

TOKENS, WIDTH = 7, 8

Optimizer = torch.optim.Optimizer


class Net(nn.Module):
    """Three blocks of one shape with norms and dropout between tied embeddings and a head."""

    def __init__(self) -> None:
        """Builds the layers."""
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.3))
            for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, TOKENS)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits (batch, TOKENS) for tokens (batch,)."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.head(x)


@dataclass(frozen=True)
class Scenario:
    """How a model is trained.

    Attributes:
        plan: the plan.
        optimizer: builds an optimizer and attaches it.
        scheduler: builds its LR scheduler.
        advances: when the plan is advanced, and with what.
        on_freeze: as in `FreezePlan.apply`.
        set_to_none: as in `zero_grad`.
    """

    plan: FreezePlan
    optimizer: Callable[[AppliedPlan], Optimizer]
    scheduler: Callable[[Optimizer], lr_scheduler.LRScheduler]
    advances: Literal["every step", "every epoch", "with a metric"]
    on_freeze: Literal["keep", "drop"] = "keep"
    set_to_none: bool = True


def _one_cycle(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    rates = [10 * group["lr"] for group in optimizer.param_groups]
    return lr_scheduler.OneCycleLR(optimizer, rates, total_steps=STEPS)


def _sequential(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    first = lr_scheduler.LinearLR(optimizer, 0.2, total_iters=5)
    then = lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 5)
    return lr_scheduler.SequentialLR(optimizer, [first, then], [5])


def _cosine(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


STALL = {"monitor": "val_loss", "patience": 3, "min_delta": 0.15}

SCENARIOS = {
    "steps": Scenario(
        FreezePlan()
        .freeze("blocks")
        .unfreeze("blocks[2]", lr_mult=0.5, warmup_steps=5, at_step=3)
        .unfreeze("blocks[1]", lr_mult=0.25, at_step=6)
        .unfreeze("blocks[0]", at_step=5, until_step=12, warmup_steps=3)
        .unfreeze("blocks[0]", at_step=15, warmup_steps=3)
        .freeze("blocks[1].1", at_step=9, until_step=14)
        .no_decay()
        .group("embed", weight_decay=0.3, at_step=8)
        .group("head.bias", lr_mult=3.0, options={"eps": 1e-4}, at_step=11),
        lambda applied: applied.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.05),
        _one_cycle,
        "every step",
        set_to_none=False,
    ),
    "epochs": Scenario(
        FreezePlan()
        .freeze("blocks", until_epoch=1)
        .freeze("blocks[0]", at_epoch=2, until_epoch=4)
        .freeze("embed", at_epoch=3, until_epoch=5)
        .group("blocks[1:]", lr_mult=0.2, at_epoch=3),
        lambda applied: applied.optimizer(
            torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True
        ),
        _sequential,
        "every epoch",
        on_freeze="drop",
    ),
    "metrics": Scenario(
        FreezePlan()
        .freeze("blocks")
        .unfreeze("blocks[2]", lr_mult=0.5, warmup_steps=4, at_metric=STALL)
        .unfreeze("blocks[:2]", warmup_steps=6, at_metric=STALL)
        .freeze("blocks[2]", at_step=17, until_step=19),
        lambda applied: applied.optimizer(torch.optim.Adam, lr=0.02, weight_decay=0.01),
        _cosine,
        "with a metric",
    ),
}


class Run:
    """One run of a scenario: its objects, and the checkpoint that it keeps in a folder."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        """Builds everything anew and takes up the checkpoint if there is one."""
        torch.manual_seed(0)
        self.scenario = scenario
        self.path = folder / "checkpoint.pt"
        self.model = Net()
        self.applied = scenario.plan.apply(self.model, on_freeze=scenario.on_freeze)
        self.optimizer = scenario.optimizer(self.applied)
        self.scheduler = scenario.scheduler(self.optimizer)
        self.done = 0
        self.trace: list[dict[str, Any]] = []
        self.optimizer.register_step_pre_hook(lambda *_: self._note_groups())
        if self.path.exists():
            self._load(torch.load(self.path, weights_only=True))

    def train(self, kill_step: int | None = None, place: str = "saved") -> None:
        """Trains to the end, or until the process ends itself.

        Args:
            kill_step: the step (1 for the first) in which it does.
            place: where in it; one of `PLACES`.
        """
        while self.done < STEPS:
            ends = place if self.done + 1 == kill_step else None
            self._advance()
            for part in range(MICRO_BATCHES):
                self._loss(self.done * MICRO_BATCHES + part).backward()
            _end_here(ends == "backward")
            self._note()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=self.scenario.set_to_none)
            self.scheduler.step()
            self.done += 1
            _end_here(ends == "stepped")
            fresh = self.path.with_suffix(".new")
            torch.save(self.state(), fresh)
            _end_here(ends == "saving")
            fresh.replace(self.path)
            _end_here(ends == "saved")

    def state(self) -> dict[str, Any]:
        """Returns all that a checkpoint holds, with what each step saw so far."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "applied": self.applied.state_dict(),
            "rng": torch.get_rng_state(),
            "done": self.done,
            "trace": self.trace,
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.applied.load_state_dict(state["applied"])
        torch.set_rng_state(state["rng"])
        self.done, self.trace = state["done"], state["trace"]

    def _advance(self) -> None:
        match self.scenario.advances:
            case "every step":
                self.applied.advance(step=self.done)
            case "every epoch" if self.done % STEPS_PER_EPOCH == 0:
                self.applied.advance(epoch=self.done // STEPS_PER_EPOCH)
            case "with a metric":
                self.model.eval()
                with torch.no_grad():
                    measured = self._loss(-1)
                self.model.train()
                self.applied.advance(step=self.done, metrics={"val_loss": measured})

    def _loss(self, batch: int) -> torch.Tensor:
        source = torch.Generator().manual_seed(batch + 1)
        tokens = torch.randint(TOKENS, (12,), generator=source)
        return functional.cross_entropy(self.model(tokens), (3 * tokens + 1) % TOKENS)

    def _note(self) -> None:
        """Notes what is about to be stepped."""
        self.trace.append(
            {
                "phase": self.applied.phase.index,
                "lrs": self.applied.lrs(),
                "trains": [n for n, p in self.model.named_parameters() if p.requires_grad],
                "held": [n for n, m in self.model.named_modules() if not m.training],
            }
        )

    def _note_groups(self) -> None:
        """Notes what the optimizer steps with; comes after the plan's own hook."""
        keys = ("lr", "weight_decay", "betas", "momentum", "eps")
        groups = self.optimizer.param_groups
        self.trace[-1]["groups"] = {g["name"]: {k: g[k] for k in keys if k in g} for g in groups}


def _end_here(ends: bool) -> None:
    if ends:
        os.kill(os.getpid(), signal.SIGKILL)


def train(name: str, folder: Path, kill: str = "") -> None:
    """Trains in this process.

    Args:
        name: of the scenario.
        folder: where the checkpoint is kept.
        kill: step and place of the end, as in "3:saved"; empty: goes on to the last step.
    """
    torch.set_num_threads(1)
    step, _, place = kill.partition(":")
    Run(SCENARIOS[name], folder).train(int(step) if step else None, place)


def train_in_child(name: str, folder: Path, kill: str) -> None:
    """Trains in a process of its own, and checks that it ends as it should."""
    child = os.fork()
    if child == 0:
        try:
            train(name, folder, kill)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    expected = -signal.SIGKILL if kill else 0
    if os.waitstatus_to_exitcode(status) != expected:
        sys.exit(f"{name} {kill}: ended with {os.waitstatus_to_exitcode(status)}")


def main(folder: str, *chains: str) -> None:
    """Trains through chains such as "steps/twice=3:saved,4:backward,end".

    Such a chain trains the scenario "steps" in a folder of that name. Each link is a process: it
    ends as said, or trains to the last step where it says "end".
    """
    torch.optim.SGD([torch.zeros(1)])  # what torch imports for it, the children have then
    for chain in chains:
        place, _, links = chain.partition("=")
        inside = Path(folder, place)
        inside.mkdir(parents=True, exist_ok=True)
        for link in links.split(","):
            train_in_child(place.partition("/")[0], inside, "" if link == "end" else link)


if __name__ == "__main__":
    main(*sys.argv[1:])
