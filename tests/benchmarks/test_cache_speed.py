"""What the cache saves, in short versions of `cache_runs`; the goals are those of the table."""

import pytest

from .cache_runs import GRADUAL, Side, gradual_unfreezing, heads_only, peak, top_layers
from .minilm import OWN_BATCH, Task, load_task
from .test_resolve_speed import best_of

pytestmark = pytest.mark.untraced
timing = pytest.mark.timing


@timing
def test_a_warm_epoch_of_the_heads_costs_a_thousandth_of_fine_tuning() -> None:
    """In batches of the example's own size: at most 0.001 of full fine-tuning."""
    task = load_task(256)

    def measure() -> float:
        side = heads_only(task, 1, size=OWN_BATCH, ways=("full",), most=2)
        print(f"by hand {side.ratio('by hand', 'full'):.5f}")
        return side.ratio("cached", "full")

    found = best_of(measure, 0.001, turns=3)
    print(f"{found:.5f}")
    assert found <= 0.001


@pytest.fixture(scope="module")
def heads(one_thread: None) -> Task:
    return load_task(256)


def short(task: Task, *ways: str) -> Side:
    """Trains two batches in some ways, and all of them in the cached one."""
    return heads_only(task, 1, ways=ways, most=2)


@timing
def test_ten_epochs_of_the_heads_with_the_fill_are_80_times_faster(heads: Task) -> None:
    """80 times faster than full fine-tuning, 30 times than with frozen flags alone."""

    def measure() -> float:
        side = short(heads, "full", "flags")
        full, flags = side.times_faster(10, "full"), side.times_faster(10, "flags")
        print(f"{full:.0f} times, {flags:.0f} times")
        return max(80 / full, 30 / flags)

    assert best_of(measure, 1.0, turns=4) <= 1


@timing
def test_the_fill_costs_half_of_an_epoch(heads: Task) -> None:
    """Sorted by length, at most 0.5 of one epoch frozen and in eval; with all learning."""

    def measure() -> float:
        found = short(heads, "frozen").ratio("fill", "frozen")
        print(f"{found:.3f}")
        return found

    assert best_of(measure, 0.5, turns=4) <= 0.5


@timing
@pytest.mark.parametrize(("layers", "most"), [(1, 0.43), (2, 0.66), (3, 0.82)])
def test_top_layers_cost_as_if_written_by_hand(layers: int, most: float) -> None:
    """Cached beside uncached, and beside hidden states in a list for this model alone: 1.03."""
    task = load_task(32)

    def measure() -> float:
        side = top_layers(task, layers, 6, full=False)
        found, hand = side.ratio("cached", "plain"), side.ratio("cached", "by hand")
        print(f"top {layers}: {found:.3f} of uncached, {hand:.3f} of by hand")
        return max(found / most, hand / 1.03)

    assert best_of(measure, 1.0, turns=8) <= 1


@timing
def test_gradual_unfreezing_costs_a_quarter_of_fine_tuning() -> None:
    """12 epochs with all learning and filling: at most 0.25."""
    task = load_task(GRADUAL)

    def measure() -> float:
        spent = gradual_unfreezing(task, ways=("full", "warmed"), full_every=3).seconds
        print(f"{spent['warmed'] / spent['full']:.3f} of full")
        return spent["warmed"] / spent["full"]

    assert best_of(measure, 0.25, turns=3) <= 0.25


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
