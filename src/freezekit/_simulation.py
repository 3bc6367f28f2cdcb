"""The learning rates of a run that is not made: the plan and an LR scheduler, and no model.

What is carried out is the engine itself, on modules and parameters without data.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ._apply import AppliedPlan
from ._names import Tree, Walk
from ._resolved import ResolvedPlan
from ._rules import whole_number
from .errors import PlanError

Schedule = Callable[[torch.optim.Optimizer], LRScheduler]
"""What builds an LR scheduler."""

_POINTS = 2_000  # most steps looked at
_LEAST_POINTS = 200
_LOOKS = 200_000  # steps looked at times groups


class Simulation(NamedTuple):
    """The learning rates of a run.

    Attributes:
        steps: the optimizer steps looked at; all of them in a run that is not long.
        rates: for each param group, by name, its rate at each of these steps, as
            `AppliedPlan.lrs()` gives it in the run.
        lows: likewise the least rate from each of these steps until the next.
        highs: likewise the greatest.
        trains: for each param group whether any of it trains at each of these steps.
        starts: the step at which each phase that is reached begins, and its index.
        total: the steps of the run.
    """

    steps: tuple[int, ...]
    rates: dict[str, tuple[float, ...]]
    lows: dict[str, tuple[float, ...]]
    highs: dict[str, tuple[float, ...]]
    trains: dict[str, tuple[bool, ...]]
    starts: tuple[tuple[int, int], ...]
    total: int


class Run(NamedTuple):
    """What a simulated run is like.

    Attributes:
        lr: base learning rate.
        scheduler: what builds the LR scheduler, if there is one.
        total_steps: the optimizer steps; None for what the plan was resolved with.
        steps_per_epoch: likewise.
        interval: whether the scheduler is stepped after each step or each epoch.
    """

    lr: float
    scheduler: Schedule | None = None
    total_steps: int | None = None
    steps_per_epoch: int | None = None
    interval: Literal["step", "epoch"] = "step"


class _Idle(torch.optim.Optimizer):
    """An optimizer that changes nothing, and takes whatever option a plan sets."""

    def __init__(self, groups: Any, lr: float, options: Iterable[str]) -> None:  # noqa: ANN401
        """Takes param groups."""
        common = {"momentum": 0.0, "betas": (0.9, 0.999), "weight_decay": 0.0}
        super().__init__(groups, {"lr": lr} | dict.fromkeys(options) | common)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Does nothing; what the plan does around it is done."""


def simulate(resolved: ResolvedPlan, run: Run) -> Simulation:
    """Returns the learning rates that a run would have, and trains nothing.

    Metrics are not simulated, so what waits for one never opens.

    Raises:
        PlanError: how long the run or an epoch is, is not known or contradicts what the plan was
            resolved with, or `lr` is not positive.
        FreezekitError: nothing ever trains.
        TypeError: `scheduler` is not what builds an LR scheduler of torch.
        ValueError: the scheduler is driven by a metric, or `interval` is neither of its values.
    """
    total, per_epoch = _lengths(resolved, run)
    tree = resolved._tree
    applied = AppliedPlan(resolved, Walk(tree, _skeleton(tree)), drops=False)
    applied._start()
    optimizer = _optimizer(applied, run.lr)
    scheduler = _built(run.scheduler, optimizer)
    points = _points(resolved, total, per_epoch, len(optimizer.param_groups))
    every = 1 if run.interval == "step" else per_epoch or 1
    ranges = _Ranges(applied, optimizer)
    trains: list[list[bool]] = []
    starts: list[tuple[int, int]] = []
    at = 0
    for point in points:
        for done in range(at + 1, point + 1):
            if scheduler and done % every == 0:
                scheduler.step()
                if done < point:
                    ranges.see()
        whole, at = point - at > 1, point
        applied.advance(epoch=at // per_epoch if per_epoch else None, step=at)
        begins = not starts or applied.phase.index != starts[-1][1]
        if begins:
            starts.append((at, applied.phase.index))
        trains.append(_live(optimizer) if begins else trains[-1])
        ranges.begin(wide=whole, phase=begins)
        optimizer.step()
    rates, lows, highs = ranges.found()
    return Simulation(
        steps=points,
        rates=rates,
        lows=lows,
        highs=highs,
        trains={name: tuple(each[k] for each in trains) for k, name in enumerate(rates)},
        starts=tuple(starts),
        total=total,
    )


class _Ranges:
    """The rates at the steps looked at, and the least and the greatest from one to the next."""

    def __init__(self, applied: AppliedPlan, optimizer: torch.optim.Optimizer) -> None:
        """Begins before the first step."""
        self._applied = applied
        self._groups = optimizer.param_groups
        self._rates: list[dict[str, float]] = []
        self._lows: list[list[float]] = []
        self._highs: list[list[float]] = []
        self._low = self._high = self._factors = [0.0] * len(self._groups)

    def see(self) -> None:
        """Takes note of what the scheduler has set."""
        set_now = [float(group["lr"]) for group in self._groups]
        self._low = [*map(min, self._low, set_now)]
        self._high = [*map(max, self._high, set_now)]

    def begin(self, *, wide: bool, phase: bool) -> None:
        """Ends one stretch and begins the next.

        Args:
            wide: whether the one that ends is longer than a step.
            phase: whether a phase begins, with factors of its own.
        """
        factors = self._factors_now()
        if self._rates:
            before = [*self._rates[-1].values()]
            ends = self._factors if phase else factors
            low = [v * min(two) for v, *two in zip(self._low, self._factors, ends, strict=True)]
            high = [v * max(two) for v, *two in zip(self._high, self._factors, ends, strict=True)]
            self._lows.append([*map(min, before, low)] if wide else before)
            self._highs.append([*map(max, before, high)] if wide else before)
        self._rates.append(self._applied.lrs())
        self._low = self._high = [float(group["lr"]) for group in self._groups]
        self._factors = factors

    def found(self) -> tuple[dict[str, tuple[float, ...]], ...]:
        """Returns the rates, the least and the greatest ones, by the names of the groups."""
        last = [*self._rates[-1].values()]
        columns = [[*each.values()] for each in self._rates], [*self._lows, last]
        names = [*self._rates[-1]]
        return tuple(
            {name: tuple(row[k] for row in rows) for k, name in enumerate(names)}
            for rows in (*columns, [*self._highs, last])
        )

    def _factors_now(self) -> list[float]:
        """Returns what the plan multiplies the rate of each group by."""
        kept = [group["lr"] for group in self._groups]
        for group in self._groups:
            group["lr"] = 1.0
        factors = [*self._applied.lrs().values()]
        for group, rate in zip(self._groups, kept, strict=True):
            group["lr"] = rate
        return factors


def _live(optimizer: torch.optim.Optimizer) -> list[bool]:
    """Returns whether any parameter of each group trains now."""
    return [any(each.requires_grad for each in group["params"]) for group in optimizer.param_groups]


def _lengths(resolved: ResolvedPlan, run: Run) -> tuple[int, int | None]:
    """Returns the steps of a run, and of an epoch if that is known.

    Raises:
        PlanError: one that is needed is not known.
        ValueError: `interval` is neither of its values.
    """
    if run.interval not in ("step", "epoch"):
        raise ValueError(f"interval must be 'step' or 'epoch', got {run.interval!r}")
    time = resolved._cascade.time
    known = time.context
    per_epoch = _agreed("steps_per_epoch", run.steps_per_epoch, known["steps_per_epoch"])
    if time.warms and time.unit == "epoch":
        raise PlanError(
            "warmup_steps counts in steps and the plan's moments in epochs; resolve the plan with "
            "steps_per_epoch=..."
        )
    if per_epoch is None and (time.unit == "epoch" or run.interval == "epoch"):
        who = "the plan counts" if time.unit == "epoch" else "the scheduler is stepped"
        raise PlanError(f"{who} in epochs, a simulation in steps; pass steps_per_epoch=...")
    total = _agreed("total_steps", run.total_steps, known["total_steps"])
    epochs = known["total_epochs"]
    if known["total_steps"] is None and per_epoch and epochs:
        total = _of_epochs(run.total_steps, per_epoch, epochs)
    if total is None:
        raise PlanError(
            "how long training is, is not known; pass total_steps=..., or resolve the plan with "
            "its totals"
        )
    return total, per_epoch


def _of_epochs(given: int | None, per_epoch: int, epochs: int) -> int:
    """Returns the steps of a number of epochs, of which the last may be short.

    Raises:
        PlanError: what is given is of another number of epochs.
    """
    if given is None:
        return per_epoch * epochs
    taken = -(-given // per_epoch)
    if taken != epochs:
        raise PlanError(
            f"total_steps={given} is {taken} epoch{'' if taken == 1 else 's'} of {per_epoch} "
            f"steps, and the plan was resolved with total_epochs={epochs}; leave total_steps out"
        )
    return given


def _agreed(name: str, given: int | None, known: int | None) -> int | None:
    """Returns what is given or was known when the plan was resolved.

    Raises:
        PlanError: it is not a positive whole number, or the two contradict each other.
    """
    if given is None:
        return known
    if known not in (None, whole_number(name, given, 1)):
        raise PlanError(
            f"{name}={given} contradicts the {known} that the plan was resolved with; leave it out"
        )
    return given


def _skeleton(tree: Tree) -> list[torch.nn.Module]:
    """Returns modules that are named and nested as those of a model, with parameters of no data."""
    modules = [torch.nn.Module() for _ in tree.prefixes]
    for row, parent in enumerate(tree.parents):
        if parent >= 0:
            leaf = tree.prefixes[row][len(tree.prefixes[parent]) : -1]
            modules[parent]._modules[leaf] = modules[row]
    columns = zip(tree.names, tree.shapes, tree.dtypes, tree.flags, tree.owners, strict=True)
    for name, shape, dtype, flag, owner in columns:
        size = torch.Size([0]) if shape is None else shape
        data = torch.empty(size, dtype=dtype, device="meta")
        parameter = torch.nn.Parameter(data, requires_grad=flag)
        modules[owner]._parameters[name[len(tree.prefixes[owner]) :]] = parameter
    return modules


def _optimizer(applied: AppliedPlan, lr: float) -> torch.optim.Optimizer:
    """Returns an optimizer that trains nothing, attached to the plan."""
    outcomes = applied.resolved._outcomes
    options = {key for outcome in outcomes for each in outcome.decisions for key, _ in each.options}
    optimizer = _Idle(applied.param_groups(lr=lr), lr, sorted(options))
    applied.attach(optimizer)
    return optimizer


def _built(scheduler: Schedule | None, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
    """Returns the LR scheduler.

    Raises:
        TypeError: it is no LR scheduler, or what should build it cannot be called.
        ValueError: it waits for a metric.
    """
    if scheduler is None:
        return None
    wanted = "scheduler takes the optimizer and returns an LR scheduler of torch, as in"
    example = "lambda optimizer: CosineAnnealingLR(optimizer, T_max=1000)"
    if not callable(scheduler):
        raise TypeError(f"{wanted} {example}; got {type(scheduler).__name__}")
    made: object = scheduler(optimizer)
    if isinstance(made, ReduceLROnPlateau):
        raise ValueError(
            "ReduceLROnPlateau follows a metric, and nothing is measured in a simulation; leave "
            "scheduler out, or pass one that follows the steps"
        )
    if not isinstance(made, LRScheduler):
        raise TypeError(f"{wanted} {example}; it returned {type(made).__name__}")
    return made


def _points(
    resolved: ResolvedPlan, total: int, per_epoch: int | None, groups: int
) -> tuple[int, ...]:
    """Returns the steps looked at: all, or of a long run a sample with each change of phase."""
    count = min(_POINTS, max(_LEAST_POINTS, _LOOKS // groups))
    if total <= count:
        return tuple(range(total))
    scale = per_epoch or 1 if resolved._cascade.time.unit == "epoch" else 1
    starts = {phase.start * scale for phase in resolved.phases}
    around = {step for start in starts for step in (start - 1, start)}
    sample = {round(k * (total - 1) / (count - 1)) for k in range(count)}
    return tuple(sorted(step for step in sample | around if 0 <= step < total))
