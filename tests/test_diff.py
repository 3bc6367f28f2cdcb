"""The difference of two plans, replayed moment by moment against what the plans say."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from freezekit import FreezePlan, ResolvedPlan
from freezekit._explain import PlanDiff

EVERY_MOMENT = range(9)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))


@st.composite
def plans(draw: st.DrawFn) -> FreezePlan:
    """Draws plans of a few rules, which wait for epochs, metrics, both or nothing."""
    plan = FreezePlan(allow_all_frozen=True)
    for _ in range(draw(st.integers(0, 4))):
        moments: dict[str, Any] = {}
        if draw(st.booleans()):
            moments["at_metric"] = {"monitor": draw(st.sampled_from("ab"))}
        elif draw(st.booleans()):
            moments["at_epoch"] = draw(st.integers(0, 4))
        if draw(st.booleans()):
            moments["until_epoch"] = draw(st.integers(5, 8))
        pattern = draw(st.sampled_from(["[0]", "[1:]", "**.bias", "**"]))
        if draw(st.booleans()):
            plan = plan.freeze(pattern, **moments)
        else:
            plan = plan.unfreeze(pattern, lr_mult=draw(st.sampled_from([0.5, 0.1])), **moments)
    return plan


def values(plan: ResolvedPlan, epoch: int, stalls: int) -> dict[tuple[str, str], Any]:
    """Returns what a plan says of each parameter at a moment."""
    phase = plan.at(epoch=epoch, stalls=min(stalls, len(plan.metrics))).index
    found: dict[tuple[str, str], Any] = {}
    for row in plan.rows:
        found[row.name, "trainable"] = row.decisions[phase].trainable
        found[row.name, "lr_mult"] = row.decisions[phase].lr_mult
    return found


def standing(diff: PlanDiff, epoch: int, stalls: int) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Returns what differs at a moment, by replaying the changes up to it."""
    found = {}
    for change in diff.changes:
        if (change.stalls, change.start) <= (stalls, epoch):
            found[change.name, change.key] = (change.before, change.after)
    return {key: pair for key, pair in found.items() if pair[0] != pair[1]}


@given(plans(), plans())
def test_changes_replayed_are_the_difference_at_every_moment(
    before: FreezePlan, after: FreezePlan
) -> None:
    """At every epoch, and however many metrics have stalled, also with plans that wait for few."""
    ours, theirs = before.resolve(model()), after.resolve(model())
    diff = ours.diff(theirs)
    for stalls in range(max(len(ours.metrics), len(theirs.metrics)) + 1):
        for epoch in EVERY_MOMENT:
            said, other = values(ours, epoch, stalls), values(theirs, epoch, stalls)
            expected = {key: (said[key], other[key]) for key in said if said[key] != other[key]}
            assert standing(diff, epoch, stalls) == expected


def test_a_plan_without_metrics_goes_on_once_the_other_has_stalled() -> None:
    """What changes by the clock alone is compared in every stage of a plan that waits."""
    waits = FreezePlan().freeze("[0]", at_metric={"monitor": "loss"}).resolve(model())
    counts = FreezePlan().freeze("[0]", until_epoch=2).resolve(model())
    lines = str(waits.diff(counts)).splitlines()
    assert lines[-1] == (
        "once 1 metric-driven rule has opened, from epoch 2: trainable: False -> True for "
        "2 parameters: 0.weight, 0.bias"
    )
