"""DeepSpeed under a plan: what is frozen does not move, and what opens later does.

ZeRO asks once, in `deepspeed.initialize`, which parameters train, and copies them group by group
into tensors of its own. What is frozen at that moment never trains, and what is frozen afterwards
goes on being stepped with gradients of zero: by momentum, by weight decay, and the moments fade.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .._apply import AppliedPlan
from .._steps import StepHooks
from ..errors import FreezekitError
from .distributed import all_trainable

__all__ = ["initialize"]


def initialize(
    applied: AppliedPlan,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    **options: Any,  # noqa: ANN401 - they are DeepSpeed's
) -> tuple[Any, Any, Any, Any]:
    """Calls `deepspeed.initialize` so that a model goes through all phases of its plan.

    All that the plan ever trains is trainable for that moment. In every step the param groups that
    are frozen then are passed over, with their optimizer state; the LR schedulers see nothing of
    it. What changes while a group trains is done around the steps, as in other optimizers.

    Args:
        applied: the plan, applied to the model.
        model: the model.
        optimizer: built by `applied.optimizer(...)`.
        **options: further arguments of `deepspeed.initialize`, such as `config`.

    Returns:
        What `deepspeed.initialize` returns: the engine, the optimizer, the data loader and the
        LR scheduler.

    Raises:
        FreezekitError: the optimizer is not one of the plan's, or the plan says `rows` or
            `on_freeze="drop"`, which the tensors of ZeRO do not allow.

    Example:
        >>> import torch
        >>> from freezekit import FreezekitError, FreezePlan
        >>> from freezekit.integrations.deepspeed import initialize
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> applied = FreezePlan().freeze("[0]").unfreeze("[0]", at_epoch=1).apply(model)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> try:
        ...     initialize(applied, model=model, optimizer=optimizer, config={})
        ... except FreezekitError as error:
        ...     print(error)
        initialize: build the optimizer with applied.optimizer(...)
    """
    hooks = _hooks(applied, optimizer)
    import deepspeed

    skipping = _Skipping(applied, hooks)
    try:
        with all_trainable(applied):
            made = deepspeed.initialize(model=model, optimizer=optimizer, **options)
    except BaseException:
        skipping.remove()
        raise
    if made[1] is not optimizer:
        _Around(applied, hooks, made[0])
    applied._sync.trusted = True
    return made  # type: ignore[no-any-return]


def _hooks(applied: AppliedPlan, optimizer: torch.optim.Optimizer) -> StepHooks:
    """Returns what acts in the steps of an optimizer; everything is checked.

    Raises:
        FreezekitError: see `initialize`.
    """
    found = [hooks for hooks in applied._steps.attached if hooks.optimizer is optimizer]
    if not found or not all("name" in group for group in optimizer.param_groups):
        raise FreezekitError("initialize: build the optimizer with applied.optimizer(...)")
    if applied._steps.attached[found[0]].partial:
        raise FreezekitError(
            "initialize: DeepSpeed steps copies of the parameters, of which no rows can be kept; "
            "unfreeze whole tensors"
        )
    if applied._drops:
        raise FreezekitError(
            'initialize: DeepSpeed holds the optimizer state, so on_freeze="drop" cannot; leave '
            "it out"
        )
    return found[0]


class _Skipping:
    """Lets an optimizer pass over the groups that are frozen.

    Without a gradient torch's optimizers leave a parameter and its state alone.
    """

    def __init__(self, applied: AppliedPlan, hooks: StepHooks) -> None:
        """Registers the hooks, and forgets the names of parameters that DeepSpeed replaces."""
        optimizer, groups = hooks.optimizer, applied._steps.attached[hooks].groups
        self._find = applied._writer.parameter
        self._rows: Mapping[str, list[int]] = {
            group["name"]: rows for group, rows in zip(optimizer.param_groups, groups, strict=True)
        }
        self._kept: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for group in optimizer.param_groups:
            group.pop("param_names", None)
        self._handles = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _before(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        for group in optimizer.param_groups:
            if not any(self._find(row).requires_grad for row in self._rows[group["name"]]):
                for each in group["params"]:
                    self._kept.append((each, each.grad))
                    each.grad = None

    def _after(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        while self._kept:
            tensor, gradient = self._kept.pop()
            tensor.grad = gradient


class _Around:
    """Does around a step of DeepSpeed what a plan does inside a step of torch.

    DeepSpeed steps the groups one by one and shows the optimizer one at a time.
    """

    def __init__(self, applied: AppliedPlan, hooks: StepHooks, engine: Any) -> None:  # noqa: ANN401
        """Moves the hooks from the optimizer to DeepSpeed's own."""
        self._applied = applied
        self._hooks = hooks
        self._engine = engine
        self._stepped = False
        self._step = engine.optimizer.step
        hooks.move(self._gathers)
        engine.optimizer.step = self.step

    def step(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Stands in for the step of DeepSpeed's optimizer."""
        if self._hooks not in self._applied._steps.attached:
            return self._step(*args, **kwargs)
        self._hooks.before()
        try:
            return self._step(*args, **kwargs)
        finally:
            self._stepped = True
            self._hooks.after()
            self._stepped = False

    def _gathers(self) -> bool:
        """Returns whether an accumulation window is open; DeepSpeed keeps its gradients."""
        count: int = self._engine.gradient_accumulation_steps()
        return not self._stepped and self._engine.micro_steps % count != 0
