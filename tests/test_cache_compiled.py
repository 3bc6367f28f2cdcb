"""A model that is compiled as it is runs without its cache, and says so once."""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from freezekit import FreezePlan
from freezekit.cache import ActivationCache

FROZEN = FreezePlan().freeze("[0]")


@pytest.fixture
def model() -> Iterator[nn.Module]:
    torch.manual_seed(0)
    torch.compiler.reset()
    yield nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    torch.compiler.reset()


def wrapped(model: nn.Module, *, fullgraph: bool) -> Callable[..., torch.Tensor]:
    compiled: Callable[..., torch.Tensor] = torch.compile(
        model, backend="eager", fullgraph=fullgraph
    )
    return compiled


def in_place(model: nn.Module, *, fullgraph: bool) -> Callable[..., torch.Tensor]:
    model.compile(backend="eager", fullgraph=fullgraph)
    return model


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("way", [wrapped, in_place])
def test_a_compiled_model_says_once_that_it_has_no_cache(
    way: Callable[..., Callable[..., torch.Tensor]], fullgraph: bool, model: nn.Module
) -> None:
    """It computes what it would, and the warning names what to compile instead."""
    inputs = torch.randn(8, 4)
    wanted = model(inputs)
    with ActivationCache(FROZEN.apply(model)) as cache:
        compiled = way(model, fullgraph=fullgraph)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = [compiled(inputs) for _ in range(3)]
        assert cache.stats().hits + cache.stats().misses == 0
    ours = [str(each.message) for each in said if "store" in str(each.message)]
    assert len(ours) == 1, ours
    assert "compiled" in ours[0]
    assert "compile the parts that train instead" in ours[0]
    assert all(torch.equal(each, wanted) for each in found)


def test_parts_that_train_may_be_compiled(model: nn.Module) -> None:
    """A compiled head is fed from the store, and nothing is said."""
    inputs = torch.randn(8, 4)
    wanted = model(inputs)
    model[2].compile(backend="eager")
    with ActivationCache(FROZEN.apply(model)) as cache:
        found = [model(inputs) for _ in range(2)]
        assert cache.stats().hits == 8
    assert all(torch.allclose(each, wanted, atol=1e-6) for each in found)


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_is_of_the_model_without_its_cache(strict: bool, model: nn.Module) -> None:
    """`torch.export` gives the model's own computation, without a word."""
    inputs = torch.randn(8, 4)
    wanted = model(inputs)
    with ActivationCache(FROZEN.apply(model)), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        exported = torch.export.export(model, (inputs,), strict=strict)
    assert not [each for each in said if "store" in str(each.message)]
    assert torch.equal(exported.module()(inputs), wanted)
