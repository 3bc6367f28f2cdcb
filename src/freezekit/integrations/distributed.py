"""Training by several processes: DistributedDataParallel under a plan that changes what trains.

DDP asks once, when it is built, which parameters train, and never averages the gradients of the
others: what is unfrozen later drifts apart between the ranks without an error. So whatever a plan
ever trains must be trainable at that moment, and frozen afterwards.

Checkpoints of sharded models have the same trouble: torch saves and loads the optimizer state of
what trains at that moment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from .._apply import AppliedPlan
from .._sharding import FLAT, problem
from ..errors import FreezekitError

__all__ = ["all_trainable", "ddp", "load_checkpoint", "register", "save_checkpoint"]


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
    changes = applied._changes_what_trains
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
    with all_trainable(applied):
        wrapper = DistributedDataParallel(model, **({"find_unused_parameters": changes} | options))
    register(applied, wrapper)
    return wrapper


def register(applied: AppliedPlan, wrapper: torch.nn.Module) -> None:
    """Tells a plan what averages the gradients of its model between the ranks.

    Needed for what was wrapped in another way than by `ddp`. A wrapper that is not torch's, or the
    bare model, says that gradients are averaged by other means, or are not meant to be.

    Args:
        applied: the plan.
        wrapper: DDP or FSDP around the model or a part of it, or the model.

    Raises:
        FreezekitError: the wrapper has nothing to do with the model or does not go along with all
            phases of the plan, or the plan was released.

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
    if type(wrapper).__module__.startswith("deepspeed."):
        raise FreezekitError(
            f"register: a {type(wrapper).__name__} knows only what trained when it was made, and "
            "steps what is frozen; make it with freezekit.integrations.deepspeed.initialize"
        )
    if set(applied._modules).isdisjoint(wrapper.modules()):
        raise FreezekitError(
            f"register: nothing in this {type(wrapper).__name__} belongs to the model that the "
            "plan is applied to; pass what wraps that model, or the model"
        )
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
    with applied._training(applied._trained(any)):
        yield


def save_checkpoint(
    target: str | os.PathLike[str] | StorageWriter,
    applied: AppliedPlan,
    model: torch.nn.Module,
    optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    others: Mapping[str, Stateful] | None = None,
) -> None:
    """Saves a run through `torch.distributed.checkpoint`; every rank must call it.

    Torch takes a step of an optimizer that has no state yet, to have some to save, and the run
    would go on from there. So what such an optimizer trains is frozen for the time of saving.

    Args:
        target: a folder, or a writer for another kind of storage.
        applied: the plan.
        model: the model as it trains: sharded or wrapped.
        optimizers: those that train it.
        others: whatever else has `state_dict` and `load_state_dict`, such as LR schedulers.

    Raises:
        FreezekitError: the plan was released, one of the others has the name of a part, or the
            model is in `FullyShardedDataParallel`.

    Example:
        >>> import tempfile, torch
        >>> from freezekit import FreezePlan
        >>> from freezekit.integrations.distributed import save_checkpoint
        >>> torch.distributed.init_process_group(
        ...     "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        ... )
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> applied = FreezePlan().freeze("[0]").apply(model)
        >>> optimizer = applied.optimizer(torch.optim.AdamW, lr=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(folder, applied, model, optimizer)
        >>> torch.distributed.destroy_process_group()
    """
    _check_gathers(model)
    with applied._training(_without_first_step(applied, optimizers)):
        own, kept = get_state_dict(model, optimizers)
    state = _parts(others) | {"plan": applied, "model": own, "optimizer": kept}
    save(state, storage_writer=_storage(target, FileSystemWriter))


def load_checkpoint(
    source: str | os.PathLike[str] | StorageReader,
    applied: AppliedPlan,
    model: torch.nn.Module,
    optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    others: Mapping[str, Stateful] | None = None,
) -> None:
    """Loads what `save_checkpoint` saved; every rank must call it.

    The plan comes first: it puts the model into the phase it was saved in. Torch leaves out the
    optimizer state of what is frozen and misses that of what never trained, so for the time of
    loading exactly that trains which has some.

    Args:
        source: a folder, or a reader for another kind of storage.
        applied: the plan, on a model of the same architecture; the number of ranks may differ.
        model: the model as it trains: sharded or wrapped.
        optimizers: fresh ones, attached to the plan.
        others: whatever else was saved.

    Raises:
        FreezekitError: the state is of another plan, the plan was released, or the model is in
            `FullyShardedDataParallel`.

    Example:
        >>> import tempfile, torch
        >>> from freezekit import FreezePlan
        >>> from freezekit.integrations.distributed import load_checkpoint, save_checkpoint
        >>> torch.distributed.init_process_group(
        ...     "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        ... )
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> applied = FreezePlan().freeze("[0]").unfreeze("[0]", at_epoch=1).apply(model)
        >>> optimizer = applied.optimizer(torch.optim.AdamW, lr=0.1)
        >>> applied.advance(epoch=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(folder, applied, model, optimizer)
        ...     applied.advance(epoch=0)
        ...     load_checkpoint(folder, applied, model, optimizer)
        >>> model[0].weight.requires_grad
        True
        >>> torch.distributed.destroy_process_group()
    """
    _check_gathers(model)
    rest = _parts(others)
    reader = _storage(source, FileSystemReader)
    load({"plan": applied}, storage_reader=reader)
    with applied._training(_with_state(applied, reader.read_metadata())):
        own, kept = get_state_dict(model, optimizers)
        state: dict[str, Any] = {"model": own, "optimizer": kept}
        load(state, storage_reader=reader)
        set_state_dict(
            model,
            optimizers,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
    if rest:
        load(rest, storage_reader=reader)


def _without_first_step(
    applied: AppliedPlan, optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
) -> list[int]:
    """Returns the rows of what trains now, without that of which torch would take a step."""
    listed = [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else optimizers
    idle = set[int]()
    for each in listed:
        held = [parameter for group in each.param_groups for parameter in group["params"]]
        if not each.state and all(parameter.grad is None for parameter in held):
            idle.update(map(id, held))
    found = enumerate(map(applied._writer.parameter, range(len(applied.resolved._tree.names))))
    return [row for row, each in found if each.requires_grad and id(each) not in idle]


def _check_gathers(model: torch.nn.Module) -> None:
    """Raises where torch cannot gather the optimizer state of a model that is partly frozen."""
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise FreezekitError(
            "FullyShardedDataParallel gathers optimizer state only of what has trained as a whole; "
            "shard with fully_shard, or keep optimizer.state_dict() of each rank with torch.save"
        )


def _parts(others: Mapping[str, Stateful] | None) -> dict[str, Any]:
    """Returns what else is in a checkpoint."""
    taken = {"plan", "model", "optimizer"}.intersection(others or ())
    if taken:
        raise FreezekitError(f"others: the name {min(taken)!r} is taken by the checkpoint itself")
    return dict(others or {})


def _storage(place: Any, files: Callable[..., Any]) -> Any:  # noqa: ANN401
    """Returns a folder as storage; what is storage already, as it is."""
    return files(place) if isinstance(place, str | os.PathLike) else place


def _with_state(applied: AppliedPlan, saved: Metadata) -> list[int]:
    """Returns the rows of the parameters that have optimizer state in a checkpoint."""
    rows = {name: row for row, name in enumerate(applied.resolved._tree.names)}
    start = "optimizer.state."
    keys = [key[len(start) :] for key in saved.state_dict_metadata if key.startswith(start)]
    paths = {path for key in keys for path in accumulate(key.split("."), "{}.{}".format)}
    return [rows[path] for path in paths if path in rows]
