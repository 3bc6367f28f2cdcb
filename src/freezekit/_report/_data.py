"""What a report shows, as data for JSON: every name, outcome and reason stands in it once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from .._cascade import Decision
from .._cost import OptimizerLike
from .._explain import PlanDiff, moments
from .._grid import Band, Cell, grid
from .._resolved import ResolvedPlan

_MANY_LAYERS = 30
"""From here on, neighbouring layers that are treated alike share a row of the timeline."""


class _Table:
    """Values and their numbers, each value once."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def number(self, value: Hashable) -> int:
        """Returns the number of a value, a new one for a new value."""
        return self._numbers.setdefault(value, len(self._numbers))

    def values(self) -> list[Any]:
        """Returns the values in the order of their numbers."""
        return list(self._numbers)


def report_data(
    resolved: ResolvedPlan,
    other: ResolvedPlan | None,
    base_lr: float | None,
    optimizer: OptimizerLike,
) -> dict[str, Any]:
    """Returns all that a report shows.

    Args:
        resolved: the plan, resolved against a model.
        other: the plan it is compared with.
        base_lr: what multipliers multiply.
        optimizer: whose state the costs count.

    Raises:
        PlanError: the plans count in different units, `base_lr` is not a positive number, or the
            optimizer cannot be used.
    """
    bands = grid(resolved, base_lr=base_lr)
    texts = _Table()
    layers, cells = _layers(resolved, bands.bands)
    return {
        "model": resolved._tree.class_names[0],
        "rules": [rule.call for rule in resolved.plan.rules],
        "warnings": resolved.warnings,
        "phases": [
            {"text": str(phase), "partly": _partly(resolved, phase.index)}
            for phase in resolved.phases
        ],
        "rate": {"unit": bands.unit, "base": 1.0 if bands.unit == "lr_mult" else base_lr},
        "frontiers": bands.frontiers,
        "order": bands.notes,
        "layers": layers,
        "cells": cells,
        "modules": _modules(resolved, texts),
        "parameters": _parameters(resolved, texts),
        "outcomes": _outcomes(resolved),
        "cost": _cost(resolved, optimizer),
        "diff": None if other is None else _diff(resolved, other),
        "texts": texts.values(),
    }


def _partly(resolved: ResolvedPlan, phase: int) -> list[tuple[int, int]]:
    """Returns the parameters of which some rows train in a phase, with the elements that do."""
    return sorted(resolved._partly(phase).items())


def _layers(resolved: ResolvedPlan, bands: Sequence[Band]) -> tuple[list[Any], list[Any]]:
    """Returns the rows of the timeline, and the cells that they have by number.

    Of many layers, neighbours that are alike share a row. A row has its cells in runs of phases:
    flat, how many and which.
    """
    table = _Table()
    treated = [
        [_treated(cell, decisions) for cell, decisions in zip(band.cells, phases, strict=True)]
        for band, phases in zip(bands, _decisions(resolved), strict=True)
    ]
    groups: Iterable[list[int]] = ([at] for at in range(len(bands)))
    if len(bands) > _MANY_LAYERS:
        groups = (list(alike) for _, alike in groupby(range(len(bands)), treated.__getitem__))
    rows = []
    for group in groups:
        live = [sum(each) for each in zip(*(_trainable(bands[at]) for at in group), strict=True)]
        cells = [
            table.number((state, elements, *rates))
            for (state, *rates), elements in zip(treated[group[0]], live, strict=True)
        ]
        rows.append(
            {
                "first": group[0],
                "count": len(group),
                "name": bands[group[0]].name,
                "last": bands[group[-1]].name,
                "numel": sum(bands[at].numel for at in group),
                "cells": [each for cell, run in groupby(cells) for each in (len(list(run)), cell)],
            }
        )
    return rows, table.values()


def _decisions(resolved: ResolvedPlan) -> Iterator[list[list[Decision]]]:
    """Returns for each layer, by phases, what the plan decides about its parameters."""
    for layer in resolved.layers:
        outcomes = {resolved._outcome_ids[resolved._row(name)] for name in layer.parameter_names}
        decisions = [resolved._outcomes[each].decisions for each in sorted(outcomes)]
        yield [list(each) for each in zip(*decisions, strict=True)]


def _treated(cell: Cell, decisions: Iterable[Decision]) -> tuple[Any, ...]:
    """Returns a state with its least and greatest rate, and multiplier of what has no rate."""
    if cell.low is not None or not cell.trains:
        return cell.state, cell.low, cell.high, None, None
    live = [each for each in decisions if each.trainable]
    rates = [each.lr for each in live if each.lr is not None]
    factors = [1.0 if each.lr_mult is None else each.lr_mult for each in live if each.lr is None]
    ends = min(rates, default=None), max(rates, default=None)
    return cell.state, *ends, min(factors), max(factors)


def _trainable(band: Band) -> list[int]:
    return [cell.trainable for cell in band.cells]


def _modules(resolved: ResolvedPlan, texts: _Table) -> dict[str, Any]:
    """Returns the modules in columns; `held` has a digit for each phase."""
    tree, modes = resolved._tree, _Table()
    held = []
    for phase in resolved.phases:
        flags, kept = resolved._held(phase.index)
        held.append(["1" if flag and row not in kept else "0" for row, flag in enumerate(flags)])
    return {
        "names": [texts.number(prefix[:-1].rpartition(".")[2]) for prefix in tree.prefixes],
        "parents": tree.parents,
        "classes": [texts.number(name) for name in tree.class_names],
        "modes": [modes.number("".join(each)) for each in zip(*held, strict=True)],
        "held": modes.values(),
    }


def _parameters(resolved: ResolvedPlan, texts: _Table) -> dict[str, Any]:
    """Returns the parameters in columns, and the further names of those that are tied."""
    tree, shapes = resolved._tree, _Table()
    numbers = {each: at for at, each in enumerate(dict.fromkeys(resolved._outcome_ids))}
    dtypes = {each: texts.number(str(each).removeprefix("torch.")) for each in {*tree.dtypes}}
    aliases = [
        (alias.owner, texts.number(alias.name[len(tree.prefixes[alias.owner]) :]), alias.row)
        for alias in tree.aliases
    ]
    return {
        "names": [
            texts.number(name[len(tree.prefixes[owner]) :])
            for name, owner in zip(tree.names, tree.owners, strict=True)
        ],
        "owners": tree.owners,
        "shapes": [shapes.number(None if shape is None else tuple(shape)) for shape in tree.shapes],
        "dtypes": [dtypes[each] for each in tree.dtypes],
        "outcomes": [numbers[each] for each in resolved._outcome_ids],
        "shape": shapes.values(),
        "aliases": aliases,
    }


def _outcomes(resolved: ResolvedPlan) -> dict[str, Any]:
    """Returns what holds for all parameters that the same rules select, and why.

    An outcome has for each phase the number of its reasons, and the stretches in which all of it
    stays the same: their first phase and their text.
    """
    reasons, spans = _Table(), _Table()
    firsts: dict[int, int] = {}
    for row, number in enumerate(resolved._outcome_ids):
        firsts.setdefault(number, row)
    listed, stretches, silent = [], [], []
    for at, (number, row) in enumerate(firsts.items()):
        outcome = resolved._outcomes[number]
        explanation = resolved.explain(resolved._tree.names[row])
        phases: list[list[Any]] = [[] for _ in resolved.phases]
        for each in explanation.reasons:
            phases[each.phase].append((each.key, str(each.value), each.rule, each.overridden))
        rates = [(each.trainable, each.lr, each.lr_mult) for each in outcome.decisions]
        listed.append(
            [reasons.number((*rate, tuple(said))) for rate, said in zip(rates, phases, strict=True)]
        )
        stretches.append([(first, spans.number(text)) for first, text in explanation.phases])
        if not any(outcome.histories):
            silent.append(at)
    return {
        "reasons": reasons.values(),
        "phases": listed,
        "stretches": stretches,
        "spans": spans.values(),
        "silent": silent if resolved.plan.rules else [],
    }


def _cost(resolved: ResolvedPlan, optimizer: OptimizerLike) -> dict[str, Any]:
    cost = resolved.cost(optimizer)
    return {
        "optimizer": cost.optimizer,
        "notes": cost.notes,
        "rows": [
            (
                row.phase,
                row.trainable,
                row.weight_bytes,
                row.gradient_bytes,
                row.state_bytes,
                row.total_bytes,
            )
            for row in (*cost.phases, cost.full)
        ],
    }


def _diff(resolved: ResolvedPlan, other: ResolvedPlan) -> dict[str, Any]:
    """Returns the changes by moment, property and values, and who differs in each phase."""
    found = resolved.diff(other)
    rows = {name: row for row, name in enumerate(resolved._tree.names)}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for change in found.changes:
        values = str(change.before), str(change.after), change.before != change.after
        kind = (change.stalls, change.start, change.key, *values)
        groups.setdefault(kind, []).append(rows[change.name])
    return {
        "rules": [rule.call for rule in other.plan.rules],
        "unit": found.unit,
        "groups": [
            {
                "stalls": stalls,
                "start": start,
                "phase": _phase(resolved, stalls, start),
                "key": key,
                "values": values,
                "runs": _runs(names),
            }
            for (stalls, start, key, *values), names in groups.items()
        ],
        "phases": [_runs(sorted(each)) for each in _differing(resolved, other, found, rows)],
        "only": (_runs([rows[name] for name in found.only_before]), found.only_after),
    }


def _phase(resolved: ResolvedPlan, stalls: int, start: int) -> int:
    """Returns the phase of the first plan at a moment of either."""
    return resolved._phase_at(start, min(stalls, len(resolved.metrics))).index


def _differing(
    resolved: ResolvedPlan, other: ResolvedPlan, found: PlanDiff, rows: dict[str, int]
) -> list[set[int]]:
    """Returns for each phase which parameters are treated differently at some moment of it."""
    standing: dict[int, set[str]] = {}
    phases: list[set[int]] = [set() for _ in resolved.phases]
    changes = found.changes
    done = 0
    for moment in moments(resolved, other):
        end = bisect_right(changes, moment, key=lambda change: (change.stalls, change.start))
        for change in changes[done:end]:
            keys = standing.setdefault(rows[change.name], set())
            (keys.add if change.before != change.after else keys.discard)(change.key)
        done = end
        phases[_phase(resolved, *moment)].update(row for row, keys in standing.items() if keys)
    gone = {rows[name] for name in found.only_before}
    return [each | gone for each in phases]


def _runs(numbers: Sequence[int]) -> list[int]:
    """Returns ascending numbers as first and last of each run of neighbours, flat."""
    runs: list[int] = []
    for number in numbers:
        if runs and number == runs[-1] + 1:
            runs[-1] = number
        else:
            runs += [number, number]
    return runs
