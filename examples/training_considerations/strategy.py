"""The strategies that are compared, each as a freezekit plan."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from freezekit import FreezePlan, infer_layers, recipes

HEAD = "head"


@dataclass(frozen=True)
class Budget:
    """What every strategy gets: so many steps, and two learning rates that fall linearly to 0.

    Attributes:
        steps: updates of the optimizer.
        batch: samples of an update.
        head_lr: the learning rate of the new head.
        lr: that of what is pre-trained.
        top: blocks that train with the head in the strategy "top".
    """

    steps: int
    batch: int
    head_lr: float
    lr: float
    top: int


def frozen(model: nn.Module, budget: Budget) -> FreezePlan:
    """The head alone trains, on the features of a frozen backbone."""
    return recipes.feature_extraction(model, head=HEAD)


def top(model: nn.Module, budget: Budget) -> FreezePlan:
    """The head and the upper third of the blocks train."""
    return recipes.last_n_layers(model, budget.top, train_head=True, head=HEAD)


def bottom(model: nn.Module, budget: Budget) -> FreezePlan:
    """The head and the lowest layers train: surgical fine-tuning for inputs that have changed."""
    return recipes.surgical(model, "input", head=HEAD)


def gradual(model: nn.Module, budget: Budget) -> FreezePlan:
    """The head trains alone, then one layer after another joins it until half of the training."""
    every = max(1, round(budget.steps / (2 * len(infer_layers(model)))))
    return recipes.gradual_unfreezing(model, head=HEAD, every_steps=every)


def lp_ft(model: nn.Module, budget: Budget) -> FreezePlan:
    """The head trains alone for two fifths; then everything, the head at a tenth of its rate."""
    return recipes.linear_probe_then_finetune(model, head=HEAD, probe_fraction=0.4)


def bitfit(model: nn.Module, budget: Budget) -> FreezePlan:
    """Biases and head train, the biases at ten times the rate."""
    return recipes.bitfit(model, head=HEAD, lr=10 * budget.lr)


def discriminative(model: nn.Module, budget: Budget) -> FreezePlan:
    """Everything trains, each layer at 0.7 of the rate of the one above it."""
    return recipes.discriminative(model, head=HEAD, decay=0.7)


def full(model: nn.Module, budget: Budget) -> FreezePlan:
    """Everything trains at one rate."""
    return FreezePlan()


STRATEGIES: dict[str, Callable[[nn.Module, Budget], FreezePlan]] = {
    "frozen": frozen,
    "top": top,
    "bottom": bottom,
    "gradual": gradual,
    "lp_ft": lp_ft,
    "bitfit": bitfit,
    "discriminative": discriminative,
    "full": full,
}
PROBE = "probe"  # no steps: a logistic regression on the features of the frozen backbone
SCRATCH = "scratch"  # full training of the same network without its pre-trained weights


def plan_for(name: str, model: nn.Module, budget: Budget) -> FreezePlan:
    """Returns the plan of a strategy, with the head's learning rate as the last word."""
    plan = STRATEGIES["full" if name == SCRATCH else name](model, budget)
    plan = plan.group(HEAD, lr=budget.head_lr)
    if name == "lp_ft":
        plan = plan.group(HEAD, lr=budget.head_lr / 10, at_fraction=0.4)
    return plan
