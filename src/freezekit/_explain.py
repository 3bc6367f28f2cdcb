"""Why a parameter is treated as it is, and where two plans differ: data with a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ._cascade import Cascade, Decision, History
from ._verbs import counted
from .errors import PlanError

if TYPE_CHECKING:
    from ._resolved import Phase, ResolvedPlan, Row


_WARM_UP = "warm-up begins"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one property has its value in one phase.

    Attributes:
        phase: index of the phase.
        key: the property, e.g. "trainable" or "weight_decay".
        value: what holds.
        rule: number of the deciding rule, 1 for the first; None: the parameter's own flag.
        overridden: numbers of the rules it overrode, first to last.
    """

    phase: int
    key: str
    value: Any
    rule: int | None
    overridden: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which rule decided each property of a parameter, phase by phase; `str` is the text.

    Attributes:
        name: canonical name.
        shape: None for a lazy parameter without a shape yet.
        aliases: its further names.
        reasons: by phase, then property.
        phases: first phase and text of each stretch in which all this stays the same.
        rules: the plan's rules as text.
        backward: for each phase, what backward has to do with it; empty without example inputs.
    """

    name: str
    shape: torch.Size | None
    aliases: tuple[str, ...]
    reasons: tuple[Reason, ...]
    phases: tuple[tuple[int, str], ...]
    rules: tuple[str, ...]
    backward: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """What holds in the first phase, by property."""
        return {reason.key: reason.value for reason in self.reasons if reason.phase == 0}

    def __str__(self) -> str:
        shape = "lazy" if self.shape is None else str(list(self.shape))
        head = f"{self.name} {shape}"
        if self.aliases:
            head += f", tied: also {', '.join(self.aliases)}"
        lines = [head]
        for index, text in self.phases:
            if len(self.phases) > 1:
                lines.append(f"  {text}")
            here = [reason for reason in self.reasons if reason.phase == index]
            width = max(len(f"{reason.key} = {reason.value}") for reason in here)
            for reason in here:
                said = f"{reason.key} = {reason.value}"
                lines.append(f"  {said:<{width}}   {self._because(reason)}")
            if self.backward:
                lines.append(f"  backward: {self.backward[index]}")
        return "\n".join(lines)

    def _because(self, reason: Reason) -> str:
        if reason.rule is None:
            return "no rule says; its own flag or dtype"
        text = f"rule {reason.rule}, {self.rules[reason.rule - 1]}"
        if reason.overridden:
            lost = ", ".join(f"rule {n}, {self.rules[n - 1]}" for n in reason.overridden)
            text += f"; overrides {lost}"
        return text


@dataclass(frozen=True, slots=True)
class Change:
    """One property that two plans set differently for one parameter from some moment on.

    Attributes:
        name: canonical name of the parameter.
        key: the property.
        start: first epoch or step (0-based) at which the two differ so.
        before: what holds under the first plan; None where no rule says.
        after: what holds under the other; equal to `before` where a difference ends.
        stalls: how many metric-driven rules have opened by then.
    """

    name: str
    key: str
    start: int
    before: Any
    after: Any
    stalls: int = 0


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """Where two resolved plans differ; `str` is the text, and false if they do not.

    Attributes:
        changes: by moment, then parameter.
        only_before: parameters that only the first model has.
        only_after: parameters that only the other has.
        unit: what `Change.start` counts.
    """

    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    unit: str | None

    def __bool__(self) -> bool:
        return bool(self.changes or self.only_before or self.only_after)

    def __str__(self) -> str:
        if not self:
            return "no difference"
        groups: dict[tuple[Any, ...], list[str]] = {}
        for change in self.changes:
            when = f"from {self.unit} {change.start}: " if self.unit else ""
            if change.stalls:
                rules = "rule has" if change.stalls == 1 else "rules have"
                when = f"once {change.stalls} metric-driven {rules} opened, {when}"
            kind = (when, change.key, repr(change.before), repr(change.after))
            groups.setdefault(kind, []).append(change.name)
        lines = []
        for (when, key, before, after), names in groups.items():
            values = f"{before} in both" if before == after else f"{before} -> {after}"
            lines.append(f"{when}{key}: {values} for {counted(names, 'parameter')}")
        for only, where in ((self.only_before, "first"), (self.only_after, "other")):
            if only:
                lines.append(f"only in the {where} model: {counted(only, 'parameter')}")
        return "\n".join(lines)


def explain(resolved: ResolvedPlan, name: str) -> Explanation:
    """Returns why a parameter is treated as it is; see `ResolvedPlan.explain`."""
    row = resolved.rows[resolved._row(name)]
    outcome = resolved._outcomes[resolved._outcome_ids[resolved._row(name)]]
    reasons = [
        [*_reasons(resolved._cascade, phase.index, history, decision)]
        for phase, history, decision in zip(
            resolved.phases, outcome.histories, outcome.decisions, strict=True
        )
    ]
    backward = _backward(resolved, row)
    spans: list[list[Phase]] = []
    for phase in resolved.phases:
        said = [replace(each, phase=0) for each in reasons[phase.index]]
        told = backward[phase.index : phase.index + 1]
        before = spans[-1][0] if spans else None
        if (
            before is not None
            and before.stalls == phase.stalls
            and said == [replace(each, phase=0) for each in reasons[before.index]]
            and told == backward[before.index : before.index + 1]
        ):
            spans[-1].append(phase)
        else:
            spans.append([phase])
    return Explanation(
        row.name,
        row.shape,
        row.aliases,
        tuple(each for listed in reasons for each in listed),
        tuple((span[0].index, span[0]._text(span[-1].end)) for span in spans),
        tuple(rule.call for rule in resolved.plan.rules),
        backward,
    )


def _backward(resolved: ResolvedPlan, row: Row) -> tuple[str, ...]:
    """Returns what backward has to do with a parameter, phase by phase, if it is known."""
    known = resolved.compute
    if known is None:
        return ()
    return tuple(
        known.explain(phase, row.name, decision.trainable)
        for phase, decision in enumerate(row.decisions)
    )


def diff(ours: ResolvedPlan, theirs: ResolvedPlan) -> PlanDiff:
    """Returns where two resolved plans differ; see `ResolvedPlan.diff`."""
    if not isinstance(theirs, type(ours)):
        raise PlanError(
            f"diff compares resolved plans, got {type(theirs).__name__}; resolve it first"
        )
    units = {phase.unit for plan in (ours, theirs) for phase in plan.phases} - {None}
    if len(units) > 1:
        raise PlanError(
            "one plan counts in epochs and the other in steps; resolve both with "
            "steps_per_epoch=... and moments in one unit"
        )
    mine, other = ours._tree.names, set(theirs._tree.names)
    common = [name for name in mine if name in other]
    changes: list[Change] = []
    last: dict[str, dict[str, tuple[Any, Any]]] = {}
    for stalls, start in moments(ours, theirs):
        before, after = (
            plan._phase_at(start, min(stalls, len(plan.metrics))).index for plan in (ours, theirs)
        )
        for name in common:
            pair = ours._decision(name, before), theirs._decision(name, after)
            now = {} if pair[0] == pair[1] else _differences(*pair)
            known = last.get(name, {})
            for key in {**known, **now}:
                if now.get(key) != known.get(key):
                    values = now.get(key) or (_said(pair[0], key), _said(pair[1], key))
                    changes.append(Change(name, key, start, *values, stalls))
            last[name] = now
    known_here = set(mine)
    gone = tuple(name for name in mine if name not in other)
    new = tuple(name for name in theirs._tree.names if name not in known_here)
    return PlanDiff(tuple(changes), gone, new, next(iter(units), None))


def moments(ours: ResolvedPlan, theirs: ResolvedPlan) -> list[tuple[int, int]]:
    """Returns when one of two plans may change: how many metrics have stalled, and the clock.

    Once all metrics of the plan that waits for fewer have stalled, its last phases go on.
    """
    most = max(len(ours.metrics), len(theirs.metrics))
    found = {
        (stalls, phase.start)
        for plan in (ours, theirs)
        for stalls in range(most + 1)
        for phase in plan.phases
        if phase.stalls == min(stalls, len(plan.metrics))
    }
    return sorted(found)


def _said(decision: Decision, key: str) -> Any:  # noqa: ANN401
    if key == _WARM_UP:
        return _opening(decision)
    return dict(_values(decision)).get(key)


def _opening(decision: Decision) -> int | str | None:
    """Returns when the rule about the warm-up opens."""
    clock, stalls = decision.warmup_from or (None, 0)
    return f"with metric {stalls}" if stalls else clock


def _differences(ours: Decision, theirs: Decision) -> dict[str, tuple[Any, Any]]:
    before, after = dict(_values(ours)), dict(_values(theirs))
    if before.get("warmup_steps") and after.get("warmup_steps"):
        before[_WARM_UP], after[_WARM_UP] = _opening(ours), _opening(theirs)
    return {
        key: (before.get(key), after.get(key))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    }


def _values(decision: Decision) -> Iterator[tuple[str, Any]]:
    yield "trainable", decision.trainable
    for key in ("lr", "lr_mult", "weight_decay", "warmup_steps", "frozen_mode"):
        if getattr(decision, key) is not None:
            yield key, getattr(decision, key)
    if decision.rows is not None:
        yield "rows", decision.rows if decision.rows_train else f"all but {decision.rows}"
    yield from decision.options


def _reasons(
    cascade: Cascade, phase: int, history: History, decision: Decision
) -> Iterator[Reason]:
    sources = {"lr_mult": "lr", "rows": "trainable"}
    options = dict(decision.options)
    for key, value in _values(decision):
        source = f"options.{key}" if key in options else sources.get(key, key)
        numbers = history.get(source, ())
        if key == "trainable" and numbers:
            wanted, rows = cascade.value(key, numbers)
            numbers = numbers if rows or wanted == value else ()
        rules = [cascade.entries[number].source + 1 for number in numbers]
        yield Reason(phase, key, value, rules[-1] if rules else None, tuple(rules[:-1]))
