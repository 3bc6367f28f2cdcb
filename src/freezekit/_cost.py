"""What a plan costs in memory, phase by phase, beside full fine-tuning."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from ._frontier import PhaseCompute, percent
from ._resolved import ResolvedPlan
from ._rules import Pairs
from ._verbs import counted, did_you_mean
from .errors import PlanError

OptimizerLike: TypeAlias = str | Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

_TITLES = ("phase", "trainable", "weights", "gradients", "optimizer state", "total", "of full")
_COMPUTE_TITLES = ("activations", "FLOPs of full")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_REFUSED = (torch.optim.Optimizer, torch.optim.LBFGS)
_MOST = 1 << 26
"""Elements of the largest tensor that is stepped with data, if it must have some."""


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
        flops: FLOPs of a step on the example inputs, forward and backward; None without them.
        activation_bytes: bytes that are kept for backward on the example inputs, likewise.
    """

    phase: int | None
    text: str
    trainable: int
    weight_bytes: int
    gradient_bytes: int
    state_bytes: int
    flops: int | None = None
    activation_bytes: int | None = None

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
        full: the same if every parameter that can train does, with the options of the plan.
        notes: sentences about what is not in these numbers.
    """

    optimizer: str
    phases: tuple[PhaseCost, ...]
    full: PhaseCost
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns a line for each phase and one for full fine-tuning."""
        more = () if self.full.flops is None else _COMPUTE_TITLES
        lines = [_TITLES + more, *map(self._cells, (*self.phases, self.full))]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = (
            "  ".join(
                cell.rjust(width) if at else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        notes = (f"note: {note}" for note in self.notes)
        return "\n".join([*table, f"optimizer: {self.optimizer}", *notes])

    def _cells(self, cost: PhaseCost) -> tuple[str, ...]:
        sizes = (cost.weight_bytes, cost.gradient_bytes, cost.state_bytes, cost.total_bytes)
        share = cost.total_bytes / self.full.total_bytes if self.full.total_bytes else 1.0
        cells = (cost.text, f"{cost.trainable:,}", *map(bytes_text, sizes), f"{100 * share:.1f} %")
        if cost.flops is None or cost.activation_bytes is None:
            return cells
        return (
            *cells,
            bytes_text(cost.activation_bytes),
            percent(cost.flops, self.full.flops or 0),
        )


def bytes_text(count: int) -> str:
    """Returns a number of bytes in the largest binary unit of which there is one.

    Example:
        >>> bytes_text(1023), bytes_text(1536)
        ('1023 B', '1.5 KiB')
    """
    power = min(max(count.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    if power < len(_UNITS) - 1 and round(count / 1024**power, 1) >= 1024:
        power += 1
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


class _Trial(NamedTuple):
    """What a first step showed: bytes before it, the state after it, and what stopped it."""

    built: int
    state: dict[str, Any]
    failure: Exception | None


class _States:
    """How much state an optimizer keeps for a tensor: it steps one on the meta device.

    Attributes:
        names: of the classes of the optimizers that were built.
    """

    def __init__(self, optimizer: OptimizerLike) -> None:
        """Looks the optimizer up.

        Raises:
            PlanError: torch has no optimizer of that name, or it cannot be used with a plan.
        """
        self.names: dict[str, None] = {}
        self._build = _builder(optimizer)
        self._known: dict[tuple[torch.Size, torch.dtype, Pairs], _State] = {}

    def of(self, kind: _Kind, options: Pairs, example: str) -> _State:
        """Returns what is kept for one tensor.

        Args:
            kind: its form.
            options: what the plan sets in its param group.
            example: the name of such a parameter, for its group and for messages.

        Raises:
            PlanError: the optimizer cannot be built, or does not step such a tensor.
        """
        if kind.shape is None:
            return _State(0, 0)
        key = (kind.shape, kind.dtype, options)
        if key not in self._known:
            self._known[key] = self._measured(kind.shape, kind.dtype, options, example)
        return self._known[key]

    def _measured(
        self, shape: torch.Size, dtype: torch.dtype, options: Pairs, example: str
    ) -> _State:
        trial = self._stepped(torch.empty(shape, dtype=dtype, device="meta"), options, example)
        if trial.failure is not None:
            # Some optimizers read numbers in their step, which a tensor without data has not. If
            # a small tensor with data has no more state in the end, it was all there by then.
            small = torch.ones([min(size, 2) for size in shape], dtype=dtype)
            proof = self._stepped(small, options, example)
            if proof.failure is None and proof.state.keys() != trial.state.keys():
                if shape.numel() > _MOST:
                    raise PlanError(
                        f"cost: the optimizer does not step a tensor without data, and {example!r} "
                        f"of shape {list(shape)} is too large to try it with data; pass another one"
                    )
                trial = proof = self._stepped(torch.ones(shape, dtype=dtype), options, example)
            if (error := proof.failure) is not None:
                raise PlanError(
                    f"cost: the optimizer cannot be built for {example!r} of shape {list(shape)}, "
                    f"or does not step it: {type(error).__name__}: {error}; pass a class or a "
                    "function that makes one of param groups, such as partial(cls, lr=1e-3)"
                ) from error
        return _State(trial.built, _nbytes(trial.state))

    def _stepped(self, tensor: torch.Tensor, options: Pairs, example: str) -> _Trial:
        """Lets an optimizer make a first step with one tensor."""
        parameter = torch.nn.Parameter(tensor)
        parameter.grad = torch.ones_like(tensor)
        group = {"params": [(example, parameter)], "name": example, "lr": 1e-3, **dict(options)}
        try:
            optimizer = self._build([group])
            state = optimizer.state[parameter]
        except Exception as error:  # whatever a user's function raises
            return _Trial(0, {}, error)
        self.names[type(optimizer).__name__] = None
        built, failure = _nbytes(state), None
        try:
            optimizer.step()
        except Exception as error:
            failure = error
        return _Trial(built, dict(optimizer.state[parameter]), failure)


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
    states, tree = _States(optimizer), resolved._tree
    kinds: dict[_Kind, list[int]] = {}
    columns = zip(resolved._outcome_ids, tree.shapes, tree.dtypes, strict=True)
    for row, (outcome, shape, dtype) in enumerate(columns):
        kinds.setdefault(_Kind(outcome, shape, dtype), []).append(row)
    weights = sum(kind.nbytes * len(rows) for kind, rows in kinds.items())
    trainable, gradients, state = ([0] * len(resolved.phases) for _ in range(3))
    for kind, rows in kinds.items():
        decisions = resolved._outcomes[kind.outcome].decisions
        kept = _kept(resolved, kind, states, tree.names[rows[0]], drops=on_freeze == "drop")
        elements, nbytes = kind.numel * len(rows), kind.nbytes * len(rows)
        for k, decision in enumerate(decisions):
            state[k] += kept[k] * len(rows)
            if decision.trainable:
                trainable[k] += elements
                gradients[k] += nbytes
    for k in range(len(resolved.phases)):
        for row, elements in resolved._partly(k).items():
            trainable[k] += elements - resolved._numel(row)
    phases = (
        PhaseCost(k, str(phase), trainable[k], weights, gradients[k], state[k])
        for k, phase in enumerate(resolved.phases)
    )
    full, notes = _full(resolved, kinds, states, weights)
    known = resolved.compute
    if known is not None:
        full = _with_compute(full, known.full)
        phases = (_with_compute(*pair) for pair in zip([*phases], known.phases, strict=True))
    return Cost(_name(optimizer, states), tuple(phases), full, notes)


def _with_compute(cost: PhaseCost, known: PhaseCompute) -> PhaseCost:
    return replace(cost, flops=known.flops, activation_bytes=known.activation_bytes)


def _name(optimizer: OptimizerLike, states: _States) -> str:
    """Returns the name of what was built, or of what was asked for if nothing was."""
    asked = optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", "")
    return " and ".join(states.names) or asked


def _kept(
    resolved: ResolvedPlan, kind: _Kind, states: _States, name: str, *, drops: bool
) -> list[int]:
    """Returns the bytes of state for a parameter of some kind, phase by phase."""
    decisions = resolved._outcomes[kind.outcome].decisions
    live = [(k, decision.options) for k, decision in enumerate(decisions) if decision.trainable]
    by_options = {options: states.of(kind, options, name) for options in {each for _, each in live}}
    found = {k: by_options[options] for k, options in live}
    if drops:
        return [found[k].stepped if k in found else 0 for k in range(len(decisions))]
    built = max((each.built for each in found.values()), default=0)
    # For each amount of state, when it is there at first, by how many metrics have stalled.
    firsts: dict[int, list[float]] = {}
    for phase in resolved.phases:
        if phase.index in found:
            starts = firsts.setdefault(
                found[phase.index].stepped, [inf] * (len(resolved.metrics) + 1)
            )
            for stalls in range(phase.stalls, len(starts)):
                starts[stalls] = min(starts[stalls], phase.start)
    return [
        max(built, *(size for size, at in firsts.items() if at[phase.stalls] <= phase.start), 0)
        for phase in resolved.phases
    ]


def _full(
    resolved: ResolvedPlan, kinds: dict[_Kind, list[int]], states: _States, weights: int
) -> tuple[PhaseCost, tuple[str, ...]]:
    """Returns what it costs if all trains with the plan's options, and what is not in that."""
    trainable = gradients = state = 0
    unknown: list[str] = []
    for kind, rows in kinds.items():
        if not (kind.dtype.is_floating_point or kind.dtype.is_complex):
            continue
        trainable += kind.numel * len(rows)
        gradients += kind.nbytes * len(rows)
        names = [resolved._tree.names[row] for row in rows]
        decisions = resolved._outcomes[kind.outcome].decisions
        first = next((each for each in decisions if each.trainable), decisions[0])
        try:
            state += states.of(kind, first.options, names[0]).stepped * len(rows)
        except PlanError:
            unknown += names
    full = PhaseCost(None, "full fine-tuning", trainable, weights, gradients, state)
    if not unknown:
        return full, ()
    return full, (
        "full fine-tuning is without optimizer state for what the optimizer does not step: "
        f"{counted(unknown, 'parameter')}",
    )
