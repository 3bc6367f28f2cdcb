"""A model, its plan and what trains it, read once for `diagnose`. Writes nothing."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, SequentialLR

from ._automaton import Automaton
from ._cascade import Outcome
from ._names import MARK, unwrap, walk
from ._resolved import Phase, ResolvedPlan
from .errors import FreezekitError

if TYPE_CHECKING:
    from ._apply import AppliedPlan

Helper: TypeAlias = torch.optim.Optimizer | LRScheduler | torch.nn.Module
"""What `diagnose` takes beside the model: what trains it, and what it is wrapped in."""


class Course(NamedTuple):
    """What a plan means for some parameters from now on.

    Attributes:
        coming: whether they train in the current phase and in each that is still to come.
        ever: whether they train in any phase.
        opened: index of the phase in which they last began to train.
        leaves_mode: whether their `frozen_mode` is "train" now.
        rate: `lr` and `lr_mult` of the first phase in which they train.
    """

    coming: tuple[bool, ...]
    ever: bool
    opened: int
    leaves_mode: bool
    rate: tuple[float | None, float | None]


class Spot(NamedTuple):
    """One parameter of the model.

    Attributes:
        name: canonical name.
        parameter: the object that stands there now.
        owner: row of its module.
        now: whether it requires gradients.
        plan: what the plan means for it; None without a plan, or where the plan knows it not.
    """

    name: str
    parameter: torch.nn.Parameter
    owner: int
    now: bool
    plan: Course | None

    @property
    def coming(self) -> tuple[bool, ...]:
        """Whether it trains now, and in each phase still to come."""
        return (self.now, *self.plan.coming[1:]) if self.plan else (self.now,)

    @property
    def ever(self) -> bool:
        """Whether it trains now or in any phase."""
        return self.now or (self.plan is not None and self.plan.ever)

    @property
    def opened(self) -> int:
        """Index of the phase in which it last began to train; 0 without a plan."""
        return self.plan.opened if self.plan else 0

    @property
    def has_grad(self) -> bool:
        """Whether a gradient is there."""
        return self.parameter.is_leaf and self.parameter.grad is not None


class Group(NamedTuple):
    """One param group.

    Attributes:
        label: its name, or its number.
        optimizer: the optimizer it belongs to.
        settings: torch's dict.
    """

    label: str
    optimizer: torch.optim.Optimizer
    settings: dict[str, Any]

    def members(self) -> Iterator[tuple[str | None, torch.Tensor]]:
        """Yields its parameters, with the names they were given if any."""
        parameters = self.settings["params"]
        names = self.settings.get("param_names", ())
        unnamed = [None] * len(parameters)
        yield from zip(names if len(names) == len(parameters) else unnamed, parameters, strict=True)


class Setup:
    """What stands in a set-up.

    Attributes:
        modules: the modules of the model as it is now, in the order of `named_modules()`.
        tree: their names.
        resolved: what the plan means; None for a bare model.
        ahead: index of the current phase and of each still to come.
        waiting: names of the parameters whose opening waits for the end of an accumulation window.
        lacking: a parameter that the plan needs an attached optimizer for, and what for.
        claimed: a plan is applied to the model, but its handle was not given.
        spots: the parameters.
        groups: the param groups.
        schedulers: the LR schedulers, those inside others by themselves.
    """

    def __init__(self, target: AppliedPlan | torch.nn.Module, helpers: Sequence[Helper]) -> None:
        """Walks the model."""
        self.resolved: ResolvedPlan | None = None
        attached: list[torch.optim.Optimizer] = []
        self.ahead: list[int] = [0]
        self.waiting: frozenset[str] = frozenset()
        self.lacking: tuple[str, str] | None = None
        self._applied: list[torch.nn.Module] = []
        self._held: dict[int, frozenset[int]] = {}
        if isinstance(target, torch.nn.Module):
            model = target
        else:
            _check_handle(target)
            self.resolved = target.resolved
            self.ahead = [p.index for p in target.resolved.phases if _is_ahead(p, target.phase)]
            self._applied, attached = target._modules, target._optimizers
            self.lacking = target._steps.lacking
            names = target.resolved._tree.names
            self.waiting = frozenset(names[row] for row in target._waiting.unfreeze.rows)
            model = target._modules[0]
        self.tree, self.modules = walk(model, Automaton([], []))
        marks = [self.modules[row].__dict__[MARK] for row in self.tree.marked]
        self.claimed = self.resolved is None and any(mark.live for mark in marks)
        self._outside = [model, *_wrappers(helpers, self.modules[0])]
        self.schedulers = [
            inner for each in helpers if isinstance(each, LRScheduler) for inner in _inside(each)
        ]
        given = [each for each in helpers if isinstance(each, torch.optim.Optimizer)]
        given += [each.optimizer for each in helpers if isinstance(each, LRScheduler)]
        self.groups = _groups([*attached, *given])
        self.spots = self._spots()

    def _spots(self) -> list[Spot]:
        courses: list[Course] = []
        rows: dict[str, int] = {}
        if self.resolved is not None:
            courses = [_course(outcome, self.ahead) for outcome in self.resolved._outcomes]
            rows = self.resolved._row_of
        spots = []
        for name, owner in zip(self.tree.names, self.tree.owners, strict=True):
            leaf = name[len(self.tree.prefixes[owner]) :]
            parameter = self.modules[owner]._parameters[leaf]
            assert parameter is not None
            row = rows.get(name)
            plan = None
            if self.resolved is not None and row is not None:
                plan = courses[self.resolved._outcome_ids[row]]
            spots.append(Spot(name, parameter, owner, parameter.requires_grad, plan))
        return spots

    @cached_property
    def by_id(self) -> dict[int, Spot]:
        """The parameters by the identity of their objects."""
        return {id(spot.parameter): spot for spot in self.spots}

    @cached_property
    def holders(self) -> dict[int, list[Group]]:
        """The groups that hold a parameter object, by its identity; one twice if it has it so."""
        found: dict[int, list[Group]] = {}
        for group in self.groups:
            for parameter in group.settings["params"]:
                found.setdefault(id(parameter), []).append(group)
        return found

    def holds(self, spot: Spot) -> bool:
        """Returns whether an optimizer holds a parameter."""
        return id(spot.parameter) in self.holders

    def phase_flags(self, spot: Spot) -> tuple[bool, ...]:
        """Returns whether a parameter trains now and in each phase still to come."""
        return spot.coming * len(self.ahead) if spot.plan is None else spot.coming

    def is_frozen(self, row: int) -> bool:
        """Returns whether a module is frozen; one without parameters goes by its surroundings."""
        total, live = self._counts
        if not total[row] and self.resolved is not None:
            return id(self.modules[row]) in self.held(self.ahead[0])
        while row >= 0 and not total[row]:
            row = self.tree.parents[row]
        return row >= 0 and not live[row]

    @cached_property
    def _counts(self) -> tuple[list[int], list[int]]:
        """How many parameters stand at or below each module, and how many of them train."""
        total, live = [0] * len(self.modules), [0] * len(self.modules)
        for spot in self.spots:
            total[spot.owner] += 1
            live[spot.owner] += spot.now
        for row in range(len(self.modules) - 1, 0, -1):
            total[self.tree.parents[row]] += total[row]
            live[self.tree.parents[row]] += live[row]
        return total, live

    def held(self, phase: int) -> frozenset[int]:
        """Returns the identities of the modules that the plan holds in eval in a phase."""
        if self.resolved is not None and phase not in self._held:
            held, kept = self.resolved._held(phase)
            self._held[phase] = frozenset(
                id(module)
                for row, module in enumerate(self._applied)
                if held[row] and row not in kept
            )
        return self._held.get(phase, frozenset())

    @cached_property
    def replaced(self) -> tuple[str, ...]:
        """Paths at which another module, or none, stands since the plan was applied."""
        if self.resolved is None:
            return ()
        here = dict(zip(self.tree.prefixes, self.modules, strict=True))
        found: list[str] = []
        for prefix, module in zip(self.resolved._tree.prefixes, self._applied, strict=True):
            if here.get(prefix) is not module and not prefix.startswith(tuple(found)):
                found.append(prefix)
        return tuple(prefix[:-1] for prefix in found)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The parameters' rows by canonical and further names."""
        rows = {alias.name: alias.row for alias in self.tree.aliases}
        return rows | {spot.name: row for row, spot in enumerate(self.spots)}

    @cached_property
    def shared(self) -> list[list[Spot]]:
        """Parameter objects that lie in the same memory, without being one object."""
        places: list[tuple[torch.device, int, int, Spot]] = []
        for spot in self.spots:
            parameter = spot.parameter
            if type(parameter) is not torch.nn.Parameter or not parameter.is_contiguous():
                continue
            start = parameter.data_ptr()
            if start and parameter.numel():
                end = start + parameter.numel() * parameter.element_size()
                places.append((parameter.device, start, end, spot))
        found: list[list[Spot]] = []
        reached: tuple[torch.device | None, int] = (None, 0)
        for device, start, end, spot in sorted(places, key=lambda each: (str(each[0]), each[1])):
            if reached[0] == device and start < reached[1]:
                found[-1].append(spot)
                reached = (device, max(end, reached[1]))
            else:
                found.append([spot])
                reached = (device, end)
        return [spots for spots in found if len(spots) > 1]

    @cached_property
    def wrapped(self) -> list[torch.nn.Module]:
        """Torch's wrappers around the model and its parts, and modules compiled in place."""
        plain: dict[type, bool] = {}
        found: dict[int, torch.nn.Module] = {}
        for outside in self._outside:
            for module in outside.modules():
                cls = type(module)
                if cls not in plain:
                    plain[cls] = unwrap(module) is module
                if not plain[cls] or module._compiled_call_impl is not None:
                    found[id(module)] = module
        return list(found.values())

    def path(self, row: int) -> str:
        """Returns the path of a module, in words for the root."""
        return self.tree.prefixes[row][:-1] or "the model"


def _check_handle(target: object) -> None:
    if not isinstance(getattr(target, "resolved", None), ResolvedPlan):
        hint = "; apply the plan first" if hasattr(target, "phases") else ""
        raise FreezekitError(
            f"diagnose takes a model or what apply returned, got {reprlib.repr(target)}{hint}"
        )
    if getattr(target, "_released", False):
        raise FreezekitError("diagnose: the plan was released; pass the model itself")


def _wrappers(helpers: Iterable[object], root: torch.nn.Module) -> list[torch.nn.Module]:
    """Returns the wrappers among what `diagnose` was given, all of which was checked."""
    found = []
    for each in helpers:
        if isinstance(each, torch.nn.Module):
            if unwrap(each) is not root:
                raise FreezekitError(
                    f"diagnose: the {type(each).__name__} given beside the model does not wrap it"
                )
            found.append(each)
        elif not isinstance(each, torch.optim.Optimizer | LRScheduler):
            hint = "; pass each by itself" if isinstance(each, list | tuple | dict) else ""
            raise FreezekitError(
                "diagnose takes optimizers, LR schedulers and wrappers beside the model, got "
                f"{reprlib.repr(each)}{hint}"
            )
    return found


def _inside(scheduler: LRScheduler) -> Iterator[LRScheduler]:
    if isinstance(scheduler, SequentialLR | ChainedScheduler):
        for each in scheduler._schedulers:
            yield from _inside(each)
    else:
        yield scheduler


def _groups(optimizers: Iterable[torch.optim.Optimizer]) -> list[Group]:
    """Returns the groups of all optimizers, each once: an optimizer may wrap another."""
    found: dict[int, Group] = {}
    for optimizer in optimizers:
        for number, settings in enumerate(optimizer.param_groups):
            label = str(settings.get("name", f"group {number}"))
            found.setdefault(id(settings), Group(label, optimizer, settings))
    return list(found.values())


def _is_ahead(phase: Phase, now: Phase) -> bool:
    return phase.index >= now.index and (phase.end is None or phase.end > now.start)


def _course(outcome: Outcome, ahead: Sequence[int]) -> Course:
    trains = [decision.trainable for decision in outcome.decisions]
    opened = now = ahead[0]
    while trains[now] and opened and trains[opened - 1]:
        opened -= 1
    first = next((each for each in outcome.decisions if each.trainable), None)
    return Course(
        tuple(trains[index] for index in ahead),
        any(trains),
        opened,
        outcome.decisions[now].frozen_mode == "train",
        (first.lr, first.lr_mult) if first else (None, None),
    )
