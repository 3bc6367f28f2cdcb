"""How fast the digest reads, beside a copy, a sum and a hash of the same bytes."""

import hashlib
from collections.abc import Callable
from time import thread_time

import pytest
import torch
from torch import nn

from freezekit import FreezePlan
from freezekit._digest import digest

from .test_resolve_speed import best_of

pytestmark = pytest.mark.timing


def seconds(work: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Returns the least time of two pieces of work, of seven turns each, taken in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(7):
        for each, found in zip((work, other), times, strict=True):
            start = thread_time()
            each()
            found.append(thread_time() - start)
    return min(times[0]), min(times[1])


def minilm() -> nn.Module:
    """Returns a model of the size of MiniLM: 22.7 million parameters, half in one table."""
    layers = [
        nn.TransformerEncoderLayer(384, 12, 1536, batch_first=True, dropout=0) for _ in range(6)
    ]
    tables = [nn.Embedding(count, 384) for count in (30_522, 512, 2)]
    return nn.Sequential(*tables, nn.LayerNorm(384), *layers, nn.Linear(384, 384))


@pytest.mark.parametrize(("mebibytes", "most"), [(16, 8.0), (256, 3.5)])
def test_the_digest_is_as_fast_as_memory(mebibytes: int, most: float) -> None:
    """It takes a few times a copy at most, and a small part of hashing; a sum only reads."""
    tensor = torch.randn(mebibytes << 18)
    there = torch.empty_like(tensor)
    size = tensor.nbytes / 1e9
    words = tensor.view(torch.int64)

    def against(other: Callable[[], object], name: str) -> float:
        ours, theirs = seconds(lambda: digest(tensor), other)
        print(
            f"{mebibytes} MiB: digest {size / ours:.1f} GB/s, {name} {size / theirs:.1f} GB/s, "
            f"{ours / theirs:.2f} times"
        )
        return ours / theirs

    against(words.sum, "sum")
    found = best_of(lambda: against(lambda: there.copy_(tensor), "copy"), most)
    hashed = against(lambda: hashlib.blake2b(tensor.numpy()), "BLAKE2b")
    assert found <= most
    assert hashed <= 0.5


def test_a_guard_of_a_small_transformer_costs_tens_of_milliseconds() -> None:
    """Entering and leaving a guard over 90 MB takes at most 12 times a copy of the model's size."""
    model = minilm()
    applied = FreezePlan(allow_all_frozen=True).freeze("**").apply(model)
    flat = torch.cat([each.detach().flatten() for each in model.parameters()])
    there = torch.empty_like(flat)

    def guarded() -> None:
        with applied.guard():
            pass

    def measure() -> float:
        ours, theirs = seconds(guarded, lambda: there.copy_(flat))
        print(f"{flat.nbytes / 1e6:.0f} MB: {1e3 * ours:.0f} ms, {ours / theirs:.1f} copies")
        return ours / theirs

    assert best_of(measure, 12) <= 12


def test_many_small_tensors_cost_microseconds_each() -> None:
    """10,000 tensors of 256 elements take at most 30 us each."""
    tensors = [torch.randn(256) for _ in range(10_000)]

    def measure() -> float:
        ours, theirs = seconds(
            lambda: [digest(each) for each in tensors],
            lambda: [each.clone() for each in tensors],
        )
        print(f"{1e2 * ours:.1f} us each, {ours / theirs:.1f} times a clone")
        return 1e2 * ours

    assert best_of(measure, 30) <= 30
