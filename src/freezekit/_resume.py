"""Checkpoints: optimizer state matched by parameter name, and whether a plan is still the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ._plan import FreezePlan
from ._resolved import ResolvedPlan
from ._verbs import counted
from .errors import FreezekitError


def plan_text(resolved: ResolvedPlan) -> str:
    """Returns a plan and the totals it was resolved with as one line of JSON."""
    context = resolved._cascade.time.context
    return json.dumps({"plan": resolved.plan.to_dict(), **context}, sort_keys=True)


def fingerprint(resolved: ResolvedPlan) -> str:
    """Returns a digest of a plan and its totals."""
    return hashlib.sha256(plan_text(resolved).encode()).hexdigest()


def parameter_digest(resolved: ResolvedPlan) -> str:
    """Returns a digest of the names of the model's parameters."""
    return hashlib.sha256("\n".join(sorted(resolved._tree.names)).encode()).hexdigest()


def difference(
    saved: Mapping[str, Any],
    present: Mapping[str, Any],
    resolved: ResolvedPlan,
    model: torch.nn.Module,
) -> str:
    """Says what is otherwise than in a saved state; empty: nothing that matters.

    Args:
        saved: what `AppliedPlan.state_dict` returned when it was saved.
        present: what it returns now.
        resolved: the present plan.
        model: the model.
    """
    lines = []
    if saved["fingerprint"] != present["fingerprint"]:
        lines += _plan_difference(saved["plan"], resolved, model)
    if saved["on_freeze"] != present["on_freeze"]:
        lines.append(f"on_freeze: {saved['on_freeze']} -> {present['on_freeze']}")
    if saved["parameters"] != present["parameters"]:
        known = set(resolved._tree.names)
        gone = [name for _, names, _ in saved["groups"] for name in names if name not in known]
        what = f"; gone: {counted(gone, 'parameter')}" if gone else ""
        lines.append(f"the model has other parameters{what}")
    for (name, before, was_named), (_, after, is_named) in zip(
        saved["groups"], present["groups"], strict=False
    ):
        if before != after and not (was_named and is_named):
            lines.append(
                f"param group {name!r} holds its parameters in another order, and without names "
                "an optimizer gives them each other's state; build it with param_groups(lr=...)"
            )
    return "\n".join(lines)


def _plan_difference(saved: str, resolved: ResolvedPlan, model: torch.nn.Module) -> list[str]:
    data = json.loads(saved)
    plan = FreezePlan.from_dict(data.pop("plan"), source="checkpoint")
    try:
        before = plan.resolve(model, **data)
        diff = before.diff(resolved)
    except FreezekitError as error:
        return [f"the saved plan cannot be compared on this model: {error}"]
    lines = [str(diff)] if diff else [*_held_differently(before, resolved)]
    ours, theirs = ([rule.at_metric for rule in each.metrics] for each in (before, resolved))
    if ours != theirs:
        lines.append(f"at_metric: {_spoken(ours)} -> {_spoken(theirs)}")
    return lines


def _held_differently(before: ResolvedPlan, after: ResolvedPlan) -> Iterator[str]:
    """Yields from when on which modules are held in eval under one plan only."""
    phases = (*before.phases, *after.phases)
    unit = next((phase.unit for phase in phases if phase.unit), None)
    known: tuple[list[str], list[str]] = ([], [])
    for stalls, start in sorted({(phase.stalls, phase.start) for phase in phases}):
        old, new = (_held_at(each, stalls, start) for each in (before, after))
        only = (sorted(old - new), sorted(new - old))
        if only != known:
            known, when = only, f"from {unit} {start}: " if unit else ""
            for names, how in zip(only, ("no longer held", "newly held"), strict=True):
                if names:
                    yield f"{when}{how} in eval: {counted(names, 'module')}"
            if only == ([], []):
                yield f"{when}held in eval alike"


def _held_at(resolved: ResolvedPlan, stalls: int, moment: int) -> set[str]:
    phase = resolved._phase_at(moment, min(stalls, len(resolved.metrics)))
    held, _ = resolved._held(phase.index)
    return {p[:-1] for p, is_held in zip(resolved._tree.prefixes, held, strict=True) if is_held}


def _spoken(metrics: Sequence[Any]) -> str:
    return ", ".join(str(dict(each)) for each in metrics) or "none"


def by_name(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], *, strict: bool
) -> dict[str, Any] | None:
    """Returns an optimizer's saved state in the order of its present groups.

    Torch matches by position, so that layers of equal shape can receive each other's state. Groups
    without names are left to it.

    Args:
        optimizer: the optimizer that is about to load.
        state: what `optimizer.state_dict()` returned.
        strict: whether groups must hold what they held; otherwise each parameter takes what is
            saved under its name, and each group what the first of its parameters had.

    Raises:
        FreezekitError: the saved groups hold other parameters.
    """
    groups, saved = optimizer.param_groups, state["param_groups"]
    if not all("param_names" in group for group in (*groups, *saved)):
        return None
    homes = {name: group for group in saved for name in group["param_names"]}
    ids = {
        name: number
        for group in saved
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    if strict:
        _check_groups(groups, saved)
    fresh = 1 + max((n for n in ids.values() if isinstance(n, int)), default=0)
    arranged = []
    for group in groups:
        names = group["param_names"]
        home = next((homes[name] for name in names if name in homes), None)
        settings = dict(group if home is None else home)
        numbers = [ids.get(name, fresh + at) for at, name in enumerate(names)]
        fresh += len(names)
        kept = {"params": numbers, "param_names": list(names)}
        arranged.append(settings | ({"name": group["name"]} if "name" in group else {}) | kept)
    known = {number for group in arranged for number in group["params"]}
    states = {number: each for number, each in state["state"].items() if number in known}
    return {**state, "state": states, "param_groups": arranged}


def _check_groups(groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> None:
    """Raises unless the same parameters are grouped together."""
    there = {frozenset(group["param_names"]) for group in saved}
    here = {frozenset(group["param_names"]) for group in groups}
    if there == here:
        return
    lines = [
        f"  {where}: {counted(sorted(names), 'parameter')}"
        for where, sets, others in (("saved", there, here), ("now", here, there))
        for names in sorted(sets - others, key=sorted)
    ]
    raise FreezekitError(
        "the optimizer's saved param groups hold other parameters than those of this run:\n"
        + "\n".join(lines)
        + "\napply the plan it was saved with, or first call load_state_dict(..., strict=False) on "
        "the applied plan to match by parameter name"
    )
