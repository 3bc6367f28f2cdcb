"""What a user's type checker makes of the installed wheel: checked with mypy, and never run.

An `ignore` that is not needed is an error too, so each marks a mistake that must be found.
"""

from pathlib import Path

import torch

from freezekit import FreezePlan, Phase, ResolvedPlan, diagnose, plot, recipes
from freezekit.cache import ActivationCache

model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
plan: FreezePlan = FreezePlan().freeze("**").unfreeze("[-1]", lr=1e-3, at_epoch=1).no_decay()
resolved: ResolvedPlan = plan.resolve(model)
phase: Phase = resolved.at(epoch=1)
names: frozenset[str] = phase.frozen
plan.save(Path("plan.yaml"))
plot.schedule(resolved).set_title("a plan")
recipes.bitfit(model).freeze("**@*Norm")

with plan.apply(model) as applied:
    optimizer: torch.optim.Adam = applied.optimizer(torch.optim.Adam, lr=1e-4)
    with ActivationCache(applied), applied.guard():
        applied.advance(epoch=1)
    codes: list[str] = [finding.code for finding in diagnose(applied, optimizer)]

FreezePlan().freeze("**", lrr=1e-3)  # type: ignore[call-arg]
FreezePlan().unfreeze("**", at_epoch="1")  # type: ignore[arg-type]
wrong: torch.optim.SGD = applied.optimizer(torch.optim.Adam, lr=1e-4)  # type: ignore[assignment]
