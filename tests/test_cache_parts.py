"""Batches of which some rows are stored: only the others are computed."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from cache_trials import Run, trial
from torch import nn

from freezekit import FreezePlan
from freezekit.cache import ActivationCache
from freezekit.cache._batch import Batch, layout_of
from freezekit.cache._parts import joined_rows
from freezekit.cache._store import Store
from freezekit.cache._ways import Way

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, LENGTH, WIDTH = 96, 8, 12
FROZEN = FreezePlan().freeze("body")


class Body(nn.Module):
    """Transforms the positions of a row; remembers how many rows it got, beyond those of a few."""

    def __init__(self, wide: int = 64) -> None:
        super().__init__()
        self.lower = nn.Linear(WIDTH, wide)
        self.upper = nn.Linear(wide, WIDTH)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        ROWS_SEEN.append(len(states))
        return states + self.upper(self.lower(states).relu())


ROWS_SEEN: list[int] = []
"""How many rows each call of a body got."""


class Reader(nn.Module):
    """A frozen body in two parts over the positions of rows, their mean, and what trains."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Body(), Body())
        self.norm = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.body(states)
        kept = attention_mask.unsqueeze(-1)
        pooled = (states * kept).sum(1) / kept.sum(1)
        return self.head(self.drop(self.norm(pooled)))


class Positions(Reader):
    """The same with an output for each position, behind which rows are stored as they come."""

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.body(states))) * attention_mask.unsqueeze(-1)


class Tall(Reader):
    """The same where what trains follows the positions, not their mean: rows of many lengths."""

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        kept = attention_mask.unsqueeze(-1)
        scores = self.head(self.body(states)).tanh() * kept
        return self.drop(scores.sum(1) / kept.sum(1))


class Noisy(Reader):
    """The same with noise that is drawn before the frozen part is called."""

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(len(states), 2)
        return super().forward(states, attention_mask) + noise


def batches(passes: int, size: int = 16, seed: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the same rows in another order in each pass, cut to the longest of each batch."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, LENGTH + 1, (ROWS,), generator=drawn)
    mask = (torch.arange(LENGTH) < lengths.unsqueeze(1)).long()
    states = torch.randn(ROWS, LENGTH, WIDTH, generator=drawn)
    states[mask == 0] = 0
    for _ in range(passes):
        for some in torch.randperm(ROWS, generator=drawn).split(size):
            length = int(mask[some].sum(1).max())
            yield {"states": states[some, :length], "attention_mask": mask[some, :length]}


def rows(batch: dict[str, torch.Tensor], order: list[int]) -> dict[str, torch.Tensor]:
    return {key: value[order] for key, value in batch.items()}


def train(run: Run) -> None:
    for batch in batches(4):
        run.step(batch)


def graded(run: Run) -> None:
    """Trains through two phases, the second of which opens the upper part of the body."""
    for epoch in range(4):
        run.applied.advance(epoch=epoch)
        for batch in batches(1, seed=epoch and 0):
            run.step(batch)


KINDS: dict[str, tuple[type[nn.Module], FreezePlan, Callable[[Run], None], int]] = {
    "means": (Reader, FROZEN, train, ROWS // 2 * WIDTH * 4),
    "noise": (Noisy, FROZEN, train, ROWS // 2 * WIDTH * 4),
    "positions": (Positions, FROZEN, train, ROWS // 2 * LENGTH * WIDTH * 4),
    "lengths": (Tall, FROZEN, train, ROWS // 2 * LENGTH // 2 * WIDTH * 4),
    "schedule": (
        Tall, FROZEN.unfreeze("body.1", at_epoch=2), graded, ROWS * LENGTH // 2 * WIDTH * 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_for_half_is_training_as_ever(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for half of the rows, outputs, gradients and weights are those of no cache."""
    monkeypatch.setattr(Way, "took", lambda *args: None)
    build, plan, drive, memory = KINDS[kind]
    verdict = trial(build, plan, drive, memory=memory)
    assert not verdict.refused
    assert verdict.difference < 2e-5
    assert verdict.hits > 0.3 * 3 * ROWS


def computed(model: nn.Module, passes: int) -> int:
    """Returns how many rows the frozen part computed, on average of some passes."""
    ROWS_SEEN.clear()
    for batch in batches(passes):
        model(**batch)
    return sum(ROWS_SEEN) // 2 // passes


def test_only_rows_beyond_the_budget_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for half of the rows and no folder, half of them are computed in each epoch."""
    monkeypatch.setattr(Way, "took", lambda *args: None)
    model = Reader()
    with ActivationCache(FROZEN.apply(model), memory=ROWS // 2 * WIDTH * 4, audit=0) as cache:
        computed(model, 1)
        assert computed(model, 4) == ROWS // 2
        stats = cache.stats()
    assert (stats.hits, stats.misses) == (4 * ROWS // 2, ROWS + 4 * ROWS // 2)


def test_a_few_stored_rows_are_not_worth_it() -> None:
    """A batch with hardly a stored row is computed as a whole, and counts as such."""
    model, batch = Reader(), next(batches(1))
    with ActivationCache(FROZEN.apply(model), audit=0) as cache:
        model(**rows(batch, [0, 1, 2, 3, 4]))
        ROWS_SEEN.clear()
        model(**rows(batch, [0, *range(5, 16)]))
        assert ROWS_SEEN == [12, 12]
        assert (cache.stats().hits, cache.stats().misses) == (0, 5 + 12)


def test_where_some_rows_are_no_batch_all_are_computed() -> None:
    """A frozen part that cannot take what is missing is given whole batches from then on."""

    class Even(Body):
        odd: ClassVar[list[int]] = []
        picky = False

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            if self.picky and len(states) % 2:
                self.odd.append(len(states))
                raise ValueError
            return super().forward(states)

    model, batch = Reader(), next(batches(1))
    model.body[0] = Even()
    with ActivationCache(FROZEN.apply(model), audit=0) as cache:
        model(**rows(batch, [*range(5)]))
        Even.picky = True
        for last in (10, 12):
            model(**rows(batch, [*range(last)]))
            Even.picky = last == 10
        assert Even.odd == [5]
        assert (cache.stats().hits, cache.stats().misses) == (0, 5 + 10 + 12)


def test_what_trains_is_not_called_twice() -> None:
    """Where a trained tower runs before the frozen one, a batch is computed as a whole."""

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower, self.body = nn.Linear(WIDTH, WIDTH), Body()

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            own = self.tower(states)
            return (own * self.body(states)).sum(1)

    model = Towers()
    calls: list[int] = []
    model.tower.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    batch = torch.randn(16, WIDTH)
    with ActivationCache(FROZEN.apply(model), audit=0):
        model(batch[:12])
        calls.clear()
        expected = (model.tower(batch) * Body.forward(model.body, batch)).sum(1)
        calls.clear()
        assert torch.allclose(model(batch), expected, atol=1e-6)
    assert calls == [16]


def test_rows_are_put_together_as_if_all_were_stored() -> None:
    """Those just computed stand at their places, with zeros for what is beyond their ends."""
    tap = Store(memory=1 << 20).tap("5eed", (None, 2), torch.float32)
    whole = torch.randn(4, 3, 2)
    lengths = torch.tensor([3, 1, 2, 2])
    tap.put([10, 11, 12, 13], whole, lengths.tolist())
    expected = tap.get([10, 11, 12, 13], 3)
    layout = layout_of(torch.add, (whole,), {}, None)
    batch = Batch([whole], layout, 4, 3, lengths)
    some = Store(memory=1 << 20).tap("5eed", (None, 2), torch.float32)
    some.put([10, 12], whole[[0, 2]], [3, 2])
    found = joined_rows(some, [10, 11, 12, 13], batch, [1, 3], whole[[1, 3], :2])
    assert expected is not None
    assert found is not None
    assert torch.equal(found, expected)
    assert joined_rows(some, [10, 11, 12, 13], batch, [1], whole[[1], :2]) is None


def way() -> Way:
    nothing: Any = None
    return Way(nothing, False, [], (), (), [], nothing)


def test_what_takes_longer_in_parts_is_computed_as_a_whole() -> None:
    """Eight slower passes in a row end it; with a faster one in between they do not."""
    found = way()
    found.took(16, 16, 1.6)
    for _ in range(3):
        for _ in range(7):
            found.took(16, 8, 1.7)
        found.took(16, 8, 1.5)
        found.took(16, 0, 1.9)
    assert found.apart
    for _ in range(8):
        assert found.apart
        found.took(16, 8, 1.7)
    assert not found.apart
