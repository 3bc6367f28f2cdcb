"""Where a cache would be wrong without a word: branches, threads, other runs, what modules hold."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from freezekit import FreezePlan
from freezekit.cache import ActivationCache
from freezekit.cache._functions import rewinding

FROZEN = FreezePlan().freeze("body")


class Odd(nn.Module):
    """A frozen body in two parts, a head, and a branch that is not taken at first."""

    rare = False

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8)])
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 2)
        self.scale = 1.0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        early = self.body[0](inputs.float()).relu()
        late = self.body[1](early) * self.scale
        found = self.head(self.norm(late))
        return found + early[:, :2] if self.rare else found


def odd() -> Odd:
    torch.manual_seed(0)
    return Odd()


def inputs(seed: int, rows: int = 8) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))


def test_a_branch_that_was_never_seen_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads is a placeholder in an answered pass, so the pass starts again."""
    model = odd().eval()
    with ActivationCache(FROZEN.apply(model)) as cache:
        model(inputs(1))
        monkeypatch.setattr(Odd, "rare", True)
        found = model(inputs(1))
        cache.close()
    assert torch.allclose(found, model(inputs(1)), atol=1e-6)


def test_large_numbers_tell_rows_apart() -> None:
    """Integers that differ in their top bit, at two places, are two rows."""

    class Bits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, planes: torch.Tensor) -> torch.Tensor:
            return self.head(self.body((planes >> 62 & 3).float()))

    model = Bits()
    one, other = torch.zeros(2, 6, 4, dtype=torch.int64).unbind()
    one[:, 0] = other[:, 2] = -(1 << 63)
    one[:, 3] = other[:, 3] = torch.arange(6)
    with ActivationCache(FROZEN.apply(model)) as cache:
        model(one)
        found = model(other)
        assert cache.stats().hits == 0
        cache.close()
        assert torch.allclose(found, model(other), atol=1e-6)


def test_threads_wait_for_each_other() -> None:
    """Two threads that call one model get the rows each asked for."""
    model = odd().eval()
    with ActivationCache(FROZEN.apply(model)):
        model(inputs(0))
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda seed: model(inputs(seed % 3)), range(60)))
    for seed, result in enumerate(found):
        assert torch.allclose(result, model(inputs(seed % 3)), atol=1e-6)


def test_an_id_in_a_folder_is_no_other_data(tmp_path: Path) -> None:
    """A sample that was changed between two runs is computed anew under its old id."""
    model = odd().eval()
    ids = torch.arange(8)
    with ActivationCache(FROZEN.apply(model), folder=tmp_path, key="id"):
        model(inputs(0), id=ids)
    again, changed = odd().eval(), inputs(0)
    changed[3] += 1
    with ActivationCache(FROZEN.apply(again), folder=tmp_path, key="id") as cache:
        found = again(changed, id=ids)
        cache.close()
    assert torch.allclose(found, again(changed), atol=1e-6)


def change_scale(model: Odd) -> None:
    model.scale = 3.0


def change_epsilon(model: Odd) -> None:
    model.norm.eps = 10.0


@pytest.mark.parametrize("change", [change_scale, change_epsilon])
def test_a_value_in_a_module_is_watched(change: Callable[[Odd], None]) -> None:
    """A number that a pass reads and that is another one now: nothing stored before it counts."""
    model = odd().eval()
    with ActivationCache(FROZEN.apply(model)) as cache:
        model(inputs(0))
        change(model)
        found = [model(inputs(0)), model(inputs(0))]
        cache.close()
        for each in found:
            assert torch.allclose(each, model(inputs(0)), atol=1e-6)


def test_a_value_that_never_rests_ends_it() -> None:
    """A counter in a module makes every row invalid: that is said once, and costs no more."""
    model = odd().eval()
    with ActivationCache(FROZEN.apply(model)) as cache:
        for step in range(8):
            model.scale = 1.0 + step
            model(inputs(0))
        model.scale = 9.0
        with pytest.warns(UserWarning, match="did not stay valid"):
            model(inputs(0))
        model.scale = 10.0
        found = model(inputs(0))
        cache.close()
        assert torch.allclose(found, model(inputs(0)), atol=1e-6)


def test_a_plan_that_freezes_later_may_have_a_cache() -> None:
    """Nothing is frozen at first: the first phase goes as ever, the second is answered."""
    model = odd()
    model.norm.eval()
    applied = FreezePlan().freeze("body", at_epoch=1).apply(model)
    with ActivationCache(applied) as cache:
        model(inputs(0))
        applied.advance(epoch=1)
        model(inputs(0))
        found = model(inputs(0))
        assert cache.stats().hits == 8
        cache.close()
        assert torch.allclose(found, model(inputs(0)), atol=1e-6)


def test_warming_leaves_no_trace() -> None:
    """Neither in running statistics of what trains nor in torch's generator."""
    model = odd()
    with ActivationCache(FROZEN.apply(model)) as cache:
        before = (torch.get_rng_state(), model.norm.running_mean.clone())
        loader = torch.utils.data.DataLoader(inputs(0, 32), batch_size=8, shuffle=True)
        cache.warm(loader, progress=False)
        assert torch.equal(before[0], torch.get_rng_state())
        assert torch.equal(before[1], model.norm.running_mean)


def test_a_copied_model_keeps_the_signature_of_its_forward() -> None:
    """A copy has no cache and looks as it should."""
    import copy
    import inspect

    model = odd()
    signature = inspect.signature(model.forward)
    with ActivationCache(FROZEN.apply(model)):
        copied = copy.deepcopy(model)
    assert inspect.signature(copied.forward) == signature
    assert torch.allclose(copied.eval()(inputs(0)), model.eval()(inputs(0)))


def test_a_pass_that_starts_again_draws_what_it_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generators of accelerators in use are put back with that of the CPU."""
    states = [torch.ones(3)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [*states])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state_all", lambda found: states.__setitem__(0, *found)
    )
    before, rewind = torch.get_rng_state(), rewinding()
    torch.rand(2)
    states[0] = torch.zeros(3)
    rewind()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(states[0], torch.ones(3))
