"""The optimizers attached to an applied plan, and what the plan does inside their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.hooks import RemovableHandle

from ._cascade import Outcome
from ._resolved import Phase, ResolvedPlan
from ._resume import by_name
from ._rows import RowKeeper, frozen_rows
from ._rules import did_you_mean
from ._steps import Base, Ramp, StandIn, StepHooks, changes, ramp, stand_ins
from ._writer import Writer
from .errors import FreezekitError

LBFGS = "LBFGS takes one param group and steps frozen parameters too; use another optimizer"

_UNKNOWN = Base(None, None)


class _Attached(NamedTuple):
    """One attached optimizer.

    Attributes:
        hooks: what acts in its steps.
        groups: the rows of the ever-trained parameters in each of its param groups.
        handles: the hooks on its loading.
    """

    hooks: StepHooks
    groups: list[list[int]]
    handles: tuple[RemovableHandle, ...]


class Optimizers:
    """The attached optimizers of one applied plan."""

    def __init__(
        self, resolved: ResolvedPlan, writer: Writer, drops: bool, done: Callable[[], None]
    ) -> None:
        """Starts without any.

        Args:
            resolved: the plan.
            writer: finds the model's parameters.
            drops: whether frozen parameters lose their optimizer state.
            done: called after each step of an attached optimizer.
        """
        self.lenient = False
        self._resolved = resolved
        self._writer = writer
        self._drops = drops
        self._done = done
        self._attached: list[_Attached] = []
        self._bases: dict[int, Base] = {}
        self._phase = resolved.phases[0]
        self._ramps: list[tuple[StepHooks, Ramp, int]] = []
        self._keepers: list[RowKeeper] = []
        self._acting = self._find_acting()
        self._lacking = self._find_lacking()

    @property
    def all(self) -> list[torch.optim.Optimizer]:
        """The optimizers, first to last attached."""
        return [each.hooks.optimizer for each in self._attached]

    def set_base(self, rows: Iterable[int], base: Base) -> None:
        """Notes what the groups of some parameters have where the plan says nothing."""
        self._bases.update(dict.fromkeys(rows, base))

    def attach(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Adds optimizers; everything is checked before.

        Raises:
            FreezekitError: see `AppliedPlan.attach`.
        """
        names = self._resolved._tree.names
        rows = {id(self._writer.parameter(row)): row for row in range(len(names))}
        taken: set[int] = set()
        groups: dict[torch.optim.Optimizer, list[list[int]]] = {}
        for optimizer in dict.fromkeys((*self.all, *optimizers)):
            _check_optimizer(optimizer, self._resolved)
            groups[optimizer] = [
                [rows[id(each)] for each in group["params"] if id(each) in rows]
                for group in optimizer.param_groups
            ]
            for row in (row for group in groups[optimizer] for row in group):
                if row in taken:
                    raise FreezekitError(
                        f"{names[row]!r} is in two optimizers; build each from a "
                        "param_groups(pattern) of its own"
                    )
                taken.add(row)
            for group in groups[optimizer]:
                self._check_group(group, optimizer)
        known = {each.hooks.optimizer: each for each in self._attached}
        self._attached = [
            known[optimizer]._replace(groups=held)
            if optimizer in known
            else _Attached(StepHooks(optimizer, self._done), held, self._watch_loading(optimizer))
            for optimizer, held in groups.items()
        ]
        self._lacking = self._find_lacking()

    def check_complete(self) -> None:
        """Raises if what the plan does inside steps has no optimizer to be done in."""
        if self._lacking is not None:
            name, what = self._lacking
            raise FreezekitError(
                f"the plan {what} for {name!r}, inside optimizer.step(), and no attached optimizer "
                "holds it; build the optimizer with optimizer(...), or call attach(optimizer)"
            )

    def enter(self, phase: Phase, path: Sequence[tuple[int, int]], opened: Sequence[int]) -> None:
        """Sets up what acts in the steps of a phase.

        Args:
            phase: the phase.
            path: start and index of each phase of training so far.
            opened: the moments at which metric-driven rules opened.
        """
        self._phase = phase
        self._ramps = []
        for keeper in self._keepers:
            keeper.remove()
        self._keepers = []
        outcomes, ids = self._resolved._outcomes, self._resolved._outcome_ids
        later = any(
            b.trainable and not a.trainable
            for outcome in outcomes
            for a, b in zip(outcome.decisions, outcome.decisions[1:], strict=False)
        )
        for hooks, groups, _ in self._attached:
            hooks.put_back()
            hooks.watch = later
            hooks.stand_ins = []
            hooks.keepers = []
            for index, rows in enumerate(groups):
                acting = [row for row in rows if ids[row] in self._acting]
                if acting:
                    outcome = outcomes[ids[acting[0]]]
                    base = self._bases.get(acting[0], _UNKNOWN)
                    defaults = hooks.optimizer.defaults
                    hooks.stand_ins += stand_ins(index, outcome, phase.index, base, defaults)
                    warm = ramp(index, outcome, path, opened)
                    if warm is not None:
                        self._ramps.append((hooks, warm, len(hooks.stand_ins)))
                        hooks.stand_ins.append(StandIn(index, "lr", 1.0, multiplies=True))
                hooks.keepers += self._row_keepers(rows)

    def _row_keepers(self, rows: Sequence[int]) -> list[RowKeeper]:
        resolved = self._resolved
        made = []
        for row in rows:
            outcome = resolved._outcomes[resolved._outcome_ids[row]]
            shape, decision = resolved._tree.shapes[row], outcome.decisions[self._phase.index]
            if decision.rows is not None and decision.trainable and shape:
                frozen = frozen_rows(decision, shape[0])
                name = resolved._tree.names[row]
                made.append(RowKeeper(name, self._writer.finder(row), frozen, shape[0]))
        self._keepers += made
        return made

    def tick(self, step: int | None) -> None:
        """Sets the warm-up factors for a step; ends those that are over."""
        if not self._ramps or step is None:
            return
        for hooks, warm, at in self._ramps:
            hooks.stand_ins[at] = hooks.stand_ins[at]._replace(value=warm.factor(step))

    def lrs(self) -> dict[str, float]:
        """Returns the lr of each group as its next step has it, 0 where all is frozen."""
        found: dict[str, float] = {}
        outcomes, ids = self._resolved._outcomes, self._resolved._outcome_ids
        for hooks, groups, _ in self._attached:
            for index, group in enumerate(hooks.optimizer.param_groups):
                rate = group["lr"]
                for each in hooks.stand_ins:
                    if each.group == index and each.key == "lr":
                        rate = rate * each.value
                rows = groups[index] if index < len(groups) else []
                decisions = [outcomes[ids[row]].decisions[self._phase.index] for row in rows]
                if decisions and not any(each.trainable for each in decisions):
                    rate = 0.0
                found[group.get("name", f"group {len(found)}")] = float(rate)
        return found

    def put_back(self) -> None:
        """Puts back what steps that raised have left."""
        for each in self._attached:
            each.hooks.put_back()

    def gathers(self) -> bool:
        """Returns whether gradients are gathered that no step has used yet."""
        return any(each.hooks.has_gradients() for each in self._attached)

    def drop(self) -> None:
        """Drops the state of what is frozen, if that is wanted."""
        if not self._drops:
            return
        outcomes, ids = self._resolved._outcomes, self._resolved._outcome_ids
        for hooks, groups, _ in self._attached:
            for row in (row for rows in groups for row in rows):
                if not outcomes[ids[row]].decisions[self._phase.index].trainable:
                    hooks.optimizer.state.pop(self._writer.parameter(row), None)

    def names(self) -> list[list[Any]]:
        """Returns, for each param group, its name and the names of its parameters."""
        names = self._resolved._tree.names
        return [
            [group.get("name", ""), [names[row] for row in rows]]
            for hooks, groups, _ in self._attached
            for group, rows in zip(hooks.optimizer.param_groups, groups, strict=False)
        ]

    def remove(self) -> None:
        """Takes every hook away."""
        for keeper in self._keepers:
            keeper.remove()
        for hooks, _, handles in self._attached:
            hooks.remove()
            for handle in handles:
                handle.remove()
        self._attached = []

    def _watch_loading(
        self, optimizer: torch.optim.Optimizer
    ) -> tuple[torch.utils.hooks.RemovableHandle, ...]:
        def before(
            optimizer: torch.optim.Optimizer, state: dict[str, Any]
        ) -> dict[str, Any] | None:
            return by_name(optimizer, state, strict=not self.lenient)

        def after(optimizer: torch.optim.Optimizer) -> None:
            self.drop()

        return (
            optimizer.register_load_state_dict_pre_hook(before),
            optimizer.register_load_state_dict_post_hook(after),
        )

    def _find_acting(self) -> set[int]:
        """Returns the outcomes whose steps differ in the course of training."""
        return {n for n, outcome in enumerate(self._resolved._outcomes) if changes(outcome)}

    def _find_lacking(self) -> tuple[str, str] | None:
        """Returns a parameter that needs an attached optimizer and is in none, and what for."""
        needs = {
            number: what
            for number, outcome in enumerate(self._resolved._outcomes)
            if (what := self._need(number, outcome))
        }
        if not needs:
            return None
        held = {row for each in self._attached for rows in each.groups for row in rows}
        for row, number in enumerate(self._resolved._outcome_ids):
            if number in needs and row not in held:
                return self._resolved._tree.names[row], needs[number]
        return None

    def _need(self, number: int, outcome: Outcome) -> str:
        if not any(each.trainable for each in outcome.decisions):
            return ""
        if any(each.rows is not None and each.trainable for each in outcome.decisions):
            return "keeps rows"
        if number in self._acting:
            warms = any(each.warmup_steps for each in outcome.decisions)
            return "warms up" if warms else "changes the lr, weight decay or options"
        if self._drops and not all(each.trainable for each in outcome.decisions):
            return "drops optimizer state"
        return ""

    def _check_group(self, rows: Sequence[int], optimizer: torch.optim.Optimizer) -> None:
        """Raises where parameters share a group although their steps change differently."""
        outcomes, ids = self._resolved._outcomes, self._resolved._outcome_ids
        if not any(ids[row] in self._acting for row in rows):
            return
        seen: dict[object, int] = {}
        for row in rows:
            decisions = outcomes[ids[row]].decisions
            if any(each.trainable for each in decisions):
                seen.setdefault(tuple(each.optimized() for each in decisions), row)
        if len(seen) > 1:
            first, second = (self._resolved._tree.names[row] for row in [*seen.values()][:2])
            raise FreezekitError(
                f"{first!r} and {second!r} share a param group, and the plan changes their lr, "
                "weight decay or options at different times; build the groups with "
                "param_groups(lr=...)"
            )
        row = next(iter(seen.values()))
        base = self._bases.get(row, _UNKNOWN)
        for phase in self._resolved.phases:
            list(stand_ins(0, outcomes[ids[row]], phase.index, base, optimizer.defaults))


def _check_optimizer(optimizer: object, resolved: ResolvedPlan) -> None:
    """Raises for what is no optimizer, cannot leave frozen parameters alone, or lacks an option."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise FreezekitError(f"attach takes optimizers, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise FreezekitError(LBFGS)
    for outcome in resolved._outcomes:
        for key in (key for decision in outcome.decisions for key, _ in decision.options):
            if key not in optimizer.defaults:
                known = did_you_mean(key, optimizer.defaults)
                raise FreezekitError(f"{type(optimizer).__name__} has no option {key!r}{known}")
