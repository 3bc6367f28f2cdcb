"""What `advance` costs: for each changed parameter at a transition, and where nothing is due."""

import gc
from statistics import median
from time import thread_time

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


@pytest.mark.parametrize("attached", [False, True], ids=["bare", "attached"])
def test_a_transition_costs_what_it_writes(large: torch.nn.Module, attached: bool) -> None:
    """Beside a loop that finds and writes the same flags, gradients and modes: up to 2.5 times.

    The loop knows where everything stands and checks nothing.
    """
    plan = FreezePlan().freeze("layer", until_step=1)
    applied = plan.apply(large)
    if attached:
        applied.optimizer(torch.optim.SGD, lr=0.1)
    for step in (1, 0, 1):
        applied.advance(step=step)
    modules = [module for name, module in large.named_modules() if name.startswith("layer")]
    changed = sum(row.name.startswith("layer") for row in applied.resolved.rows)

    def by_hand(*, flag: bool) -> float:
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

    def measure() -> float:
        times: dict[str, list[float]] = {"open": [], "close": []}
        loops: dict[str, list[float]] = {"open": [], "close": []}
        gc.collect()
        for _ in range(7):
            for way, step in (("close", 0), ("open", 1)):
                times[way].append(seconds(applied, step))
                loops[way].append(by_hand(flag=way == "open"))
        for way, found in times.items():
            cost, bare = (1e6 * median(each) / changed for each in (found, loops[way]))
            print(f"to {way}: {cost:.2f} us a parameter, by hand {bare:.2f}")
        return max(median(found) / median(loops[way]) for way, found in times.items())

    found = best_of(measure, 2.5)
    applied.release()
    assert found <= 2.5


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
