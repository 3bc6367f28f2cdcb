"""Builders: one rule about a row of layers -> plain rules about some of them. No torch.

A builder is context-free: what it stands for follows from the rule and from the layers in which
its patterns select something, and from nothing else in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ._rules import Rule
from ._verbs import Moments
from .errors import PlanError


def expand(rule: Rule, layers: Sequence[int], top: int) -> list[tuple[frozenset[int], Rule]]:
    """Returns the plain rules that a builder stands for, each with the layers it is about.

    Layers for which the same follows share a rule. No two of the rules are about one layer, so
    their order means nothing.

    Args:
        rule: a rule whose verb is in `BUILDERS`.
        layers: the layers in which its patterns select a parameter, lowest first: its rungs.
        top: the model's last layer.

    Raises:
        PlanError: a learning rate or a factor is too small for a float.

    Example:
        >>> from freezekit import Rule
        >>> rule = Rule("lr_range", ("**",), low=1e-4, high=1e-2)
        >>> for layers, plain in expand(rule, [2, 3, 5], 6):
        ...     print(sorted(layers), plain.call)
        [2] group('**', lr=0.0001)
        [3] group('**', lr=0.001)
        [5] group('**', lr=0.01)
    """
    found: dict[Rule, set[int]] = {}
    kept = {key: getattr(rule, key) for key in (*Moments.__annotations__, "missing_ok")}
    for layer, (verb, properties) in zip(
        layers, BUILDERS[rule.verb](rule, layers, top), strict=True
    ):
        try:
            plain = Rule(verb, rule.patterns, **kept | properties)
        except PlanError as error:
            raise PlanError(f"{rule.call}: for layer {layer} it stands for {error}") from None
        found.setdefault(plain, set()).add(layer)
    return [(frozenset(within), plain) for plain, within in found.items()]


Said = tuple[str, dict[str, Any]]
"""Verb and properties of a plain rule."""


def _layerwise(rule: Rule, layers: Sequence[int], top: int) -> list[Said]:
    """Returns when each layer opens."""
    unit = "step" if rule.every_steps else "epoch"
    start = getattr(rule, f"start_{unit}") or 0
    every = getattr(rule, f"every_{unit}s") or 1
    together = rule.layers_per_phase or 1
    turns = [k // together for k in range(len(layers))]
    if rule.order != "bottom_up":
        turns.reverse()
    return [("unfreeze", {f"at_{unit}": start + turn * every}) for turn in turns]


def _decay(rule: Rule, layers: Sequence[int], top: int) -> list[Said]:
    """Returns the factor of each layer, or its learning rate where the top one's is given."""
    assert rule.decay is not None
    highest = max(layers, default=top) if rule.top == "selection" else top
    counted = sorted({*layers, highest}) if rule.count == "selection" else range(highest + 1)
    distances = {layer: distance for distance, layer in enumerate(reversed(counted))}
    mults = [max(rule.decay ** distances[layer], rule.min_mult or 0.0) for layer in layers]
    if rule.lr is None:
        return [("group", {"lr_mult": mult}) for mult in mults]
    return [("group", {"lr": rule.lr * mult}) for mult in mults]


def _range(rule: Rule, layers: Sequence[int], top: int) -> list[Said]:
    """Returns the learning rate of each layer; the top one has exactly `high`."""
    assert rule.low is not None
    assert rule.high is not None
    low, high, last = rule.low, rule.high, len(layers) - 1
    rates = [low * (high / low) ** (k / last) for k in range(last)]
    return [("group", {"lr": rate}) for rate in [*rates, high][: len(layers)]]


BUILDERS: dict[str, Callable[[Rule, Sequence[int], int], list[Said]]] = {
    "unfreeze_layerwise": _layerwise,
    "layer_decay": _decay,
    "lr_range": _range,
}
"""What each builder says about each of its rungs, lowest first."""
