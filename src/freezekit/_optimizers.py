"""The optimizers attached to an applied plan, and what the plan does inside their steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.hooks import RemovableHandle

from ._cascade import Decision, Outcome
from ._resolved import Phase, ResolvedPlan
from ._resume import by_name
from ._rows import RowKeeper, check_whole, frozen_rows
from ._sharding import is_flattened, may_be_sharded
from ._steps import Base, Ramp, StandIn, StepHooks, changes, ramp, stand_ins, stepped
from ._sync import on_any_rank
from ._verbs import did_you_mean
from ._writer import Writer
from .errors import FreezekitError

LBFGS = "LBFGS takes one param group and steps frozen parameters too; use another optimizer"


class _Handed(NamedTuple):
    """A param group that was built and handed out.

    Attributes:
        rows: its parameters.
        settings: torch's dict, the object that was handed out.
        base: what it has where the plan says nothing.
    """

    rows: tuple[int, ...]
    settings: dict[str, Any]
    base: Base


class _Acting(NamedTuple):
    """A param group whose values change in the course of training.

    Attributes:
        group: its place among the optimizer's groups.
        outcome: what the plan means for its parameters.
        base: what it has where the plan says nothing.
    """

    group: int
    outcome: Outcome
    base: Base


class _Attached(NamedTuple):
    """One attached optimizer.

    Attributes:
        groups: the rows in each of its param groups.
        outcomes: the outcomes of these, -1 for a parameter that is not in the model.
        acting: those groups whose values change.
        partial: rows of the tensors of which only some rows train.
        handles: the hooks on its loading.
    """

    groups: list[list[int]]
    outcomes: list[set[int]]
    acting: list[_Acting]
    partial: list[int]
    handles: tuple[RemovableHandle, ...]


class Optimizers:
    """The attached optimizers of one applied plan.

    Attributes:
        attached: them, by what acts in their steps.
        lenient: whether state that is loaded may be of other param groups.
        lacking: a parameter that needs an attached optimizer and is in none, and what for.
    """

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
        self.attached: dict[StepHooks, _Attached] = {}
        self.lenient = False
        self._resolved = resolved
        self._writer = writer
        self._drops = drops
        self._done = done
        self._handed: dict[str, list[_Handed]] = {}
        self._loaded = False
        self._phase = resolved.phases[0]
        self._earlier: set[int] = set()
        self._ramps: list[tuple[StepHooks, list[StandIn], list[Ramp]]] = []
        outcomes = resolved._outcomes
        self._acting = {n for n, outcome in enumerate(outcomes) if changes(outcome)}
        self.lacking = self._find_lacking()

    @property
    def all(self) -> list[torch.optim.Optimizer]:
        """The optimizers, first to last attached."""
        return [hooks.optimizer for hooks in self.attached]

    @property
    def taken(self) -> dict[str, tuple[int, ...]]:
        """The names of groups that are there already, with their rows; () for unknown ones."""
        handed = {name: groups[0].rows for name, groups in self._handed.items()}
        return dict.fromkeys(self.lrs(), ()) | handed

    def hand(self, rows: tuple[int, ...], settings: dict[str, Any], base: Base) -> None:
        """Notes a param group that is handed out."""
        self._handed.setdefault(settings["name"], []).append(_Handed(rows, settings, base))

    def _base(self, settings: dict[str, Any]) -> Base:
        """Returns what is known of a param group; after loading, it is known by its name."""
        handed = self._handed.get(settings.get("name", ""), [])
        for each in handed:
            if each.settings is settings:
                return each.base
        return handed[-1].base if handed else Base(None, settings.get("weight_decay"), False)

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
            if optimizer in optimizers and not any(groups[optimizer]):
                raise FreezekitError(
                    f"attach: this {type(optimizer).__name__} holds no parameter of the model; "
                    "build it from param_groups(lr=...) or from the model's parameters"
                )
            self._check_names(optimizer, rows)
            for row in (row for group in groups[optimizer] for row in group):
                if self._has_rows(row):
                    check_whole(names[row], self._writer.parameter(row), self._count(row))
        fresh = dict.fromkeys(optimizers)
        acting = {each: self._find_acting(groups[each], each) for each in fresh}
        known = {hooks.optimizer: hooks for hooks in self.attached}
        for optimizer in fresh:
            hooks = known.get(optimizer) or StepHooks(optimizer, self._done)
            old = self.attached.get(hooks)
            self.attached[hooks] = _Attached(
                groups=groups[optimizer],
                outcomes=self._find_outcomes(groups[optimizer], optimizer),
                acting=acting[optimizer],
                partial=[
                    row for group in groups[optimizer] for row in group if self._has_rows(row)
                ],
                handles=old.handles if old else self._watch_loading(optimizer),
            )
        self.lacking = self._find_lacking()

    def _check_names(self, optimizer: torch.optim.Optimizer, rows: Mapping[int, int]) -> None:
        """Raises where torch has one parameter under the name of another."""
        known = self._resolved._tree.names
        for group in optimizer.param_groups:
            names = group.get("param_names", ())
            for name, parameter in zip(names, group["params"], strict=False):
                own = known[rows[id(parameter)]] if id(parameter) in rows else name
                if name != own and name in known:
                    raise FreezekitError(
                        f"attach: this {type(optimizer).__name__} has {own!r} under the name "
                        f"{name!r}; its state was loaded by position, in another order. Build it "
                        "anew, attach it, and load afterwards"
                    )

    def check_complete(self) -> None:
        """Raises if what the plan does inside steps has no optimizer to be done in."""
        if self.lacking is not None:
            name, what = self.lacking
            raise FreezekitError(
                f"the plan {what} for {name!r}, inside optimizer.step(), and no attached optimizer "
                "holds it; build the optimizer with optimizer(...), or call attach(optimizer)"
            )

    def enter(
        self,
        phase: Phase,
        path: Sequence[tuple[int, int]],
        opened: Sequence[int],
        *,
        waits: bool,
    ) -> None:
        """Sets up what acts in the steps of a phase.

        Args:
            phase: the phase.
            path: start and index of each phase of training so far.
            opened: the moments at which metric-driven rules opened.
            waits: whether something waits for the end of an accumulation window.
        """
        self._earlier = {*self._earlier, self._phase.index} if waits else set()
        self._phase = phase
        self._ramps = []
        for hooks, each in self.attached.items():
            hooks.put_back()
            hooks.wait(waits)
            settled: list[StandIn] = []
            ramps: list[Ramp] = []
            for index, outcome, base in each.acting:
                defaults = hooks.optimizer.defaults
                settled += stand_ins(index, outcome, phase.index, base, defaults)
                ramps += ramp(index, outcome, path, opened)
            hooks.stand_ins = settled
            if ramps:
                self._ramps.append((hooks, settled, ramps))
            for keeper in hooks.keepers:
                keeper.remove()
            hooks.keepers = self._row_keepers(each.partial)

    def _row_keepers(self, rows: Sequence[int]) -> list[RowKeeper]:
        """Returns what keeps rows now; what opens in the middle of a window is kept to its end."""
        tree, made = self._resolved._tree, []
        for row in rows:
            count = self._count(row)
            find = self._writer.finder(row)
            said = [self._decisions(row)[each] for each in (self._phase.index, *self._earlier)]
            frozen = [run for each in said if each.trainable for run in frozen_rows(each, count)]
            if frozen and find().requires_grad:
                made.append(RowKeeper(tree.names[row], find, frozen, count))
        return made

    def _count(self, row: int) -> int:
        """Returns how many rows a tensor had when the plan was applied."""
        return (self._resolved._tree.shapes[row] or (0,))[0]

    def opens_rows(self, before: Phase, after: Phase) -> bool:
        """Returns whether rows of a tensor that trains may open between two phases."""
        for row in (row for each in self.attached.values() for row in each.partial):
            old, new = self._decisions(row)[before.index], self._decisions(row)[after.index]
            if old.rows and (old.rows, old.rows_train) != (new.rows, new.rows_train):
                return True
        return False

    def _decisions(self, row: int) -> tuple[Decision, ...]:
        """Returns what holds for a parameter in each phase."""
        return self._resolved._outcomes[self._resolved._outcome_ids[row]].decisions

    def _decision(self, row: int) -> Decision:
        """Returns what holds for a parameter in the present phase."""
        return self._decisions(row)[self._phase.index]

    def _has_rows(self, row: int) -> bool:
        return any(each.rows is not None and each.trainable for each in self._decisions(row))

    def tick(self, step: int) -> None:
        """Sets the warm-up factors for a step, and drops state that was loaded meanwhile."""
        if self._loaded:
            self.drop()
        for hooks, settled, ramps in self._ramps:
            factors = [(each.group, each.factor(step)) for each in ramps]
            warm = [
                StandIn(group, "lr", each, multiplies=True) for group, each in factors if each < 1
            ]
            hooks.stand_ins = settled + warm

    def warm_from(self) -> int:
        """Returns the first step after all warm-ups of the present phase."""
        ends = [each.start + each.steps for _, _, ramps in self._ramps for each in ramps]
        return max(ends, default=0)

    def lrs(self) -> dict[str, float]:
        """Returns the lr of each group as its next step has it, 0 where all is frozen."""
        found: dict[str, float] = {}
        for hooks, each in self.attached.items():
            for index, group in enumerate(hooks.optimizer.param_groups):
                rate = hooks.own(group, "lr")
                for other in hooks.stand_ins:
                    if other.group == index and other.key == "lr":
                        rate = rate * other.value
                rows = each.groups[index] if index < len(each.groups) else []
                if rows and not any(self._writer.parameter(row).requires_grad for row in rows):
                    rate = 0.0
                found[group.get("name", f"group {len(found)}")] = float(rate)
        return found

    def gathers(self) -> bool:
        """Returns whether gradients are gathered that no step has used yet, on any rank."""
        frozen = {
            number
            for number, outcome in enumerate(self._resolved._outcomes)
            if _is_frozen(outcome.decisions[self._phase.index])
        }
        found = any(
            hooks.has_gradients({at for at, ids in enumerate(each.outcomes) if ids <= frozen})
            for hooks, each in self.attached.items()
        )
        if not may_be_sharded():
            return found
        held = (p for each in self.all for group in each.param_groups for p in group["params"])
        flattened = next(filter(is_flattened, held), None)
        if flattened is None:
            return found
        return on_any_rank(found, flattened.device)  # This rank may hold no part of what has some.

    def drop(self) -> None:
        """Drops the state of what is frozen, if that is wanted."""
        self._loaded = False
        if not self._drops:
            return
        for hooks, each in self.attached.items():
            for row in (row for rows in each.groups for row in rows):
                if not self._decision(row).trainable:
                    hooks.optimizer.state.pop(self._writer.parameter(row), None)

    def names(self) -> list[list[Any]]:
        """Returns each param group's name, its parameters', and whether torch knows those."""
        names, found = self._resolved._tree.names, []
        for hooks, each in self.attached.items():
            for group, rows in zip(hooks.optimizer.param_groups, each.groups, strict=False):
                own = [names[row] for row in rows]
                found.append([group.get("name", ""), own, group.get("param_names") == own])
        return found

    def remove(self) -> None:
        """Takes every hook away."""
        for hooks, each in self.attached.items():
            hooks.remove()
            for keeper in hooks.keepers:
                keeper.remove()
            for handle in each.handles:
                handle.remove()
        self.attached = {}

    def _watch_loading(self, optimizer: torch.optim.Optimizer) -> tuple[RemovableHandle, ...]:
        return (
            optimizer.register_load_state_dict_pre_hook(self._arrange),
            optimizer.register_load_state_dict_post_hook(self._note_loaded),
        )

    def _arrange(
        self, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> dict[str, Any] | None:
        return by_name(optimizer, state, strict=not self.lenient)

    def _note_loaded(self, optimizer: torch.optim.Optimizer) -> None:
        """Drops later: the clock that the state belongs to may still have to be loaded."""
        self._loaded = True

    def _find_outcomes(
        self, groups: Sequence[Sequence[int]], optimizer: torch.optim.Optimizer
    ) -> list[set[int]]:
        ids = self._resolved._outcome_ids
        found = [{ids[row] for row in rows} for rows in groups]
        for rows, outcomes, group in zip(groups, found, optimizer.param_groups, strict=True):
            if len(rows) < len(group["params"]):
                outcomes.add(-1)
        return found

    def _find_acting(
        self, groups: Sequence[Sequence[int]], optimizer: torch.optim.Optimizer
    ) -> list[_Acting]:
        """Returns the groups whose values change.

        Raises:
            FreezekitError: parameters share a group although theirs change differently, or a base
                lr is needed and not known.
        """
        outcomes, ids = self._resolved._outcomes, self._resolved._outcome_ids
        found = []
        for index, rows in enumerate(groups):
            if not any(ids[row] in self._acting for row in rows):
                continue
            seen: dict[object, int] = {}
            for row in rows:
                decisions = outcomes[ids[row]].decisions
                if any(each.trainable for each in decisions):
                    seen.setdefault(tuple(map(stepped, decisions)), row)
            if len(seen) > 1:
                first, second = (self._resolved._tree.names[row] for row in [*seen.values()][:2])
                raise FreezekitError(
                    f"{first!r} and {second!r} share a param group, and the plan changes their lr, "
                    "weight decay or options at different times; build the groups with "
                    "param_groups(lr=...)"
                )
            row, settings = next(iter(seen.values())), optimizer.param_groups[index]
            acting = _Acting(index, outcomes[ids[row]], self._base(settings))
            for phase in self._resolved.phases:
                for _ in stand_ins(*acting[:2], phase.index, acting.base, optimizer.defaults):
                    pass
            found.append(acting)
        return found

    def _find_lacking(self) -> tuple[str, str] | None:
        """Returns a parameter that needs an attached optimizer and is in none, and what for."""
        needs = {
            number: what
            for number, outcome in enumerate(self._resolved._outcomes)
            if (what := self._need(number, outcome))
        }
        if not needs:
            return None
        held = {row for each in self.attached.values() for rows in each.groups for row in rows}
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


def _check_optimizer(optimizer: object, resolved: ResolvedPlan) -> None:
    """Raises for what is no optimizer, cannot leave frozen parameters alone, or lacks an option."""
    if type(optimizer).__module__.startswith("deepspeed.runtime"):
        raise FreezekitError(
            f"attach: a {type(optimizer).__name__} steps copies of the parameters; make it with "
            "freezekit.integrations.deepspeed.initialize, which attaches it"
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise FreezekitError(f"attach takes optimizers, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise FreezekitError(LBFGS)
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise FreezekitError(
            f"attach: {type(optimizer).__name__} stands in for an optimizer and has no hooks of "
            "its own; attach the optimizer itself"
        )
    for outcome in resolved._outcomes:
        for key in (key for decision in outcome.decisions for key, _ in decision.options):
            if key not in optimizer.defaults:
                known = did_you_mean(key, optimizer.defaults)
                raise FreezekitError(f"{type(optimizer).__name__} has no option {key!r}{known}")


def _is_frozen(decision: Decision) -> bool:
    """Returns whether a rule froze it, so that it has no gradient."""
    return decision.decided and not decision.trainable
