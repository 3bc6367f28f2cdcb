"""Training by several processes: DistributedDataParallel under a plan that changes what trains.

DDP asks once, when it is built, which parameters train, and never averages the gradients of the
others: what is unfrozen later drifts apart between the ranks without an error. So whatever a plan
ever trains must be trainable at that moment, and frozen afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from .._apply import AppliedPlan
from .._sharding import FLAT, problem
from ..errors import FreezekitError

__all__ = ["all_trainable", "ddp", "register"]


def ddp(
    applied: AppliedPlan,
    model: torch.nn.Module,
    **options: Any,  # noqa: ANN401 - they are DDP's
) -> DistributedDataParallel:
    """Wraps a model in DDP so that all phases of its plan are synchronised.

    `find_unused_parameters` is set to what the plan needs: true if it ever freezes something that
    it trains at another time. DDP then also averages the zeros that stand for the gradients of
    what is frozen at present; the page on engines says what that costs.

    Args:
        applied: the plan, applied to the model.
        model: the model, or a wrapper of it such as `torch.compile` returns.
        **options: further arguments of `DistributedDataParallel`.

    Returns:
        The wrapper, registered with the plan.

    Raises:
        FreezekitError: `static_graph=True` or `find_unused_parameters=False` under a plan that
            changes what trains, or the plan was released.

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan
        >>> from freezekit.integrations.distributed import ddp
        >>> torch.distributed.init_process_group(
        ...     "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        ... )
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> applied = FreezePlan().freeze("[0]").unfreeze("[0]", at_epoch=1).apply(model)
        >>> wrapped = ddp(applied, model)
        >>> wrapped.find_unused_parameters, model[0].weight.requires_grad
        (True, False)
        >>> torch.distributed.destroy_process_group()
    """
    changes = applied._trained(any) != applied._trained(all)
    if changes and options.get("static_graph"):
        raise FreezekitError(
            "ddp: static_graph=True expects the parameters that train in the first step to train "
            "in all, and the plan changes what trains; leave it out"
        )
    if changes and not options.get("find_unused_parameters", True):
        raise FreezekitError(
            "ddp: with find_unused_parameters=False DDP waits for the gradients of parameters "
            "that the plan freezes meanwhile; leave it out"
        )
    with applied._all_trainable():
        wrapper = DistributedDataParallel(model, **({"find_unused_parameters": changes} | options))
    register(applied, wrapper)
    return wrapper


def register(applied: AppliedPlan, wrapper: torch.nn.Module) -> None:
    """Tells a plan what averages the gradients of its model between the ranks.

    Needed for what was wrapped in another way than by `ddp`. A wrapper that is not torch's, or the
    bare model, says that gradients are averaged by other means, or are not meant to be.

    Args:
        applied: the plan.
        wrapper: DDP or FSDP around the model or a part of it, an engine, or the model.

    Raises:
        FreezekitError: the wrapper does not go along with all phases of the plan, or the plan was
            released.

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan
        >>> from freezekit.integrations.distributed import register
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> applied = FreezePlan().freeze("[0]").unfreeze("[0]", at_epoch=1).apply(model)
        >>> register(applied, model)  # each rank trains a model of its own
    """
    applied._check_live()
    if not isinstance(wrapper, torch.nn.Module):
        raise FreezekitError(f"register takes a module, got {type(wrapper).__name__}")
    flat = [n for n, _ in wrapper.named_parameters() if n.rpartition(".")[2] == FLAT]
    if flat:
        raise FreezekitError(f"register: {problem(flat[0])}")
    inside = [m for m in wrapper.modules() if isinstance(m, DistributedDataParallel)]
    for each in inside:
        applied._register(each)
    if any(isinstance(m, FullyShardedDataParallel) for m in wrapper.modules()) or not inside:
        applied._sync.trusted = True


@contextmanager
def all_trainable(applied: AppliedPlan) -> Iterator[None]:
    """Within the block, all that a plan ever trains is trainable, for what asks once.

    Args:
        applied: the plan; its phase holds again after the block.

    Raises:
        FreezekitError: the plan was released.

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan
        >>> from freezekit.integrations.distributed import all_trainable
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> applied = FreezePlan().freeze("[0]").unfreeze("[0]", at_epoch=1).apply(model)
        >>> with all_trainable(applied):
        ...     print(model[0].weight.requires_grad)
        True
    """
    with applied._all_trainable():
        yield
