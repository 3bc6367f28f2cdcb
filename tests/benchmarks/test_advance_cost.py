"""What `advance` costs: for each changed parameter at a transition, and where nothing is due."""

import gc
from collections.abc import Callable
from statistics import median
from time import thread_time
from typing import NamedTuple

import pytest
import torch

from freezekit import AppliedPlan, FreezePlan

from .test_resolve_speed import best_of

pytestmark = pytest.mark.timing


def tree(parameters: int) -> torch.nn.Module:
    """Returns a transformer-shaped tree of small layers: ten with weight and bias in a block."""
    model = torch.nn.Module()
    model.layer = torch.nn.ModuleList()
    for _ in range(parameters // 20):
        block = torch.nn.Module()
        for part in ("attention", "mlp"):
            inner = torch.nn.Module()
            for name in ("query", "key", "value", "output"):
                inner.add_module(name, torch.nn.Linear(1, 1))
            inner.norm = torch.nn.LayerNorm(1)
            block.add_module(part, inner)
        model.layer.append(block)
    model.head = torch.nn.Linear(1, 1)
    return model


def seconds(applied: AppliedPlan, step: int) -> float:
    start = thread_time()
    applied.advance(step=step)
    return thread_time() - start


@pytest.fixture(scope="module")
def large() -> torch.nn.Module:
    return tree(100_000)


class Transition(NamedTuple):
    """What a transition costs for each changed parameter, the dearer of opening and closing.

    Attributes:
        cost: microseconds.
        to_write: beside writing the flags of a list of parameters.
        to_loop: beside a loop by hand that finds and writes flags, gradients and modes.
    """

    cost: float
    to_write: float
    to_loop: float


def writing(model: torch.nn.Module) -> tuple[Callable[[bool], float], Callable[[bool], float]]:
    """Returns what times writing flags, and writing flags, gradients and modes by hand."""
    parameters = [each for name, each in model.named_parameters() if name.startswith("layer")]
    modules = [module for name, module in model.named_modules() if name.startswith("layer")]

    def write(flag: bool) -> float:
        start = thread_time()
        for parameter in parameters:
            parameter.requires_grad = flag
        return thread_time() - start

    def loop(flag: bool) -> float:
        start = thread_time()
        for module in modules:
            for name in module._parameters:
                parameter = module._parameters[name]
                assert parameter is not None
                parameter.requires_grad = flag
                if not flag:
                    parameter.grad = None
            module.__dict__["training"] = flag
        return thread_time() - start

    return write, loop


def transition(model: torch.nn.Module, applied: AppliedPlan, repeats: int = 7) -> Transition:
    """Measures transitions of `layer` beside the two, one after the other."""
    changed = sum(row.name.startswith("layer") for row in applied.resolved.rows)
    works = (lambda flag: seconds(applied, int(flag)), *writing(model))
    times: dict[tuple[int, bool], list[float]] = {}
    for step in (1, 0, 1):
        applied.advance(step=step)
    gc.collect()
    for _ in range(repeats):
        for flag in (False, True):
            for number, work in enumerate(works):
                times.setdefault((number, flag), []).append(work(flag))
    found = {key: median(each) for key, each in times.items()}
    return Transition(
        max(1e6 * found[0, flag] / changed for flag in (False, True)),
        *(max(found[0, flag] / found[n, flag] for flag in (False, True)) for n in (1, 2)),
    )


@pytest.mark.parametrize("attached", [False, True], ids=["bare", "attached"])
def test_a_transition_costs_what_it_writes(large: torch.nn.Module, attached: bool) -> None:
    """Up to 1.5 times a loop that writes the same, and 7 times the writing of the flags alone.

    The loop knows where everything stands and checks nothing.
    """
    applied = FreezePlan().freeze("layer", until_step=1).apply(large)
    if attached:
        applied.optimizer(torch.optim.SGD, lr=0.1)

    def measure() -> float:
        found = transition(large, applied)
        print(f"{found.cost:.2f} us, {found.to_write:.2f}, {found.to_loop:.2f} times")
        return max(found.to_loop / 1.5, found.to_write / 7)

    found = best_of(measure, 1.0)
    applied.release()
    assert found <= 1.0


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_a_transition_costs_by_what_changes(large: torch.nn.Module, share: float) -> None:
    """A part of the model costs that part of the time, not a walk over all of it."""
    blocks = len(large.layer)
    part = FreezePlan().freeze(f"layer[:{int(share * blocks)}]", until_step=1)
    costs = {}
    for name, plan in (("part", part), ("whole", FreezePlan().freeze("layer", until_step=1))):
        with plan.apply(large) as applied:
            steps = [0, 1] * 7
            costs[name] = median(seconds(applied, step) for step in steps[1:])
    print(f"{share:.0%} of the parameters costs {costs['part'] / costs['whole']:.3f} of the whole")
    assert costs["part"] < 4 * share * costs["whole"]


def test_a_call_with_nothing_due_costs_microseconds_whatever_the_size(
    large: torch.nn.Module,
) -> None:
    """Ten times the parameters cost no more, and neither more than 20 microseconds."""
    plan = FreezePlan().freeze("layer", until_step=100).group("head", lr_mult=0.5, at_step=50)

    def cost(model: torch.nn.Module) -> float:
        applied = plan.apply(model)
        applied.optimizer(torch.optim.SGD, lr=0.1)
        found = median(seconds(applied, 60 + turn % 40) for turn in range(1_000))
        applied.release()
        return found

    small = tree(1_000)

    def measure() -> float:
        costs = [cost(small), cost(large)]
        print(f"nothing due: {1e6 * costs[0]:.1f} us of 1,000, {1e6 * costs[1]:.1f} us of 100,000")
        assert costs[1] < 2 * costs[0] + 5e-6
        return max(costs)

    assert best_of(measure, 20e-6) <= 20e-6
