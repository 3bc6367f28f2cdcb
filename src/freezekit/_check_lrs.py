"""What is wrong with learning rates: FK012."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LRScheduler,
    ReduceLROnPlateau,
)
from torch.optim.swa_utils import SWALR

from ._findings import Finding, few
from ._setup import Group, Setup

_SMALL = 1e-3
"""A floor below this share of every lr only shows when training is over."""

_DRIFT = 1.01
"""By how much ratios must differ to be worth a word."""


class Floor(NamedTuple):
    """An absolute lr to which a scheduler takes every group.

    Attributes:
        text: the scheduler with the argument that says so.
        lrs: the lr, group by group.
        lifts: whether it takes lower ones up to it.
    """

    text: str
    lrs: Sequence[float]
    lifts: bool


class Rate(NamedTuple):
    """One group's learning rate.

    Attributes:
        label: the group.
        base: where it starts.
        lr: where it is, or will be.
    """

    label: str
    base: float
    lr: float

    def __str__(self) -> str:
        return f"{self.label!r} from {self.base:g} to {self.lr:g}"


def lr_ratios(setup: Setup) -> Iterator[Finding]:
    """FK012: absolute values that take the place of the ratios between groups."""
    labels = {id(group.settings): group.label for group in setup.groups if _trains(setup, group)}
    judged: set[int] = set()
    for scheduler in setup.schedulers:
        groups = scheduler.optimizer.param_groups
        judged.update(map(id, groups))
        floor = _floor(scheduler)
        if floor is not None:
            rates = [
                Rate(labels[id(group)], _base(group), lr)
                for group, lr in zip(groups, floor.lrs, strict=False)
                if id(group) in labels
            ]
            yield from _under(floor, rates)
    together: dict[int, list[Group]] = {}
    for group in setup.groups:
        if id(group.settings) in labels:
            together.setdefault(id(group.optimizer), []).append(group)
    for members in together.values():
        if not any(id(group.settings) in judged for group in members):
            yield from _drifted(members)
        yield from _overwritten(setup, members)


def _trains(setup: Setup, group: Group) -> bool:
    spots = [setup.by_id.get(id(parameter)) for parameter in group.settings["params"]]
    return any(spot is None or any(spot.coming) for spot in spots)


def _base(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))


def _floor(scheduler: LRScheduler) -> Floor | None:
    """Returns where a scheduler takes the groups, if that is an absolute value."""
    name, groups = type(scheduler).__name__, scheduler.optimizer.param_groups
    if isinstance(scheduler, CosineAnnealingLR | CosineAnnealingWarmRestarts):
        lr = float(scheduler.eta_min)
        return Floor(f"{name}(eta_min={lr:g})", [lr] * len(groups), lifts=True)
    if isinstance(scheduler, ReduceLROnPlateau):
        lrs = [float(lr) for lr in scheduler.min_lrs]
        return Floor(f"{name}(min_lr={_numbers(lrs)})", lrs, lifts=False)
    if isinstance(scheduler, SWALR):
        lrs = [float(group["swa_lr"]) for group in groups]
        return Floor(f"{name}(swa_lr={_numbers(lrs)})", lrs, lifts=False)
    return None


def _numbers(lrs: Sequence[float]) -> str:
    texts = [f"{lr:g}" for lr in lrs]
    return texts[0] if len(set(texts)) == 1 else f"[{', '.join(texts)}]"


def _under(floor: Floor, rates: Sequence[Rate]) -> Iterator[Finding]:
    """Judges a floor by the learning rates the groups start from."""
    lifted = [rate for rate in rates if floor.lifts and rate.lr > rate.base]
    if lifted:
        yield Finding(
            "FK012",
            "error",
            f"{floor.text} takes learning rates up: {few(map(str, lifted))}",
            "the floor is an absolute value, and these groups start below it: what was to learn "
            "slowly, or not at all, learns faster as training goes on",
            f"set the floor to 0 or below the lowest learning rate, {min(r.base for r in rates):g}",
            tuple(rate.label for rate in lifted),
        )
        return
    shares = [rate.lr / rate.base for rate in rates if rate.base > 0]
    if shares and max(shares) > max(_SMALL, min(shares) * _DRIFT):
        yield Finding(
            "FK012",
            "warning",
            f"{floor.text} does not keep the ratios between groups: {few(map(str, rates))}",
            "the floor is an absolute value, not a share of each group's learning rate; groups "
            "that start far apart end close together",
            "set the floor to 0, give one value per group where the scheduler takes a list, or "
            "use a factor (LambdaLR)",
            tuple(rate.label for rate in rates),
        )


def _drifted(groups: Sequence[Group]) -> Iterator[Finding]:
    """Compares present learning rates with the initial ones, where the scheduler is unknown."""
    rates = [
        Rate(group.label, _base(group.settings), float(group.settings["lr"])) for group in groups
    ]
    revived = [rate for rate in rates if rate.base == 0 and rate.lr > 0]
    started = sorted((rate for rate in rates if rate.base > 0), key=lambda rate: -rate.base)
    shares = [rate.lr / rate.base for rate in started]
    lost = shares and shares[0] < 1 and shares == sorted(shares) and shares[-1] > shares[0] * _DRIFT
    if revived or lost:
        shown = revived or started
        yield Finding(
            "FK012",
            "warning",
            f"the ratios between groups are not the initial ones: {few(map(str, shown))}",
            "this is what a scheduler with an absolute floor (eta_min, min_lr) does: groups that "
            "start far apart end close together, and a zero comes to life",
            "pass the scheduler to diagnose as well; set its floor to 0, or use a factor",
            tuple(rate.label for rate in shown),
        )


def _overwritten(setup: Setup, groups: Sequence[Group]) -> Iterator[Finding]:
    """Finds one learning rate in all groups where the plan gives them several."""
    planned: list[Group] = []
    wanted: list[float] = []
    absolute: list[float | None] = []
    for group in groups:
        spots = (setup.by_id.get(id(parameter)) for parameter in group.settings["params"])
        plan = next((spot.plan for spot in spots if spot is not None and spot.plan), None)
        if plan is not None and "initial_lr" in group.settings:
            lr, lr_mult = plan.rate
            base = float(group.optimizer.defaults["lr"])
            planned.append(group)
            wanted.append(lr if lr is not None else base * (lr_mult or 1.0))
            absolute.append(lr)
    found = {_base(group.settings) for group in planned}
    mixed = len({lr is None for lr in absolute}) > 1
    if len(set(wanted)) > 1 and len(found) == 1 and not (mixed and found & set(absolute)):
        yield Finding(
            "FK012",
            "warning",
            "a scheduler gave all groups one learning rate, where the plan gives them several: "
            + few(repr(group.label) for group in planned),
            "max_lr of OneCycleLR and CyclicLR is an absolute value; a single number takes the "
            "place of every group's own learning rate",
            'pass one per group: max_lr=[group["lr"] for group in optimizer.param_groups]',
            tuple(group.label for group in planned),
        )
