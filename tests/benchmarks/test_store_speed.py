"""How fast a cache gives rows back, beside what one would write by hand."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest
import torch

from freezekit.cache._store import Store, Tap

from .test_resolve_speed import best_of

pytestmark = pytest.mark.timing

Batch = Sequence[int]


def compared(ours: Callable[[Batch], object], theirs: Callable[[Batch], object], rows: int,
             batch: int = 16) -> tuple[float, float]:  # fmt: skip
    """Returns the median microseconds per row of two ways to get a batch, taken in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(200):
        for which in (turn % 2, 1 - turn % 2):  # each its own rows: none finds them in the cache
            keys = random.sample(range(rows), batch)
            start = perf_counter()
            (ours, theirs)[which](keys)
            times[which].append(1e6 * (perf_counter() - start) / batch)
    return median(times[0]), median(times[1])


def ratio(name: str, *args: object) -> float:
    ours, theirs = compared(*args)  # type: ignore[arg-type]
    print(f"{name}: {ours:.1f} us a row, by hand {theirs:.1f}, {ours / theirs:.2f} times")
    return ours / theirs


def got(tap: Tap, keys: Sequence[int]) -> Callable[[Batch], object]:
    def get(batch: Batch) -> object:
        slots = tap.find([keys[each] for each in batch])
        assert slots is not None
        return tap.gather(slots)

    return get


@pytest.mark.parametrize(("where", "most"), [("memory", 1.1), ("files", 1.5)])
def test_sentences_come_back_about_as_fast_as_from_a_list(
    where: str, most: float, tmp_path: Path
) -> None:
    """16 hidden states of about 30 x 384 against a copy of each into zeros; with finding them."""
    lengths = [min(119, 6 + int(random.expovariate(1 / 24))) for _ in range(1000)]
    rows = [torch.randn(length, 384) for length in lengths]
    keys = [random.getrandbits(128) for _ in rows]
    folder = tmp_path if where == "files" else None
    store = Store(memory=0 if folder else 1 << 30, folder=folder)
    tap = store.tap("a", (None, 384), torch.float32)
    for key, row in zip(keys, rows, strict=True):
        tap.put([key], row[None])

    def by_hand(batch: Batch) -> object:
        out = torch.zeros(len(batch), max(lengths[each] for each in batch), 384)
        for place, each in zip(out, batch, strict=True):
            place[: lengths[each]].copy_(rows[each])
        return out

    for start in range(0, 1000, 50):  # the first reading of a file also checks it
        got(tap, keys)(range(start, start + 50))
    found = best_of(lambda: ratio(where, got(tap, keys), by_hand, 1000), most)
    store.close()
    assert found <= most


@pytest.mark.parametrize(("batch", "most"), [(16, 1.5), (128, 1.5)])
def test_embeddings_come_back_about_as_fast_as_from_one_tensor(batch: int, most: float) -> None:
    """Rows of 384 against one selection from one tensor, with the same look-up of keys."""
    rows = torch.randn(20_000, 384)
    keys = [random.getrandbits(128) for _ in range(20_000)]
    tap = Store(memory=1 << 30).tap("a", (384,), torch.float32)
    for start in range(0, 20_000, 32):
        tap.put(keys[start : start + 32], rows[start : start + 32])
    places = {int(str(key)): place for place, key in enumerate(keys)}

    def by_hand(batch: Batch) -> object:
        return rows.index_select(0, torch.tensor([places[keys[each]] for each in batch]))

    def measure() -> float:
        return ratio(f"batches of {batch}", got(tap, keys), by_hand, 20_000, batch)

    assert best_of(measure, most) <= most


@pytest.mark.parametrize(("where", "most"), [("memory", 4.0), ("files", 12.0)])
def test_storing_costs_a_few_copies(where: str, most: float, tmp_path: Path) -> None:
    """What filling adds to computing: against a copy of each row; into files with checksums."""
    rows, number = torch.randn(16, 30, 384), 0
    lengths = [random.randint(10, 30) for _ in range(16)]
    store = Store(memory=(where == "memory") << 33, folder=tmp_path if where == "files" else None)
    tap = store.tap("a", (None, 384), torch.float32)
    kept = []

    def put(_: Batch) -> object:
        nonlocal number
        number += 16
        return tap.put(range(number, number + 16), rows, lengths)

    def by_hand(_: Batch) -> object:
        kept[:] = [row[:length].clone() for row, length in zip(rows, lengths, strict=True)]
        return kept

    found = best_of(lambda: ratio(f"into {where}", put, by_hand, 16), most)
    store.close()
    assert found <= most


def test_opening_a_folder_costs_microseconds_a_row(tmp_path: Path) -> None:
    """50,000 rows are found again in at most 10 us each."""
    keys = [random.getrandbits(128) for _ in range(50_000)]
    with_rows = Store(memory=0, folder=tmp_path)
    tap = with_rows.tap("a", (8,), torch.float32)
    for start in range(0, 50_000, 500):
        tap.put(keys[start : start + 500], torch.randn(500, 8))
    with_rows.close()

    def measure() -> float:
        start = perf_counter()
        store = Store(memory=0, folder=tmp_path)
        assert len(store.tap("a", (8,), torch.float32)) == 50_000
        spent = 1e6 * (perf_counter() - start) / 50_000
        store.close()
        print(f"{spent:.1f} us a row")
        return spent

    assert best_of(measure, 10) <= 10
