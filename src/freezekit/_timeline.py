"""Moments of rules -> the stretches of training between them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Literal

from ._rules import Rule, Unit, whole_number
from .errors import PlanError

ClockUnit = Literal["epoch", "step"]


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each rule of a plan is in the list.

    Attributes:
        unit: what the clock counts; None for a plan without moments.
        starts: first moment of each stretch in which the same rules are in the list.
        active: for each stretch, which rules are.
        total: length of all training in that unit, if known.
    """

    unit: ClockUnit | None
    starts: tuple[int, ...]
    active: tuple[frozenset[int], ...]
    total: int | None

    def is_over(self, moment: int) -> bool:
        """Returns whether training has ended by that moment."""
        return self.total is not None and moment >= self.total


def timeline(
    rules: Sequence[Rule],
    *,
    steps_per_epoch: int | None,
    total_epochs: int | None,
    total_steps: int | None,
) -> Timeline:
    """Returns when each rule is in the list, with all moments in one unit.

    Raises:
        PlanError: a total or `steps_per_epoch` is missing, two contradict each other, or a rule
            closes before it opens.
    """
    given = {
        "steps_per_epoch": steps_per_epoch,
        "total_epochs": total_epochs,
        "total_steps": total_steps,
    }
    steps_per_epoch, total_epochs, total_steps = (
        None if value is None else whole_number(name, value, 1) for name, value in given.items()
    )
    if steps_per_epoch and total_epochs:
        product = steps_per_epoch * total_epochs
        if total_steps not in (None, product):
            raise PlanError(
                f"total_steps={total_steps} contradicts steps_per_epoch={steps_per_epoch} times "
                f"total_epochs={total_epochs}, which is {product}; leave one of them out"
            )
        total_steps = product
    units = {edge[0] for rule in rules for edge in (rule.opening, rule.closing) if edge}
    unit = _clock_unit(rules, units, total_epochs, total_steps)
    total = {"epoch": total_epochs, "step": total_steps}.get(unit or "")
    windows = [
        _window(number, rule, unit, steps_per_epoch, total) for number, rule in enumerate(rules, 1)
    ]
    starts = sorted({0} | {edge for window in windows for edge in window if edge is not None})
    active = tuple(
        frozenset(i for i, (a, b) in enumerate(windows) if a <= start and (b is None or start < b))
        for start in starts
    )
    return Timeline(unit, tuple(starts), active, total)


def _clock_unit(
    rules: Sequence[Rule],
    units: set[Unit],
    total_epochs: int | None,
    total_steps: int | None,
) -> ClockUnit | None:
    for number, rule in enumerate(rules, 1):
        if rule.at_metric is not None:
            raise PlanError(
                f"rule {number}, {rule.call}: at_metric is read and saved by this release but "
                "not carried out; use at_epoch, at_step or at_fraction"
            )
    if "fraction" in units and not (total_epochs or total_steps):
        raise PlanError(
            "the plan counts in fractions of training; pass total_steps=... (or total_epochs=...)"
        )
    if "step" in units or ("fraction" in units and total_steps):
        return "step"
    return "epoch" if units else None


def _window(
    number: int,
    rule: Rule,
    unit: ClockUnit | None,
    steps_per_epoch: int | None,
    total: int | None,
) -> tuple[int, int | None]:
    def moment(edge: tuple[Unit, float]) -> int:
        kind, value = edge
        if kind == "fraction":
            if total is None:
                raise PlanError(
                    f"rule {number}, {rule.call}: the plan counts in steps and in fractions; "
                    "pass total_steps=..."
                )
            return ceil(Fraction(str(value)) * total)
        if kind == unit:
            return int(value)
        if steps_per_epoch is None:
            raise PlanError(
                f"rule {number}, {rule.call}: the plan counts in epochs and in steps; "
                "pass steps_per_epoch=..."
            )
        return int(value) * steps_per_epoch

    opens = moment(rule.opening) if rule.opening else 0
    closes = moment(rule.closing) if rule.closing else None
    if closes is not None and closes <= opens:
        raise PlanError(
            f"rule {number}, {rule.call}: it closes at {unit} {closes}, not after {unit} {opens} "
            "where it opens"
        )
    return opens, closes
