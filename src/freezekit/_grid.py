"""What a plan does over time: parts of a model by phases, as data for pictures and reports."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from ._cascade import Decision
from ._modes import State
from ._resolved import ResolvedPlan
from ._rules import is_real
from .errors import PlanError


class Cell(NamedTuple):
    """A part of a model in one phase.

    Attributes:
        state: whether its parameters train.
        trainable: how many elements train.
        low: the least learning rate or multiplier of those that train; None where nothing does, or
            where one is not known.
        high: the greatest.
    """

    state: State
    trainable: int
    low: float | None
    high: float | None

    @property
    def trains(self) -> bool:
        """Whether anything trains."""
        return self.state in ("trainable", "partial")


class Band(NamedTuple):
    """A part of a model in all phases.

    Attributes:
        name: its layer, or the path of its module; "" for what the root holds itself.
        numel: elements of its parameters.
        cells: one for each phase.
    """

    name: str
    numel: int
    cells: tuple[Cell, ...]


class Grid(NamedTuple):
    """The parts of a model, from input to output, in all phases.

    Attributes:
        bands: the parts.
        unit: whether the rates in the cells are learning rates or multipliers on a base.
        frontiers: for each phase, in which part backward stops, where that is known by example
            inputs, else which is the first that trains; None where nothing does.
        notes: what is not known of the order of the parts, and so of the frontiers.
    """

    bands: tuple[Band, ...]
    unit: Literal["lr", "lr_mult"]
    frontiers: tuple[int | None, ...]
    notes: tuple[str, ...]


def grid(resolved: ResolvedPlan, *, base_lr: float | None = None, depth: int | None = None) -> Grid:
    """Returns what a plan does with the parts of a model over time.

    Rates are learning rates if `base_lr` is given or a rule sets one, else multipliers; where a
    rule sets one and `base_lr` is not given, the rates of the others are not known.

    Args:
        resolved: the plan, resolved against a model.
        base_lr: what multipliers multiply.
        depth: levels of nesting that tell the parts apart, 1 for the children of the model; None:
            the parts are its layers.

    Raises:
        PlanError: `base_lr` is not a positive number.
        ValueError: `depth` is not positive.
    """
    if base_lr is not None and not (is_real(base_lr) and base_lr > 0):
        raise PlanError(f"base_lr must be a positive finite number, got {base_lr!r}")
    decisions = [outcome.decisions for outcome in resolved._outcomes]
    reached = set(resolved._outcome_ids)
    sets_lr = any(
        each.trainable and each.lr is not None for at in reached for each in decisions[at]
    )
    unit: Literal["lr", "lr_mult"] = "lr" if sets_lr or base_lr is not None else "lr_mult"
    base = 1.0 if unit == "lr_mult" else base_lr
    rates = [[_rate(each, base) for each in outcome] for outcome in decisions]
    partly = [resolved._partly(phase.index) for phase in resolved.phases]
    bands = []
    parts = [*_parts(resolved, depth)]
    for name, rows in parts:
        sizes = Counter[int]()
        for row in rows:
            sizes[resolved._outcome_ids[row]] += resolved._numel(row)
        limited = [
            {resolved._outcome_ids[row]: some[row] for row in some.keys() & set(rows)}
            if some
            else {}
            for some in partly
        ]
        cells = (
            _cell(sizes, [(at, decisions[at][k], rates[at][k]) for at in sizes], limited[k])
            for k in range(len(resolved.phases))
        )
        bands.append(Band(name, sizes.total(), tuple(cells)))
    frontiers = _stops(resolved, parts) or tuple(
        next((at for at, band in enumerate(bands) if band.cells[phase.index].trains), None)
        for phase in resolved.phases
    )
    return Grid(tuple(bands), unit, frontiers, resolved.layers.notes)


def _stops(
    resolved: ResolvedPlan, parts: Iterable[tuple[str, Sequence[int]]]
) -> tuple[int | None, ...] | None:
    """Returns for each phase the first part in which backward stops, if that is known."""
    if resolved.compute is None:
        return None
    place = {resolved._tree.names[row]: at for at, (_, rows) in enumerate(parts) for row in rows}
    return tuple(
        min((place[name] for stop in phase.stops for name in stop.parameters), default=None)
        for phase in resolved.compute.phases
    )


def _rate(decision: Decision, base: float | None) -> float | None:
    """Returns the rate of what trains under a decision, if it is known."""
    if decision.lr is not None:
        return decision.lr
    return None if base is None else base * (1.0 if decision.lr_mult is None else decision.lr_mult)


def _parts(resolved: ResolvedPlan, depth: int | None) -> Iterable[tuple[str, Sequence[int]]]:
    """Returns the name of each part of the model, and its parameters, in the order of the layers.

    Modules stand where the first of their parameters does: parts that overlap have no other order.
    """
    layers = [
        (layer.name, [resolved._row(name) for name in layer.parameter_names])
        for layer in resolved.layers
    ]
    if depth is None:
        return layers
    if depth < 1:
        raise ValueError(f"depth={depth}: parts are told apart by 1 level of nesting or more")
    tree, parts = resolved._tree, dict[str, list[int]]()
    paths = [".".join(prefix.split(".")[:-1][:depth]) for prefix in tree.prefixes]
    for row in (row for _, rows in layers for row in rows):
        parts.setdefault(paths[tree.owners[row]], []).append(row)
    return parts.items()


def _cell(
    sizes: Counter[int],
    treated: Sequence[tuple[int, Decision, float | None]],
    limited: dict[int, int],
) -> Cell:
    """Returns a part in one phase.

    Args:
        sizes: elements by outcome.
        treated: the outcomes, with what each decides and its rate.
        limited: elements that train of the outcomes of which only some rows do.
    """
    live = [(at, rate) for at, decision, rate in treated if decision.trainable]
    trainable = sum(limited.get(at, sizes[at]) for at, _ in live)
    if not live:
        return Cell("frozen" if sizes else "none", 0, None, None)
    whole = len(live) == len(treated) and not limited
    rates = [rate for _, rate in live if rate is not None]
    known = len(rates) == len(live)
    return Cell(
        "trainable" if whole else "partial",
        trainable,
        min(rates) if known else None,
        max(rates) if known else None,
    )
