"""Models and moments at the edges: shared, lazy, replaced, wrapped and half-applied."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from freezekit import AppliedPlan, FreezekitError, FreezePlan, PatternError, PlanError


def model_of(**children: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(children)


def test_lazy_parameters_are_frozen_before_they_have_a_shape() -> None:
    """A lazy module takes a plan, materialises frozen, and is not trained."""
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    applied = FreezePlan().freeze("[0]").apply(model)
    model(torch.randn(2, 5))
    before = model[0].weight.clone()
    optimizer = applied.optimizer(torch.optim.AdamW, lr=0.1)
    model(torch.randn(2, 5)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert not model[0].weight.requires_grad
    assert applied.resolved.rows[0].shape is None


def test_a_users_own_train_on_an_instance_comes_back() -> None:
    """The idiom `module.train = disabled_train` outlives apply and release."""
    model = model_of(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    model.a.eval()
    model.a.train = stay = lambda mode=True: model.a
    applied = FreezePlan().freeze("a").apply(model)
    model.train()
    assert not model.a.training
    applied.release()
    model.train()
    assert model.a.__dict__["train"] is stay
    assert not model.a.training


@pytest.mark.parametrize("shared", [nn.Dropout(), nn.BatchNorm1d(2, affine=False)])
@pytest.mark.parametrize("first", ["a", "b"])
def test_a_module_shared_with_a_trainable_part_is_not_held(shared: nn.Module, first: str) -> None:
    """A shared module without parameters follows a frozen parent only if all its parents are."""
    parts = {name: nn.ModuleDict({"l": nn.Linear(2, 2), "d": shared}) for name in "ab"}
    second = "b" if first == "a" else "a"
    model = model_of(**{first: parts[first], second: parts[second]})
    rule = ("b", "!b.d") if isinstance(shared, nn.BatchNorm1d) else ("b",)
    applied = FreezePlan().freeze(*rule).apply(model)
    model.train()
    assert shared.training
    assert not model.b.l.training
    assert model.b.training
    applied.release()
    model.train()
    assert all(module.training for module in model.modules())


def test_all_above_a_module_shared_with_a_trainable_part_is_left_open() -> None:
    """Only whole subtrees are held, so a frozen block around a shared one is not held either."""
    dropout = nn.Dropout()
    inner = nn.ModuleDict({"l": nn.Linear(2, 2), "d": dropout})
    model = model_of(outer=nn.ModuleDict({"inner": inner}), a=nn.ModuleDict({"d": dropout}))
    model.a.add_module("l", nn.Linear(2, 2))
    FreezePlan().freeze("outer").apply(model)
    model.train()
    assert [model.outer.training, inner.training, dropout.training] == [True, True, True]
    assert not inner.l.training


def test_release_comes_through_when_parameters_are_gone() -> None:
    """A module parametrized after apply can still be given back."""
    model = model_of(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    applied = FreezePlan().freeze("a").apply(model)
    parametrizations.weight_norm(model.a)
    applied.release()
    assert model.train().a.training
    assert model.a.bias.requires_grad
    FreezePlan().freeze("b").apply(model).release()


def test_an_apply_that_fails_half_way_leaves_nothing() -> None:
    """A `train` of the user's that raises does not leave a half-applied plan behind."""

    class Odd(nn.Linear):
        def train(self, mode: bool = True) -> "Odd":
            if not mode:
                raise RuntimeError("no eval here")
            return super().train(mode)

    model = model_of(a=nn.Linear(2, 2), odd=Odd(2, 2), b=nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="no eval here"):
        FreezePlan().freeze("a", "odd").apply(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all("_freezekit" not in module.__dict__ for module in model.modules())
    assert all("train" not in module.__dict__ for module in model.modules())
    FreezePlan().freeze("a").apply(model)


def test_a_transition_checks_before_it_writes() -> None:
    """A tensor that cannot train, put in place after apply, stops advance before any change."""
    model = model_of(a=nn.Linear(2, 2), b=nn.Linear(2, 2), c=nn.Linear(2, 2))
    applied = FreezePlan().freeze("a", "b", until_epoch=1).freeze("c", at_epoch=1).apply(model)
    model.b.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(FreezekitError, match=r"'b.weight' is torch.int8"):
        applied.advance(epoch=1)
    assert [model.a.weight.requires_grad, model.c.weight.requires_grad] == [False, True]
    assert applied.phase.index == 0


def test_a_transition_that_fails_puts_flags_and_gradients_back() -> None:
    """A tensor that is gone when others freeze: those still train, with what they gathered."""
    model = model_of(a=nn.Linear(2, 2), b=nn.Linear(2, 2), c=nn.Linear(2, 2))
    plan = FreezePlan().freeze("a", "b", at_epoch=1).freeze("c", until_epoch=1)
    applied = plan.apply(model)
    grads = [torch.ones(2, 2), torch.ones(2)]
    model.a.weight.grad, model.a.bias.grad = grads
    model.b.bias = None
    with pytest.raises(FreezekitError, match=r"'b.bias' is gone"):
        applied.advance(epoch=1)
    assert all(parameter.requires_grad for parameter in model.a.parameters())
    assert model.b.weight.requires_grad
    assert model.a.weight.grad is grads[0]
    assert model.a.bias.grad is grads[1]
    assert not any(parameter.requires_grad for parameter in model.c.parameters())
    assert applied.phase.index == 0


@pytest.mark.parametrize("early", [True, False])
def test_a_train_of_the_users_own_on_one_module_comes_back(early: bool) -> None:
    """It is taken over while the module is frozen, whether set before apply or since."""
    model = model_of(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    calls: list[bool] = []
    if early:
        model.a.train = calls.append
    applied = FreezePlan().freeze("a", at_epoch=1, until_epoch=2).apply(model)
    if not early:
        model.a.train = calls.append
    for epoch in (1, 2):
        applied.advance(epoch=epoch)
    model.train()
    assert calls[-1:] == [True]
    assert model.a.train == calls.append
    applied.release()
    assert model.a.train == calls.append


@pytest.mark.parametrize("taken", ["lm", "body"])
def test_taking_one_name_of_a_tied_tensor_away_never_freezes_it_silently(taken: str) -> None:
    """Excluding the canonical name excludes the tensor; excluding only another is an error."""
    model = model_of(body=nn.Embedding(4, 2), lm=nn.Linear(2, 4, bias=False), x=nn.Linear(2, 2))
    model.lm.weight = model.body.weight
    plan = FreezePlan().freeze("**", f"!{taken}")
    if taken == "body":
        assert plan.resolve(model).at().trainable == {"body.weight"}
    else:
        with pytest.raises(PlanError, match=r"take .body\.weight. away as well"):
            plan.resolve(model)


def test_a_module_replaced_after_apply_is_noticed() -> None:
    """The head that was swapped cannot be trained by accident, nor its twin left behind."""
    model = model_of(a=nn.Linear(2, 2), head=nn.Linear(2, 2))
    applied = FreezePlan().freeze("a").apply(model)
    model["head"] = nn.Linear(2, 5)
    with pytest.raises(FreezekitError, match="'head' was replaced since the plan was applied"):
        applied.param_groups(lr=0.1)
    applied.release()
    assert model.a.weight.requires_grad


def test_modes_of_the_user_survive_a_later_hold() -> None:
    """A module the user had in eval is in eval again after phases and release."""
    model = model_of(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    model.a.eval()
    applied = FreezePlan().freeze("a", until_epoch=1).apply(model)
    applied.advance(epoch=1)
    applied.advance(epoch=0)
    applied.release()
    assert not model.a.training
    assert model.b.training


def test_a_class_that_keeps_its_own_norm_in_eval_keeps_it_through_phases() -> None:
    """Below a class with a `train` of its own, that one decides when a hold ends."""

    class NormEval(nn.Sequential):
        def train(self, mode: bool = True) -> "NormEval":
            super().train(mode)
            self[1].eval()
            return self

    model = model_of(a=NormEval(nn.Linear(2, 2), nn.BatchNorm1d(2)), b=nn.Linear(2, 2))
    model.train()
    applied = FreezePlan().freeze("a", until_epoch=1).apply(model)
    model.train()
    applied.advance(epoch=1)
    assert [model.a.training, model.a[0].training, model.a[1].training] == [True, True, False]
    applied.release()
    assert not model.a[1].training


def test_phases_after_the_end_may_train_nothing() -> None:
    """A rule that opens after the last epoch cannot make a plan empty."""
    model = model_of(a=nn.Linear(2, 2))
    FreezePlan().freeze("a", at_epoch=5).apply(model, total_epochs=3).release()
    with pytest.raises(PlanError, match=r"nothing is trainable in the phase 'from epoch 5'"):
        FreezePlan().freeze("a", at_epoch=5).apply(model, total_epochs=9)


def test_a_parametrized_tensor_is_spelled_through_every_name_of_its_module() -> None:
    """A shared parametrized module answers to `weight` under its second name too."""
    layer = parametrizations.weight_norm(nn.Linear(2, 2))
    model = model_of(a=layer, b=layer, c=nn.Linear(2, 2))
    for name in ("a.weight", "b.weight"):
        frozen = FreezePlan().freeze(name).resolve(model).at().frozen
        assert frozen == {f"a.parametrizations.weight.original{k}" for k in (0, 1)}


def test_generated_classes_go_by_the_name_of_the_users() -> None:
    """A glob on the class name meets a parametrized module as it meets a plain one."""
    model = model_of(a=parametrizations.weight_norm(nn.Linear(2, 2)), b=nn.Linear(2, 2))
    resolved = FreezePlan().freeze("**@Lin*").resolve(model)
    assert not resolved.at().trainable
    assert [row.class_name for row in resolved.module_rows()][1] == "Linear"


def test_a_range_may_pass_over_modules_without_tensors() -> None:
    """Each number of a range must exist; what stands there need not hold a tensor."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
    assert len(FreezePlan().freeze("{0..2}").resolve(model).at().frozen) == 4
    with pytest.raises(PatternError, match="the alternative '4' selects nothing"):
        FreezePlan().freeze("{0..4}").resolve(model)


def test_a_tie_that_agrees_makes_no_phase() -> None:
    """What only a further name says, and the canonical one repeats, changes nothing."""
    model = model_of(body=nn.Embedding(4, 2), lm=nn.Linear(2, 4, bias=False), x=nn.Linear(2, 2))
    model.lm.weight = model.body.weight
    assert len(FreezePlan().freeze("lm").freeze("body", at_epoch=2).resolve(model).phases) == 1


def test_a_further_name_adds_what_the_canonical_one_leaves_open() -> None:
    """A property both names are given does not hide the next, which only the further one is."""
    model = model_of(body=nn.Embedding(4, 2), lm=nn.Linear(2, 4, bias=False))
    model.lm.weight = model.body.weight
    (row,) = FreezePlan().unfreeze("{body,lm}").group("lm", lr=0.1).resolve(model).rows
    assert (row.decisions[0].decided, row.decisions[0].lr) == (True, 0.1)


def test_copies_of_a_part_take_a_plan_of_their_own() -> None:
    """A deep copy of a held part, and of the whole, is free; the original is not."""
    model = model_of(a=nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), b=nn.Linear(2, 2))
    FreezePlan().freeze("a").apply(model)
    for part in (copy.deepcopy(model.a), copy.deepcopy(model)):
        with FreezePlan().freeze("**.bias").apply(part):
            assert part.train().training
        assert all(parameter.requires_grad for parameter in part.parameters())
        assert all(module.training for module in part.train().modules())
    assert not model.train().a.training


def test_modules_that_share_each_other_are_walked_in_bounded_time() -> None:
    """Twelve modules that all hold each other have more names than can be listed."""
    parts = [nn.Module() for _ in range(12)]
    for number, part in enumerate(parts):
        part.weight = nn.Parameter(torch.ones(1))
        for other, child in enumerate(parts):
            if other != number:
                part.add_module(f"m{other}", child)
    resolved = FreezePlan().freeze("m1").resolve(parts[0])
    assert len(resolved.rows) == 12


def test_two_optimizers_have_groups_of_different_names() -> None:
    """A group that is split over two optimizers is logged twice, not lost."""
    applied = FreezePlan().apply(model_of(a=nn.Linear(2, 2), b=nn.Linear(2, 2)))
    applied.optimizer(torch.optim.SGD, "**.weight", lr=0.1)
    applied.optimizer(torch.optim.SGD, "**.bias", lr=0.2)
    assert sorted(applied.lrs().values()) == [0.1, 0.2]


def warming(model: nn.Module) -> AppliedPlan:
    """Returns a plan that warms up and counts in nothing else."""
    applied = FreezePlan().group("a", warmup_steps=2).apply(model)
    applied.optimizer(torch.optim.AdamW, lr=0.1)
    return applied


STALL = {"monitor": "loss", "mode": "min"}
MISTAKES: list[tuple[Callable[[Any, Any], object], str]] = [
    (lambda plan, m: plan.apply(m).param_groups(["a"], lr=1.0), "a pattern is text, got ['a']"),
    (lambda plan, m: plan.apply(m).attach(None), "attach takes optimizers, got NoneType"),
    (lambda plan, m: plan.resolve(m).at(epoch="abc"), "epoch must be a whole number"),
    (lambda plan, m: plan.resolve(m).at(epoch=float("nan")), "epoch must be a whole number >= 0"),
    (lambda plan, m: plan.resolve(m, total_epochs=3.0), "total_epochs must be a whole number"),
    (lambda plan, m: plan.resolve(m, steps_per_epoch="10"), "steps_per_epoch must be a whole"),
    (lambda plan, m: plan.resolve(m).diff(plan), "diff compares resolved plans, got FreezePlan"),
    (lambda plan, m: plan.resolve(m).explain(None), "no parameter is named None among 4"),
    (lambda plan, m: plan.resolve(m).explain("a"), "'a' is a module; below it stand 2 parameters"),
    (lambda plan, m: plan.freeze("re:a{99999999999999}"), "not a regular expression"),
    (lambda plan, m: plan.freeze(f"a[{'9' * 5000}]"), "counts too far"),
    (lambda plan, m: plan.freeze("{01..02}"), "without leading zeros"),
    (lambda plan, m: plan.resolve(torch.jit.script(m)), "the model is scripted"),
    (
        lambda plan, m: warming(m).advance(epoch=0),
        "the plan warms up in steps; pass step=...",
    ),
    (
        lambda plan, m: warming(m).advance(step=-1),
        "step must be a whole number >= 0, got -1",
    ),
    (
        lambda plan, m: FreezePlan().freeze("a", at_metric=STALL).apply(m).advance(step=0.5),
        "step must be a whole number >= 0, got 0.5",
    ),
    (
        lambda plan, m: plan.group("a", options={"betaz": 1}).apply(m).optimizer(
            torch.optim.AdamW, lr=0.1
        ),
        "AdamW has no option 'betaz'; did you mean 'betas'?",
    ),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize(("act", "expected"), MISTAKES)
def test_a_mistake_is_an_error_of_ours_that_quotes_it(
    act: Callable[[Any, Any], object], expected: str
) -> None:
    """No TypeError, KeyError or AttributeError comes out of a mistaken argument."""
    plan = FreezePlan().freeze("a", at_epoch=1)
    with pytest.raises(FreezekitError) as caught:
        act(plan, Two())
    assert expected in str(caught.value)


class Two(nn.Module):
    """Two layers that can be scripted."""

    def __init__(self) -> None:
        """Builds them."""
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies one after the other."""
        return self.b(self.a(x))


def test_an_index_out_of_range_is_told_the_range() -> None:
    """Nothing else is offered: an index into what lies deeper is another part of the model."""
    model = nn.ModuleDict(
        {"downs": nn.ModuleList(nn.Sequential(*map(nn.Linear, [1] * 4, [1] * 4)) for _ in "abc")}
    )
    with pytest.raises(PatternError) as caught:
        FreezePlan().freeze("downs[3]").resolve(model)
    assert str(caught.value).endswith(
        "[3] reaches none of the 3 numbered children of 'downs', [0] to [2]"
    )


@pytest.mark.parametrize(
    ("pattern", "offer"),
    [
        ("enc[7]", "[7] reaches none of the 2 numbered children of 'enc', [0] to [1]"),
        ("[0]", "did you mean 'enc[0]'?"),
        ("enc.{0,7}", "the alternative '7' selects nothing: 'enc' has 0..1"),
        ("enc.0.wieght", "did you mean 'enc.0.weight'?"),
        ("odd[0]", r"did you mean 're:odd\\[0\\](\\..*)?'?"),
    ],
)
def test_an_offer_is_a_pattern_that_works(pattern: str, offer: str) -> None:
    """Whatever an error offers selects something; names that patterns cannot spell become `re:`."""
    model = nn.Module()
    model.enc = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.add_module("odd[0]", nn.Linear(2, 2))
    with pytest.raises(PatternError) as caught:
        FreezePlan().freeze(pattern).resolve(model)
    assert offer in str(caught.value)
    _, meant, offered = str(caught.value).rpartition("; did you mean '")
    if meant:
        text = offered.split("'")[0].encode().decode("unicode_escape")
        assert FreezePlan().freeze(text).resolve(model).at().frozen


def test_what_exists_has_all_its_names_in_an_error() -> None:
    """Second names of shared modules, names of parametrized tensors, buffers, and base classes."""
    model = nn.Module()
    model.first = nn.ModuleDict({"inner": nn.Linear(2, 2)})
    model.norm = nn.BatchNorm1d(2, affine=False)
    model.second = model.first
    model.late = parametrizations.weight_norm(nn.Linear(2, 2))
    for pattern, said in {
        "second.innr.weight": "'second' has inner; did you mean 'second.inner.weight'?",
        "late.wieght": "did you mean 'late.weight'?",
        "nurm": "did you mean 'norm'?",
        "*@_NormBase.wait": "'norm' has nothing below it",
        "re:wait": "late.bias, late.weight, second.inner.weight, second.inner.bias",
    }.items():
        with pytest.raises(PatternError) as caught:
            FreezePlan().freeze(pattern).resolve(model)
        assert str(caught.value).endswith(said)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (
            FreezePlan().unfreeze("a.weight", rows=":1").freeze("b"),
            ("trainable=True for rows :1", "trainable=False"),
        ),
        (FreezePlan().group("a", lr=0.1).group("b", lr_mult=0.5), ("lr=0.1", "lr_mult=0.5")),
        (
            FreezePlan().group("**.bias", lr=9.0).group("a", lr=0.1).group("b", lr=0.2),
            ("lr=0.1", "lr=0.2"),
        ),
        (
            FreezePlan().group("a", weight_decay=0.0).group("b", weight_decay=0.1),
            ("weight_decay=0.0", "weight_decay=0.1"),
        ),
    ],
)
def test_what_two_names_of_a_tensor_say_is_quoted(plan: FreezePlan, said: tuple[str, str]) -> None:
    """The error has both settings as they were written, with rows and in the unit of the rate."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    with pytest.raises(PlanError, match="name one tied tensor, but rule") as caught:
        plan.resolve(model)
    first, second = said
    assert f"{first} through 'a.weight'" in str(caught.value)
    assert f"{second} through 'b.weight'" in str(caught.value)


def test_why_a_rule_has_no_effect_is_said_of_each() -> None:
    """Rules with an effect before and between them hide none."""
    plan = (
        FreezePlan()
        .freeze("a")
        .freeze("gone", missing_ok=True)
        .group("b", lr=0.1)
        .group("b", lr=0.2)
        .group("a", lr=0.3)
    )
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    said = [warning.rpartition("has no effect: ")[2] for warning in plan.resolve(model).warnings]
    assert said == [
        "it selects nothing",
        "later rules override all it says",
        "what it sets never comes to bear: nothing it decides for trains while it does",
    ]


def test_a_builder_on_a_model_without_parameters_says_nothing() -> None:
    """Where it may match nothing, it stands for no rules."""
    plan = FreezePlan(allow_all_frozen=True).layer_decay("**", decay=0.5, missing_ok=True)
    assert not list(plan.resolve(nn.ReLU()).rows)


def test_a_builder_reaches_a_tied_tensor_through_its_second_name() -> None:
    """The layer is that of the tensor, whichever name the pattern has."""
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in "abc"})
    model["c"].weight = model["a"].weight
    phase = FreezePlan().layer_decay("c", decay=0.5).resolve(model).at()
    assert phase.lr("a.weight", 1.0) == phase.lr("c.weight", 1.0) == 0.25


def test_a_module_that_only_opens_is_looked_for_too() -> None:
    """A norm without parameters that was replaced is told before anything is written."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2))
    applied = FreezePlan().freeze("[:2]", until_epoch=1).apply(model)
    model[1] = nn.BatchNorm1d(2, affine=False)
    with pytest.raises(FreezekitError, match="'1' was replaced since the plan was applied"):
        applied.advance(epoch=1)
    assert not model[0].weight.requires_grad


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_module_that_was_compiled_since_is_the_same() -> None:
    """The wrapper of torch around it is no replacement."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    applied = FreezePlan().freeze("[0]", until_epoch=1).apply(model)
    model[0] = torch.compile(model[0])
    applied.advance(epoch=1)
    assert model[0].weight.requires_grad


def test_a_tensor_that_torch_cannot_write_is_named() -> None:
    """The first that cannot is, and those before it have their flags back."""
    model = model_of(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    applied = FreezePlan().freeze("a", "b.bias", at_epoch=1).apply(model)
    model.a._parameters["bias"] = torch.ones(2, requires_grad=True) * 2
    with pytest.raises(FreezekitError, match=r"'a\.bias' is not a leaf tensor, so torch cannot"):
        applied.advance(epoch=1)
    assert model.a.weight.requires_grad
    assert model.b.bias.requires_grad
