"""Moments of rules -> the stretches of training between them. No torch."""

from collections.abc import Sequence
from math import ceil
from typing import Literal, NamedTuple

from ._rules import Rule, Unit, whole_number
from .errors import PlanError

ClockUnit = Literal["epoch", "step"]


class Entry(NamedTuple):
    """One rule of a plan, or one of those that a builder stands for.

    Attributes:
        rule: the rule, with a plain verb.
        source: number of the plan's rule it comes from, 0 for the first.
        label: how messages name that rule.
        layers: the only layers it selects in; None: all.
    """

    rule: Rule
    source: int
    label: str
    layers: frozenset[int] | None = None


class Cell(NamedTuple):
    """A stretch of training in which the same rules are in the list.

    Attributes:
        stalls: how many metric-driven rules have opened.
        start: its first moment, as far as the clock decides.
        active: the entries in the list.
    """

    stalls: int
    start: int
    active: frozenset[int]


class Timeline(NamedTuple):
    """When each rule of a plan is in the list.

    Attributes:
        unit: what the clock counts; None for a plan without such moments.
        cells: by number of metric-driven rules that have opened, then by start.
        openings: for each entry, the moment at which it opens, and the number of metric-driven
            rules that must have opened, itself included; 0 for one that waits for no metric.
        metrics: the plan's metric-driven rules in the order in which they open.
        total: length of all training in that unit, if known.
        warms: whether a rule has `warmup_steps`, which count in steps.
        context: the totals that were given, by argument name.
    """

    unit: ClockUnit | None
    cells: tuple[Cell, ...]
    openings: tuple[tuple[int, int], ...]
    metrics: tuple[Rule, ...]
    total: int | None
    warms: bool
    context: dict[str, int | None]

    def is_over(self, moment: int) -> bool:
        """Returns whether training has ended by that moment."""
        return self.total is not None and moment >= self.total


def timeline(
    entries: Sequence[Entry],
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
    context = {k: None if v is None else whole_number(k, v, 1) for k, v in given.items()}
    steps_per_epoch, total_epochs, total_steps = context.values()
    if steps_per_epoch and total_epochs:
        product = steps_per_epoch * total_epochs
        if total_steps not in (None, product):
            raise PlanError(
                f"total_steps={total_steps} contradicts steps_per_epoch={steps_per_epoch} times "
                f"total_epochs={total_epochs}, which is {product}; leave one of them out"
            )
        total_steps = product
    rules = [entry.rule for entry in entries]
    units = {edge[0] for rule in rules for edge in (rule.opening, rule.closing) if edge}
    warms = any(rule.warmup_steps for rule in rules)
    if warms and units and steps_per_epoch:
        units.add("step")
    unit = _clock_unit(units, total_epochs, total_steps)
    total = {"epoch": total_epochs, "step": total_steps}.get(unit or "")
    windows = [_window(entry, unit, steps_per_epoch, total) for entry in entries]
    waiting = list(dict.fromkeys(e.source for e in entries if e.rule.at_metric is not None))
    needs = [waiting.index(e.source) + 1 if e.source in waiting else 0 for e in entries]
    metrics = {e.source: e.rule for e in entries if e.source in waiting}
    return Timeline(
        unit=unit,
        cells=_cells(windows, needs, len(waiting)),
        openings=tuple((window[0], need) for window, need in zip(windows, needs, strict=True)),
        metrics=tuple(metrics[source] for source in waiting),
        total=total,
        warms=warms,
        context=context,
    )


def _cells(
    windows: Sequence[tuple[int, int | None]], needs: Sequence[int], metrics: int
) -> tuple[Cell, ...]:
    starts = sorted({0} | {edge for window in windows for edge in window if edge is not None})
    return tuple(
        Cell(
            stalls,
            start,
            frozenset(
                number
                for number, (opens, closes) in enumerate(windows)
                if needs[number] <= stalls and opens <= start and (closes is None or start < closes)
            ),
        )
        for stalls in range(metrics + 1)
        for start in starts
    )


def _clock_unit(
    units: set[Unit], total_epochs: int | None, total_steps: int | None
) -> ClockUnit | None:
    if "fraction" in units and not (total_epochs or total_steps):
        raise PlanError(
            "the plan counts in fractions of training; pass total_steps=... (or total_epochs=...)"
        )
    if "step" in units or ("fraction" in units and total_steps):
        return "step"
    return "epoch" if units else None


def _window(
    entry: Entry, unit: ClockUnit | None, steps_per_epoch: int | None, total: int | None
) -> tuple[int, int | None]:
    def moment(edge: tuple[Unit, float]) -> int:
        kind, value = edge
        if kind == "fraction":
            if total is None:
                raise PlanError(
                    f"{entry.label}: the plan counts in steps and in fractions; pass "
                    "total_steps=..."
                )
            from fractions import Fraction  # loads decimal, for which an import should not wait

            return ceil(Fraction(str(value)) * total)
        if kind == unit:
            return int(value)
        if steps_per_epoch is None:
            raise PlanError(
                f"{entry.label}: the plan counts in epochs and in steps; pass steps_per_epoch=..."
            )
        return int(value) * steps_per_epoch

    opens = moment(entry.rule.opening) if entry.rule.opening else 0
    closes = moment(entry.rule.closing) if entry.rule.closing else None
    if closes is not None and closes <= opens:
        raise PlanError(
            f"{entry.label}: it closes at {unit} {closes}, not after {unit} {opens} where it opens"
        )
    return opens, closes
