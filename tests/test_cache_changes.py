"""Whatever a stored value depends on may change between two passes: it is seen."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from freezekit import FreezePlan
from freezekit.cache import ActivationCache


class Scale(nn.Module):
    """Multiplies by a value that it holds."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.factor


class Model(nn.Module):
    """A module without parameters, a frozen body, a head; and values in many places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = Scale(2.0)
        self.body = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 16))
        self.bias = nn.Embedding(4, 16)
        self.head = nn.Linear(16, 2)
        self.settings = {"deep": {"k": 1.0}, "list": [[1.0]], "object": [SimpleNamespace(k=1.0)]}

    def forward(self, inputs: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        deep: Any = self.settings
        k = deep["deep"]["k"] * deep["list"][0][0] * deep["object"][0].k
        states = self.body(self.first(inputs) * (1 if scale is None else scale.unsqueeze(1))) * k
        return self.head(states + self.bias(torch.arange(1)))


PLAN = FreezePlan().freeze("body").freeze("bias")
ROWS = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


def bare(model: Model, *inputs: torch.Tensor) -> torch.Tensor:
    return Model.forward(model, *inputs)


def _set_item(model: Model) -> None:
    deep: Any = model.settings["deep"]
    deep["k"] = 3.0


def _set_list(model: Model) -> None:
    deep: Any = model.settings["list"]
    deep[0][0] = 3.0


def _set_object(model: Model) -> None:
    deep: Any = model.settings["object"]
    deep[0].k = 3.0


def _replace_first(model: Model) -> None:
    model.first = Scale(3.0)


def _own_forward(model: Model) -> None:
    model.first.forward = lambda inputs: 3 * inputs  # type: ignore[method-assign]


def _hook(model: Model) -> None:
    model.first.register_forward_hook(lambda module, inputs, output: 3 * output)


def _pre_hook(model: Model) -> None:
    model.first.register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))


@pytest.mark.parametrize(
    "change",
    [_set_item, _set_list, _set_object, _replace_first, _own_forward, _hook, _pre_hook],
    ids=lambda each: each.__name__.strip("_"),
)
def test_what_comes_before_is_watched(change: Callable[[Model], None]) -> None:
    """Values in values, and modules without parameters before what is frozen, with their hooks."""
    model = Model()
    with ActivationCache(PLAN.apply(model), audit=0) as cache:
        for _ in range(2):
            before = model(ROWS)
        assert cache.stats().hits == len(ROWS)
        change(model)
        after = model(ROWS)
        assert torch.allclose(after, bare(model, ROWS), atol=1e-6)
        assert (after - before).abs().max() > 1e-2
        model(ROWS)
        assert cache.stats().hits == 2 * len(ROWS)


def test_a_hook_that_was_there_and_goes_is_seen() -> None:
    """Torch counts hooks that come, not those that go."""
    model = Model()
    handle = model.first.register_forward_hook(lambda module, inputs, output: 3 * output)
    with ActivationCache(PLAN.apply(model), audit=0):
        model(ROWS)
        handle.remove()
        assert torch.allclose(model(ROWS), bare(model, ROWS), atol=1e-6)


class Prototypes(nn.Module):
    """Compares rows with a few frozen vectors, which depend on no input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 16))
        self.fixed = nn.Parameter(torch.randn(5, 16))
        self.prototypes = nn.Linear(16, 16)
        self.mix = nn.Linear(16, 16)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weights: torch.Tensor = self.mix(self.prototypes(self.fixed)).t()
        return self.mix(self.body(inputs)) @ weights


def test_constants_of_every_way_are_those_of_the_weights_now() -> None:
    """What has no rows is no stored row: with gradients and without, each knows it anew."""
    model = Prototypes()
    plan = FreezePlan().freeze("body").freeze("prototypes").freeze("fixed")
    with ActivationCache(plan.apply(model), audit=0) as cache:
        for factor in (1.0, 3.0, 0.5):
            with torch.no_grad():
                model.prototypes.weight.mul_(factor)
            for gradients in (True, True, False, False):
                with torch.set_grad_enabled(gradients):
                    found, expected = model(ROWS), Prototypes.forward(model, ROWS)
                assert torch.allclose(found, expected, atol=1e-5)
        assert cache.stats().hits >= 6 * len(ROWS)


def test_weights_on_the_same_memory_as_before_are_other_weights() -> None:
    """Rounded and widened again, they may lie where they lay, and have no other version."""
    for seed in range(24):
        torch.manual_seed(seed)
        width = 512 if seed % 2 else 4096
        model = nn.Sequential(nn.Linear(64, width, bias=False), nn.GELU(), nn.Linear(width, 2))
        inputs = torch.randn(8, 64)
        with ActivationCache(FreezePlan().freeze("[0]").apply(model), audit=0):
            model(inputs)
            model.bfloat16().float()
            assert torch.equal(model(inputs), model[2](model[1](model[0](inputs))))


class Pair(nn.Module):
    """Gives two tensors, of which only one is read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 64), nn.Linear(64, 16)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.first(inputs)
        return states, self.second(states.relu())


class Reader(nn.Module):
    """Reads the second."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.head = Pair(), nn.Linear(16, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        _, states = self.pair(inputs)
        out: torch.Tensor = self.head(states)
        return out


def test_passes_in_inference_mode_leave_nothing_behind_that_others_cannot_read() -> None:
    """A placeholder made there serves every mode."""
    model = Reader()
    with ActivationCache(FreezePlan().freeze("pair").apply(model), audit=0) as cache:
        for mode in (*[torch.inference_mode] * 3, *[torch.no_grad] * 3):
            with mode():
                found = model(ROWS)
            assert torch.allclose(found, Reader.forward(model, ROWS), atol=1e-6)
        assert cache.stats().hits == 5 * len(ROWS)


def test_rows_of_both_modes_are_kept() -> None:
    """Where a frozen module is in train mode, evaluating in between drops nothing."""
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 2))
    plan = FreezePlan().freeze("[0]", frozen_mode="train")
    with ActivationCache(plan.apply(model), audit=0) as cache:
        for _ in range(4):
            model.train()
            model(ROWS)
            model.eval()
            with torch.no_grad():
                model(ROWS)
        assert cache.stats().hits == 6 * len(ROWS)


def test_small_inputs_beside_an_id_count() -> None:
    """An id names a large row; what else the frozen part reads is part of the key."""
    model = Model()
    model.body = nn.Sequential(nn.Linear(1 << 13, 16), nn.GELU())
    large = torch.randn(8, 1 << 13) / 64
    with ActivationCache(PLAN.apply(model), key="id", audit=0) as cache:
        for factor in (1.0, 1.0, 2.0):
            scale = torch.full((8,), factor)
            found = model(large, scale, id=torch.arange(8))
            assert torch.allclose(found, bare(model, large, scale), atol=1e-5)
        assert cache.stats().hits == 8


def _softer(model: Model) -> None:
    model.body[1] = nn.GELU(approximate="tanh")


def _other_class(model: Model) -> None:
    class Doubled(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    last = Doubled(64, 16)
    last.load_state_dict(model.body[2].state_dict())
    model.body[2] = last


@pytest.mark.parametrize("change", [None, _softer, _other_class], ids=["none", "value", "class"])
def test_rows_in_a_folder_are_those_of_the_same_computation(
    tmp_path: Path, change: Callable[[Model], None] | None
) -> None:
    """The same weights in modules of another kind, or with another setting, are another model."""
    model = Model()
    with ActivationCache(PLAN.apply(model), folder=tmp_path, audit=0):
        model(ROWS)
    model = Model()
    if change is not None:
        change(model)
    with ActivationCache(PLAN.apply(model), folder=tmp_path, audit=0) as cache:
        assert torch.allclose(model(ROWS), bare(model, ROWS), atol=1e-6)
        assert cache.stats().hits == (0 if change else len(ROWS))


def test_a_number_that_changes_in_each_pass_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value is a form of its own, of which only so many are learned."""
    monkeypatch.setattr("freezekit.cache._ways._FORMS", 4)
    model = nn.ModuleDict({"body": nn.Linear(8, 16), "head": nn.Linear(16, 2)})
    model.forward = lambda inputs, step=0: model["head"](model["body"](inputs)) * step  # type: ignore[method-assign]
    with ActivationCache(FreezePlan().freeze("body").apply(model), audit=0):
        for step in range(4):
            model(ROWS, step=step)
        with pytest.warns(UserWarning, match="'step' alone had 4 values"):
            model(ROWS, step=4)
        model(ROWS, step=5)


_TELLS = """
from types import SimpleNamespace
from torch import nn
from freezekit.cache._state import State
module = nn.Module()
module.names = {*"abcdefgh"}
module.settings = SimpleNamespace(fixed=frozenset("abcdefgh"))
print([*State([("", module)]).told()])
"""


def test_names_of_rows_are_the_same_in_every_process() -> None:
    """Sets of strings have another order in each."""
    found = {
        subprocess.run(
            [sys.executable, "-c", _TELLS],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True, capture_output=True, text=True,
        ).stdout
        for seed in range(3)
    }  # fmt: skip
    assert len(found) == 1
    assert "abcdefgh" in "".join(filter(str.isalpha, found.pop()))
