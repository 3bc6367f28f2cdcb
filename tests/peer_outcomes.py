"""What trains in an epoch, and how: the language that both sides of a row are read in."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

LR, DECAY = 1e-3, 0.05
"""What the optimizer is built with where a spelling does not say."""


class Trained(NamedTuple):
    """How a parameter trains; None where the spelling has no say.

    Attributes:
        lr: learning rate.
        decay: weight decay.
        rows: the rows that train, for a spelling that names rows.
    """

    lr: float | None = None
    decay: float | None = None
    rows: range | None = None


Outcome = dict[str, Trained]
"""The parameters that train in an epoch."""


def flagged(model: nn.Module) -> Outcome:
    """The parameters that require gradients."""
    return {name: Trained() for name, each in model.named_parameters() if each.requires_grad}


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> Outcome:
    """Of these, those that the optimizer holds at a learning rate above 0."""
    names = {id(each): name for name, each in model.named_parameters() if each.requires_grad}
    return {
        names[id(each)]: Trained(group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for each in group["params"]
        if id(each) in names and group["lr"]
    }


def only(model: nn.Module, selects: Callable[[str], object]) -> None:
    """Trains what is selected and freezes the rest."""
    for name, each in model.named_parameters():
        each.requires_grad_(bool(selects(name)))
