"""What cannot be answered from a store is refused: each time with its reason and a way out."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from cache_models import ARCHITECTURES, DECODER, text
from torch import nn
from torch.nn import functional

from freezekit import FreezekitError, FreezePlan
from freezekit.cache import ActivationCache, CacheRefusedError

pytestmark = pytest.mark.usefixtures("one_thread")

Function = Callable[..., torch.Tensor]
FROZEN = FreezePlan().freeze("frozen")
NOISE = torch.Generator().manual_seed(0)


class Frozen(nn.Module):
    """A frozen module that computes a function of itself and of what it is given."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.function = function
        self.count = 0
        self.kept: Any = None

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        return self.function(self, *args, **kwargs)


class Model(nn.Module):
    """A head over a frozen module, which may be called in a way of its own."""

    def __init__(self, frozen: nn.Module, between: Function | None = None) -> None:
        super().__init__()
        self.frozen = frozen
        self.head = nn.Linear(6, 6)
        self.between = between

    def forward(self, x: torch.Tensor, *more: object) -> torch.Tensor:
        if self.between is not None:
            return self.between(self, x, *more)
        scores: torch.Tensor = self.head(self.frozen(x))
        return scores


class Case(NamedTuple):
    """A model that is refused: what is frozen in it, why, and words of the way out."""

    frozen: Function | nn.Module
    reason: str
    words: str
    between: Function | None = None


def counting(self: Frozen, x: torch.Tensor) -> torch.Tensor:
    self.count += 1
    return self.linear(x) * (1 + self.count // 100)


def keeping(self: Frozen, x: torch.Tensor) -> torch.Tensor:
    self.kept = self.linear(x).softmax(-1)
    return self.kept * x


def branching(self: Frozen, x: torch.Tensor) -> torch.Tensor:
    return self.linear(x) if x.max() < 100 else self.linear(-x)


def picking(self: Frozen, x: torch.Tensor) -> torch.Tensor:
    return self.linear(x) * (1 + len((x > 100).nonzero()))


def by_hand(self: Frozen, x: torch.Tensor) -> torch.Tensor:
    """Normalizes over the batch."""
    return self.linear((x - x.mean(0)) / (x.var(0) + 1e-5).sqrt())


def gated(self: Frozen, x: torch.Tensor) -> torch.Tensor:
    """Looks at all rows together in a rare case that no probe meets."""
    return torch.where((x > 100).any(), -self.linear(x), self.linear(x))


def in_place(self: Frozen, x: torch.Tensor) -> torch.Tensor:
    return self.linear(x.relu_())


def branching_before(self: Model, x: torch.Tensor) -> torch.Tensor:
    return self.head(self.frozen(x if x.max() < 100 else -x))


def stepping(self: Model, x: torch.Tensor) -> torch.Tensor:
    self.frozen.count += 1
    return self.head(self.frozen(x))


def hot_before(self: Model, x: torch.Tensor) -> torch.Tensor:
    return self.head(self.frozen(self.head(x).detach()))


def hot_value(self: Model, x: torch.Tensor) -> torch.Tensor:
    return self.head(self.frozen(x * self.head.weight.sum().item()))


def hot_smuggled(self: Frozen, x: torch.Tensor) -> torch.Tensor:
    return self.linear(x) + self.kept[0].weight.detach().mean(0)


def smuggling(self: Model, x: torch.Tensor) -> torch.Tensor:
    self.frozen.kept = [self.head]
    return self.head(self.frozen(x))


def taking_out(self: Model, x: torch.Tensor) -> torch.Tensor:
    y = self.frozen(x)
    return self.head(y) + self.frozen.kept


CASES = {
    "dropout in train mode": Case(
        nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), "dropout", "eval mode"
    ),
    "norm in train mode": Case(
        nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), "norm", "eval mode"
    ),
    "dropout that ignores eval mode": Case(
        lambda self, x: functional.dropout(self.linear(x), 0.5), "random", "training=self.training"
    ),
    "noise": Case(lambda self, x: self.linear(x) + torch.randn_like(x), "random", "boundary="),
    "noise from elsewhere": Case(
        lambda self, x: self.linear(x) + torch.randn(x.shape, generator=NOISE),
        "interactions",
        "do without the cache",
    ),
    "a mean over the batch": Case(
        lambda self, x: self.linear(x - x.mean(0)), "interactions", "do without the cache|boundary="
    ),
    "batch norm by hand": Case(by_hand, "interactions", "boundary="),
    "similarities in the batch": Case(
        lambda self, x: self.linear(x @ x.t() @ x), "interactions", "boundary="
    ),
    "all rows in a rare case": Case(gated, "interactions", "boundary="),
    "a place in the batch": Case(
        lambda self, x: self.linear(x) + torch.arange(len(x)).unsqueeze(1),
        "interactions",
        "boundary=",
    ),
    "a place beyond the probes": Case(
        lambda self, x: self.linear(x) + (torch.arange(len(x)).unsqueeze(1) > 5),
        "interactions",
        "boundary=",
    ),
    "the size of the batch": Case(
        lambda self, x: self.linear(x) * (1 + len(x) // 7), "interactions", "boundary="
    ),
    "a count of calls": Case(counting, "state", "outside of the forward"),
    "a count of calls by the model": Case(
        lambda self, x: self.linear(x) * self.count, "state", "outside of the forward", stepping
    ),
    "a tensor that is kept": Case(keeping, "state", "return it"),
    "a branch": Case(branching, "control_flow", r"torch\.where"),
    "a branch before": Case(
        lambda self, x: self.linear(x), "control_flow", r"torch\.where", branching_before
    ),
    "a number of rows that are picked": Case(picking, "control_flow", r"torch\.where"),
    "a change of what it is given": Case(in_place, "in_place", "inplace=False"),
    "a tensor by another way": Case(keeping, "smuggled", "return it", taking_out),
    "what trains, detached": Case(
        lambda self, x: self.linear(x), "no_prefix", "freeze what comes first", hot_before
    ),
    "what trains, as a number": Case(
        lambda self, x: self.linear(x), "no_prefix", "freeze what comes first", hot_value
    ),
    "what trains, by another way": Case(
        hot_smuggled, "no_prefix", "freeze what comes first", smuggling
    ),
}


def build(case: Case) -> Model:
    frozen = case.frozen if isinstance(case.frozen, nn.Module) else Frozen(case.frozen)
    return Model(frozen, case.between)


def refused(
    model: nn.Module, plan: FreezePlan, *args: object, **kwargs: object
) -> CacheRefusedError:
    """Returns the error of a first pass, and checks that nothing was left behind."""
    applied = plan.apply(model)
    before = [(module, dict(vars(module))) for module in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    values = [each.clone() for each in tensors]
    random = torch.get_rng_state()
    with ActivationCache(applied), pytest.raises(CacheRefusedError) as caught:
        model(*args, **kwargs)
    assert torch.equal(random, torch.get_rng_state()) or caught.value.reason == "interactions"
    for module, held in before:
        assert {**vars(module), "training": 0} == {**held, "training": 0}, type(module)
    assert all(map(torch.equal, tensors, values))
    assert isinstance(caught.value, FreezekitError)
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_each_refusal_says_why_and_what_to_do(name: str) -> None:
    """The reason is the right one, the message names a way out, the model is as before."""
    case = CASES[name]
    model = build(case)
    plan = FROZEN
    if case.reason in ("dropout", "norm"):
        plan = FreezePlan().freeze("frozen", frozen_mode="train")
    error = refused(model, plan, torch.randn(8, 6))
    assert error.reason == case.reason, error
    assert re.search(case.words, str(error)), error


def test_no_prefix_names_what_trains() -> None:
    """Where the bottom trains, the message names it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    error = refused(model, FreezePlan().freeze("[1]"), torch.randn(8, 4))
    assert error.reason == "no_prefix"
    assert "'0.weight'" in str(error)


def test_a_key_value_cache_is_refused() -> None:
    """A Llama that fills a cache of its own keeps state from call to call."""
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaModel(transformers.LlamaConfig(**DECODER | {"use_cache": True}))
    error = refused(model, FreezePlan().freeze("embed_tokens", "layers[:2]"), **text(6))
    assert error.reason == "state"
    assert "use_cache=False" in str(error)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_on_frozen_modules_are_refused(kind: str) -> None:
    """A hook within what is frozen would no longer be called: it is named."""
    model = Model(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))

    def spy(*args: object) -> None:
        """Does nothing."""

    getattr(model.frozen[0], f"register_{kind}_hook")(spy)
    error = refused(model, FROZEN, torch.randn(8, 6))
    assert error.reason == "hooks"
    assert "spy" in str(error)
    assert "'frozen.0'" in str(error)


def test_compiled_frozen_modules_are_refused() -> None:
    """A frozen module that is compiled in place is named; nothing is compiled for it."""
    model = Model(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    inner = model.frozen[0]
    inner._compiled_call_impl = inner._call_impl
    error = refused(model, FROZEN, torch.randn(8, 6))
    assert error.reason == "compiled"
    assert "compile the parts that train" in str(error)


class Settings:
    """Nothing that is known to a cache."""

    scale = 2.0


@pytest.mark.parametrize("value", [Settings(), torch.randn(3).numpy()], ids=["object", "array"])
def test_opaque_inputs_are_refused(value: object) -> None:
    """What an argument holds must be seen, or another value would be answered with this one's."""
    model = Model(nn.Linear(6, 6), lambda self, x, more: self.head(self.frozen(x)))
    error = refused(model, FROZEN, torch.randn(8, 6), value)
    assert error.reason == "opaque"
    assert "plain values" in str(error)


def test_inputs_without_rows_are_refused() -> None:
    """Without a tensor that has rows there is nothing to name them by."""
    model = Model(nn.Linear(6, 6), lambda self, x, *more: self.head(self.frozen(torch.ones(3, 6))))
    error = refused(model, FROZEN, torch.tensor(1.0))
    assert error.reason == "batch"


def test_a_model_that_takes_one_size_only_is_refused() -> None:
    """Where a few rows cannot be passed, it says so, with what the model said."""
    model = Model(nn.Linear(6, 6), lambda self, x: self.head(self.frozen(x).view(8, 6)))
    error = refused(model, FROZEN, torch.randn(8, 6))
    assert error.reason == "probes"
    assert "shape '[8, 6]'" in str(error)
    assert isinstance(error.__cause__, RuntimeError)


def test_frozen_in_train_mode_runs_where_nothing_is_random() -> None:
    """Without dropout or norms, frozen_mode='train' changes no value: nothing to refuse."""
    model = Model(nn.Linear(6, 6))
    with ActivationCache(FreezePlan().freeze("frozen", frozen_mode="train").apply(model)) as cache:
        batch = torch.randn(8, 6)
        assert torch.equal(model(batch), model(batch))
        assert cache.stats().hits == 8


def test_every_architecture_refuses_its_train_mode() -> None:
    """A BERT that is frozen but left in train mode has dropout at work: it is named."""
    torch.manual_seed(0)
    import transformers

    config = dict(ARCHITECTURES["bert"].config) | {"hidden_dropout_prob": 0.1}
    model = transformers.BertModel(transformers.BertConfig(**config)).train()
    plan = FreezePlan().freeze("embeddings", "encoder.layer[:2]", frozen_mode="train")
    error = refused(model, plan, **text(6))
    assert error.reason == "dropout"
    assert "embeddings.dropout" in str(error)
