"""The simulation of a run: the rates of a real training loop, bit for bit, and nothing trained."""

import math
import time
import warnings
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from freezekit import FreezekitError, FreezePlan, PlanError
from freezekit._simulation import Run, simulate

STEPS, EPOCH = 60, 10
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=STEPS),
    "restarts": lambda optimizer: CosineAnnealingWarmRestarts(optimizer, T_0=17),
    "cyclic": lambda optimizer: CyclicLR(optimizer, base_lr=1e-4, max_lr=0.1, step_size_up=7),
    "exponential": lambda optimizer: ExponentialLR(optimizer, gamma=0.9),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (step + 1)),
    "linear_to_zero": lambda optimizer: LinearLR(optimizer, 1, 0, total_iters=STEPS),
    "one_cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS + 1),
    "sequential": lambda optimizer: SequentialLR(
        optimizer,
        [LinearLR(optimizer, 0.1, total_iters=9), MultiStepLR(optimizer, [11, 30])],
        milestones=[9],
    ),
}
PLANS = {
    "all": FreezePlan(),
    "warm_up": FreezePlan().freeze("[0]", until_step=20).group("**", warmup_steps=7),
    "changing": FreezePlan()
    .group("[0]", lr=0.3, until_step=25)
    .group("[1]", lr_mult=0.5, at_step=13)
    .freeze("[1]", at_step=31, until_step=41),
    "gradual": FreezePlan()
    .freeze("**")
    .unfreeze_layerwise(start_epoch=0, every_epochs=1)
    .layer_decay(decay=0.7)
    .no_decay(),
    "metric": FreezePlan().freeze("[0]").unfreeze("[0]", at_metric={"monitor": "loss"}),
    "recurrent": FreezePlan().freeze("[1]").freeze("[2]", at_step=30),
    "options": FreezePlan().group("[0]", options={"momentum": 0.9}).freeze("[2]", until_epoch=2),
}


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))


def real(
    plan: FreezePlan, scheduler: Callable[[torch.optim.Optimizer], LRScheduler], interval: str
) -> list[dict[str, float]]:
    """Returns what a training loop logs before each of its steps."""
    net = model()
    applied = plan.apply(net, steps_per_epoch=EPOCH, total_steps=STEPS)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.05)
    made, log = scheduler(optimizer), []
    for step in range(STEPS):
        applied.advance(epoch=step // EPOCH, step=step)
        log.append(applied.lrs())
        optimizer.zero_grad()
        hidden, _ = net[1](net[0](torch.ones(2, 3)))
        net[3](net[2](hidden)).sum().backward()
        optimizer.step()
        if interval == "step" or (step + 1) % EPOCH == 0:
            made.step()
    return log


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_rates_are_those_of_a_real_run_bit_for_bit(plan: str, name: str) -> None:
    """At every step each group has exactly the rate that a training loop logs."""
    made = PLANS[plan].resolve(model(), steps_per_epoch=EPOCH, total_steps=STEPS)
    run = simulate(made, Run(0.05, SCHEDULERS[name]))
    log = real(PLANS[plan], SCHEDULERS[name], "step")
    assert run.steps == tuple(range(STEPS))
    assert run.rates == run.lows == run.highs
    found = [{group: rates[step] for group, rates in run.rates.items()} for step in range(STEPS)]
    assert found == log
    for group, trains in run.trains.items():
        assert all(on or not rate for on, rate in zip(trains, run.rates[group], strict=True))


@pytest.mark.parametrize("plan", ["gradual", "warm_up"])
@pytest.mark.parametrize("name", ["exponential", "cosine"])
def test_schedulers_of_epochs_step_after_each_epoch(plan: str, name: str) -> None:
    """With interval="epoch" the rates are those of a loop that steps the scheduler so."""
    made = PLANS[plan].resolve(model(), steps_per_epoch=EPOCH, total_steps=STEPS)
    run = simulate(made, Run(0.05, SCHEDULERS[name], interval="epoch"))
    log = real(PLANS[plan], SCHEDULERS[name], "epoch")
    assert [{group: rates[step] for group, rates in run.rates.items()}
            for step in range(STEPS)] == log  # fmt: skip


def test_phases_that_begin_are_noted_and_metrics_never_stall() -> None:
    """The starts are those of the phases; what waits for a metric stays closed."""
    made = PLANS["changing"].resolve(model(), steps_per_epoch=EPOCH, total_steps=STEPS)
    assert simulate(made, Run(0.1)).starts == ((0, 0), (13, 1), (25, 2), (31, 3), (41, 4))
    made = PLANS["metric"].resolve(model(), total_steps=STEPS)
    run = simulate(made, Run(0.1))
    assert run.starts == ((0, 0),)
    assert run.trains["0"] == (False,) * STEPS


def test_lengths_come_from_the_plan_or_the_call() -> None:
    """Totals default to those given to `resolve`; one that contradicts them is refused."""
    made = PLANS["gradual"].resolve(model(), steps_per_epoch=3, total_epochs=4)
    assert simulate(made, Run(0.1)).total == 12
    made = PLANS["gradual"].resolve(model(), total_epochs=4)
    assert simulate(made, Run(0.1, steps_per_epoch=5)).total == 20
    with pytest.raises(PlanError, match=r"^the plan counts in epochs, a simulation in steps; "):
        simulate(made, Run(0.1))
    assert simulate(made, Run(0.1, steps_per_epoch=5, total_steps=18)).total == 18
    for steps, said in ((7, "2 epochs of 5 steps"), (15, "3 epochs of 5"), (21, "5 epochs of 5")):
        wrong = rf"^total_steps={steps} is {said}.*, and the plan was resolved with total_epochs=4;"
        with pytest.raises(PlanError, match=wrong):
            simulate(made, Run(0.1, steps_per_epoch=5, total_steps=steps))
    stepped = FreezePlan().freeze("[0]", until_step=5).resolve(model(), total_steps=20)
    with pytest.raises(PlanError, match=r"^total_steps=7 contradicts the 20 that the plan was "):
        simulate(stepped, Run(0.1, total_steps=7))
    bare = FreezePlan().resolve(model())
    with pytest.raises(PlanError, match=r"^how long training is, is not known; pass total_steps="):
        simulate(bare, Run(0.1))
    with pytest.raises(PlanError, match=r"^the scheduler is stepped in epochs, a simulation "):
        simulate(bare, Run(0.1, total_steps=10, interval="epoch"))
    with pytest.raises(PlanError, match=r"total_steps must be"):
        simulate(bare, Run(0.1, total_steps=0))
    with pytest.raises(ValueError, match=r"^interval must be 'step' or 'epoch', got 'batch'$"):
        simulate(bare, Run(0.1, total_steps=1, interval="batch"))  # type: ignore[arg-type]
    warms = FreezePlan().freeze("[0]", until_epoch=1).group("**", warmup_steps=3).resolve(model())
    with pytest.raises(PlanError, match=r"resolve the plan with steps_per_epoch=\.\.\.$"):
        simulate(warms, Run(0.1, total_steps=9, steps_per_epoch=3))


def test_what_is_no_scheduler_is_refused() -> None:
    """One that follows a metric, an object, and what builds something else: each says so."""
    made = FreezePlan().resolve(model())
    with pytest.raises(ValueError, match=r"^ReduceLROnPlateau follows a metric, and nothing is "):
        simulate(made, Run(0.1, ReduceLROnPlateau, total_steps=5))
    built = ExponentialLR(torch.optim.SGD(model().parameters(), lr=1), 0.9)
    with pytest.raises(TypeError, match=r"^scheduler takes the optimizer .*; got ExponentialLR$"):
        simulate(made, Run(0.1, built, total_steps=5))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^scheduler takes the optimizer .*; it returned int$"):
        simulate(made, Run(0.1, lambda optimizer: 3, total_steps=5))  # type: ignore[arg-type, return-value]
    nothing = FreezePlan(allow_all_frozen=True).freeze("**").resolve(model())
    with pytest.raises(FreezekitError, match=r"nothing it selects ever trains"):
        simulate(nothing, Run(0.1, total_steps=5))


@pytest.mark.timing
def test_long_runs_are_sampled_with_each_change() -> None:
    """Of 100,000 steps about 2,000 are looked at, each start of a phase and the step before it."""
    plan = FreezePlan().freeze("[0]", until_step=33_333).group("[1]", warmup_steps=50)
    made = plan.resolve(model(), total_steps=100_000)
    start = time.process_time()
    run = simulate(made, Run(0.1, SCHEDULERS["cosine"]))
    seconds = time.process_time() - start
    assert 2_000 <= len(run.steps) <= 2_010
    assert {0, 33_332, 33_333, 99_999} <= set(run.steps)
    assert run.starts == ((0, 0), (33_333, 1))
    expected = 0.1 * (1 + math.cos(math.pi * 33_333 / STEPS)) / 2
    assert run.rates["2-3"][run.steps.index(33_333)] == pytest.approx(expected)
    assert seconds < 6, seconds


def test_between_the_steps_of_a_sample_the_range_is_known() -> None:
    """The least and the greatest rate until the next step hold all that a whole run has."""
    plan = FreezePlan().group("[0]", lr_mult=0.5, at_step=3_000).group("[1]", warmup_steps=900)
    made = plan.resolve(model(), total_steps=10_000)

    def cyclic(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return CyclicLR(optimizer, base_lr=1e-4, max_lr=0.1, step_size_up=2, step_size_down=3)

    run = simulate(made, Run(0.1, cyclic))
    assert len(run.steps) < 2_100
    for first, last in pairwise(run.steps[:400]):
        for step in range(first, last):
            rate = 1e-4 + (0.1 - 1e-4) * (0, 1 / 2, 1, 2 / 3, 1 / 3)[step % 5]
            for name, factor in (("2-3", 1.0), ("1", min(1.0, (step + 1) / 900))):
                at = run.steps.index(first)
                assert run.lows[name][at] * 0.999 <= rate * factor <= 1.001 * run.highs[name][at]
    assert (run.lows["2-3"][5], run.highs["2-3"][5]) == pytest.approx((1e-4, 0.1))
    assert run.highs["0"][-5:-1] == pytest.approx((0.05,) * 4)


def test_odd_parameters_are_simulated() -> None:
    """Lazy, integer, half and row-wise trained parameters, wrappers and shared modules do."""
    odd = nn.Sequential(nn.LazyLinear(2), nn.Embedding(6, 2), nn.Linear(2, 2).half())
    odd[2].count = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    odd.again = odd[1]
    plan = FreezePlan().freeze("[:2]").unfreeze("1.weight", rows="4:", at_step=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that of torch about lazy modules
        made = plan.resolve(nn.DataParallel(odd), total_steps=4)
    run = simulate(made, Run(0.1))
    assert run.rates == {"1.weight": (0.0, 0.0, 0.1, 0.1), "2": (0.1,) * 4}
    assert run.trains == {"1.weight": (False, False, True, True), "2": (True,) * 4}


def test_nothing_of_the_model_is_touched() -> None:
    """A model that the plan is applied to, and its handle, stay as they are."""
    net = model()
    applied = PLANS["gradual"].apply(net, steps_per_epoch=EPOCH, total_steps=STEPS)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.05)
    flags = [parameter.requires_grad for parameter in net.parameters()]
    simulate(applied.resolved, Run(0.2, SCHEDULERS["one_cycle"]))
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert applied.phase.index == 0
    assert max(applied.lrs().values()) == 0.05
    assert {group["lr"] for group in optimizer.param_groups} <= {0.05 * 0.7**k for k in range(4)}
