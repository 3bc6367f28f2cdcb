"""What holding the frozen part in eval adds to `train()`, and what groups add to a step."""

from statistics import median
from time import thread_time

import pytest
import torch
from torch import nn

from freezekit import FreezePlan

from .test_digest_speed import minilm
from .test_resolve_speed import best_of, seconds
from .test_step_cost import Step, ratio

pytestmark = pytest.mark.timing


def upkeep() -> float:
    """Returns the time of `train()` where most is held in eval, beside that of a plain model."""
    plain, held = minilm(), minilm()
    applied = FreezePlan().freeze("[:-1]").apply(held)
    times: dict[int, list[float]] = {id(plain): [], id(held): []}
    for turn in range(400):
        for model in (plain, held) if turn % 2 else (held, plain):
            start = thread_time()
            model.train()
            times[id(model)].append(thread_time() - start)
    assert not held[0].training
    assert held[-1].training
    applied.release()
    return median(times[id(held)]) / median(times[id(plain)])


def test_holding_in_eval_costs_no_more_than_train_itself() -> None:
    """`model.train()` on a model that is frozen but for its last layer: at most 5 % more."""
    found = best_of(upkeep, 1.05)
    print(f"train() takes {found:.3f} times as long")
    assert found <= 1.05


def in_groups(turns: int = 12) -> tuple[float, int]:
    """Returns the time of a step with two groups a layer beside one group, and their number."""
    models = [minilm(), minilm()]
    plan = FreezePlan().layer_decay(decay=0.9).no_decay()
    applied = plan.apply(models[1])
    optimizers = [
        torch.optim.AdamW(models[0].parameters(), lr=1e-5),
        applied.optimizer(torch.optim.AdamW, lr=1e-5, weight_decay=0.01),
    ]
    hidden = torch.randn(8, 32, 384)

    def step_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
        layers = [*model.children()]

        def step() -> None:
            optimizer.zero_grad()
            out = hidden + sum(table(torch.zeros(1, dtype=torch.long)) for table in layers[:3])
            for layer in layers[3:]:
                out = layer(out)
            out.square().mean().backward()
            optimizer.step()

        return step

    steps = [step_of(*each) for each in zip(models, optimizers, strict=True)]
    for step in steps:
        seconds(step)
    found = ratio(*steps, turns=turns)
    applied.release()
    return found, len(optimizers[1].param_groups)


def test_two_groups_a_layer_cost_little_over_one_group() -> None:
    """A step with a rate for each layer, and no decay for its biases: at most 5 % more."""
    found = best_of(lambda: in_groups()[0], 1.05, turns=4)
    print(f"a step with groups takes {found:.3f} times as long")
    assert found <= 1.05
