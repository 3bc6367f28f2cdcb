"""Shapes of models beyond a chain: skips, a module called twice, two towers."""

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from benchmarks.test_resolve_speed import best_of
from cache_models import watched
from torch import nn

from freezekit import FreezePlan
from freezekit.cache import ActivationCache

ROWS = 12


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GELU())


class UNet(nn.Module):
    """Three levels; the decoder gets what each level of the encoder gave."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(1, 4), block(4, 8), block(8, 16)])
        self.up = nn.ModuleList([block(16 + 8, 8), block(8 + 4, 4)])
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        skips, states = [], images
        for level in self.down:
            states = level(states)
            skips.append(states)
            states = nn.functional.max_pool2d(states, 2)
        states = skips.pop()
        for level in self.up:
            wide = nn.functional.interpolate(states, scale_factor=2)
            states = level(torch.cat([wide, skips.pop()], 1))
        return self.head(states)


class Siamese(nn.Module):
    """One frozen encoder reads both inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(48, 2)

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        first, second = self.encoder(one), self.encoder(other)
        return self.head(torch.cat([first, second, (first - second).abs()], 1))


class Towers(nn.Module):
    """Two frozen encoders, each with a projection that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.GELU())
        self.text = nn.Sequential(nn.EmbeddingBag(50, 24), nn.Linear(24, 24))
        self.left, self.right = nn.Linear(32, 8), nn.Linear(24, 8)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        one, other = self.left(self.image(images)), self.right(self.text(tokens))
        return nn.functional.normalize(one, dim=1) * nn.functional.normalize(other, dim=1)


Inputs = tuple[torch.Tensor, ...]
CASES: dict[str, tuple[Callable[[], nn.Module], list[str], Callable[[], Inputs]]] = {
    "unet": (UNet, ["down"], lambda: (torch.randn(ROWS, 1, 8, 8),)),
    "siamese": (Siamese, ["encoder"], lambda: (torch.randn(ROWS, 8), torch.randn(ROWS, 8))),
    "towers": (
        Towers,
        ["image", "text"],
        lambda: (torch.randn(ROWS, 1, 4, 4), torch.randint(50, (ROWS, 6))),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_shape_is_answered_in_any_order_and_nothing_frozen_runs(name: str) -> None:
    """Outputs and gradients are those of the model alone; what is stored is what is used."""
    torch.manual_seed(0)
    make, frozen, draw = CASES[name]
    model, inputs = make(), draw()
    order = torch.randperm(ROWS)
    plan = FreezePlan()
    for path in frozen:
        plan = plan.freeze(path)
    applied = plan.apply(model)
    ran = watched(applied, model)
    with ActivationCache(applied, audit=0) as cache:
        model(*inputs)
        assert ran
        ran.clear()
        again = tuple(each[order] for each in inputs)
        found = model(*again)
        assert ran == []
        assert cache.stats().hits == ROWS
        found.square().sum().backward()
        gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
        model.zero_grad()
        expected = type(model).forward(model, *again)
        expected.square().sum().backward()
        assert torch.allclose(found, expected, atol=1e-6)
        wanted = [each.grad for each in model.parameters() if each.grad is not None]
        for one, other in zip(gradients, wanted, strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        for tap in cache._store._taps.values():
            tap._arena.data[:] = 0
        assert not torch.allclose(model(*again), expected, atol=1e-3)


@pytest.mark.timing
@pytest.mark.usefixtures("one_thread")
def test_a_cache_that_stepped_aside_costs_nothing() -> None:
    """Inputs that are new each time: from then on a pass costs at most 1.05 of one without."""
    body = nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)])
    models = [nn.Sequential(body, nn.Linear(256, 2)) for _ in range(2)]
    applied = FreezePlan().freeze("[0]").apply(models[0])
    FreezePlan().freeze("[0]").resolve(models[1])
    with ActivationCache(applied) as cache:

        def train() -> None:
            for epoch in range(2):
                applied.advance(epoch=epoch)
                for _ in range(40):
                    models[0](torch.randn(64, 256))

        with pytest.warns(UserWarning, match="steps aside"):
            train()
        assert cache.stats().hits == 0

        def measure() -> float:
            times: list[list[float]] = [[], []]
            inputs = torch.randn(64, 256)
            for turn in range(200):
                for at in (0, 1) if turn % 2 else (1, 0):
                    start = time.thread_time()
                    models[at](inputs)
                    times[at].append(time.thread_time() - start)
            return median(times[0]) / median(times[1])

        found = best_of(measure, 1.05)
    print(f"{found:.3f}")
    assert found <= 1.05
