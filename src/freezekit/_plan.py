"""Rules and plans: what the user says, before any model is looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from typing_extensions import TypedDict, Unpack

from ._glob import Automaton, parse
from .errors import PatternError, PlanError

if TYPE_CHECKING:
    import torch

    from ._apply import AppliedPlan
    from ._resolve import ResolvedPlan

VERSION = 1
"""The version of the plan format that this release reads and writes."""

Unit: TypeAlias = Literal["epoch", "step", "fraction"]
UNITS: tuple[Unit, ...] = ("epoch", "step", "fraction")

Pairs: TypeAlias = tuple[tuple[str, Any], ...]


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


VERBS: dict[str, type] = {
    "freeze": Properties,
    "unfreeze": Properties,
    "group": GroupProperties,
    "no_decay": SelectionProperties,
}
"""Every verb with the properties its rules may carry."""


@dataclass(frozen=True, slots=True)
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
    lr: float | None = field(default=None, kw_only=True)
    lr_mult: float | None = field(default=None, kw_only=True)
    weight_decay: float | None = field(default=None, kw_only=True)
    warmup_steps: int | None = field(default=None, kw_only=True)
    options: Pairs | Mapping[str, Any] | None = field(default=None, kw_only=True)
    frozen_mode: Literal["eval", "train"] | None = field(default=None, kw_only=True)
    rows: str | None = field(default=None, kw_only=True)
    at_epoch: int | None = field(default=None, kw_only=True)
    at_step: int | None = field(default=None, kw_only=True)
    at_fraction: float | None = field(default=None, kw_only=True)
    at_metric: Pairs | Mapping[str, Any] | None = field(default=None, kw_only=True)
    until_epoch: int | None = field(default=None, kw_only=True)
    until_step: int | None = field(default=None, kw_only=True)
    until_fraction: float | None = field(default=None, kw_only=True)
    missing_ok: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        try:
            _check_verb(self)
            for name in ("options", "at_metric"):
                value = getattr(self, name)
                if value is not None:
                    object.__setattr__(self, name, _plain_pairs(name, value))
            _check_values(self)
            _check_together(self)
            for name in ("lr", "lr_mult", "weight_decay", "at_fraction", "until_fraction"):
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
        """Unit and value of `at_epoch`, `at_step` or `at_fraction`; None: from the start."""
        return _moment(self, "at")

    @property
    def closing(self) -> tuple[Unit, float] | None:
        """Unit and value of the rule's `until_...`; None: to the end."""
        return _moment(self, "until")

    def to_dict(self) -> dict[str, Any]:
        """Returns the rule as it stands in a plan file."""
        patterns = list(self.patterns) if len(self.patterns) > 1 else self.patterns[0]
        return {self.verb: patterns} | {k: _listed(v) for k, v in self.properties.items()}

    def __repr__(self) -> str:
        return f"Rule({', '.join([repr(self.verb), repr(self.patterns), *_keywords(self)])})"


@dataclass(frozen=True, repr=False)
class FreezePlan:
    """An ordered list of rules: which parameters train, when, and how fast.

    Immutable: each verb returns a new plan. Later rules win, property by property.

    Args:
        rules: the rules, first to last.
        allow_all_frozen: permit training phases in which nothing trains.

    Raises:
        PlanError: `rules` holds something that is not a `Rule`.

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan
        >>> model = torch.nn.ModuleDict(
        ...     {"backbone": torch.nn.Linear(4, 4), "head": torch.nn.Linear(4, 2)}
        ... )
        >>> plan = FreezePlan().freeze("backbone").group("head", lr=1e-3)
        >>> sorted(plan.resolve(model).at().trainable)
        ['head.bias', 'head.weight']
    """

    rules: tuple[Rule, ...] = ()
    allow_all_frozen: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        for number, rule in enumerate(self.rules, 1):
            if not isinstance(rule, Rule):
                raise PlanError(f"rule {number} is {rule!r}; expected a Rule")
        allow = self.allow_all_frozen
        if not isinstance(allow, bool):
            raise PlanError(f"allow_all_frozen must be true or false, got {allow!r}")

    def freeze(self, *patterns: str, **properties: Unpack[Properties]) -> Self:
        """Returns the plan with a rule that stops the selected parameters from training.

        Args:
            *patterns: what to freeze, e.g. `"backbone"`, `"encoder.layer[:4]"`.
            **properties: see `Rule`.

        Raises:
            PlanError: the rule is not valid; `PatternError` for a pattern.

        Example:
            >>> FreezePlan().freeze("backbone", "!backbone.pooler")
            FreezePlan().freeze('backbone', '!backbone.pooler')
        """
        return self._with("freeze", patterns, properties)

    def unfreeze(self, *patterns: str, **properties: Unpack[Properties]) -> Self:
        """Returns the plan with a rule that lets the selected parameters train.

        Args:
            *patterns: what to unfreeze.
            **properties: see `Rule`.

        Raises:
            PlanError: the rule is not valid; `PatternError` for a pattern.

        Example:
            >>> FreezePlan().freeze("**").unfreeze("encoder.layer[-2:]", lr=2e-5, at_epoch=1)
            FreezePlan().freeze('**').unfreeze('encoder.layer[-2:]', lr=2e-05, at_epoch=1)
        """
        return self._with("unfreeze", patterns, properties)

    def group(self, *patterns: str, **properties: Unpack[GroupProperties]) -> Self:
        """Returns the plan with a rule that sets optimizer options and leaves freezing alone.

        Args:
            *patterns: what to set them for.
            **properties: see `Rule`.

        Raises:
            PlanError: the rule is not valid; `PatternError` for a pattern.

        Example:
            >>> FreezePlan().group("*_head", lr=1e-3, weight_decay=0.01)
            FreezePlan().group('*_head', lr=0.001, weight_decay=0.01)
        """
        return self._with("group", patterns, properties)

    def no_decay(self, pattern: str = "**", **properties: Unpack[SelectionProperties]) -> Self:
        """Returns the plan with weight decay 0 for vectors and biases.

        Selects, below `pattern`, tensors of rank 1 or less and those named as a bias
        (`bias`, `bias_...`, `..._bias`): norms, biases, scales.

        Args:
            pattern: where to look.
            **properties: moments and `missing_ok`.

        Raises:
            PlanError: the rule is not valid; `PatternError` for a pattern.

        Example:
            >>> import torch
            >>> plan = FreezePlan().no_decay()
            >>> resolved = plan.resolve(torch.nn.Linear(2, 2))
            >>> print(resolved.explain("bias").values["weight_decay"])
            0.0
        """
        return self._with("no_decay", (pattern,), properties)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> FreezePlan:
        """Reads a plan file.

        Args:
            path: a file ending in .yaml, .yml, .toml or .json.

        Raises:
            PlanError: the file is not a valid plan; the message says where.
            OSError: the file cannot be read.

        Example:
            >>> import pathlib, tempfile
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "plan.yaml"
            >>> FreezePlan().freeze("backbone").save(path)
            >>> FreezePlan.load(path)
            FreezePlan().freeze('backbone')
        """
        from ._files import load

        return cls.from_dict(load(path), source=str(path))

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the plan to a file that `load` reads back as an equal plan.

        Args:
            path: a file name ending in .yaml, .yml or .json.

        Raises:
            PlanError: the ending is another one.
            OSError: the file cannot be written.
        """
        from ._files import save

        save(self.to_dict(), path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "plan") -> FreezePlan:
        """Returns the plan that `data` describes, in the form of a plan file.

        Args:
            data: `{"version": 1, "rules": [...]}`; any mapping and sequences will do.
            source: how messages name the data.

        Raises:
            PlanError: a key is unknown or a value is wrong; the message names the rule.

        Example:
            >>> FreezePlan.from_dict({"version": 1, "rules": [{"freeze": "backbone"}]})
            FreezePlan().freeze('backbone')
        """
        from ._files import plan_arguments

        return cls(**plan_arguments(data, source))

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as plain data: dicts, lists, strings, numbers, booleans.

        Example:
            >>> FreezePlan().freeze("backbone").to_dict()
            {'version': 1, 'rules': [{'freeze': 'backbone'}]}
        """
        head: dict[str, Any] = {"version": VERSION}
        if self.allow_all_frozen:
            head["allow_all_frozen"] = True
        return head | {"rules": [rule.to_dict() for rule in self.rules]}

    def resolve(
        self,
        model: torch.nn.Module,
        *,
        steps_per_epoch: int | None = None,
        total_epochs: int | None = None,
        total_steps: int | None = None,
    ) -> ResolvedPlan:
        """Returns what the plan means for `model`, without touching it.

        Args:
            model: any module, on any device, `meta` included.
            steps_per_epoch: optimizer steps in an epoch; needed where a plan mixes units.
            total_epochs: epochs in all of training; needed for `at_fraction` in epochs.
            total_steps: steps in all of training; needed for `at_fraction` in steps.

        Raises:
            PatternError: a pattern selects nothing.
            PlanError: the plan contradicts itself on this model, or needs a total.

        Example:
            >>> import torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
            >>> sorted(FreezePlan().freeze("[0]").resolve(model).at().frozen)
            ['0.bias', '0.weight']
        """
        from ._resolve import resolve

        return resolve(
            self,
            model,
            steps_per_epoch=steps_per_epoch,
            total_epochs=total_epochs,
            total_steps=total_steps,
        )

    def apply(
        self,
        model: torch.nn.Module,
        *,
        steps_per_epoch: int | None = None,
        total_epochs: int | None = None,
        total_steps: int | None = None,
    ) -> AppliedPlan:
        """Freezes `model` as the plan says for the start of training; returns the handle.

        Args:
            model: any module.
            steps_per_epoch: as in `resolve`.
            total_epochs: as in `resolve`.
            total_steps: as in `resolve`.

        Raises:
            PatternError: a pattern selects nothing.
            PlanError: the plan contradicts itself on this model, or nothing would train.
            FreezekitError: a plan is applied to the model already.

        Example:
            >>> import torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
            >>> with FreezePlan().freeze("[0]").apply(model) as applied:
            ...     print(model[0].weight.requires_grad, model[1].weight.requires_grad)
            False True
        """
        from ._apply import apply

        return apply(
            self,
            model,
            steps_per_epoch=steps_per_epoch,
            total_epochs=total_epochs,
            total_steps=total_steps,
        )

    @cached_property
    def _automaton(self) -> Automaton:
        patterns = [parse(text) for rule in self.rules for text in rule.patterns]
        labels = [
            f"rule {number}, {rule.call}"
            for number, rule in enumerate(self.rules, 1)
            for _ in rule.patterns
        ]
        return Automaton(patterns, labels)

    def _with(self, verb: str, patterns: tuple[str, ...], properties: Mapping[str, Any]) -> Self:
        rule = Rule(verb, patterns, **checked_properties(verb, properties))
        return type(self)((*self.rules, rule), allow_all_frozen=self.allow_all_frozen)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.rules, self.allow_all_frozen)

    def __repr__(self) -> str:
        head = "allow_all_frozen=True" if self.allow_all_frozen else ""
        return ".".join([f"FreezePlan({head})", *(rule.call for rule in self.rules)])


def checked_properties(verb: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `properties` once each is one that a rule with this verb may carry.

    Raises:
        PlanError: a property is unknown; the message offers the closest one.
    """
    allowed = VERBS[verb].__annotations__
    for name in properties:
        if name not in allowed:
            raise PlanError(f"{verb} has no property {name!r}{did_you_mean(str(name), allowed)}")
    return dict(properties)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a clause that offers the closest known name and lists them all."""
    known = list(known)
    close = get_close_matches(name, known, 1, 0.6)
    offer = f"; did you mean {close[0]!r}?" if close else ""
    return f"{offer} (known: {', '.join(known)})"


def parse_rows(text: str) -> slice:
    """Returns the slice that a `rows` text such as `"30522:"` spells.

    Raises:
        PlanError: the text is not a slice of integers.
    """
    parts = text.split(":") if isinstance(text, str) else []
    try:
        if not 2 <= len(parts) <= 3:
            raise ValueError
        return slice(*(int(part) if part.strip() else None for part in parts))
    except ValueError:
        raise PlanError(f"rows must be a slice such as '30522:' or ':100', got {text!r}") from None


def _rebuild(rules: tuple[Rule, ...], allow_all_frozen: bool) -> FreezePlan:
    return FreezePlan(rules, allow_all_frozen=allow_all_frozen)


def _keywords(rule: Rule) -> list[str]:
    return [f"{name}={value!r}" for name, value in rule.properties.items()]


def _moment(rule: Rule, edge: str) -> tuple[Unit, float] | None:
    for unit in UNITS:
        value = getattr(rule, f"{edge}_{unit}")
        if value is not None:
            return unit, value
    return None


def _check_verb(rule: Rule) -> None:
    if rule.verb not in VERBS:
        raise PlanError(f"unknown verb {rule.verb!r}{did_you_mean(str(rule.verb), VERBS)}")
    if isinstance(rule.patterns, str) or not all(isinstance(p, str) for p in rule.patterns):
        raise PlanError(f"patterns must be strings, got {rule.patterns!r}")
    object.__setattr__(rule, "patterns", tuple(rule.patterns))
    if not rule.patterns:
        raise PlanError("no pattern is given; '**' selects everything")
    for text in rule.patterns:
        parse(text)
    if rule.patterns[0].startswith("!"):
        listed = ", ".join(repr(text) for text in ("**", *rule.patterns))
        raise PatternError(
            f"pattern {rule.patterns[0]!r}: '!' takes away from the patterns before it and there "
            f"are none; write {listed}"
        )
    checked_properties(rule.verb, rule.properties)
    says = set(rule.properties) - {*Moments.__annotations__, "missing_ok"}
    if rule.verb == "group" and not says:
        raise PlanError("the rule sets nothing; give it lr, lr_mult, weight_decay, options, ...")


def _check_values(rule: Rule) -> None:
    stop = f"to stop training use freeze({rule.patterns[0]!r}) instead"
    for name in ("lr", "lr_mult"):
        value = getattr(rule, name)
        if value is not None and not (_is_real(value) and value > 0):
            raise PlanError(f"{name} must be a positive finite number, got {value!r}; {stop}")
    decay = rule.weight_decay
    if decay is not None and not (_is_real(decay) and decay >= 0):
        raise PlanError(f"weight_decay must be a finite number >= 0, got {decay!r}")
    if rule.warmup_steps is not None and not _is_count(rule.warmup_steps, 1):
        raise PlanError(f"warmup_steps must be a whole number >= 1, got {rule.warmup_steps!r}")
    if rule.frozen_mode not in (None, "eval", "train"):
        raise PlanError(f"frozen_mode must be 'eval' or 'train', got {rule.frozen_mode!r}")
    if rule.rows is not None:
        parse_rows(rule.rows)
    for edge in ("at", "until"):
        for unit in ("epoch", "step"):
            value = getattr(rule, f"{edge}_{unit}")
            if value is not None and not _is_count(value, 0):
                raise PlanError(f"{edge}_{unit} must be a whole number >= 0, got {value!r}")
        value = getattr(rule, f"{edge}_fraction")
        if value is not None and not (_is_real(value) and 0 <= value <= 1):
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
    if not _is_count(patience, 0):
        raise PlanError(f"at_metric: patience must be a whole number >= 0, got {patience!r}")
    if not (_is_real(min_delta) and min_delta >= 0):
        raise PlanError(f"at_metric: min_delta must be a number >= 0, got {min_delta!r}")
    return tuple(full.items())


def _plain_pairs(name: str, given: Pairs | Mapping[str, Any]) -> Pairs:
    try:
        value = dict(given)
    except (TypeError, ValueError):
        raise PlanError(f"{name} must be a mapping, got {given!r}") from None
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


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
