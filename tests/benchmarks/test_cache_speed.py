"""What the cache saves, in short versions of `cache_runs`; the goals are those of the table."""

from functools import partial
from typing import NamedTuple

import pytest
import torch

from .cache_runs import GRADUAL, Side, gradual_unfreezing, in_one_go, peak, seconds, top_layers
from .minilm import FULL, HEADS, Task, by_flags, by_hand, by_plan, load_task

timing = pytest.mark.timing


class Heads(NamedTuple):
    """Processor time relative to an epoch that is frozen and in eval."""

    full: float
    flags: float
    fill: float
    cached: float
    by_hand: float


@pytest.fixture(scope="module")
def task(one_thread: None) -> Task:
    return load_task(256)


@pytest.fixture(scope="module")
def heads(task: Task) -> Heads:
    """Trains full on two batches, and the heads on all of them."""
    order = torch.Generator().manual_seed(0)
    batches = task.data.epoch(order)
    frozen, filled, hand = by_plan(task, HEADS), by_plan(task, HEADS, cached=True), by_hand(task, 0)
    side = Side()
    some = {"full": by_plan(task, FULL), "flags": by_flags(task), "frozen": frozen}
    side.turn(some, batches[:2])
    fill = seconds(partial(filled.warm, batches))
    whole = seconds(lambda: [*map(frozen.step, batches)])
    again = task.data.epoch(order)
    filled.step(again[0])
    quick = in_one_go({"cached": filled, "by hand": hand}, again, 9)
    assert filled.cache is not None
    assert filled.cache.stats().misses == len(task.data.tokens)
    filled.cache.close()
    ratios = [side.ratio(name, "frozen") for name in ("full", "flags")]
    found = Heads(*ratios, fill / whole, quick["cached"] / whole, quick["by hand"] / whole)
    print(found)
    return found


@timing
def test_a_warm_epoch_of_the_heads_costs_a_thousandth_of_fine_tuning(heads: Heads) -> None:
    """At most 0.001 of full fine-tuning."""
    print(f"{heads.cached / heads.full:.5f}, by hand {heads.by_hand / heads.full:.5f}")
    assert heads.cached / heads.full <= 0.001


@timing
def test_ten_epochs_of_the_heads_with_the_fill_are_80_times_faster(heads: Heads) -> None:
    """80 times faster than full fine-tuning, 30 times than with frozen flags alone."""
    cached = heads.fill + 10 * heads.cached
    print(f"{10 * heads.full / cached:.0f} times, {10 * heads.flags / cached:.0f} times")
    assert 10 * heads.full / cached >= 80
    assert 10 * heads.flags / cached >= 30


@timing
def test_the_fill_costs_half_of_an_epoch(heads: Heads) -> None:
    """Sorted by length, at most 0.5 of one epoch frozen and in eval; with all learning."""
    print(f"{heads.fill:.3f}")
    assert heads.fill <= 0.50


@timing
@pytest.mark.parametrize(("layers", "most"), [(1, 0.43), (2, 0.66), (3, 0.82)])
def test_top_layers_cost_as_if_written_by_hand(layers: int, most: float) -> None:
    """Cached beside uncached, and beside hidden states in a list for this model alone: 1.03."""
    side = top_layers(load_task(32), layers, 2, full=False)
    found, hand = side.ratio("cached", "plain"), side.ratio("cached", "by hand")
    print(f"top {layers}: {found:.3f} of uncached, {hand:.3f} of by hand")
    assert found <= most
    assert hand <= 1.03


@timing
def test_gradual_unfreezing_costs_a_quarter_of_fine_tuning(one_thread: None) -> None:
    """12 epochs with all learning and filling: at most 0.25."""
    found = gradual_unfreezing(load_task(GRADUAL), ways=("full", "warmed"), full_epochs=1)
    share = found.seconds["warmed"] / found.seconds["full"]
    print(f"{share:.3f} of full")
    assert share <= 0.25


def test_gradual_unfreezing_has_the_losses_it_has_without_a_cache() -> None:
    """In 12 epochs, whose dropout draws the same numbers, no loss differs by more than 1e-6."""
    found = gradual_unfreezing(load_task(16), ways=("plain", "warmed"))
    print(f"losses differ by {found.difference:.0e}")
    assert found.difference <= 1e-6


def test_a_run_that_is_answered_takes_hardly_any_memory() -> None:
    """Peak memory over the loaded model, heads cached: at most 0.01 of full fine-tuning's."""
    found = peak("cached", 16) / peak("full", 16)
    print(f"{found:.4f}")
    assert found <= 0.01
