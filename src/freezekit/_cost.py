"""What a plan costs in memory, phase by phase, beside full fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from ._resolved import Phase, ResolvedPlan
from ._rules import Pairs
from ._verbs import did_you_mean
from .errors import PlanError

OptimizerLike: TypeAlias = str | Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

_TITLES = ("phase", "trainable", "weights", "gradients", "optimizer state", "total", "of full")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_REFUSED = (torch.optim.Optimizer, torch.optim.LBFGS)


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """What one phase costs.

    Attributes:
        phase: index of the phase; None for full fine-tuning.
        text: its moments in words.
        trainable: elements that train.
        weight_bytes: bytes of all parameters.
        gradient_bytes: bytes of the gradients after a backward pass.
        state_bytes: bytes of the optimizer's state after a step.
    """

    phase: int | None
    text: str
    trainable: int
    weight_bytes: int
    gradient_bytes: int
    state_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes of weights, gradients and optimizer state together."""
        return self.weight_bytes + self.gradient_bytes + self.state_bytes


@dataclass(frozen=True, slots=True)
class Cost:
    """What a plan costs in memory, beside full fine-tuning; `str` is a table.

    Attributes:
        optimizer: name of the optimizer's class.
        phases: one for each phase of the plan.
        full: the same if every parameter that can train does.
    """

    optimizer: str
    phases: tuple[PhaseCost, ...]
    full: PhaseCost

    def __str__(self) -> str:
        """Returns a line for each phase and one for full fine-tuning."""
        lines = [_TITLES, *map(self._cells, (*self.phases, self.full))]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = (
            "  ".join(
                cell.rjust(width) if at else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join([*table, f"optimizer: {self.optimizer}"])

    def _cells(self, cost: PhaseCost) -> tuple[str, ...]:
        sizes = (cost.weight_bytes, cost.gradient_bytes, cost.state_bytes, cost.total_bytes)
        share = cost.total_bytes / self.full.total_bytes if self.full.total_bytes else 1.0
        return (cost.text, f"{cost.trainable:,}", *map(bytes_text, sizes), f"{100 * share:.1f} %")


def bytes_text(count: int) -> str:
    """Returns a number of bytes in the largest binary unit of which there is one.

    Example:
        >>> bytes_text(1023), bytes_text(1536)
        ('1023 B', '1.5 KiB')
    """
    power = min(max(count.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{count} B" if power == 0 else f"{count / 1024**power:.1f} {_UNITS[power]}"


class _Kind(NamedTuple):
    """Parameters of one outcome and one form, which cost the same.

    Attributes:
        outcome: what the plan means for them.
        shape: their shape; None for a lazy one without a shape yet, which costs nothing.
        dtype: their dtype.
    """

    outcome: int
    shape: torch.Size | None
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return 0 if self.shape is None else self.shape.numel()

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class _State(NamedTuple):
    """Bytes that an optimizer keeps for one tensor: once it is built, and after a step."""

    built: int
    stepped: int


class _States:
    """How much state an optimizer keeps for a tensor: it steps one on the meta device."""

    def __init__(self, optimizer: OptimizerLike) -> None:
        """Looks the optimizer up.

        Raises:
            PlanError: torch has no optimizer of that name, or it cannot be used with a plan.
        """
        self.name = ""
        self._build = _builder(optimizer)
        self._known: dict[tuple[torch.Size, torch.dtype, Pairs], _State] = {}

    def of(self, kind: _Kind, options: Pairs, example: str) -> _State:
        """Returns what is kept for one tensor.

        Args:
            kind: its form.
            options: what the plan sets in its param group.
            example: the name of such a parameter, for messages.

        Raises:
            PlanError: the optimizer does not step such a tensor.
        """
        if kind.shape is None:
            return _State(0, 0)
        key = (kind.shape, kind.dtype, options)
        if key not in self._known:
            try:
                self._known[key] = self._measured(*key)
            except (RuntimeError, TypeError, ValueError) as error:
                raise PlanError(
                    f"cost: the optimizer does not step {example!r} of shape {list(kind.shape)}: "
                    f"{error}; pass one that does, or a function that builds it from param groups"
                ) from error
        return self._known[key]

    def _measured(self, shape: torch.Size, dtype: torch.dtype, options: Pairs) -> _State:
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        built, state, failure = self._stepped(tensor, options)
        if failure is not None:
            # Some optimizers read a number in their step, which a tensor without data has not.
            # Their state is complete by then if a small tensor of the same rank has no more.
            small = torch.ones([min(size, 2) for size in shape], dtype=dtype)
            _, expected, error = self._stepped(small, options)
            if error is not None or expected.keys() != state.keys():
                raise error or failure
        return _State(built, _nbytes(state))

    def _stepped(
        self, tensor: torch.Tensor, options: Pairs
    ) -> tuple[int, dict[str, Any], RuntimeError | None]:
        """Returns the bytes of state before a step, the state after it, and what stopped it."""
        parameter = torch.nn.Parameter(tensor)
        parameter.grad = torch.ones_like(tensor)
        optimizer = self._build([{"params": [parameter], **dict(options)}])
        self.name = type(optimizer).__name__
        built, failure = _nbytes(optimizer.state[parameter]), None
        try:
            optimizer.step()
        except RuntimeError as error:
            failure = error
        return built, dict(optimizer.state[parameter]), failure


def _nbytes(state: dict[str, Any]) -> int:
    return sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))


def _builder(
    optimizer: OptimizerLike,
) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    if not isinstance(optimizer, str):
        if callable(optimizer):
            return optimizer
        raise PlanError(
            f"cost: optimizer must be a name such as 'AdamW', a class or a function of param "
            f"groups, got {optimizer!r}"
        )
    known = {
        name: cls
        for name, cls in sorted(vars(torch.optim).items())
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls not in _REFUSED
    }
    spelled = {name.lower(): name for name in known}.get(optimizer.lower())
    if spelled is None:
        raise PlanError(
            f"cost: torch has no optimizer {optimizer!r} that a plan can be carried out beside"
            f"{did_you_mean(optimizer, known)}"
        )
    return known[spelled]


def cost(
    resolved: ResolvedPlan, optimizer: OptimizerLike, on_freeze: Literal["keep", "drop"]
) -> Cost:
    """Returns what a plan costs in memory; see `ResolvedPlan.cost`."""
    if on_freeze not in ("keep", "drop"):
        raise PlanError(f"on_freeze must be 'keep' or 'drop', got {on_freeze!r}")
    states = _States(optimizer)
    kinds = _kinds(resolved)
    weights = sum(kind.nbytes * len(rows) for kind, rows in kinds.items())
    phases = tuple(
        _phase_cost(resolved, phase, kinds, states, on_freeze == "drop")
        for phase in resolved.phases
    )
    free = {k: rows for k, rows in kinds.items() if k.dtype.is_floating_point or k.dtype.is_complex}
    full = PhaseCost(
        phase=None,
        text="full fine-tuning",
        trainable=sum(kind.numel * len(rows) for kind, rows in free.items()),
        weight_bytes=weights,
        gradient_bytes=sum(kind.nbytes * len(rows) for kind, rows in free.items()),
        state_bytes=sum(
            states.of(kind, (), resolved._tree.names[rows[0]]).stepped * len(rows)
            for kind, rows in free.items()
        ),
    )
    return Cost(states.name, phases, full)


def _kinds(resolved: ResolvedPlan) -> dict[_Kind, list[int]]:
    """Returns the parameters of each kind."""
    tree, kinds = resolved._tree, dict[_Kind, list[int]]()
    columns = zip(resolved._outcome_ids, tree.shapes, tree.dtypes, strict=True)
    for row, (outcome, shape, dtype) in enumerate(columns):
        kinds.setdefault(_Kind(outcome, shape, dtype), []).append(row)
    return kinds


def _kept(
    resolved: ResolvedPlan, phase: Phase, kind: _Kind, states: _States, name: str, drops: bool
) -> int:
    """Returns the bytes of state that there are in a phase for a parameter of some kind."""
    most = 0
    for each in resolved.phases:
        decision = resolved._outcomes[kind.outcome].decisions[each.index]
        if decision.trainable:
            built, stepped = states.of(kind, decision.options, name)
            passed = each.stalls <= phase.stalls and each.start <= phase.start
            if each is phase or (passed and not drops):
                most = max(most, stepped)
            elif not drops:
                most = max(most, built)
    return most


def _phase_cost(
    resolved: ResolvedPlan,
    phase: Phase,
    kinds: dict[_Kind, list[int]],
    states: _States,
    drops: bool,
) -> PhaseCost:
    weights = gradients = state = trainable = 0
    for kind, rows in kinds.items():
        weights += kind.nbytes * len(rows)
        if resolved._outcomes[kind.outcome].decisions[phase.index].trainable:
            trainable += kind.numel * len(rows)
            gradients += kind.nbytes * len(rows)
        name = resolved._tree.names[rows[0]]
        state += _kept(resolved, phase, kind, states, name, drops) * len(rows)
    for row, elements in resolved._partly(phase.index).items():
        trainable += elements - resolved._numel(row)
    return PhaseCost(phase.index, str(phase), trainable, weights, gradients, state)
