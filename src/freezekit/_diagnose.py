"""diagnose: what is wrong with a model, its plan and its optimizers. Reads only.

The checks are imported when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ._apply import AppliedPlan
    from ._findings import Findings


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
    from ._checks import findings
    from ._setup import Setup

    return findings(Setup(applied_or_model, optimizers))
