"""Nineteen architectures, and others, from a store: the same results, and nothing frozen runs."""

from collections.abc import Callable

import pytest
import torch
from cache_models import ARCHITECTURES, Inputs, build, watched
from cache_trials import Run, distance, total, trial
from torch import nn

from freezekit import FreezePlan
from freezekit.cache import ActivationCache
from freezekit.cache._store import Tap

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = sorted(name for name, each in ARCHITECTURES.items() if "input_ids" in each.inputs(2))
ENCODERS = sorted({*TEXT} - {"t5", "bart"})


def plan_of(name: str, within: str = "") -> FreezePlan:
    return FreezePlan().freeze(*(within + each for each in ARCHITECTURES[name].frozen))


def rows(batch: dict[str, torch.Tensor], order: list[int], *, cut: bool) -> dict[str, torch.Tensor]:
    """Returns some rows of a batch, without columns in which all of them have padding."""
    found = {key: value[order] for key, value in batch.items()}
    if cut and "attention_mask" in found:
        length = int(found["attention_mask"].sum(1).max())
        for key in ("input_ids", "attention_mask"):
            found[key] = found[key][:, :length]
    return found


def training(inputs: Inputs, *, cut: bool) -> Callable[[Run], None]:
    """Returns a drive over twelve rows: in order, then shuffled and in other batches."""
    torch.manual_seed(5)
    data = inputs(12)
    if "attention_mask" in data:
        data["attention_mask"][0, :] = 1  # one row without padding

    def drive(run: Run) -> None:
        for order in ([*range(7)], [*range(5, 12)], [11, 3, 7, 0, 5], [2, 9, 1]):
            run.step(rows(data, order, cut=cut))
        if cut:
            run.model.eval()
            with torch.no_grad():  # in another mode, modules without parameters may compute else
                for order in ([7, 2, 10], [10, 7, 2]):
                    run.call(rows(data, order, cut=True))

    return drive


class Pooled(nn.Module):
    """Classifies the mean of what a model says of tokens that are no padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        scores: torch.Tensor = self.head((hidden * weights).sum(1) / weights.sum(1))
        return scores


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_cached_training_is_training(name: str) -> None:
    """Outputs, gradients and parameters are those of a run without a cache, to rounding."""
    drive = training(ARCHITECTURES[name].inputs, cut=False)
    verdict = trial(lambda: build(name), plan_of(name), drive)
    assert not verdict.refused
    assert verdict.difference < 2e-5
    assert verdict.hits >= 5 + 3


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_makes_no_difference(name: str) -> None:
    """Behind a masked mean, rows are stored without padding and hit in batches of any length."""
    drive = training(ARCHITECTURES[name].inputs, cut=True)
    verdict = trial(lambda: Pooled(build(name)), plan_of(name, "model."), drive)
    assert not verdict.refused
    assert verdict.difference < 2e-5
    assert verdict.hits >= 5 + 3 + 3
    assert verdict.cut


def assert_answered(
    model: nn.Module, plan: FreezePlan, batch: dict[str, torch.Tensor], patch: pytest.MonkeyPatch
) -> None:
    """Fails if a frozen module runs in the second pass, or the output is not made of the store."""
    applied = plan.apply(model)
    ran = watched(applied, model)
    gather = Tap.gather

    def corrupted(*args: object, **kwargs: object) -> torch.Tensor | None:
        found = gather(*args, **kwargs)
        return None if found is None else found.flip(-1)

    with ActivationCache(applied) as cache, torch.no_grad():
        first = model(**batch)[0]
        assert ran
        ran.clear()
        second = model(**batch)[0]
        assert cache.stats().hits == 6
        assert ran == []
        patch.setattr(Tap, "gather", corrupted)
        third = model(**batch)[0]
    assert distance([first], [second]) < 1e-5
    assert distance([first], [third]) > 1e-3


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_store_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pass that is answered no frozen module runs, and the output is made of the store."""
    torch.manual_seed(0)
    model = build(name)
    assert_answered(model, plan_of(name), ARCHITECTURES[name].inputs(6), monkeypatch)


class Skips(nn.Module):
    """A U-Net: what both levels of the way down give is read on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.downs = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)])
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor]:
        first = self.downs[0](left).relu()
        second = self.downs[1](nn.functional.max_pool2d(first, 2)).relu()
        return (self.head(torch.cat([first, self.up(second)], 1)),)


class Twice(nn.Module):
    """One frozen module is called twice, the second time on what it gave the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor]:
        first = self.block(left).tanh()
        return (self.head(self.block(first).tanh() + first),)


class Towers(nn.Module):
    """Two frozen towers, one for each input, under one head."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5)) for _ in "lr"
        )
        self.head = nn.Linear(10, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.head(torch.cat([self.towers[0](left), self.towers[1](right)], -1)),)


FORMS = {Skips: ("downs", (3, 8, 8)), Twice: ("block", (8,)), Towers: ("towers", (8,))}


@pytest.mark.parametrize("form", FORMS)
def test_models_of_other_forms_are_answered(
    form: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skips, a module called twice and two towers train the same, and the store answers."""
    frozen, shape = FORMS[form]
    plan = FreezePlan().freeze(frozen)

    def inputs(count: int) -> dict[str, torch.Tensor]:
        return {name: torch.randn(count, *shape) for name in ("left", "right")}

    def make() -> nn.Module:
        torch.manual_seed(0)
        return form()

    verdict = trial(make, plan, training(inputs, cut=False))
    assert not verdict.refused
    assert verdict.difference < 2e-5
    assert verdict.hits >= 5 + 3
    assert_answered(make(), plan, inputs(6), monkeypatch)


def test_a_loss_through_the_store_has_gradients() -> None:
    """What trains gets its gradients through what is stored, and what is frozen gets none."""
    torch.manual_seed(0)
    model = build("bert")
    with ActivationCache(plan_of("bert").apply(model)):
        batch = ARCHITECTURES["bert"].inputs(4)
        for _ in range(2):
            model.zero_grad()
            loss = total(model(**batch))
            assert loss is not None
            loss.backward()  # type: ignore[no-untyped-call]
    for name, each in model.named_parameters():
        assert (each.grad is not None) == each.requires_grad, name
