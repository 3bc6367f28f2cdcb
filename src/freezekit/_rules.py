"""Rules: what the user says, before any model is looked at."""

import math
import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Literal, TypeAlias

from ._glob import parse
from ._verbs import VERBS, Moments, checked_properties, did_you_mean
from .errors import PatternError, PlanError

Unit: TypeAlias = Literal["epoch", "step", "fraction"]
UNITS: tuple[Unit, ...] = ("epoch", "step", "fraction")

Pairs: TypeAlias = tuple[tuple[str, Any], ...]

_REALS = (
    *("lr", "lr_mult", "weight_decay", "at_fraction", "until_fraction"),
    *("decay", "min_mult", "low", "high"),
)
"""Properties that are numbers and not only whole ones: stored as floats."""


@dataclass(frozen=True, slots=True, repr=False)
class Rule:
    """One rule: a verb, the patterns it selects by, and the properties it sets.

    The fields after `patterns` are None (or False, for `missing_ok`) where the rule says nothing.

    Attributes:
        verb: "freeze", "unfreeze", "group", or a builder's name.
        patterns: what the rule selects; `"!pattern"` takes away from the patterns before it.
        lr: learning rate, per step of the optimizer; excludes `lr_mult`.
        lr_mult: factor on the base learning rate.
        weight_decay: weight decay of the param group.
        warmup_steps: optimizer steps of linear warm-up after each opening.
        options: any other key of the optimizer's groups, such as betas.
        frozen_mode: "eval" (default) holds wholly frozen modules in eval mode, "train" leaves
            their mode alone.
        rows: slice over the first axis, for a rule that names exactly one parameter.
        start_epoch: epoch (0-based) at which `unfreeze_layerwise` opens its first layers.
        every_epochs: epochs from one opening to the next.
        start_step: the same in optimizer steps.
        every_steps: steps from one opening to the next.
        layers_per_phase: how many layers open together.
        order: "top_down" (default) opens the layers next to the output first, "bottom_up" last.
        decay: what `layer_decay` multiplies the learning rate by from one layer to the next below.
        top: where it is 1: "head" (default) is the model's last layer, "selection" the rule's.
        count: what it is counted in: "all" (default) the model's layers, "selection" the rule's.
        min_mult: the least factor.
        low: learning rate that `lr_range` gives its lowest layer.
        high: the one that it gives its top layer.
        at_epoch: first epoch (0-based) in which the rule is in the list.
        at_step: first optimizer step (0-based) at which it is.
        at_fraction: the same as a fraction of all training, in [0, 1].
        at_metric: opens once a metric stalled: monitor, mode, patience, min_delta.
        until_epoch: first epoch in which it is no longer in the list.
        until_step: first step at which it no longer is.
        until_fraction: the same as a fraction of all training.
        missing_ok: a pattern of this rule may match nothing.

    Raises:
        PlanError: a value is out of its range or two properties exclude each other.
        PatternError: a pattern has a syntax error.

    Example:
        >>> from freezekit import Rule
        >>> Rule("freeze", ("backbone", "!backbone.pooler"), at_epoch=2)
        Rule('freeze', ('backbone', '!backbone.pooler'), at_epoch=2)
    """

    verb: str
    patterns: tuple[str, ...]
    _: KW_ONLY
    lr: float | None = None
    lr_mult: float | None = None
    weight_decay: float | None = None
    warmup_steps: int | None = None
    options: Pairs | Mapping[str, Any] | None = None
    frozen_mode: Literal["eval", "train"] | None = None
    rows: str | None = None
    start_epoch: int | None = None
    every_epochs: int | None = None
    start_step: int | None = None
    every_steps: int | None = None
    layers_per_phase: int | None = None
    order: Literal["top_down", "bottom_up"] | None = None
    decay: float | None = None
    top: Literal["head", "selection"] | None = None
    count: Literal["all", "selection"] | None = None
    min_mult: float | None = None
    low: float | None = None
    high: float | None = None
    at_epoch: int | None = None
    at_step: int | None = None
    at_fraction: float | None = None
    at_metric: Pairs | Mapping[str, Any] | None = None
    until_epoch: int | None = None
    until_step: int | None = None
    until_fraction: float | None = None
    missing_ok: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.patterns, str) or not isinstance(self.patterns, Iterable):
            raise PlanError(f"{self.verb}: patterns must be several strings, got {self.patterns!r}")
        object.__setattr__(self, "patterns", tuple(self.patterns))
        try:
            _check_verb(self)
            for name in ("options", "at_metric"):
                value = getattr(self, name)
                if value is not None:
                    object.__setattr__(self, name, _plain_pairs(name, value))
            _check_values(self)
            _check_together(self)
            _check_builder(self)
            for name in _REALS:
                if getattr(self, name) is not None:
                    object.__setattr__(self, name, float(getattr(self, name)))
        except PlanError as error:
            raise type(error)(f"{self.call}: {error}") from None

    @property
    def properties(self) -> dict[str, Any]:
        """What the rule says beside verb and patterns, as plain data, in a fixed order."""
        found: dict[str, Any] = {}
        for entry in fields(self)[2:]:
            value = getattr(self, entry.name)
            if value is not None and value is not False:
                paired = entry.name in ("options", "at_metric") and isinstance(value, tuple)
                found[entry.name] = dict(value) if paired else value
        return found

    @property
    def call(self) -> str:
        """The rule as the call that adds it to a plan."""
        return f"{self.verb}({', '.join([*map(repr, self.patterns), *_keywords(self)])})"

    @property
    def opening(self) -> tuple[Unit, float] | None:
        """Unit and value of `at_epoch`, `at_step` or `at_fraction`, or None from the start."""
        return _moment(self, "at")

    @property
    def closing(self) -> tuple[Unit, float] | None:
        """Unit and value of the `until_...` that the rule has, or None to the end."""
        return _moment(self, "until")

    def to_dict(self) -> dict[str, Any]:
        """Returns the rule as it stands in a plan file.

        Example:
            >>> from freezekit import FreezePlan
            >>> FreezePlan().freeze("backbone", until_epoch=2).rules[0].to_dict()
            {'freeze': 'backbone', 'until_epoch': 2}
        """
        patterns = list(self.patterns) if len(self.patterns) > 1 else self.patterns[0]
        return {self.verb: patterns} | {k: _listed(v) for k, v in self.properties.items()}

    def __repr__(self) -> str:
        return f"Rule({', '.join([repr(self.verb), repr(self.patterns), *_keywords(self)])})"


def whole_number(name: str, value: object, least: int) -> int:
    """Returns `value` as an int.

    Raises:
        PlanError: it is not a whole number, or less than `least`.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise PlanError(f"{name} must be a whole number >= {least}, got {value!r}")
    return number


def parse_rows(text: str) -> slice:
    """Returns the slice that a `rows` text such as `"30522:"` spells.

    Raises:
        PlanError: the text is not a slice of integers, or steps backwards.
    """
    parts = text.split(":") if isinstance(text, str) else []
    try:
        if not 2 <= len(parts) <= 3:
            raise ValueError
        start, stop, step = (*(int(p) if p.strip() else None for p in parts), None)[:3]
        if step is not None and step < 1:
            raise ValueError
    except ValueError:
        raise PlanError(f"rows must be a slice such as '30522:' or ':100', got {text!r}") from None
    return slice(start, stop, step)


def check_patterns(patterns: Sequence[object]) -> None:
    """Raises unless there is at least one pattern, and each is one.

    Raises:
        PlanError: one of them is no text, or there is none; `PatternError` for a syntax error.
    """
    if not patterns:
        raise PlanError("no pattern is given; '**' selects everything")
    texts = [text for text in patterns if isinstance(text, str)]
    if len(texts) < len(patterns):
        raise PlanError(f"patterns must be strings, got {patterns!r}")
    for text in texts:
        parse(text)
    if texts[0].startswith("!"):
        listed = ", ".join(repr(text) for text in ("**", *texts))
        raise PatternError(
            f"pattern {texts[0]!r}: '!' takes away from the patterns before it and there "
            f"are none; write {listed}"
        )


_CHOICES = {
    "order": ("top_down", "bottom_up"),
    "top": ("head", "selection"),
    "count": ("all", "selection"),
}
_NEEDED = {
    "layer_decay": {"decay": "the factor from one layer to the next below, e.g. decay=0.8"},
    "lr_range": {
        "low": "the learning rate of the lowest layer, e.g. low=1e-5",
        "high": "the learning rate of the top layer, e.g. high=1e-3",
    },
}


def _keywords(rule: Rule) -> list[str]:
    return [f"{name}={value!r}" for name, value in rule.properties.items()]


def _moment(rule: Rule, edge: str) -> tuple[Unit, float] | None:
    for unit in UNITS:
        value = getattr(rule, f"{edge}_{unit}")
        if value is not None:
            return unit, value
    return None


def _check_verb(rule: Rule) -> None:
    if not isinstance(rule.verb, str) or rule.verb not in VERBS:
        raise PlanError(f"unknown verb {rule.verb!r}{did_you_mean(str(rule.verb), VERBS)}")
    check_patterns(rule.patterns)
    checked_properties(rule.verb, rule.properties)
    silent = {*Moments.__annotations__, "missing_ok"}
    says = [key for key, value in rule.properties.items() if key not in silent and value != {}]
    if rule.verb == "group" and not says:
        raise PlanError("the rule sets nothing; give it lr, lr_mult, weight_decay, options, ...")


def _check_values(rule: Rule) -> None:
    stop = f"to stop training use freeze({rule.patterns[0]!r}) instead"
    for name in ("lr", "lr_mult"):
        value = getattr(rule, name)
        if value is not None and not (is_real(value) and value > 0):
            quoted = isinstance(value, str) and spells_number(value)
            way_out = "write it without quotes" if quoted else stop
            raise PlanError(f"{name} must be a positive finite number, got {value!r}; {way_out}")
    decay = rule.weight_decay
    if decay is not None and not (is_real(decay) and decay >= 0):
        raise PlanError(f"weight_decay must be a finite number >= 0, got {decay!r}")
    if rule.warmup_steps is not None:
        whole_number("warmup_steps", rule.warmup_steps, 1)
    if rule.frozen_mode not in (None, "eval", "train"):
        raise PlanError(f"frozen_mode must be 'eval' or 'train', got {rule.frozen_mode!r}")
    if rule.rows is not None:
        parse_rows(rule.rows)
    for edge in ("at", "until"):
        for unit in ("epoch", "step"):
            value = getattr(rule, f"{edge}_{unit}")
            if value is not None:
                whole_number(f"{edge}_{unit}", value, 0)
        value = getattr(rule, f"{edge}_fraction")
        if value is not None and not (is_real(value) and 0 <= value <= 1):
            raise PlanError(f"{edge}_fraction must lie between 0 and 1, got {value!r}")
    if not isinstance(rule.missing_ok, bool):
        raise PlanError(f"missing_ok must be true or false, got {rule.missing_ok!r}")
    if rule.at_metric is not None:
        object.__setattr__(rule, "at_metric", _checked_metric(dict(rule.at_metric)))


def _check_together(rule: Rule) -> None:
    if rule.lr is not None and rule.lr_mult is not None:
        raise PlanError("lr and lr_mult are one property in two units; give one of them")
    for edge, extra in (("at", ("at_metric",)), ("until", ())):
        names = [*(f"{edge}_{unit}" for unit in UNITS), *extra]
        given = [name for name in names if getattr(rule, name) is not None]
        if len(given) > 1:
            raise PlanError(f"{' and '.join(given)} exclude each other; give one of them")
    opening, closing = rule.opening, rule.closing
    if closing and closing[1] <= 0:
        raise PlanError(f"until_{closing[0]}={closing[1]!r} closes the rule before it opens")
    if opening and closing and opening[0] == closing[0] and opening[1] >= closing[1]:
        raise PlanError(
            f"until_{closing[0]}={closing[1]!r} closes the rule before "
            f"at_{opening[0]}={opening[1]!r} opens it"
        )


def _check_builder(rule: Rule) -> None:
    for name in ("start_epoch", "every_epochs", "start_step", "every_steps", "layers_per_phase"):
        value = getattr(rule, name)
        if value is not None:
            whole_number(name, value, 0 if name.startswith("start") else 1)
    for name, known in _CHOICES.items():
        value = getattr(rule, name)
        if value not in (None, *known):
            raise PlanError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")
    for name, needed in _NEEDED.get(rule.verb, {}).items():
        if getattr(rule, name) is None:
            raise PlanError(f"{name} is missing; give {needed}")
    _check_clocks(rule)
    if rule.decay is not None and not (is_real(rule.decay) and 0 < rule.decay <= 1):
        raise PlanError(f"decay must be greater than 0 and at most 1, got {rule.decay!r}")
    if rule.min_mult is not None and not (is_real(rule.min_mult) and 0 <= rule.min_mult <= 1):
        raise PlanError(f"min_mult must lie between 0 and 1, got {rule.min_mult!r}")
    for name in ("low", "high"):
        value = getattr(rule, name)
        if value is not None and not (is_real(value) and value > 0):
            raise PlanError(f"{name} must be a positive finite number, got {value!r}")
    if rule.low is not None and rule.high is not None and rule.low > rule.high:
        raise PlanError(
            f"low={rule.low!r} is above high={rule.high!r}; low is for the lowest layer, next to "
            "the input"
        )


def _check_clocks(rule: Rule) -> None:
    epochs = [name for name in ("start_epoch", "every_epochs") if getattr(rule, name) is not None]
    steps = [name for name in ("start_step", "every_steps") if getattr(rule, name) is not None]
    if epochs and steps:
        raise PlanError(
            f"{epochs[0]} and {steps[0]} are of two clocks; give start_epoch and every_epochs, or "
            "start_step and every_steps"
        )
    if rule.start_step is not None and rule.every_steps is None:
        raise PlanError("start_step needs every_steps, the steps from one opening to the next")


def _checked_metric(metric: dict[str, Any]) -> Pairs:
    known: dict[str, Any] = {"monitor": None, "mode": "min", "patience": 0, "min_delta": 0.0}
    for name in metric:
        if name not in known:
            raise PlanError(f"at_metric has no key {name!r}{did_you_mean(str(name), known)}")
    full = known | metric
    monitor, mode, patience, min_delta = full.values()
    if not isinstance(monitor, str) or not monitor:
        raise PlanError("at_metric needs 'monitor', the name of a metric, e.g. 'val_loss'")
    if mode not in ("min", "max"):
        raise PlanError(f"at_metric: mode must be 'min' or 'max', got {mode!r}")
    whole_number("at_metric: patience", patience, 0)
    if not (is_real(min_delta) and min_delta >= 0):
        raise PlanError(f"at_metric: min_delta must be a number >= 0, got {min_delta!r}")
    return tuple(full.items())


def _plain_pairs(name: str, given: Pairs | Mapping[str, Any]) -> Pairs:
    pairs = isinstance(given, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in given)
    if not pairs and not isinstance(given, Mapping):
        raise PlanError(f"{name} must be a mapping, got {given!r}")
    value = dict(given)
    taken = {"params", "lr", "weight_decay", "name"} if name == "options" else set()
    for key in value:
        if not isinstance(key, str):
            raise PlanError(f"{name}: keys must be strings, got {key!r}")
        if key in taken:
            raise PlanError(f"options: {key!r} is not an option; it has a property of its own")
    return tuple((key, _plain(name, value[key])) for key in sorted(value))


def _plain(name: str, value: object) -> object:
    """Returns `value` with lists as tuples, so that rules compare equal after a file."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Sequence):
        return tuple(_plain(name, entry) for entry in value)
    raise PlanError(f"{name}: values must be plain data (numbers, strings, lists), got {value!r}")


def _listed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _listed(entry) for key, entry in value.items()}
    return [_listed(entry) for entry in value] if isinstance(value, tuple) else value


def spells_number(text: str) -> bool:
    """Returns whether a text is a number in quotes."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_real(value: object) -> bool:
    """Returns whether `value` is a finite number."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )
