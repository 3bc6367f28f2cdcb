"""What acts inside `optimizer.step()`, through hooks that put back what they found.

A factor written into a group's lr would be lost under every scheduler that computes it anew, and
one left there would be multiplied again by every scheduler that does not. So nothing here is ever
assigned for longer than a step, and nothing is counted.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.compiler import is_dynamo_compiling

from ._cascade import Decision, Outcome
from ._rows import RowKeeper
from .errors import FreezekitError

_ABSENT = object()


class StandIn(NamedTuple):
    """A value that a key of a param group has during a step.

    Attributes:
        group: index of the group.
        key: the key.
        value: the value, or the factor on the one that stands there.
        multiplies: which of the two it is.
    """

    group: int
    key: str
    value: Any
    multiplies: bool


class StepHooks:
    """The hooks on the steps of one optimizer.

    The step of a subclass that calls its base class's runs every hook twice, nested: only the
    outermost pair acts. A step that raises runs no post hook: what it left is put back by the next
    pre hook or by `put_back`. A compiled step calls them untraced: traced, a value that was
    saved is read again after it was written.

    Attributes:
        stand_ins: what differs from the groups' own values now.
        keepers: what else must be put back.
        inside: how many nested steps are under way, or were when one raised.
        waits: whether the end of an accumulation window is waited for.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, done: Callable[[], None]) -> None:
        """Registers the hooks.

        Args:
            optimizer: the optimizer.
            done: called where an accumulation window may have ended, while `waits`.
        """
        self.optimizer = optimizer
        self.stand_ins: list[StandIn] = []
        self.keepers: list[RowKeeper] = []
        self._done = done
        self._saved: list[tuple[dict[str, Any], str, Any]] = []
        self.inside = 0
        self.waits = False
        self._witness: torch.Tensor | None = None
        self._used: tuple[torch.Tensor | None, int] = (None, 0)
        self._zero_grad: Any = None
        self._stands_in = False
        self._asked: Callable[[], bool] | None = None
        self._clears, self._untraced_before, self._untraced_after = map(
            torch.compiler.disable, (self._clear, self._before, self._after)
        )
        self._handles = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_state_dict_pre_hook(lambda _: self.put_back()),
        )

    def move(self, gathers: Callable[[], bool]) -> None:
        """Leaves the steps to another, which calls `before` and `after` around its own.

        Args:
            gathers: returns whether gradients are gathered, which are not in the optimizer then.
        """
        self._asked = gathers
        for handle in self._handles[:2]:
            handle.remove()

    def before(self) -> None:
        """Acts as before a step of the optimizer."""
        self._before(self.optimizer, (), {})

    def after(self) -> None:
        """Acts as after a step of the optimizer."""
        self._after(self.optimizer, (), {})

    def remove(self) -> None:
        """Takes the hooks away."""
        self.put_back()
        for handle in self._handles:
            handle.remove()
        self.wait(False)

    def wait(self, waits: bool) -> None:
        """Begins or ends waiting for the end of a window, which a step and `zero_grad` may be."""
        own = self.optimizer.__dict__
        if waits and not self._stands_in:
            self._zero_grad = own.get("zero_grad")
            own["zero_grad"] = self._clears
            self._stands_in = True
        elif not waits and own.get("zero_grad") is self._clears:
            del own["zero_grad"]
            if self._zero_grad is not None:
                own["zero_grad"] = self._zero_grad
            self._stands_in = False
        self.waits = waits

    def put_back(self) -> None:
        """Puts back what a step that raised has left."""
        self.inside = 0
        while self._saved:
            group, key, value = self._saved.pop()
            if value is _ABSENT:
                del group[key]
            else:
                group[key] = value
        for keeper in self.keepers:
            keeper.after()

    def own(self, group: dict[str, Any], key: str) -> Any:  # noqa: ANN401
        """Returns what a param group has under a key itself, also in the middle of a step."""
        saved = (value for other, name, value in self._saved if other is group and name == key)
        return next(saved, group[key])

    def has_gradients(self, frozen: Container[int]) -> bool:
        """Returns whether gradients are gathered that no step has used yet.

        Those that the last step used, zeros, and those of a step that a scaler skipped because one
        is not finite do not count. Whether the last step used them is read off one parameter: what
        comes after a step clears all gradients before it gathers new ones.

        Args:
            frozen: the groups that have none, which are not looked through.
        """
        if self._asked is not None:
            return self._asked()
        witness, (used, version) = self._witness, self._used
        gradient = None if witness is None else witness.grad
        if gradient is not None and gradient is used and gradient._version == version:
            return False
        gradients = [
            parameter.grad
            for at, group in enumerate(self.optimizer.param_groups)
            if at not in frozen
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        return any(map(_is_something, gradients)) and all(map(_is_finite, gradients))

    def _clear(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Stands in for the optimizer's `zero_grad`."""
        if self._zero_grad is not None:
            result = self._zero_grad(*args, **kwargs)
        else:
            result = type(self.optimizer).zero_grad(self.optimizer, *args, **kwargs)
        if self.waits:
            self._done()
        return result

    def _before(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        if is_dynamo_compiling():
            self._untraced_before(optimizer, args, kwargs)
            return
        self.inside += 1
        if self.inside > 1:
            if self.inside <= _levels(optimizer):
                return
            self.put_back()
            self.inside = 1
        groups, saved = optimizer.param_groups, self._saved
        for index, key, value, multiplies in self.stand_ins:
            group = groups[index]
            own = group.get(key, _ABSENT)
            saved.append((group, key, own))
            group[key] = own * value if multiplies else value
        for keeper in self.keepers:
            keeper.before()

    def _after(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        if is_dynamo_compiling():
            self._untraced_after(optimizer, args, kwargs)
            return
        self.inside -= 1
        if self.inside > 0:
            return
        self.put_back()
        gradient = None if self._witness is None else self._witness.grad
        if gradient is None:
            gradient = self._find_witness()
        self._used = (gradient, 0 if gradient is None else gradient._version)
        if self.waits:
            self._done()

    def _find_witness(self) -> torch.Tensor | None:
        """Chooses the smallest parameter that has a gradient, and returns that."""
        parameters = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        self._witness = min(parameters, key=torch.Tensor.numel, default=None)
        return None if self._witness is None else self._witness.grad


class Ramp(NamedTuple):
    """The warm-up of a param group.

    Attributes:
        group: index of the group.
        start: first step of the warm-up.
        steps: its length.
    """

    group: int
    start: int
    steps: int

    def factor(self, step: int) -> float:
        """Returns the factor on the lr at a step."""
        return min(1.0, (step - self.start + 1) / self.steps)


class Base(NamedTuple):
    """What a param group has where the plan says nothing.

    Attributes:
        lr: base learning rate; None: not known.
        weight_decay: weight decay; None: the optimizer's own.
        written: whether the values of its first trainable phase were written into it.
    """

    lr: float | None
    weight_decay: float | None
    written: bool


def changes(outcome: Outcome) -> bool:
    """Returns whether something about a parameter's steps changes while it trains."""
    seen = {each for each in map(stepped, outcome.decisions) if each is not None}
    return len(seen) > 1 or any(each.warmup_steps for each in seen)


def stepped(decision: Decision) -> Decision | None:
    """Returns what the values of a param group depend on; None: frozen."""
    seen = decision.optimized()
    return None if seen is None else seen._replace(rows=None, rows_train=True)


def stand_ins(
    group: int, outcome: Outcome, phase: int, base: Base, defaults: dict[str, Any]
) -> Iterator[StandIn]:
    """Yields what differs, in a phase, from the values written into a param group.

    Args:
        group: index of the group.
        outcome: what the plan means for its parameters.
        phase: index of the phase.
        base: what the group has where the plan says nothing.
        defaults: the optimizer's own values.

    Raises:
        FreezekitError: the base lr is needed and not known.
    """
    now = outcome.decisions[phase]
    if not now.trainable:
        return
    first = next(each for each in outcome.decisions if each.trainable)
    factor = _rate(now, first, base.lr)
    if factor != 1.0:
        yield StandIn(group, "lr", factor, multiplies=True)
    own = defaults.get("weight_decay") if base.weight_decay is None else base.weight_decay
    before = own if first.weight_decay is None or not base.written else first.weight_decay
    after = own if now.weight_decay is None else now.weight_decay
    if before != after and after is not None:
        multiplies = bool(before) and bool(after)
        yield StandIn(
            group, "weight_decay", after / before if before and after else after, multiplies
        )
    written, wanted = dict(first.options), dict(now.options)
    for key in {key: None for each in outcome.decisions for key, _ in each.options}:
        value = wanted.get(key, defaults.get(key))
        if value != written.get(key, defaults.get(key)):
            yield StandIn(group, key, value, multiplies=False)


def _rate(now: Decision, first: Decision, base: float | None) -> float:
    """Returns the lr in one phase as a factor on that of another."""
    if now.lr is None and first.lr is None:
        return (now.lr_mult or 1.0) / (first.lr_mult or 1.0)
    if now.lr is not None and first.lr is not None:
        return now.lr / first.lr
    if base is None:
        raise FreezekitError(
            "the plan changes between an absolute lr and the base lr during training, and a param "
            "group does not say its base lr; build the groups with param_groups(lr=...)"
        )
    rates = [each.lr if each.lr is not None else base * (each.lr_mult or 1.0)
             for each in (now, first)]  # fmt: skip
    return rates[0] / rates[1]


def ramp(
    group: int,
    outcome: Outcome,
    path: Sequence[tuple[int, int]],
    opened: Sequence[int],
) -> Iterator[Ramp]:
    """Yields the warm-up of a param group in the last phase of a path, if it has one.

    Args:
        group: index of the group.
        outcome: what the plan means for its parameters.
        path: start and index of each phase of training so far.
        opened: the moments at which metric-driven rules opened.
    """
    now = outcome.decisions[path[-1][1]]
    if not now.trainable or now.warmup_steps is None or now.warmup_from is None:
        return
    start = path[-1][0]
    for begins, phase in reversed(path):
        if not outcome.decisions[phase].trainable:
            break
        start = begins
    opens, stalls = now.warmup_from
    rule_start = max(opens, opened[stalls - 1]) if stalls else opens
    yield Ramp(group, max(start, rule_start), now.warmup_steps)


def _levels(optimizer: torch.optim.Optimizer) -> int:
    """Returns how many steps that run hooks can be nested: torch wraps that of each class.

    A class that inherits its step may have it wrapped once more: the function counts.
    """
    steps = [vars(cls)["step"] for cls in type(optimizer).__mro__ if "step" in vars(cls)]
    return len({step.__wrapped__ for step in steps if getattr(step, "hooked", False)})


def _is_something(gradient: torch.Tensor) -> bool:
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return bool(values.count_nonzero())


def _is_finite(gradient: torch.Tensor) -> bool:
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return bool(values.isfinite().all())
