"""Builders: what rules about a row of layers stand for, alone and in a model."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from drawn_plans import rules
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Tree, trees
from torch import nn

from freezekit import FreezePlan, PlanError, Rule
from freezekit._builders import BUILDERS, expand
from freezekit._layers import infer_layers
from freezekit._verbs import VERBS, SelectionProperties

FIVE = [2.1882987290360977e-04, 5.689576695493855e-04, 1.4792899408284023e-03,
        3.8461538461538455e-03, 1e-2]  # fmt: skip


def mlp(layers: int = 3) -> nn.Module:
    """Linear layers in a row, each a layer by inference."""
    return nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)])


def encoder_with_head(layers: int = 4) -> nn.Module:
    """A model with a stem, blocks and a head."""
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(9, 4),
            "body": nn.TransformerEncoder(block, layers, enable_nested_tensor=False),
            "head": nn.Linear(4, 2),
        }
    )


def said(rule: Rule, layers: list[int], top: int, name: str) -> list[Any]:
    """Returns what the plain rules set a property to, for each of the layers."""
    found = {
        layer: getattr(plain, name)
        for within, plain in expand(rule, layers, top)
        for layer in within
    }
    return [found[layer] for layer in layers]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1e-4, 1e-2, [1e-4, 1e-3, 1e-2]),
        (1e-5, 1e-3, [1e-5, 4.641588833612779e-05, 2.1544346900318834e-04, 1e-3]),
        (3e-4, 3e-4, [3e-4] * 5),
        (1e-5, 7e-4, [1e-5, 7e-4]),
        (1e-5, 7e-4, [7e-4]),
        (1e-5, 7e-4, []),
    ],
)
def test_lr_range_is_geometric(low: float, high: float, expected: list[float]) -> None:
    """The lowest rung has `low`, the top one `high`, those between a constant ratio: exactly."""
    rule = Rule("lr_range", ("**",), low=low, high=high)
    assert said(rule, list(range(len(expected))), 9, "lr") == expected


@given(
    low=st.floats(1e-8, 1),
    factor=st.floats(1, 1e8),
    layers=st.sets(st.integers(0, 30), min_size=2),
)
def test_lr_range_keeps_its_ends(low: float, factor: float, layers: set[int]) -> None:
    """Whatever the layers' numbers, rates rise from `low` to `high`, both met exactly."""
    rule = Rule("lr_range", ("**",), low=low, high=low * factor)
    rates = said(rule, sorted(layers), 31, "lr")
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (low, low * factor)
    steps = [math.log(after / before) for before, after in pairwise(rates)]
    assert steps == pytest.approx([math.log(factor) / len(steps)] * len(steps), abs=1e-12)


def test_layer_decay_of_ulmfit() -> None:
    """Below 1e-2 the factor 2.6 gives the paper's rates, to 1e-15 of each."""
    rule = Rule("layer_decay", ("**",), decay=1 / 2.6, top="selection", lr=1e-2)
    rates = said(rule, [0, 1, 2, 3, 4], 7, "lr")
    assert rates == pytest.approx(FIVE, rel=1e-15, abs=0)
    assert rates[-1] == 1e-2


@pytest.mark.parametrize(
    ("properties", "layers", "expected"),
    [
        ({}, [0, 1, 2, 3], [0.125, 0.25, 0.5, 1.0]),
        ({}, [0, 2], [0.125, 0.5]),
        ({"top": "head"}, [0, 2], [0.125, 0.5]),
        ({"top": "selection"}, [0, 2], [0.25, 1.0]),
        ({"top": "selection"}, [1], [1.0]),
        ({"min_mult": 0.3}, [0, 1, 2, 3], [0.3, 0.3, 0.5, 1.0]),
        ({"top": "selection"}, [], []),
        ({"count": "all"}, [0, 2], [0.125, 0.5]),
        ({"count": "selection"}, [0, 2, 3], [0.25, 0.5, 1.0]),
        ({"count": "selection"}, [0, 2], [0.25, 0.5]),
        ({"count": "selection", "top": "selection"}, [0, 2], [0.5, 1.0]),
        ({"count": "selection", "top": "selection"}, [0, 1, 3], [0.25, 0.5, 1.0]),
        ({"count": "selection"}, [], []),
    ],
)
def test_layer_decay_counts_from_its_top(
    properties: dict[str, Any], layers: list[int], expected: list[float]
) -> None:
    """Distance counts all layers or the selected, from the model's last or the selection's."""
    rule = Rule("layer_decay", ("**",), decay=0.5, **properties)
    assert said(rule, layers, 3, "lr_mult") == expected
    with_lr = Rule("layer_decay", ("**",), decay=0.5, lr=0.1, **properties)
    assert said(with_lr, layers, 3, "lr") == [0.1 * mult for mult in expected]


@pytest.mark.parametrize(
    ("properties", "unit", "expected"),
    [
        ({}, "epoch", [4, 3, 2, 1, 0]),
        ({"start_epoch": 2}, "epoch", [6, 5, 4, 3, 2]),
        ({"every_epochs": 3}, "epoch", [12, 9, 6, 3, 0]),
        ({"layers_per_phase": 2}, "epoch", [2, 1, 1, 0, 0]),
        ({"layers_per_phase": 9}, "epoch", [0, 0, 0, 0, 0]),
        ({"order": "top_down"}, "epoch", [4, 3, 2, 1, 0]),
        ({"order": "bottom_up"}, "epoch", [0, 1, 2, 3, 4]),
        ({"order": "bottom_up", "layers_per_phase": 2, "start_epoch": 1, "every_epochs": 2},
         "epoch", [1, 1, 3, 3, 5]),
        ({"every_steps": 100}, "step", [400, 300, 200, 100, 0]),
        ({"start_step": 50, "every_steps": 10}, "step", [90, 80, 70, 60, 50]),
    ],
)  # fmt: skip
def test_unfreeze_layerwise_opens_rung_after_rung(
    properties: dict[str, Any], unit: str, expected: list[int]
) -> None:
    """Rung k opens at start + (k // layers_per_phase) * every, on the clock of the rule."""
    rule = Rule("unfreeze_layerwise", ("**",), **properties)
    assert said(rule, [1, 2, 5, 6, 7], 8, f"at_{unit}") == expected
    assert {plain.verb for _, plain in expand(rule, [1, 2], 8)} == {"unfreeze"}


def test_layers_with_one_value_share_a_rule() -> None:
    """What is the same for several layers is said once."""
    rule = Rule("unfreeze_layerwise", ("a", "!b"), layers_per_phase=2)
    assert expand(rule, [0, 1, 2], 3) == [
        (frozenset({0}), Rule("unfreeze", ("a", "!b"), at_epoch=1)),
        (frozenset({1, 2}), Rule("unfreeze", ("a", "!b"), at_epoch=0)),
    ]


builders = rules().filter(lambda rule: rule.verb in BUILDERS)


@given(builders, st.sets(st.integers(0, 9)), st.integers(9, 12))
def test_a_builder_becomes_plain_rules(rule: Rule, layers: set[int], top: int) -> None:
    """Each layer gets one plain rule with the builder's patterns, moments and leniency."""
    assume((rule.decay or 1) > 0.01)
    assume((rule.lr or 1) > 1e-200)  # what is too small for a float is refused, see below
    assume((rule.high or 1) < (rule.low or 1) * 1e300)
    expanded = expand(rule, sorted(layers), top)
    assert sorted(layer for within, _ in expanded for layer in within) == sorted(layers)
    kept = VERBS[rule.verb].__annotations__.keys() & SelectionProperties.__annotations__.keys()
    for _, plain in expanded:
        assert plain.verb in ("unfreeze", "group")
        assert plain.patterns == rule.patterns
        assert all(getattr(plain, name) == getattr(rule, name) for name in kept)


def test_a_rate_too_small_for_a_float_is_refused() -> None:
    """An underflow would be a silent freeze: it names the builder, the layer and the value."""
    with pytest.raises(PlanError) as caught:
        expand(Rule("layer_decay", ("a",), decay=1e-200), [0, 1, 2], 2)
    assert str(caught.value) == (
        "layer_decay('a', decay=1e-200): for layer 0 it stands for group('a', lr_mult=0.0): "
        "lr_mult must be a positive finite number, got 0.0; to stop training use freeze('a') "
        "instead"
    )


def test_lr_range_in_a_model() -> None:
    """The issue's numbers, read from a resolved plan."""
    phase = FreezePlan().lr_range("**", low=1e-4, high=1e-2).resolve(mlp()).at()
    assert [phase.lr(f"{number}.bias") for number in range(3)] == [1e-4, 1e-3, 1e-2]
    phase = FreezePlan().lr_range("**", low=1e-5, high=1e-3).resolve(mlp(4)).at()
    assert [phase.lr(f"{number}.weight") for number in range(4)] == [
        1e-5, 4.641588833612779e-05, 2.1544346900318834e-04, 1e-3
    ]  # fmt: skip


def test_layer_decay_in_a_model() -> None:
    """The top of the selection has the rate itself; the rest of the model is left alone."""
    plan = FreezePlan().layer_decay("body", decay=1 / 2.6, top="selection", lr=1e-2)
    phase = plan.resolve(encoder_with_head(5)).at()
    rates = [phase.lr(f"body.layers.{number}.norm1.weight") for number in range(5)]
    assert rates == pytest.approx(FIVE, rel=1e-15, abs=0)
    assert phase.lr("head.weight", base=0.5) == phase.lr("embed.weight", base=0.5) == 0.5


def test_layer_decay_counts_from_the_head_of_a_model() -> None:
    """With `top="head"` the last block is one step below the head, also where it is left out."""
    phase = FreezePlan().layer_decay("**", "!head", decay=0.5).resolve(encoder_with_head(2)).at()
    names = ("embed.weight", "body.layers.0.linear1.bias", "body.layers.1.linear1.bias")
    assert [phase.lr(name, base=1.0) for name in names] == [0.125, 0.25, 0.5]


def test_unfreeze_layerwise_in_a_model() -> None:
    """Head, blocks and stem open one after another; whatever is open stays so."""
    plan = FreezePlan().freeze("**").unfreeze_layerwise(start_epoch=1, every_epochs=2)
    resolved = plan.resolve(encoder_with_head(2), total_epochs=20)
    expected = ["head.", "body.layers.1.", "body.layers.0.", "embed."]
    names = resolved.at(epoch=19).trainable
    for epoch in range(10):
        opened = tuple(expected[: (epoch + 1) // 2])
        assert resolved.at(epoch=epoch).trainable == {n for n in names if n.startswith(opened)}
    assert len(names) == len(list(encoder_with_head(2).parameters()))


@given(trees(), st.integers(0, 2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 20))
def test_builders_mean_the_rules_written_out(
    tree: Tree, start: int, every: int, together: int, epoch: int
) -> None:
    """A plan with builders is the plan with a rule for each layer, at every moment."""
    model = tree.build()
    layers = infer_layers(model)
    assume(layers)
    frozen = FreezePlan(allow_all_frozen=True).freeze("**")
    plan = frozen.layer_decay(decay=0.5).unfreeze_layerwise(
        start_epoch=start, every_epochs=every, layers_per_phase=together
    )
    written = frozen
    for distance, layer in enumerate(reversed(layers)):
        written = written.group(*layer.parameter_names, lr_mult=0.5**distance).unfreeze(
            *layer.parameter_names, at_epoch=start + distance // together * every
        )
    phases = [each.resolve(model).at(epoch=epoch) for each in (plan, written)]
    assert phases[0].trainable == phases[1].trainable
    assert phases[0].frozen == phases[1].frozen
    rates = [{name: phase.lr(name, base=1.0) for name in phase.trainable} for phase in phases]
    assert rates[0] == rates[1]


def test_rungs_are_the_layers_that_the_patterns_reach() -> None:
    """Layers without a selected parameter take no turn, a partly selected one opens in part."""
    plan = FreezePlan().freeze("**").unfreeze_layerwise("body.layers[::2].linear1", "head")
    resolved = plan.resolve(encoder_with_head(3))
    assert [sorted(resolved.at(epoch=epoch).trainable) for epoch in range(2)] == [
        ["head.bias", "head.weight"],
        ["body.layers.2.linear1.bias", "body.layers.2.linear1.weight", "head.bias", "head.weight"],
    ]
    assert resolved.at(epoch=2) == resolved.at(epoch=99)
    assert "body.layers.0.linear1.weight" in resolved.at(epoch=2).trainable


def test_a_later_rule_overrides_a_builder() -> None:
    """A builder stands in the list where it was written: what follows it wins."""
    plan = FreezePlan().layer_decay(decay=0.5).group("[0]", lr_mult=1)
    phase = plan.resolve(mlp()).at()
    assert [phase.lr(f"{number}.weight", base=1.0) for number in range(3)] == [1.0, 0.5, 1.0]
    phase = FreezePlan().group("[0]", lr_mult=1).layer_decay(decay=0.5).resolve(mlp()).at()
    assert phase.lr("0.weight", base=1.0) == 0.25


def test_a_builder_keeps_to_its_moments() -> None:
    """Rates of a builder with moments hold while it is in the list."""
    plan = FreezePlan().lr_range("**", low=0.1, high=0.4, at_epoch=1, until_epoch=3)
    resolved = plan.resolve(mlp())
    assert [resolved.at(epoch=epoch).lr("0.weight", base=1.0) for epoch in range(4)] == [
        1.0, 0.1, 0.1, 1.0
    ]  # fmt: skip


def test_a_builder_that_may_match_nothing() -> None:
    """With `missing_ok` a builder about parts that a model lacks says nothing, but warns."""
    plan = FreezePlan().lr_range("decoder", low=0.1, high=0.2, missing_ok=True)
    resolved = plan.resolve(mlp())
    assert resolved.at().lr("0.weight", base=1.0) == 1.0
    assert resolved.warnings == (
        "rule 1, lr_range('decoder', low=0.1, high=0.2, missing_ok=True) has no effect: it selects "
        "nothing",
    )


def test_groups_of_a_builder() -> None:
    """One param group for each rung, with its real learning rate."""
    applied = FreezePlan().layer_decay(decay=0.5).apply(mlp())
    groups = applied.param_groups(lr=0.4)
    assert [(group["lr"], len(group["params"])) for group in groups] == [
        (0.1, 2),
        (0.2, 2),
        (0.4, 2),
    ]
    assert len({group["name"] for group in groups}) == 3
    applied.release()


def vit(*, head: bool = True) -> nn.Module:
    """Twelve blocks between patches and a final norm, as a ViT-tiny has."""
    block = nn.TransformerEncoderLayer(4, 2, 8, norm_first=True, batch_first=True)
    blocks = nn.TransformerEncoder(block, 12, enable_nested_tensor=False).layers
    parts = {"patches": nn.Linear(4, 4), "blocks": blocks, "norm": nn.LayerNorm(4)}
    return nn.ModuleDict(parts | ({"head": nn.Linear(4, 2)} if head else {}))


@pytest.mark.parametrize(
    ("final_norm", "with_head", "expected"),
    [
        ("last_block", True, [0.023757264, 0.031676352, 0.75, 0.75, 1.0]),
        ("head", True, [0.023757264, 0.031676352, 0.75, 1.0, 1.0]),
        ("last_block", False, [0.75**12, 0.75**11, 1.0, 1.0]),
        ("head", False, [0.023757264, 0.031676352, 0.75, 1.0]),
    ],
)
def test_layer_decay_by_both_conventions(
    final_norm: str, with_head: bool, expected: list[float]
) -> None:
    """A plan says where the final norm belongs; without a head the last layer has the full rate."""
    plan = FreezePlan(layers={"final_norm": final_norm}).layer_decay(decay=0.75)
    phase = plan.resolve(vit(head=with_head)).at()
    names = ["patches.bias", "blocks.0.norm1.bias", "blocks.11.norm1.bias", "norm.bias"]
    names += ["head.bias"] if with_head else []
    rates = [phase.lr(name, base=1.0) for name in names]
    assert rates == pytest.approx(expected, rel=1e-7)


def test_layers_frozen_by_other_rules_count_unless_left_out() -> None:
    """Distance is counted over what is frozen, or over what the rule selects only."""
    model = encoder_with_head(3)
    frozen = FreezePlan().freeze("body.layers.1")
    names = ("body.layers.0.norm1.bias", "body.layers.2.norm1.bias", "head.bias")
    phase = frozen.layer_decay(decay=0.5).resolve(model).at()
    assert [phase.lr(name, base=1.0) for name in names] == [0.125, 0.5, 1.0]
    phase = (
        frozen.layer_decay("**", "!body.layers.1", decay=0.5, count="selection").resolve(model).at()
    )
    assert [phase.lr(name, base=1.0) for name in names] == [0.25, 0.5, 1.0]


def test_builders_work_on_meta_models() -> None:
    """Layers are inferred without values."""
    with torch.device("meta"):
        model = encoder_with_head(2)
    phase = FreezePlan().layer_decay(decay=0.5).resolve(model).at()
    assert phase.lr("embed.weight", base=1.0) == 0.125


def test_what_has_buffers_alone_opens_with_the_layer_before_it() -> None:
    """A norm without parameters counts to the layer whose parameters come before its own."""
    blocks = [
        nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, affine=False))
        for _ in range(3)
    ]
    model = nn.Sequential(*blocks)
    applied = FreezePlan().freeze("**").unfreeze_layerwise(every_epochs=1).apply(model)
    for epoch in range(3):
        applied.advance(epoch=epoch)
        modes = [block[1].training for block in model.train()]
        assert modes == [number >= 2 - epoch for number in range(3)]
