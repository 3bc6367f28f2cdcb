"""How long resolving a plan takes beside a bare walk over the parameters."""

import gc
from collections.abc import Callable
from statistics import median
from time import thread_time

import pytest
import torch

from freezekit import FreezePlan

pytestmark = pytest.mark.timing


class Leaf(torch.nn.Module):
    """A module with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(2, 2, device="meta"))


def deep_model(parameters: int) -> torch.nn.Module:
    """Returns a transformer-shaped tree with 20 parameters, each in its own module, a block."""
    model = torch.nn.Module()
    model.encoder = torch.nn.Module()
    model.encoder.layer = torch.nn.ModuleList()
    for _ in range(parameters // 20):
        block = torch.nn.Module()
        for part in ("attention", "mlp", "norm", "adapter"):
            inner = torch.nn.Module()
            for name in ("query", "key", "value", "output", "scale"):
                inner.add_module(name, Leaf())
            block.add_module(part, inner)
        model.encoder.layer.append(block)
    return model


def plan_with(rules: int) -> FreezePlan:
    """Returns a plan with that many rules, of every form of pattern."""
    patterns = [
        "**",
        "encoder.layer.{0..9}.attention",
        "encoder.layer.*.mlp.query",
        "**.norm.*",
        "encoder.layer[-3:]",
        "encoder.layer.4?.attention.key.weight",
        "encoder.layer.*.adapter.scale",
        "encoder.**.output.weight",
        "encoder.layer.1*.attention.**",
        "**@Leaf",
    ]
    patterns += [f"encoder.layer.{number % 50}.attention.query" for number in range(rules)]
    plan = FreezePlan().freeze(patterns[0])
    for number, pattern in enumerate(patterns[1:rules]):
        plan = plan.group(pattern, lr=1e-3 * (1 + number))
    return plan


def seconds(work: Callable[[], object]) -> float:
    gc.collect()
    start = thread_time()
    work()
    return thread_time() - start


def ratio(model: torch.nn.Module, rules: int, repeats: int) -> float:
    """Returns the median of interleaved ratios of resolving to a bare loop; compiling included."""

    def bare() -> None:
        for _, parameter in model.named_parameters():
            parameter.requires_grad  # noqa: B018

    plan = plan_with(rules)
    ratios = []
    for _ in range(repeats):
        base = seconds(bare)
        fresh = FreezePlan(plan.rules)
        ratios.append(seconds(lambda fresh=fresh: fresh.resolve(model)) / base)  # type: ignore[misc]
    return median(ratios)


def best_of(measure: Callable[[], float], enough: float, turns: int = 8) -> float:
    """Returns the least of up to so many measurements: a busy machine only ever adds to one."""
    found = measure()
    for _ in range(turns - 1):
        if found > enough:
            found = min(found, measure())
    return found


@pytest.fixture(scope="module")
def large() -> torch.nn.Module:
    return deep_model(100_000)


@pytest.mark.parametrize(("rules", "most"), [(20, 1.5), (100, 2.0)])
def test_resolving_100_000_parameters_costs_little_more_than_walking_them(
    large: torch.nn.Module, rules: int, most: float
) -> None:
    """Resolving takes at most 1.5 times a bare loop with 20 rules, 2 times with 100."""
    found = best_of(lambda: ratio(large, rules, 5), most)
    print(f"{rules} rules: {found:.2f} times a bare loop")
    assert found <= most


def test_resolving_is_linear_in_the_size_of_the_model(large: torch.nn.Module) -> None:
    """Ten times the parameters cost at most ten times the time, with a tenth to spare."""
    small, plan = deep_model(10_000), plan_with(20)

    def measure() -> float:
        pairs = [
            (seconds(lambda: plan.resolve(small)), seconds(lambda: plan.resolve(large)))
            for _ in range(5)
        ]
        return median(after / before for before, after in pairs)

    growth = best_of(measure, 15)
    print(f"10 times the parameters: {growth:.1f} times the time")
    assert growth <= 15


def test_resolving_reads_a_meta_model_without_touching_it(large: torch.nn.Module) -> None:
    """A model of 100,000 meta parameters resolves, and keeps every flag."""
    resolved = plan_with(20).resolve(large)
    assert len(resolved.rows) == 100_000
    assert resolved.rows[0].decisions[0].trainable is False
    assert all(parameter.requires_grad for parameter in large.parameters())


def test_rules_along_the_layers_cost_in_proportion_to_the_layers() -> None:
    """With four times the layers `layer_decay` takes about four times as long, not sixteen."""

    def least(layers: int) -> float:
        with torch.device("meta"):
            blocks = [
                torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
                for _ in range(layers)
            ]
        model = torch.nn.Sequential(*blocks)
        plan = FreezePlan().layer_decay(decay=0.99)
        return min(seconds(lambda: plan.resolve(model)) for _ in range(3))

    assert least(3200) < 8 * least(800)
