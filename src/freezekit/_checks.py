"""diagnose: what is wrong with a model, its plan and its optimizers. Reads only."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import torch

from ._check_lrs import lr_ratios
from ._check_model import (
    changed_flags,
    frozen_norms,
    half_frozen,
    held_copies,
    left_grads,
    nothing_trains,
    unreached,
)
from ._check_optimizers import (
    held_twice,
    never_trained,
    stale_objects,
    unattached,
    without_optimizer,
)
from ._check_wrappers import checkpointed, compiled, synchronized
from ._findings import Findings
from ._setup import Setup

if TYPE_CHECKING:
    from ._apply import AppliedPlan

_CHECKS = (
    without_optimizer,
    never_trained,
    held_twice,
    stale_objects,
    left_grads,
    frozen_norms,
    half_frozen,
    nothing_trains,
    unreached,
    checkpointed,
    synchronized,
    lr_ratios,
    held_copies,
    compiled,
    changed_flags,
    unattached,
)


def diagnose(
    applied_or_model: AppliedPlan | torch.nn.Module,
    *optimizers: torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler | torch.nn.Module,
) -> Findings:
    """Looks for what silently goes wrong when parts of a model are frozen.

    Reads only and runs nothing, so it may be called at any time: before training, and between
    `backward` and `zero_grad` for what only gradients show. The page on diagnosis has each code
    with an example.

    Args:
        applied_or_model: what `apply` returned, or a model without a plan.
        *optimizers: what trains the model beside the optimizers attached to the plan; also the LR
            schedulers, for their absolute floors, and the wrapper (DDP, `torch.compile`) if the
            plan was applied to the model inside it.

    Returns:
        The findings, ordered by code; empty if all is well.

    Raises:
        FreezekitError: something else was passed, or the plan was released.

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan, diagnose
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> applied = FreezePlan().freeze("[0]").apply(model)
        >>> print(diagnose(applied, torch.optim.SGD(model[1].parameters(), lr=0.1)))
        nothing found
        >>> print(diagnose(applied, torch.optim.SGD([model[1].bias], lr=0.1)))
        FK001 error: a parameter trains but is in no optimizer: 1.weight
          why: it gets gradients, but nothing steps it
          fix: build the optimizer with applied.optimizer(...), which takes all that ever trains
    """
    setup = Setup(applied_or_model, optimizers)
    found = (finding for check in _CHECKS for finding in check(setup))
    return Findings(sorted(found, key=attrgetter("code")))
