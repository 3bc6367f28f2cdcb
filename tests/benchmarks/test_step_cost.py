"""What an applied plan adds to a training step."""

from collections.abc import Callable
from statistics import median
from time import thread_time

import torch

from freezekit import FreezePlan

from .test_resolve_speed import best_of_three


def mlp() -> torch.nn.Sequential:
    torch.manual_seed(0)
    blocks = [
        torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Dropout(0.1), torch.nn.ReLU())
        for _ in range(10)
    ]
    return torch.nn.Sequential(*blocks)


def step_of(model: torch.nn.Module) -> Callable[[], None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
    inputs = torch.randn(32, 256)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    return step


def ratio(base: Callable[[], None], other: Callable[[], None]) -> float:
    """Returns how long `other` takes beside `base`: medians of 900 turns each, taken in turn."""
    times: dict[Callable[[], None], list[float]] = {base: [], other: []}
    for turn in range(1_000):
        for step in (base, other) if turn % 2 else (other, base):
            start = thread_time()
            step()
            times[step].append(thread_time() - start)
    return median(times[other][100:]) / median(times[base][100:])


def test_a_step_costs_what_it_costs_with_hand_written_freezing() -> None:
    """The median step of an applied model takes at most 1 % more than one frozen by hand."""
    by_hand, by_plan = mlp(), mlp()
    by_hand[:8].requires_grad_(False)
    by_hand[:8].eval()
    applied = FreezePlan().freeze("[:8]").apply(by_plan)
    steps = [step_of(by_hand), step_of(by_plan)]
    found = best_of_three(lambda: ratio(*steps), 1.01)
    print(f"a step costs {found:.4f} times one frozen by hand")
    assert found <= 1.01
    applied.release()
