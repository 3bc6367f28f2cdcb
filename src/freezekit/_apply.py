"""AppliedPlan, the live handle. The only module that writes to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch.nn.parameter import is_lazy

from ._automaton import Automaton
from ._glob import parse
from ._groups import group_rules
from ._names import MARK, Walk, unwrap, walk
from ._plan import FreezePlan
from ._resolve import bind, check_matches
from ._resolved import ResolvedPlan
from ._rules import did_you_mean, is_real
from .errors import FreezekitError, PlanError

_LBFGS = "LBFGS takes one param group and steps frozen parameters too; use another optimizer"

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)


class Hold:
    """Keeps one module in a mode, standing in for its `train` method.

    Placed as `train` in the module's own `__dict__`, where every switch of mode finds it, from
    whichever parent it comes. Travels with copies and pickles of the model.
    """

    def __init__(self, module: torch.nn.Module, mode: bool, before: bool) -> None:
        self.module = module
        self.mode = mode
        self.before = before
        self.replaced = module.__dict__.get("train")
        self.asked: bool | None = None
        self.dropout: float | None = None

    def __call__(self, mode: bool = True) -> torch.nn.Module:
        """Answers `module.train(mode)` with the held mode."""
        self.asked = mode
        type(self.module).train(self.module, self.mode)
        return self.module

    def remove(self) -> None:
        """Takes itself out of the module; the mode stays."""
        if self.replaced is None:
            del self.module.__dict__["train"]
        else:
            self.module.__dict__["train"] = self.replaced
        if self.dropout is not None:
            self.module.__dict__["dropout"] = self.dropout


class Mark:
    """What a module of an applied model remembers: the flags its own parameters had, by name.

    A copy or an unpickled model keeps the flags but has no handle: there `live` is false. `inner`
    is true for all modules but the one the plan was applied to.
    """

    def __init__(self, flags: dict[str, bool], inner: bool) -> None:
        self.flags = flags
        self.inner = inner
        self.live = True

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"live": False}


class _Change(NamedTuple):
    """What differs between two phases, by row."""

    freeze: tuple[int, ...]
    unfreeze: tuple[int, ...]
    hold: tuple[tuple[int, bool], ...]
    let_go: tuple[int, ...]


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

    def __init__(self, resolved: ResolvedPlan, walked: Walk) -> None:
        """Binds the handle to the model's modules; `FreezePlan.apply` is the way in."""
        self.resolved = resolved
        self.phase = resolved.phases[0]
        self._modules = walked.modules
        self._modes = [module.training for module in walked.modules]
        self._optimizers: list[torch.optim.Optimizer] = []
        self._released = False
        self._changes: dict[tuple[int, int], _Change] = {}

    def advance(self, *, epoch: int | None = None, step: int | None = None) -> None:
        """Puts the model into the phase of a moment: opens and closes what is due.

        Depends on the moment alone, not on the calls before it, so a resumed run needs one call.

        Args:
            epoch: 0-based epoch; needed where the plan counts in epochs.
            step: 0-based optimizer step; needed where the plan counts in steps.

        Raises:
            PlanError: the clock the plan uses is missing or negative.
            FreezekitError: the plan was released, or a part of the model was replaced.
        """
        self._check_live()
        phase = self.resolved.at(epoch=epoch, step=step)
        if phase is self.phase:
            return
        self._check_whole()
        key = (self.phase.index, phase.index)
        if key not in self._changes:
            self._changes[key] = self._change(*key)
        self._carry_out(self._changes[key])
        self.phase = phase

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
        self._check_live()
        self._check_whole()
        if not (is_real(lr) and lr > 0):
            raise PlanError(f"param_groups: lr must be a positive finite number, got {lr!r}")
        if weight_decay is not None and not (is_real(weight_decay) and weight_decay >= 0):
            raise PlanError(
                f"param_groups: weight_decay must be a finite number >= 0, got {weight_decay!r}"
            )
        rules = group_rules(self.resolved, self._selected(pattern), taken=self.lrs())
        if not rules:
            raise FreezekitError(
                f"param_groups({pattern!r}): nothing it selects ever trains under this plan"
            )
        names = self.resolved._tree.names
        return [
            {"params": [(names[row], self._parameter(row)) for row in rule.rows]}
            | rule.settings(lr, weight_decay)
            for rule in rules
        ]

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
            raise FreezekitError(_LBFGS)
        build: Callable[..., OptimizerT] = cls
        optimizer = build(self.param_groups(pattern, lr=lr), lr=lr, **options)
        self.attach(optimizer)
        return optimizer

    def attach(self, *optimizers: torch.optim.Optimizer) -> None:
        """Tells the plan which optimizers train the model.

        Args:
            *optimizers: built from `param_groups`, or by hand.

        Raises:
            FreezekitError: two optimizers hold the same parameter, one cannot leave frozen
                parameters alone or lacks an option that the plan sets, or the plan was released.
        """
        self._check_live()
        self._check_whole()
        names = {
            id(self._parameter(row)): name for row, name in enumerate(self.resolved._tree.names)
        }
        taken: set[int] = set()
        for optimizer in dict.fromkeys((*self._optimizers, *optimizers)):
            _check_optimizer(optimizer, self.resolved)
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                if id(parameter) in taken and id(parameter) in names:
                    raise FreezekitError(
                        f"{names[id(parameter)]!r} is in two optimizers; build each from a "
                        "param_groups(pattern) of its own"
                    )
                taken.add(id(parameter))
        self._optimizers = list(dict.fromkeys((*self._optimizers, *optimizers)))

    def lrs(self) -> dict[str, float]:
        """Returns the learning rate of each group of the attached optimizers, by group name.

        Raises:
            FreezekitError: the plan was released.
        """
        self._check_live()
        groups = [group for each in self._optimizers for group in each.param_groups]
        return {
            group.get("name", f"group {number}"): float(group["lr"])
            for number, group in enumerate(groups)
        }

    def release(self) -> None:
        """Gives the model back as it was: flags, modes, no trace of the plan. May be repeated.

        Gradients that freezing cleared stay cleared. What is gone from the model meanwhile is
        passed over.
        """
        if self._released:
            return
        tree = self.resolved._tree
        ruled = [any(d.decided for d in outcome.decisions) for outcome in self.resolved._outcomes]
        for row, outcome in enumerate(self.resolved._outcome_ids):
            parameter = self._find(row)
            if ruled[outcome] and parameter is not None:
                parameter.requires_grad = tree.flags[row]
        self._let_go(range(len(self._modules)), restore=True)
        for module in self._modules:
            module.__dict__.pop(MARK, None)
        self._optimizers.clear()
        self._released = True

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
        """Marks the model and carries out the first phase. Everything was checked."""
        tree, resolved = self.resolved._tree, self.resolved
        self._let_go(range(len(self._modules)), restore=True)
        self._modes = [module.training for module in self._modules]
        flags: dict[int, dict[str, bool]] = {0: {}}
        for row, flag in enumerate(tree.flags):
            self._parameter(row).requires_grad = flag
            flags.setdefault(tree.owners[row], {})[self._leaf(row)] = flag
        for owner, known in flags.items():
            self._modules[owner].__dict__[MARK] = Mark(known, inner=owner > 0)
        decisions = [outcome.decisions[0] for outcome in resolved._outcomes]
        rows = [*enumerate(decisions[each] for each in resolved._outcome_ids)]
        held, kept = resolved._held(0)
        change = _Change(
            freeze=tuple(row for row, each in rows if each.decided and not each.trainable),
            unfreeze=tuple(row for row, each in rows if each.trainable and not tree.flags[row]),
            hold=tuple((row, row in kept) for row, is_held in enumerate(held) if is_held),
            let_go=(),
        )
        self._carry_out(change)

    def _change(self, before: int, after: int) -> _Change:
        """Returns what differs between two phases."""
        resolved = self.resolved
        turned = [o.decisions[after].trainable - o.decisions[before].trainable
                  for o in resolved._outcomes]  # fmt: skip
        rows = [(row, turned[each]) for row, each in enumerate(resolved._outcome_ids)]
        (old, old_kept), (new, new_kept) = resolved._held(before), resolved._held(after)
        return _Change(
            freeze=tuple(row for row, turn in rows if turn < 0),
            unfreeze=tuple(row for row, turn in rows if turn > 0),
            hold=tuple(
                (row, row in new_kept)
                for row, is_held in enumerate(new)
                if is_held and (not old[row] or (row in old_kept) != (row in new_kept))
            ),
            let_go=tuple(row for row, was in enumerate(old) if was and not new[row]),
        )

    def _carry_out(self, change: _Change) -> None:
        closing = [self._parameter(row) for row in change.freeze]
        opening = [self._parameter(row) for row in change.unfreeze]
        for row, parameter in zip(
            (*change.freeze, *change.unfreeze), (*closing, *opening), strict=True
        ):
            _check_writable(self.resolved._tree.names[row], parameter)
        for row, parameter in zip(change.unfreeze, opening, strict=True):
            _check_can_train(self.resolved._tree.names[row], parameter)
        for parameter in closing:
            parameter.requires_grad = False
            parameter.grad = None
        for parameter in opening:
            parameter.requires_grad = True
        self._let_go(change.let_go, restore=False)
        self._hold(change.hold)

    def _hold(self, rows: Iterable[tuple[int, bool]]) -> None:
        """Holds modules in eval, or in train mode without dropout where told to."""
        holds = []
        for row, train in rows:
            module = self._modules[row]
            hold = module.__dict__.get("train")
            if not isinstance(hold, Hold):
                hold = Hold(module, train, self._modes[row])
                module.__dict__["train"] = hold
            hold.mode = train
            if train and hold.dropout is None:
                hold.dropout = module.__dict__["dropout"]
                module.__dict__["dropout"] = 0.0
            holds.append((hold, hold.asked))
        for hold, _ in holds:
            _set_mode(hold.module, hold.mode)
        for hold, asked in holds:
            hold.asked = asked

    def _let_go(self, rows: Iterable[int], *, restore: bool) -> None:
        """Takes holds away, parents first.

        A module takes its parent's mode, or, to `restore`, the mode it had before if nobody
        switched since. Below a class with a `train` of its own, that one decides.
        """
        holds: dict[int, Hold] = {}
        for row in rows:
            hold = self._modules[row].__dict__.get("train")
            if isinstance(hold, Hold):
                holds[row] = hold
                hold.remove()
        parents, settled = self.resolved._tree.parents, set[int]()
        for row, hold in holds.items():
            kept = hold.replaced is not None or (restore and hold.asked is None)
            if kept or parents[row] < 0:
                mode = hold.before if kept or hold.asked is None else hold.asked
            elif parents[row] in settled:
                settled.add(row)
                continue
            else:
                mode = self._modules[parents[row]].training
            _set_mode(hold.module, mode)
            if not kept and _has_own_train(hold.module):
                settled.add(row)

    def _find(self, row: int) -> torch.nn.Parameter | None:
        """Finds a parameter by module and name: the object may have been replaced."""
        return self._modules[self.resolved._tree.owners[row]]._parameters.get(self._leaf(row))

    def _leaf(self, row: int) -> str:
        tree = self.resolved._tree
        return tree.names[row][len(tree.prefixes[tree.owners[row]]) :]

    def _parameter(self, row: int) -> torch.nn.Parameter:
        parameter = self._find(row)
        if parameter is None:
            raise FreezekitError(
                f"{self.resolved._tree.names[row]!r} is gone from the model since the plan was "
                "applied; release the plan and apply it again"
            )
        return parameter

    def _check_whole(self) -> None:
        """Raises if a module was replaced since the plan was applied."""
        tree = self.resolved._tree
        for row, parent in enumerate(tree.parents):
            if parent >= 0:
                leaf = tree.prefixes[row][len(tree.prefixes[parent]) : -1]
                child = self._modules[parent]._modules.get(leaf)
                if child is not self._modules[row] and (
                    child is None or unwrap(child) is not self._modules[row]
                ):
                    raise FreezekitError(
                        f"{tree.prefixes[row][:-1]!r} was replaced since the plan was applied; "
                        "release the plan and apply it again"
                    )

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
) -> AppliedPlan:
    """Carries a plan out on a model; see `FreezePlan.apply`."""
    resolved, walked = bind(plan, model, steps_per_epoch, total_epochs, total_steps)
    _check_free(walked)
    _check_trains(resolved)
    _check_carried_out(resolved)
    applied = AppliedPlan(resolved, walked)
    for row, name in enumerate(resolved._tree.names):
        _check_writable(name, applied._parameter(row))
    try:
        applied._start()
    except BaseException:
        applied.release()
        raise
    return applied


def _has_own_train(module: torch.nn.Module) -> bool:
    return type(module).train is not torch.nn.Module.train


def _set_mode(module: torch.nn.Module, mode: bool) -> None:
    """Sets the mode of one module; a `train` of its class's own is asked to do it."""
    if _has_own_train(module):
        type(module).train(module, mode)
    else:
        module.training = mode


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


def _check_trains(resolved: ResolvedPlan) -> None:
    if resolved.plan.allow_all_frozen:
        return
    if not resolved.rows:
        raise PlanError("the model has no parameters; say FreezePlan(allow_all_frozen=True)")
    for phase in resolved.phases:
        if not phase.trainable and not resolved._cascade.time.is_over(phase.start):
            when = f" in the phase '{phase}'" if len(resolved.phases) > 1 else ""
            raise PlanError(
                f"nothing is trainable{when}: all {len(resolved.rows)} parameters are frozen; "
                "unfreeze some, or say FreezePlan(allow_all_frozen=True)"
            )


def _check_carried_out(resolved: ResolvedPlan) -> None:
    """Refuses what this release resolves and shows but does not carry out."""
    for number, outcome in enumerate(resolved._outcomes):
        seen = [each for each in (d.optimized() for d in outcome.decisions) if each is not None]
        if any(each.rows for each in outcome.decisions):
            what = "rows=..."
        elif any(each.warmup_steps for each in seen):
            what = "warmup_steps"
        elif len(set(seen)) > 1:
            what = "a learning rate, weight decay or option that changes during training"
        else:
            continue
        name = resolved._tree.names[resolved._outcome_ids.index(number)]
        raise FreezekitError(
            f"{name!r}: {what} is resolved and shown by this release but not carried out; leave it "
            "out of the plan to apply it"
        )


def _check_writable(name: str, parameter: torch.nn.Parameter) -> None:
    if is_lazy(parameter) or (parameter.is_leaf and not parameter.is_inference()):
        return
    kind = "not a leaf tensor" if parameter.is_inference() is False else "an inference tensor"
    raise FreezekitError(
        f"{name!r} is {kind}, so torch cannot change whether it trains; rebuild it as a "
        "torch.nn.Parameter outside torch.inference_mode()"
    )


def _check_can_train(name: str, parameter: torch.nn.Parameter) -> None:
    if not (parameter.is_floating_point() or parameter.is_complex()):
        raise FreezekitError(
            f"{name!r} is {parameter.dtype} since the plan was applied and cannot train; release "
            "the plan and apply it again"
        )


def _check_optimizer(optimizer: object, resolved: ResolvedPlan) -> None:
    """Raises for what is no optimizer, cannot leave frozen parameters alone, or lacks an option."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise FreezekitError(f"attach takes optimizers, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise FreezekitError(_LBFGS)
    for outcome in resolved._outcomes:
        for key in (key for decision in outcome.decisions for key, _ in decision.options):
            if key not in optimizer.defaults:
                known = did_you_mean(key, optimizer.defaults)
                raise FreezekitError(f"{type(optimizer).__name__} has no option {key!r}{known}")
