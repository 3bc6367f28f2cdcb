"""Accelerate: what its `prepare` has to find and to be told under a plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import (  # type: ignore[import-untyped]
    DistributedDataParallelKwargs,
    DistributedType,
)

from .._apply import AppliedPlan
from ..errors import FreezekitError
from .distributed import all_trainable, register

__all__ = ["prepare"]


def prepare(
    accelerator: Accelerator,
    applied: AppliedPlan,
    *objects: Any,  # noqa: ANN401 - they are Accelerate's
) -> Any:  # noqa: ANN401
    """Stands in for `accelerator.prepare(*objects)` for a model that a plan is applied to.

    All that the plan ever trains is trainable while the model is wrapped, DDP gets the
    `find_unused_parameters` that the plan needs, the optimizers of the model are attached, and the
    plan's state becomes part of `accelerator.save_state` and `load_state`.

    Args:
        accelerator: the accelerator.
        applied: the plan, applied to the model.
        *objects: what `accelerator.prepare` takes, in any order, the model among it.

    Returns:
        What `accelerator.prepare` returns.

    Raises:
        FreezekitError: none of the objects is the model, the accelerator was told to build DDP in a
            way that does not go along with the plan, it uses DeepSpeed and the plan changes what
            trains, an optimizer cannot be attached, or the plan was released.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from freezekit import FreezePlan
        >>> from freezekit.integrations.accelerate import prepare
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> applied = FreezePlan().freeze("[0]").unfreeze("[0]", at_epoch=1).apply(model)
        >>> optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-3)
        >>> model, optimizer = prepare(Accelerator(cpu=True), applied, model, optimizer)
    """
    applied._check_live()
    own = {id(module) for module in applied._modules}
    parts = [
        isinstance(each, torch.nn.Module) and any(id(m) in own for m in each.modules())
        for each in objects
    ]
    if not any(parts):
        raise FreezekitError(
            "prepare: none of these objects is the model that the plan is applied to, or a part of "
            f"it: {', '.join(type(each).__name__ for each in objects) or 'nothing'}"
        )
    changes = applied._changes_what_trains
    if changes and accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise FreezekitError(
            "prepare: DeepSpeed asks once what trains, and this plan changes it during training; "
            "use DDP or FSDP"
        )
    with _finds_unused(accelerator, changes), all_trainable(applied):
        applied.attach(*_optimizers(applied, objects))
        result = accelerator.prepare(*objects)
    prepared = (result,) if len(objects) == 1 else result
    for before, after, is_part in zip(objects, prepared, parts, strict=True):
        if is_part and after is not before:
            register(applied, after)
    if not any(each is applied for each in accelerator._custom_objects):
        accelerator.register_for_checkpointing(applied)
    return result


def _optimizers(applied: AppliedPlan, objects: Iterable[object]) -> list[torch.optim.Optimizer]:
    """Returns the optimizers among some objects that train the model."""
    own = {id(applied._writer.find(row)) for row in range(len(applied.resolved.rows))}
    return [
        each
        for each in objects
        if isinstance(each, torch.optim.Optimizer)
        and any(id(p) in own for group in each.param_groups for p in group["params"])
    ]


@contextmanager
def _finds_unused(accelerator: Accelerator, changes: bool) -> Iterator[None]:
    """Within the block, Accelerate builds DDP so that it goes along with the plan."""
    handler = accelerator.ddp_handler
    if changes and handler is not None:
        if handler.static_graph:
            raise FreezekitError(
                "prepare: DistributedDataParallelKwargs(static_graph=True) expects the parameters "
                "that train in the first step to train in all, and the plan changes what trains; "
                "leave it out"
            )
        if not handler.find_unused_parameters:
            raise FreezekitError(
                "prepare: with DistributedDataParallelKwargs(find_unused_parameters=False), the "
                "default, DDP waits for the gradients of parameters that the plan freezes; pass "
                "DistributedDataParallelKwargs(find_unused_parameters=True)"
            )
    if handler is None and changes:
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    try:
        yield
    finally:
        accelerator.ddp_handler = handler
