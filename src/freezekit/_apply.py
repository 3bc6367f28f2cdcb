"""AppliedPlan, the live handle: a plan carried out on a model, beside its optimizers."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from weakref import WeakSet

import torch
from torch.nn.parallel import DistributedDataParallel

from ._automaton import Automaton
from ._cascade import Decision
from ._glob import parse
from ._groups import group_rules
from ._guard import Guard, likely_cause
from ._matches import check_matches
from ._metrics import Stalls
from ._names import MARK, Walk, walk
from ._optimizers import LBFGS, Optimizers
from ._plan import FreezePlan
from ._resolve import bind, rehearse
from ._resolved import Phase, ResolvedPlan
from ._resume import difference, fingerprint, parameter_digest, plan_text
from ._rows import frozen_rows
from ._rules import is_real, whole_number
from ._sharding import ask_again, is_dtensor, stored
from ._steps import Base
from ._sync import Sync, several_ranks
from ._writer import Change, Holding, LettingGo, Places, Writer, check_writable
from .errors import FreezekitError, PlanError

_NOTHING = Change()
_STATE_VERSION = 1

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)


class AppliedPlan:
    """A plan carried out on a model: the handle that `FreezePlan.apply` returns.

    Used as a context manager, it releases the model at the end.

    Attributes:
        resolved: what the plan means for the model.
        phase: the phase the model is in.

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> plan = FreezePlan().freeze("[0]").unfreeze("[0]", at_epoch=1)
        >>> applied = plan.apply(model)
        >>> optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-3)
        >>> for epoch in range(2):
        ...     applied.advance(epoch=epoch)
        ...     print(model[0].weight.requires_grad)
        False
        True
        >>> applied.release()
    """

    def __init__(self, resolved: ResolvedPlan, walked: Walk, drops: bool) -> None:
        """Binds the handle to the model's modules; `FreezePlan.apply` is the way in."""
        self.resolved = resolved
        self.phase = resolved.phases[0]
        self._modules = walked.modules
        self._writer = Writer(resolved, walked.modules)
        self._steps = Optimizers(resolved, self._writer, drops, self._stepped)
        self._stalls = Stalls(resolved.metrics)
        self._sync = Sync()
        self._unchecked: set[int] = set()
        self._drops = drops
        self._clock: tuple[int | None, int | None] = (None, None)
        self._by_step = resolved._cascade.time.unit == "step"
        self._quiet = range(0)
        self._waiting = _NOTHING
        self._guards: WeakSet[Guard] = WeakSet()
        self._released = False

    def advance(
        self,
        *,
        epoch: int | None = None,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Puts the model into the phase of a moment: opens and closes what is due.

        Depends on the moment alone (and on when rules that wait for a metric opened), not on the
        calls before it, so a resumed run needs one call. In the middle of an accumulation window
        of an attached optimizer, what closes does so at once and its gathered gradients are
        dropped; what opens waits for the optimizer's next step or `zero_grad()`.

        Args:
            epoch: 0-based epoch; needed where the plan counts in epochs.
            step: 0-based optimizer step; needed where the plan counts in steps, as it does with
                `warmup_steps`, and then before every step.
            metrics: what was measured just before this moment, by name, for rules with
                `at_metric`. A moment counts once. With several ranks every rank must pass it, and
                the value of rank 0 counts.

        Raises:
            PlanError: the clock the plan uses is missing or negative, or the metric that the plan
                waits for is not among `metrics`.
            FreezekitError: the plan was released, a part of the model was replaced, the plan needs
                an attached optimizer and has none, or there are several ranks and nothing is known
                to average the gradients of what opens.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
            >>> applied = FreezePlan().freeze("[0]", until_epoch=1).apply(model)
            >>> for epoch in range(2):
            ...     applied.advance(epoch=epoch)
            ...     print(model[0].weight.requires_grad)
            False
            True
        """
        for hooks in self._steps.attached:
            if hooks.inside:
                hooks.put_back()
        now = step if self._by_step else epoch
        if type(now) is int and now in self._quiet and metrics is None:
            self._clock = (epoch, step)
            return
        self._check_live()
        self._steps.check_complete()
        self._check_synchronized(self._unchecked)
        self._unchecked = set()
        at, unit = self._now(epoch, step)
        if metrics is None or not self.resolved.metrics:
            self._move(at)
        else:
            known = self._stalls.state_dict()
            try:
                self._stalls.observe(at, unit, metrics)
                self._move(at)
            except FreezekitError:
                self._stalls.load_state_dict(known)
                raise
        self._clock = (_whole(epoch), _whole(step))

    def _now(self, epoch: int | None, step: int | None) -> tuple[int, str]:
        """Returns the moment and what it is counted in."""
        time = self.resolved._cascade.time
        if time.unit is not None or not (time.metrics or time.warms):
            return self.resolved._now(epoch, step), time.unit or ""
        if time.warms:
            if step is None:
                raise PlanError("the plan warms up in steps; pass step=...")
            return whole_number("step", step, 0), "step"
        given = {key: at for key, at in (("step", step), ("epoch", epoch)) if at is not None}
        unit = self._stalls.unit or next(iter(given), "epoch")
        if unit not in given:
            raise PlanError(f"the plan waits for a metric; pass {unit}=...")
        return whole_number(unit, given[unit], 0), unit

    def _last(self) -> int:
        """Returns the moment of the last `advance`, 0 before the first."""
        try:
            return self._now(*self._clock)[0]
        except PlanError:
            return 0

    def _move(self, now: int, *, may_wait: bool = True) -> None:
        """Carries out the phase of a moment."""
        phase = self.resolved._phase_at(now, self._stalls.opened(now))
        if phase is not self.phase or (self._waiting is not _NOTHING and not may_wait):
            self._enter(phase, now, may_wait=may_wait)
        elif self._waiting is not _NOTHING:
            self._stepped()
        self._tick(now)

    def _enter(self, phase: Phase, now: int, *, may_wait: bool) -> None:
        self._writer.reshard()
        change = self._writer.change(self.phase.index, phase.index)
        self._writer.check(change)
        if may_wait:
            self._check_synchronized(change.unfreeze.rows)
        else:  # A state may be loaded before the model is wrapped: checked by the next `advance`.
            self._unchecked.update(change.unfreeze.rows)
        opens = bool(change.unfreeze.rows or self._waiting.unfreeze.rows)
        opens = opens or self._steps.opens_rows(self.phase, phase)
        waits = may_wait and opens and self._steps.gathers()
        if self._waiting is not _NOTHING:
            change = self._writer.joined(self._waiting, change)
        if waits:
            self._writer.carry_out(change._replace(unfreeze=Places(), let_go=LettingGo()))
            self._waiting = change._replace(freeze=Places(), hold=Holding())
        else:
            self._carry_out(change)
            self._waiting = _NOTHING
        self.phase = phase
        self._set_up(now)
        self._narrow_guards()

    def _carry_out(self, change: Change) -> None:
        self._writer.carry_out(change)
        opened = change.unfreeze.rows
        if opened and is_dtensor(self._writer.parameter(opened[0])):
            ask_again(self._modules)

    def _stepped(self) -> None:
        """Opens what waited for the end of an accumulation window, if it has ended."""
        if self._waiting is not _NOTHING and not self._steps.gathers():
            self._writer.reshard()
            self._carry_out(self._waiting)
            self._waiting = _NOTHING
            self._refresh()
            self._narrow_guards()

    def param_groups(
        self, pattern: str = "**", *, lr: float, weight_decay: float | None = None
    ) -> list[dict[str, Any]]:
        """Builds optimizer groups for every parameter that ever trains.

        There is one group per distinct treatment over all of training, so no group is ever added
        later. Keys are written only where the plan or this call sets them.

        Args:
            pattern: which part of the model; use several calls for several optimizers.
            lr: base learning rate, per step, for what the plan gives none.
            weight_decay: weight decay for what the plan gives none; None leaves it to the
                optimizer.

        Returns:
            Groups with `params` (pairs of canonical name and tensor), a unique `name`, `lr`.

        Raises:
            PatternError: the pattern selects nothing.
            PlanError: `lr` or `weight_decay` is out of its range.
            FreezekitError: nothing it selects ever trains, or the plan was released.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
            >>> plan = FreezePlan().group("[0]", lr_mult=0.1).no_decay()
            >>> for group in plan.apply(model).param_groups(lr=0.01, weight_decay=0.1):
            ...     print(group["name"], group["lr"], group["weight_decay"])
            0.weight 0.001 0.1
            0.bias/no_decay 0.001 0.0
            1.weight 0.01 0.1
            1.bias/no_decay 0.01 0.0
        """
        groups = self._groups(self._selected(pattern), lr, weight_decay)
        if not groups:
            raise FreezekitError(
                f"param_groups({pattern!r}): nothing it selects ever trains under this plan"
            )
        return groups

    def _groups(
        self, rows: Iterable[int], lr: float, weight_decay: float | None, *, spared: bool = False
    ) -> list[dict[str, Any]]:
        """Builds the groups for what ever trains among some rows; see `group_rules`."""
        self._check_live()
        self._writer.reshard()
        self._writer.check_whole()
        if not (is_real(lr) and lr > 0):
            raise PlanError(f"param_groups: lr must be a positive finite number, got {lr!r}")
        if weight_decay is not None and not (is_real(weight_decay) and weight_decay >= 0):
            raise PlanError(
                f"param_groups: weight_decay must be a finite number >= 0, got {weight_decay!r}"
            )
        names, find = self.resolved._tree.names, self._writer.parameter
        base = Base(float(lr), weight_decay, written=True)
        groups = []
        for rule in group_rules(self.resolved, rows, self._steps.taken, spared=spared):
            named = [(names[row], find(row)) for row in rule.rows]
            groups.append({"params": named} | rule.settings(lr, weight_decay))
            self._steps.hand(rule.rows, groups[-1], base)
        return groups

    def optimizer(
        self,
        cls: type[OptimizerT],
        pattern: str = "**",
        *,
        lr: float,
        **options: Any,  # noqa: ANN401
    ) -> OptimizerT:
        """Builds an optimizer over `param_groups(pattern, lr=lr)` and attaches it.

        Args:
            cls: an optimizer class that takes param groups.
            pattern: which part of the model.
            lr: base learning rate, per step.
            **options: the optimizer's own arguments, such as `weight_decay` or `betas`.

        Raises:
            PatternError: the pattern selects nothing.
            PlanError: `lr` is out of its range.
            FreezekitError: nothing it selects ever trains, or the optimizer cannot leave frozen
                parameters alone or lacks an option that the plan sets.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
            >>> applied = FreezePlan().freeze("[0]").apply(model)
            >>> optimizer = applied.optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
            >>> applied.lrs()
            {'1': 0.1}
        """
        if isinstance(cls, type) and issubclass(cls, torch.optim.LBFGS):
            raise FreezekitError(LBFGS)
        build: Callable[..., OptimizerT] = cls
        optimizer = build(self.param_groups(pattern, lr=lr), lr=lr, **options)
        self.attach(optimizer)
        return optimizer

    def attach(self, *optimizers: torch.optim.Optimizer) -> None:
        """Tells the plan which optimizers train the model, before or after their LR schedulers.

        What the plan changes while a parameter trains (its lr, weight decay or options,
        `warmup_steps`, `rows`) is done inside their steps, by hooks that multiply and put back.
        Their `load_state_dict` matches state by parameter name from now on.

        Args:
            *optimizers: built from `param_groups`, or by hand.

        Raises:
            FreezekitError: two optimizers hold the same parameter, one cannot leave frozen
                parameters alone or lacks an option that the plan sets, a param group holds
                parameters that the plan changes at different times, or the plan was released.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
            >>> applied = FreezePlan().freeze("[0]").apply(model)
            >>> optimizer = torch.optim.AdamW(applied.param_groups(lr=1e-3), lr=1e-3)
            >>> applied.attach(optimizer)
            >>> applied.lrs()
            {'1': 0.001}
        """
        self._check_live()
        self._writer.reshard()
        self._writer.check_whole()
        self._steps.attach(optimizers)
        self._refresh()

    def lrs(self) -> dict[str, float]:
        """Returns the effective learning rate of each group, by group name.

        It is what the next step multiplies updates by: with the factors that the plan has in this
        phase and the warm-up at the last `advance`; 0 for a group that is frozen now.

        Raises:
            FreezekitError: the plan was released.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
            >>> plan = FreezePlan().freeze("[0]", until_epoch=1).group("[0]", lr_mult=0.5)
            >>> applied = plan.apply(model)
            >>> optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
            >>> applied.lrs()
            {'0': 0.0, '1': 0.1}
            >>> applied.advance(epoch=1)
            >>> applied.lrs()
            {'0': 0.05, '1': 0.1}
        """
        self._check_live()
        return self._steps.lrs()

    def guard(self) -> Guard:
        """Returns a context manager that proves that what is frozen throughout did not change.

        Covers frozen parameters and the buffers of held modules, bit for bit, without a copy of
        the model. What opens on the way is left out from then on.

        Raises:
            FrozenChangedError: at the end of the block, naming every tensor that changed.
            FreezekitError: the plan was released.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan, FrozenChangedError
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
            >>> applied = FreezePlan().freeze("[0]").apply(model)
            >>> try:
            ...     with applied.guard():
            ...         _ = model[0].bias.data.add_(1)
            ... except FrozenChangedError as error:
            ...     print(error.names)
            ('0.bias',)
        """
        self._check_live()
        guard = Guard(self._frozen, self._why)
        self._guards.add(guard)
        return guard

    def state_dict(self) -> dict[str, Any]:
        """Returns the clock, the plan and its fingerprint, the metric state and the groups' names.

        Plain data with the same keys at any time: `torch.save` and `torch.distributed.checkpoint`
        take it, and `torch.load(weights_only=True)` gives it back.

        Raises:
            FreezekitError: the plan was released.

        Example:
            >>> from torch import nn
            >>> from freezekit import FreezePlan
            >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
            >>> applied = FreezePlan().freeze("[0]", until_epoch=1).apply(model)
            >>> applied.advance(epoch=1)
            >>> applied.state_dict()["clock"]
            {'epoch': 1, 'step': None}
        """
        self._check_live()
        return {
            "version": _STATE_VERSION,
            "clock": {"epoch": _whole(self._clock[0]), "step": _whole(self._clock[1])},
            "fingerprint": fingerprint(self.resolved),
            "plan": plan_text(self.resolved),
            "parameters": parameter_digest(self.resolved),
            "on_freeze": "drop" if self._drops else "keep",
            "metrics": self._stalls.state_dict(),
            "groups": self._steps.names(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Takes back a state and puts the model into its phase.

        Model, optimizers, LR schedulers and this may be loaded in any order.

        Args:
            state: what `state_dict` returned.
            strict: refuse a state of a plan that means something else; otherwise warn, and match
                optimizers that are loaded later by parameter name as far as they go.

        Raises:
            FreezekitError: the state is of another plan, saying where the two differ, or was
                written by another version.

        Example:
            >>> from torch import nn
            >>> from freezekit import FreezePlan
            >>> plan = FreezePlan().freeze("[0]", until_epoch=1)
            >>> applied = plan.apply(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
            >>> applied.advance(epoch=1)
            >>> resumed = plan.apply(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
            >>> resumed.load_state_dict(applied.state_dict())
            >>> resumed.phase.index
            1
        """
        self._check_live()
        now = self.state_dict()
        missing = sorted(now.keys() - dict(state).keys())
        if missing or state["version"] != _STATE_VERSION:
            raise FreezekitError(
                "this is no state of an applied plan that this version reads: "
                + (f"missing {missing}" if missing else f"version {state['version']!r}")
            )
        differs = difference(state, now, self.resolved, self._modules[0])
        if differs and strict:
            raise FreezekitError(
                f"the state was saved under another plan (saved -> now):\n{differs}\napply the "
                "plan it was saved with, or pass strict=False to go on with this one"
            )
        if differs:
            warnings.warn(
                f"going on under another plan (saved -> now):\n{differs}\noptimizers and LR "
                "schedulers that are loaded keep the values that were saved",
                stacklevel=2,
            )
        self._steps.lenient = not strict
        self._stalls.load_state_dict(state["metrics"])
        self._clock = (state["clock"]["epoch"], state["clock"]["step"])
        self._move(self._last(), may_wait=False)
        self._refresh()

    def release(self) -> None:
        """Gives the model back as it was: flags, modes, no trace of the plan. May be repeated.

        Gradients that freezing cleared stay cleared. What is gone from the model meanwhile is
        passed over.

        Example:
            >>> from torch import nn
            >>> from freezekit import FreezePlan
            >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
            >>> applied = FreezePlan().freeze("[0]").apply(model)
            >>> applied.release()
            >>> model[0].weight.requires_grad
            True
        """
        if self._released:
            return
        self._steps.remove()
        self._writer.release()
        self._released = True
        self._quiet = range(0)
        self._narrow_guards()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "released" if self._released else f"in phase {self.phase.index}, {self.phase}"
        return f"<AppliedPlan: {state}>"

    def _start(self) -> None:
        """Carries out the first phase. Everything was checked."""
        self._writer.start()
        self._refresh()

    def _refresh(self) -> None:
        """Sets up the present phase anew for optimizers that were attached or state that came."""
        now = self._last()
        self._set_up(now)
        self._tick(now)

    def _set_up(self, now: int) -> None:
        """Sets up what the optimizers do in the present phase."""
        opened, waits = self._stalls.fired, self._waiting is not _NOTHING
        path = self.resolved._path(now, opened)
        self._steps.enter(self.phase, path, opened, waits=waits)
        self._steps.drop()

    def _tick(self, now: int) -> None:
        """Sets the warm-ups to a moment, and finds out when `advance` has nothing to do."""
        self._steps.tick(now)
        time, first = self.resolved._cascade.time, self._steps.warm_from()
        waits = self._waiting is not _NOTHING or now < first or self._steps.lacking is not None
        if waits or self._unchecked or time.unit is None or time.metrics or self._drops:
            self._quiet = range(0)
        else:
            end = sys.maxsize if self.phase.end is None else self.phase.end
            self._quiet = range(max(self.phase.start, first), end)

    def _check_synchronized(self, rows: Collection[int]) -> None:
        """Raises if nothing is known to average the gradients of these between the ranks."""
        if not rows or not self._sync.asks():
            return
        self._writer.reshard()
        self._sync.check([(self.resolved._tree.names[r], self._writer.parameter(r)) for r in rows])

    def _register(self, wrapper: DistributedDataParallel) -> None:
        """Notes what averages the gradients; see `Sync.register`."""
        self._writer.reshard()
        names, find = self.resolved._tree.names, self._writer.parameter
        trained = [(names[row], find(row)) for row in self._trained(any)]
        always = set(self._trained(all))
        closes = {id(find(row)) for row in range(len(names)) if row not in always}
        self._sync.register(wrapper, trained, closes)

    def _trained(self, which: Callable[[Iterable[bool]], bool]) -> list[int]:
        """Returns the rows of what trains in any, or in all, phases."""
        outcomes = self.resolved._outcomes
        found = [which(each.trainable for each in outcome.decisions) for outcome in outcomes]
        return [row for row, each in enumerate(self.resolved._outcome_ids) if found[each]]

    @property
    def _changes_what_trains(self) -> bool:
        return self._trained(any) != self._trained(all)

    @contextmanager
    def _training(self, rows: Iterable[int]) -> Iterator[None]:
        """Lets exactly these train within the block, for what asks once what trains."""
        self._check_live()
        self._writer.reshard()
        wanted, find = set(rows), self._writer.parameter
        flags = [find(row).requires_grad for row in range(len(self.resolved._tree.names))]
        places = self._writer.places
        opened = places([row for row in sorted(wanted) if not flags[row]])
        closed = places([row for row, trains in enumerate(flags) if trains and row not in wanted])
        self._writer.carry_out(Change(freeze=closed, unfreeze=opened))
        try:
            yield
        finally:
            if not self._released:
                self._writer.reshard()
                self._writer.carry_out(Change(freeze=opened, unfreeze=closed))

    def _narrow_guards(self) -> None:
        """Takes what is not frozen any more out of every guard."""
        for guard in self._guards:
            guard.narrow()

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return self._steps.all

    def _frozen(self) -> dict[str, torch.Tensor]:
        """Returns the tensors that are frozen now: parameters, and buffers of held modules."""
        if self._released:
            return {}
        self._writer.reshard()
        resolved = self.resolved
        live = set(self._waiting.unfreeze.rows)
        found: dict[str, torch.Tensor] = {}
        for row, outcome in enumerate(resolved._outcome_ids):
            decision = resolved._outcomes[outcome].decisions[self.phase.index]
            if not decision.trainable and row not in live:
                parameter = self._writer.find(row)
                if parameter is not None:
                    found[resolved._tree.names[row]] = stored(parameter)
            elif decision.rows is not None:
                found |= self._frozen_rows(row, decision)
        held, _ = resolved._held(self.phase.index)
        for row, is_held in enumerate(held):
            if is_held:
                prefix = resolved._tree.prefixes[row]
                for name, buffer in self._modules[row]._buffers.items():
                    if buffer is not None:
                        found[prefix + name] = buffer
        return found

    def _frozen_rows(self, row: int, decision: Decision) -> dict[str, torch.Tensor]:
        """Returns the frozen rows of a parameter of which others train."""
        parameter, name = self._writer.find(row), self.resolved._tree.names[row]
        if parameter is None:
            return {}
        found = {}
        for index in frozen_rows(decision, len(parameter)):
            where = f"{index.start}:{index.stop}" if isinstance(index, slice) else "..."
            found[f"{name}[{where}]"] = parameter.detach()[index]
        return found

    def _why(self, name: str) -> str:
        """Returns the likely cause of a change of a frozen tensor."""
        if name.endswith("]"):
            return "these rows were written outside the steps of an attached optimizer"
        path = {prefix[:-1]: row for row, prefix in enumerate(self.resolved._tree.prefixes)}
        owner = path.get(name.rpartition(".")[0])
        training = owner is not None and self._modules[owner].training
        return likely_cause(name, self._frozen().get(name), self._optimizers, training)

    def _selected(self, pattern: str) -> Sequence[int]:
        """Returns the rows that a pattern selects."""
        if pattern == "**":
            return range(len(self.resolved.rows))
        parsed = parse(pattern)
        if parsed.negated:
            raise PlanError(f"param_groups: pattern {pattern!r} only takes away; name what to take")
        automaton = Automaton([parsed], ["param_groups"])
        walked = walk(self._modules[0], automaton)
        check_matches(automaton, walked, [True])
        hit = [bool(accept) for accept in automaton.accepts]
        tree = walked.tree
        names = {n for n, each in zip(tree.names, tree.accepts, strict=True) if hit[each]}
        names |= {tree.names[alias.row] for alias in tree.aliases if hit[alias.accept]}
        return [row for row, name in enumerate(self.resolved._tree.names) if name in names]

    def _check_live(self) -> None:
        if self._released:
            raise FreezekitError("the plan was released; apply it again to get a new handle")


def apply(
    plan: FreezePlan,
    model: torch.nn.Module,
    *,
    steps_per_epoch: int | None = None,
    total_epochs: int | None = None,
    total_steps: int | None = None,
    on_freeze: Literal["keep", "drop"] = "keep",
    example_inputs: object = None,
) -> AppliedPlan:
    """Carries a plan out on a model; see `FreezePlan.apply`."""
    if on_freeze not in ("keep", "drop"):
        raise PlanError(f"on_freeze must be 'keep' or 'drop', got {on_freeze!r}")
    resolved, walked = bind(plan, model, steps_per_epoch, total_epochs, total_steps)
    _check_free(walked)
    time = resolved._cascade.time
    if time.warms and time.unit == "epoch":
        raise PlanError(
            "warmup_steps counts in steps and the plan's moments in epochs; pass "
            "steps_per_epoch=..."
        )
    for problem in untrained(resolved):
        raise problem
    rehearse(resolved, walked, example_inputs)
    applied = AppliedPlan(resolved, walked, drops=on_freeze == "drop")
    applied._writer.reshard()
    for row, name in enumerate(resolved._tree.names):
        check_writable(name, applied._writer.parameter(row))
    for module in model.modules() if several_ranks() else ():
        if isinstance(module, DistributedDataParallel):
            applied._register(module)
    try:
        applied._start()
    except BaseException:
        applied.release()
        raise
    return applied


def _check_free(walked: Walk) -> None:
    for row in walked.tree.marked:
        mark, prefix = walked.modules[row].__dict__[MARK], walked.tree.prefixes[row]
        if mark.live:
            here = repr(prefix[:-1]) if prefix else "this model"
            if mark.inner:
                problem = f"{here} belongs to a larger model that a plan is applied to"
            else:
                problem = f"a plan is applied to {here} already"
            raise FreezekitError(
                f"{problem}; release first: call release() on the handle that apply returned"
            )


def untrained(resolved: ResolvedPlan) -> Iterator[PlanError]:
    """Yields an error for each phase in which nothing trains, unless the plan allows it."""
    if resolved.plan.allow_all_frozen:
        return
    if not resolved.rows:
        yield PlanError("the model has no parameters; say FreezePlan(allow_all_frozen=True)")
        return
    for phase in resolved.phases:
        if not phase.trainable and not resolved._cascade.time.is_over(phase.start):
            when = f" in the phase '{phase}'" if len(resolved.phases) > 1 else ""
            yield PlanError(
                f"nothing is trainable{when}: all {len(resolved.rows)} parameters are frozen; "
                "unfreeze some, or say FreezePlan(allow_all_frozen=True)"
            )


def _whole(clock: int | None) -> int | None:
    """Returns a clock as an int; None for one that is not, which the plan does not use then."""
    try:
        return None if clock is None else operator.index(clock)
    except TypeError:
        return None
