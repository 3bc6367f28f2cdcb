"""FreezePlan: an ordered list of rules, and the verbs that write it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Self

from typing_extensions import Unpack

from ._automaton import Automaton
from ._glob import parse
from ._layering import Layering
from ._rules import Rule
from ._verbs import (
    GroupProperties,
    LayerDecayProperties,
    LayerProperties,
    LayerwiseProperties,
    Properties,
    RangeProperties,
    SelectionProperties,
    checked_properties,
)
from .errors import PlanError

if TYPE_CHECKING:
    import torch

    from ._apply import AppliedPlan
    from ._resolved import ResolvedPlan

VERSION = 1
"""The version of the plan format that this release reads and writes."""


@dataclass(frozen=True, repr=False)
class FreezePlan:
    """An ordered list of rules: which parameters train, when, and how fast.

    Immutable: each verb returns a new plan. Later rules win, property by property.

    Args:
        rules: the rules, first to last.
        allow_all_frozen: permit training phases in which nothing trains.
        layers: what rules along the layers of a model should know of them: a mapping with some of
            `by`, `final_norm`, `stem`, `blocks`, `head`, see `infer_layers`.

    Raises:
        PlanError: `rules` holds something that is not a `Rule`, or `layers` something unknown.

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
    _: KW_ONLY
    allow_all_frozen: bool = False
    layers: Layering | LayerProperties = field(default=Layering())

    def __post_init__(self) -> None:
        if not isinstance(self.rules, Iterable):
            raise PlanError(f"rules must be several Rules, got {self.rules!r}")
        object.__setattr__(self, "rules", tuple(self.rules))
        for number, rule in enumerate(self.rules, 1):
            if not isinstance(rule, Rule):
                raise PlanError(f"rule {number} is {rule!r}; expected a Rule")
        allow = self.allow_all_frozen
        if not isinstance(allow, bool):
            raise PlanError(f"allow_all_frozen must be true or false, got {allow!r}")
        object.__setattr__(self, "layers", Layering.read(self.layers))

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

    def no_decay(self, *patterns: str, **properties: Unpack[SelectionProperties]) -> Self:
        """Returns the plan with weight decay 0 for vectors and biases.

        Selects, of what the patterns select, tensors of rank 1 or less and those named as a bias
        (`bias`, `bias_...`, `..._bias`): norms, biases, scales.

        Args:
            *patterns: where to look; without any, everywhere.
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
        return self._with("no_decay", patterns or ("**",), properties)

    def unfreeze_layerwise(self, *patterns: str, **properties: Unpack[LayerwiseProperties]) -> Self:
        """Returns the plan with a rule that unfreezes one layer after another.

        The layers are those of `infer_layers` in which the patterns select something. The top one
        opens at `start_epoch` (default 0), the next at `start_epoch + every_epochs` (default 1),
        and so on; `start_step` and `every_steps` count in optimizer steps instead. The rule only
        unfreezes: what is frozen until then is for an earlier rule to say. Gradual unfreezing, as
        in Howard and Ruder (2018), https://arxiv.org/abs/1801.06146, section 3.3.

        Args:
            *patterns: where; without any, everywhere.
            **properties: `start_epoch`, `every_epochs`, `start_step`, `every_steps`,
                `layers_per_phase`, `order` and `missing_ok`, see `Rule`.

        Raises:
            PlanError: the rule is not valid; `PatternError` for a pattern.

        Example:
            >>> import torch
            >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(3)])
            >>> plan = FreezePlan().freeze("**").unfreeze_layerwise(every_epochs=2)
            >>> resolved = plan.resolve(model)
            >>> [sorted(resolved.at(epoch=epoch).trainable) for epoch in (0, 2)]
            [['2.bias', '2.weight'], ['1.bias', '1.weight', '2.bias', '2.weight']]
        """
        return self._with("unfreeze_layerwise", patterns or ("**",), properties)

    def layer_decay(self, *patterns: str, **properties: Unpack[LayerDecayProperties]) -> Self:
        """Returns the plan with a rule that lowers the learning rate from layer to layer.

        The factor on the learning rate is `max(decay ** distance, min_mult)`. The distance is
        counted from the model's last layer with `top="head"` (the default), so that it is
        `n_layers - 1 - index` of `infer_layers`, or from the last layer in which the patterns
        select something with `top="selection"`. With `count="all"` (the default) layers that the
        patterns leave out count too, with `count="selection"` they do not; what other rules
        freeze counts, unless it is left out that way. `lr` is the learning rate where the factor
        is 1; without it the factors are on the base learning rate. Layer-wise learning
        rate decay, as in Clark et al. (2020), https://arxiv.org/abs/2003.10555, and Bao et al.
        (2022), https://arxiv.org/abs/2106.08254; with `decay=1 / 2.6` the discriminative
        fine-tuning of Howard and Ruder (2018), https://arxiv.org/abs/1801.06146.

        Args:
            *patterns: where; without any, everywhere.
            **properties: `decay` (required, in (0, 1]), `top`, `count`, `lr`, `min_mult`
                (default 0), moments and `missing_ok`, see `Rule`.

        Raises:
            PlanError: the rule is not valid; `PatternError` for a pattern.

        Example:
            >>> import torch
            >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(3)])
            >>> phase = FreezePlan().layer_decay(decay=0.5, lr=1e-3).resolve(model).at()
            >>> [phase.lr(f"{number}.weight") for number in range(3)]
            [0.00025, 0.0005, 0.001]
        """
        return self._with("layer_decay", patterns or ("**",), properties)

    def lr_range(self, *patterns: str, **properties: Unpack[RangeProperties]) -> Self:
        """Returns the plan with a rule that spreads learning rates over the layers.

        Of the layers of `infer_layers` in which the patterns select something, the lowest has the
        learning rate `low`, the top one `high`, and from each to the next the factor is the same.
        A single layer has `high`. Discriminative fine-tuning with both ends given, after Howard
        and Ruder (2018), https://arxiv.org/abs/1801.06146, section 3.2.

        Args:
            *patterns: where.
            **properties: `low` and `high` (both required), moments and `missing_ok`, see `Rule`.

        Raises:
            PlanError: the rule is not valid; `PatternError` for a pattern.

        Example:
            >>> import torch
            >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(3)])
            >>> phase = FreezePlan().lr_range("**", low=1e-4, high=1e-2).resolve(model).at()
            >>> [phase.lr(f"{number}.weight") for number in range(3)]
            [0.0001, 0.001, 0.01]
        """
        return self._with("lr_range", patterns, properties)

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

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> plan = FreezePlan().freeze("backbone")
            >>> with TemporaryDirectory() as folder:
            ...     plan.save(f"{folder}/plan.yaml")
            ...     FreezePlan.load(f"{folder}/plan.yaml") == plan
            True
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
        rules = [rule.to_dict() for rule in self.rules]
        return {"version": VERSION, **self._settings, "rules": rules}

    def resolve(
        self,
        model: torch.nn.Module,
        *,
        steps_per_epoch: int | None = None,
        total_epochs: int | None = None,
        total_steps: int | None = None,
        example_inputs: object = None,
    ) -> ResolvedPlan:
        """Returns what the plan means for `model`, without touching it.

        Args:
            model: any module, on any device, `meta` included.
            steps_per_epoch: optimizer steps in an epoch; needed where a plan mixes units.
            total_epochs: epochs in all of training; needed for `at_fraction` in epochs.
            total_steps: steps in all of training; needed for `at_fraction` in steps.
            example_inputs: what one forward pass needs: a tuple of positional arguments, a
                mapping of keyword arguments, or the only argument, on the model's device or, as
                the model, on `meta`. With it the plan knows what each phase computes, and where
                backward stops: `ResolvedPlan.compute`, `summary()`, `explain()` and `cost()`. The
                model runs on tensors without data, or where it reads numbers out of them, once for
                each phase on these inputs; what a pass leaves is put back.

        Raises:
            PatternError: a pattern selects nothing.
            PlanError: the plan contradicts itself on this model, or needs a total.
            FreezekitError: the model does not run on `example_inputs`.

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
            example_inputs=example_inputs,
        )

    def apply(
        self,
        model: torch.nn.Module,
        *,
        steps_per_epoch: int | None = None,
        total_epochs: int | None = None,
        total_steps: int | None = None,
        on_freeze: Literal["keep", "drop"] = "keep",
        example_inputs: object = None,
    ) -> AppliedPlan:
        """Freezes `model` as the plan says for the start of training; returns the handle.

        Args:
            model: any module.
            steps_per_epoch: as in `resolve`.
            total_epochs: as in `resolve`.
            total_steps: as in `resolve`.
            on_freeze: whether parameters that freeze during training "keep" their optimizer state
                or "drop" it.
            example_inputs: as in `resolve`; `diagnose` then knows what the plan computes, too.

        Raises:
            PatternError: a pattern selects nothing.
            PlanError: the plan contradicts itself on this model, or nothing would train.
            FreezekitError: a plan is applied to the model already, torch cannot change one of its
                parameters, or the model does not run on `example_inputs`.

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
            on_freeze=on_freeze,
            example_inputs=example_inputs,
        )

    @property
    def _settings(self) -> dict[str, Any]:
        """What the plan says beside its rules, as plain data."""
        layers = Layering.read(self.layers).to_dict()
        allow = {"allow_all_frozen": True} if self.allow_all_frozen else {}
        return {**allow, "layers": layers} if layers else allow

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
        return replace(self, rules=(*self.rules, rule))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.rules, self._settings)

    def __repr__(self) -> str:
        head = ", ".join(f"{name}={value!r}" for name, value in self._settings.items())
        return ".".join([f"FreezePlan({head})", *(rule.call for rule in self.rules)])


def _rebuild(
    cls: type[FreezePlan], rules: tuple[Rule, ...], settings: Mapping[str, Any]
) -> FreezePlan:
    return cls(rules, **settings)
