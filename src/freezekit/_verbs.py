"""Verbs: what a rule of each may say, and how messages list what there is."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, Required

from typing_extensions import TypedDict

from .errors import PlanError

_LISTED = 12


class Moments(TypedDict, total=False):
    """While which part of training a rule is in the list: opens at, closes before."""

    at_epoch: int
    at_step: int
    at_fraction: float
    at_metric: Mapping[str, Any]
    until_epoch: int
    until_step: int
    until_fraction: float


class GroupProperties(Moments, total=False):
    """What any rule may say beside its patterns."""

    lr: float
    lr_mult: float
    weight_decay: float
    warmup_steps: int
    options: Mapping[str, Any]
    frozen_mode: Literal["eval", "train"]
    missing_ok: bool


class Properties(GroupProperties, total=False):
    """What a rule that freezes or unfreezes may say."""

    rows: str


class SelectionProperties(Moments, total=False):
    """What a builder that already knows its property may say."""

    missing_ok: bool


class LayerwiseProperties(TypedDict, total=False):
    """What a rule that unfreezes layer after layer may say."""

    start_epoch: int
    every_epochs: int
    start_step: int
    every_steps: int
    layers_per_phase: int
    order: Literal["top_down", "bottom_up"]
    missing_ok: bool


class LayerDecayProperties(SelectionProperties, total=False):
    """What a rule that scales the learning rate from layer to layer may say."""

    decay: Required[float]
    top: Literal["head", "selection"]
    count: Literal["all", "selection"]
    lr: float
    min_mult: float


class RangeProperties(SelectionProperties, total=False):
    """What a rule that spreads learning rates over layers may say."""

    low: Required[float]
    high: Required[float]


class LayerProperties(TypedDict, total=False):
    """What a plan may say about the layers of its model."""

    by: Literal["block", "stage"]
    final_norm: Literal["head", "last_block"]
    stem: str | Sequence[str]
    blocks: str | Sequence[str]
    head: str | Sequence[str]


VERBS: dict[str, type] = {
    "freeze": Properties,
    "unfreeze": Properties,
    "group": GroupProperties,
    "no_decay": SelectionProperties,
    "unfreeze_layerwise": LayerwiseProperties,
    "layer_decay": LayerDecayProperties,
    "lr_range": RangeProperties,
}
"""Every verb with the properties its rules may carry."""

PROPERTIES: frozenset[str] = frozenset(
    key for each in VERBS.values() for key in each.__annotations__
)
"""What some verb's rules may carry."""


def checked_properties(verb: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `properties` once each is one that a rule with this verb may carry.

    Raises:
        PlanError: a property is unknown; the message offers the closest one.
    """
    allowed = VERBS[verb].__annotations__
    for name in properties:
        if verb == "unfreeze_layerwise" and name in Moments.__annotations__:
            raise PlanError(
                f"{verb} has no property {name!r}, it opens its layers one after another: say when "
                "with start_epoch and every_epochs or start_step and every_steps; a later freeze "
                "can close them"
            )
        if name not in allowed:
            raise PlanError(f"{verb} has no property {name!r}{did_you_mean(str(name), allowed)}")
    return dict(properties)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a clause that offers the closest known name and lists them all."""
    known = list(known)
    return f"{offered(closest(name, known))} (known: {', '.join(known)})"


def closest(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Returns the known names most like a name, the closest first, at most so many."""
    return get_close_matches(name, known, count) if name else []


def offered(names: Iterable[str]) -> str:
    """Returns a clause that offers names, empty without any."""
    either = " or ".join(map(repr, names))
    return f"; did you mean {either}?" if either else ""


def counted(names: Sequence[str], noun: str) -> str:
    """Returns how many names there are, and the first few, e.g. "2 parameters: a, b"."""
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} {noun}{plural}: {listing(names)}"


def listing(names: Sequence[str]) -> str:
    """Returns the first few names and the count of the others."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
