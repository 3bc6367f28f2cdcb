"""Rules that open once a metric has stalled: what counts, what does not, and what is remembered."""

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from freezekit import AppliedPlan, FreezePlan, PlanError

NAN, INF = math.nan, math.inf


def net(layers: int = 3) -> nn.Sequential:
    """Returns a stack of layers."""
    return nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)])


def waiting(*metrics: dict[str, Any]) -> FreezePlan:
    """Returns a plan that opens layer 0 once the first metric has stalled, then 1, and so on."""
    plan = FreezePlan().freeze(*map(str, range(len(metrics))))
    for number, metric in enumerate(metrics):
        plan = plan.unfreeze(str(number), at_metric={"monitor": "loss"} | metric)
    return plan


def opened(applied: AppliedPlan) -> int:
    """Returns how many layers train now that did not at the start."""
    first = applied.resolved.phases[0]
    return len({name for name in applied.phase.trainable - first.trainable if "weight" in name})


def openings(applied: AppliedPlan, values: Sequence[float]) -> list[int]:
    """Returns how many layers are open after each observation, one an epoch."""
    seen = []
    for epoch, value in enumerate(values):
        applied.advance(epoch=epoch, metrics={"loss": value})
        seen.append(opened(applied))
    return seen


TABLE: dict[str, tuple[dict[str, Any], list[float], list[int]]] = {
    "patience 0": ({"patience": 0}, [3, 2, 2, 1], [0, 0, 1, 1]),
    "patience 1": ({"patience": 1}, [3, 2, 2, 1], [0, 0, 1, 1]),
    "patience 2": ({"patience": 2}, [3, 3, 3, 1], [0, 0, 1, 1]),
    "patience 3": ({"patience": 3}, [3, 3, 4, 5], [0, 0, 0, 1]),
    "an improvement starts anew": ({"patience": 2}, [3, 3, 2, 2, 2], [0, 0, 0, 0, 1]),
    "against the best": ({"patience": 2}, [1, 3, 2], [0, 0, 1]),
    "no less than the delta": ({"patience": 1, "min_delta": 1.0}, [4, 2.5, 1.5], [0, 0, 1]),
    "just the delta": ({"patience": 1, "min_delta": 0.5}, [4, 3.5], [0, 1]),
    "more than the delta": ({"patience": 1, "min_delta": 0.5}, [4, 3.25, 2.5], [0, 0, 0]),
    "slow, but from the best": ({"patience": 2, "min_delta": 1}, [4, 3.5, 2.5, 2], [0, 0, 0, 0]),
    "max": ({"mode": "max", "patience": 1}, [1, 2, 2], [0, 0, 1]),
    "max going down": ({"mode": "max", "patience": 2}, [2, 1, 0], [0, 0, 1]),
    "max delta": ({"mode": "max", "patience": 1, "min_delta": 1}, [1, 2.5, 3.5], [0, 0, 1]),
    "never bad at first": ({"patience": 1}, [9], [0]),
    "unless not a number": ({"patience": 1}, [NAN], [1]),
    "not a number is no gain": ({"patience": 2}, [3, NAN, NAN], [0, 0, 1]),
    "not a number is no best": ({"patience": 2}, [NAN, 3, 2, 2, 2], [0, 0, 0, 0, 1]),
    "infinite at first": ({"patience": 1}, [INF, 3, 3], [0, 0, 1]),
    "infinite at first, max": ({"mode": "max", "patience": 1}, [-INF, 3, 3], [0, 0, 1]),
    "infinite again": ({"patience": 1}, [INF, INF], [0, 1]),
    "infinite and good": ({"patience": 1}, [3, -INF, -INF], [0, 0, 1]),
    "negative": ({"patience": 1}, [-1, -2, -1.5], [0, 0, 1]),
}


@pytest.mark.parametrize("case", TABLE)
def test_when_a_metric_has_stalled(case: str) -> None:
    """At the patience-th observation in a row without an improvement by more than the delta."""
    metric, values, expected = TABLE[case]
    model = net()
    applied = waiting(metric).apply(model)
    assert openings(applied, values) == expected
    assert model[0].weight.requires_grad == bool(expected[-1])


def test_each_rule_counts_from_after_the_one_before() -> None:
    """The observation at which one fires does not count for the next, which starts anew."""
    rules = ({"patience": 2}, {"patience": 1}, {"patience": 2})
    values = [5, 5, 5, 9, 9, 9, 9, 9, 9]
    assert openings(waiting(*rules).apply(net(4)), values) == [0, 0, 1, 1, 2, 2, 2, 3, 3]


def test_rules_may_wait_for_different_metrics() -> None:
    """Only the one waited for is needed; the others are not counted meanwhile."""
    plan = waiting({"monitor": "loss", "patience": 1}, {"monitor": "accuracy", "mode": "max"})
    applied = plan.apply(net())
    applied.advance(epoch=0, metrics={"loss": 1.0})
    applied.advance(epoch=1, metrics={"loss": 1.0, "accuracy": 0.5})
    assert opened(applied) == 1
    applied.advance(epoch=2, metrics={"accuracy": 0.4})
    assert opened(applied) == 1
    applied.advance(epoch=3, metrics={"accuracy": 0.3, "loss": 9.0})
    assert opened(applied) == 2
    applied.advance(epoch=4, metrics={})
    assert opened(applied) == 2


numbers = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, -1.0, NAN, INF, -INF])


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "mode": st.sampled_from(["min", "max"]),
                "patience": st.integers(0, 3),
                "min_delta": st.sampled_from([0, 0.5, 1.0]),
            },
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(numbers, max_size=12),
    st.integers(0, 12),
)
def test_any_metrics_open_what_a_count_by_hand_opens(
    rules: list[dict[str, Any]], values: list[float], cut: int
) -> None:
    """And a run that is killed and resumed anywhere opens the same at the same moments."""
    expected, best, bad, fired = [], None, 0, 0
    for value in values:
        if fired < len(rules):
            rule = {"mode": "min", "patience": 0, "min_delta": 0.0} | rules[fired]
            better = best is None or (
                value < best - rule["min_delta"]
                if rule["mode"] == "min"
                else value > best + rule["min_delta"]
            )
            if better and not math.isnan(value):
                best, bad = value, 0
            else:
                bad += 1
            if bad >= max(1, rule["patience"]):
                best, bad, fired = None, 0, fired + 1
        expected.append(fired)
    plan = waiting(*rules)
    applied = plan.apply(net(4))
    seen = []
    for epoch, value in enumerate(values):
        if epoch == cut:
            state = torch_trip(applied.state_dict())
            applied = plan.apply(net(4))
            applied.load_state_dict(state)
            assert opened(applied) == (seen[-1] if seen else 0)
        applied.advance(epoch=epoch, metrics={"loss": value})
        seen.append(opened(applied))
    assert seen == expected


def torch_trip(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a state after a trip through `torch.save` and a loader that takes plain data only."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_moment_counts_once() -> None:
    """Asking again, or going back, is no further observation."""
    applied = waiting({"patience": 2}).apply(net())
    for epoch in (0, 1, 1, 1, 0):
        applied.advance(epoch=epoch, metrics={"loss": 1.0})
        assert opened(applied) == 0
    assert applied.state_dict()["metrics"]["fired"] == []
    applied.advance(epoch=2, metrics={"loss": 1.0})
    assert opened(applied) == 1


def test_a_moment_without_metrics_counts_as_nothing() -> None:
    """Between two evaluations `advance` may be called as often as the loop likes."""
    applied = waiting({"patience": 2}).apply(net())
    for step in range(9):
        applied.advance(step=step, metrics={"loss": 1.0} if step % 4 == 0 else None)
        assert opened(applied) == (step >= 8)


def test_before_the_moment_at_which_it_fired_a_rule_is_closed() -> None:
    """State is a function of plan, clock and the moments of firing, in any order."""
    model = net()
    applied = waiting({"patience": 1}, {"patience": 1}).apply(model)
    assert openings(applied, [1, 1, 1, 1]) == [0, 1, 1, 2]
    for epoch, count in ((0, 0), (9, 2), (1, 1), (2, 1), (0, 0), (3, 2)):
        applied.advance(epoch=epoch)
        assert opened(applied) == count
        flags = [layer.weight.requires_grad for layer in model]
        assert flags == [count > 0, count > 1, True]


def test_the_moments_of_firing_are_in_the_state() -> None:
    """As plain data; a fresh run that loads it is where the old one was, and goes on."""
    plan = waiting({"patience": 1}, {"patience": 2})
    applied = plan.apply(net())
    openings(applied, [1, 1, 3, 3])
    state = json.loads(json.dumps(applied.state_dict()))
    assert state["metrics"]["fired"] == [1]
    model = net()
    fresh = plan.apply(model)
    fresh.load_state_dict(state)
    assert opened(fresh) == 1
    assert [layer.weight.requires_grad for layer in model] == [True, False, True]
    fresh.advance(epoch=4, metrics={"loss": 3.0})
    assert opened(fresh) == 2
    assert fresh.state_dict()["metrics"]["fired"] == [1, 4]


def test_a_state_keeps_its_keys() -> None:
    """Before, during and after, so that a checkpoint of fixed structure can hold it."""
    applied = waiting({"patience": 1}).apply(net())
    before = applied.state_dict()
    openings(applied, [1, 1, 1])
    after = applied.state_dict()
    assert before.keys() == after.keys()
    assert before["metrics"].keys() == after["metrics"].keys()


def test_phases_with_unknown_start_are_shown_by_what_they_wait_for() -> None:
    """`at` takes the number of rules that have fired for what the clock cannot know."""
    plan = waiting({"patience": 2}, {"patience": 2}, {"monitor": "error"})
    resolved = plan.resolve(net(4))
    assert [str(phase) for phase in resolved.phases] == [
        "until loss stalls",
        "once loss has stalled",
        "once loss has stalled 2 times",
        "once error has stalled",
    ]
    assert [len(resolved.at(stalls=count).trainable) for count in range(4)] == [2, 4, 6, 8]
    with pytest.raises(PlanError, match=r"stalls=4, but the plan's rules wait for 3 metrics"):
        resolved.at(stalls=4)


def test_clock_and_metric_name_a_phase_together() -> None:
    """Both are said where both decide."""
    plan = FreezePlan().freeze("{0,1}").unfreeze("0", at_epoch=3)
    plan = plan.unfreeze("1", at_metric={"monitor": "loss", "patience": 1})
    resolved = plan.resolve(net())
    assert [str(phase) for phase in resolved.phases] == [
        "epochs 0 to 2, until loss stalls",
        "from epoch 3, until loss stalls",
        "epochs 0 to 2, once loss has stalled",
        "from epoch 3, once loss has stalled",
    ]
    assert resolved.at(epoch=5, stalls=1).trainable == {
        f"{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")
    }
    assert resolved.at(epoch=2, stalls=1).frozen == {"0.weight", "0.bias"}


def test_a_rule_that_fired_closes_at_its_end() -> None:
    """`until_epoch` ends it, and it does not open after that."""
    metric = {"monitor": "loss", "patience": 1}
    plan = FreezePlan().freeze("0").unfreeze("0", at_metric=metric, until_epoch=3)
    applied = plan.apply(net())
    assert openings(applied, [1, 1, 1, 1]) == [0, 1, 1, 0]
    late = plan.apply(net())
    assert openings(late, [4, 3, 2, 1, 1]) == [0, 0, 0, 0, 0]


def test_a_warm_up_begins_where_the_metric_fired() -> None:
    """Its first step is the one at which the rule opens."""
    metric = {"monitor": "loss", "patience": 1}
    plan = FreezePlan().freeze("0").unfreeze("0", at_metric=metric, warmup_steps=4)
    applied = plan.apply(net())
    applied.optimizer(torch.optim.SGD, lr=1.0)
    seen = []
    for step in range(9):
        applied.advance(step=step, metrics={"loss": 1.0} if step in (0, 3) else None)
        seen.append(applied.lrs()["0"])
    assert seen == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    state = torch_trip(applied.state_dict())
    fresh = plan.apply(net())
    fresh.optimizer(torch.optim.SGD, lr=1.0)
    fresh.load_state_dict(state)
    fresh.advance(step=5)
    assert fresh.lrs()["0"] == 0.75


@pytest.mark.parametrize(
    "value", [torch.tensor(1.0), torch.tensor([1.0]), torch.tensor(1, dtype=torch.int64), 1, True]
)
def test_what_counts_as_a_number(value: object) -> None:
    """Python numbers and tensors with one element; a truth value is none."""
    applied = waiting({"patience": 1}).apply(net())
    if value is True:
        with pytest.raises(PlanError, match="the metric 'loss' must be a number, got True"):
            applied.advance(epoch=0, metrics={"loss": value})
        return
    applied.advance(epoch=0, metrics={"loss": value})
    applied.advance(epoch=1, metrics={"loss": value})
    assert opened(applied) == 1


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (
        {"epoch": 1, "metrics": {"los": 1.0}},
        "the plan waits for the metric 'loss', which is not among those given; did you mean "
        "'los'? (known: los)",
    ),
    "text": (
        {"epoch": 1, "metrics": {"loss": "low"}},
        "the metric 'loss' must be a number, got 'low'",
    ),
    "several": (
        {"epoch": 1, "metrics": {"loss": torch.ones(2)}},
        "the metric 'loss' must be a number, got tensor([1., 1.])",
    ),
    "no clock": (
        {"metrics": {"loss": 1.0}},
        "the plan waits for a metric; pass epoch=...",
    ),
    "another clock": (
        {"step": 1, "metrics": {"loss": 1.0}},
        "the plan waits for a metric; pass epoch=...",
    ),
    "negative": (
        {"epoch": -1, "metrics": {"loss": 1.0}},
        "epoch must be a whole number >= 0, got -1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_counted_is_refused_and_changes_nothing(case: str) -> None:
    """The message names the metric or the clock; the observation is not taken."""
    given, message = REFUSED[case]
    applied = waiting({"patience": 1}).apply(net())
    applied.advance(epoch=0, metrics={"loss": 1.0})
    before = applied.state_dict()
    with pytest.raises(PlanError) as caught:
        applied.advance(**given)
    assert str(caught.value) == message
    assert applied.state_dict() == before
    assert opened(applied) == 0


def test_metrics_without_a_rule_that_waits_are_ignored() -> None:
    """A loop may pass them whatever the plan is."""
    applied = FreezePlan().freeze("0", until_epoch=1).apply(net())
    applied.advance(epoch=1, metrics={"anything": "at all"})
    assert opened(applied) == 1


def test_an_expanded_builder_waits_as_one_rule() -> None:
    """`layer_decay` stands for several rules; all open with the metric of the one written."""
    metric = {"monitor": "loss", "patience": 1}
    plan = FreezePlan().layer_decay(decay=0.5, lr=1.0, at_metric=metric)
    applied = plan.apply(net())
    applied.optimizer(torch.optim.SGD, lr=2.0)
    assert len(applied.resolved.phases) == 2
    applied.advance(epoch=0, metrics={"loss": 1.0})
    assert set(applied.lrs().values()) == {2.0}
    applied.advance(epoch=1, metrics={"loss": 1.0})
    assert sorted(applied.lrs().values()) == [0.25, 0.5, 1.0]


RANK = """
import json, os, sys
import torch
from torch import nn
from freezekit import FreezePlan
from freezekit.integrations.distributed import register

torch.set_num_threads(1)
rank = int(sys.argv[1])
store = torch.distributed.FileStore(sys.argv[2], 2)
torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
plan = FreezePlan().freeze("{0,1}")
for layer in "01":
    plan = plan.unfreeze(layer, at_metric={"monitor": "loss", "patience": 1})
applied = plan.apply(model)
register(applied, model)  # nothing is trained, so nothing has to be averaged
values = [[5, 4, 4, 3, 3, 2], [5, 6, 3, 4, 2, 2]][rank]
seen = []
for epoch, value in enumerate(values):
    for _ in range(2):
        applied.advance(epoch=epoch, metrics={"loss": value})
    seen.append([layer.weight.requires_grad for layer in model])
print(json.dumps([seen, applied.state_dict()]))
torch.distributed.destroy_process_group()
"""


def test_ranks_decide_as_one(tmp_path: Path) -> None:
    """Two processes with different values open the same at the same moment: rank 0 decides."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*arguments, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [each.communicate(timeout=120) for each in ranks]
    finally:
        for each in ranks:
            each.kill()
    assert [each.returncode for each in ranks] == [0, 0], [errors for _, errors in outputs]
    (seen, state), other = (json.loads(out) for out, _ in outputs)
    assert [seen, state] == other
    shut, one, both = [False, False, True], [True, False, True], [True, True, True]
    assert seen == [shut, shut, one, one, both, both]
    assert state["metrics"]["fired"] == [2, 4]
