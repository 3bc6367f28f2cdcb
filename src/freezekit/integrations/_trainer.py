"""What the callback for Trainer reads: of the arguments, the model and the optimizer.

Nothing is written here; what would go wrong in silence raises.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments

from .._apply import AppliedPlan
from .._cascade import Decision
from .._names import unwrap
from .._plan import FreezePlan
from .._verbs import counted
from ..errors import FreezekitError


def states(state: TrainerState) -> dict[str, Any]:
    """Returns what Trainer saves of its callbacks in its checkpoints, by name."""
    return state.stateful_callbacks  # type: ignore[return-value]


def parameters(applied: AppliedPlan) -> Iterator[torch.nn.Parameter]:
    """Yields the parameters of an applied plan's model, in order."""
    for row in range(len(applied.resolved._tree.names)):
        yield applied._writer.parameter(row)


def bare(optimizer: Any) -> torch.optim.Optimizer:  # noqa: ANN401 - accelerate's wrapper, or none
    """Returns torch's optimizer, inside the wrappers of others."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer  # type: ignore[no-any-return]


def updates_per_epoch(args: TrainingArguments, loader: Any) -> int | None:  # noqa: ANN401
    """Returns the updates of one epoch as Trainer counts them; None if there is no length."""
    try:
        batches = len(loader)
    except TypeError:
        return None
    return max(-(-batches // args.gradient_accumulation_steps), 1)


def base_model(model: torch.nn.Module) -> torch.nn.Module:
    """Returns what a plan is written for: the model inside torch's wrappers and PEFT's."""
    inner = unwrap(model)
    if hasattr(inner, "peft_config") and hasattr(inner, "get_base_model"):
        return inner.get_base_model()  # type: ignore[operator, no-any-return]
    return inner


def is_adapted(model: torch.nn.Module, base: torch.nn.Module) -> bool:
    """Returns whether PEFT has put adapters into a model."""
    return base is not unwrap(model) or getattr(base, "_hf_peft_config_loaded", False)


def with_adapters(plan: FreezePlan, model: torch.nn.Module, base: torch.nn.Module) -> FreezePlan:
    """Adds to a plan what holds for the adapters of PEFT, which stand among the base's modules."""
    if not is_adapted(model, base):
        return plan
    names = [name for name, _ in base.named_parameters()]
    trained = [name for name, each in base.named_parameters() if each.requires_grad]
    copied = [
        f"{path}.original_module."
        for path, module in base.named_modules()
        if hasattr(module, "original_module") and hasattr(module, "modules_to_save")
    ]
    unused = [name for name in names if name.startswith(tuple(copied))]
    if unused:
        plan = plan.freeze(exactly(unused))
    return plan.unfreeze(exactly(trained)) if trained else plan


def exactly(names: list[str]) -> str:
    """Returns a pattern that selects the parameters with these names."""
    return "re:" + "|".join(map(re.escape, names))


def check_arguments(applied: AppliedPlan, model: torch.nn.Module, args: TrainingArguments) -> None:
    """Raises if Trainer is told to train in a way in which the plan goes wrong."""
    if not applied._changes_what_trains:
        return
    if args.deepspeed or args.deepspeed_plugin:
        raise FreezekitError(
            "DeepSpeed keeps moving what it trained once, also while it is frozen; train a plan "
            "that changes what trains without it, with DDP or FSDP"
        )
    if args.world_size == 1 or args.fsdp or "ACCELERATE_USE_FSDP" in os.environ:
        return
    unused = args.ddp_find_unused_parameters
    recomputes = bool(args.gradient_checkpointing) or checkpointing(model) is not None
    problem, remedy = "", "set ddp_find_unused_parameters=True in TrainingArguments"
    if args.auto_find_batch_size:
        problem = "auto_find_batch_size wraps the model anew, in the midst of the plan"
        remedy = "set per_device_train_batch_size"
    elif getattr(args, "ddp_static_graph", None):
        problem = "ddp_static_graph expects the parameters that train in the first step in all"
        remedy = "leave it out"
    elif unused is False:
        problem = "with ddp_find_unused_parameters=False DDP waits for gradients of what is frozen"
    elif unused is None and recomputes and isinstance(model, PreTrainedModel):
        problem = (
            "with activation checkpointing Trainer builds DDP with find_unused_parameters=False, "
            "and it waits for gradients of what is frozen"
        )
    if problem:
        raise FreezekitError(f"the plan changes what trains, and {problem}; {remedy}")


def check_saved(lost: list[str]) -> None:
    """Warns of what trains in the base model of PEFT and is in no checkpoint.

    Args:
        lost: the parameters of the base model that the plan trains and PEFT does not.
    """
    if lost:
        warnings.warn(
            "PEFT saves adapters only, so checkpoints of Trainer lack what the plan trains of the "
            f"base model: {counted(lost, 'parameter')}; save and load its state_dict() yourself",
            stacklevel=2,
        )


def check_optimizer(applied: AppliedPlan, optimizer: torch.optim.Optimizer) -> None:
    """Raises if an optimizer lacks what the plan trains, or the values that it sets."""
    rows = {id(each): row for row, each in enumerate(parameters(applied))}
    groups = {
        rows[id(each)]: group
        for group in optimizer.param_groups
        for each in group["params"]
        if id(each) in rows
    }
    names, ids = applied.resolved._tree.names, applied.resolved._outcome_ids
    trained = applied._trained(any)
    missing = [names[row] for row in trained if row not in groups]
    remedy = "pass Trainer(optimizer_cls_and_kwargs=freeze.optimizer(...))"
    if missing:
        raise FreezekitError(
            f"the optimizer lacks {counted(missing, 'parameter')}, which the plan trains: it was "
            f"built while they were frozen, or for another model; {remedy}"
        )
    differ = [
        names[row]
        for row in trained
        if groups[row].get("name") not in applied._steps._handed
        and differs(applied.resolved._outcomes[ids[row]].decisions, groups[row])
    ]
    if differ:
        raise FreezekitError(
            "the plan sets a learning rate, weight decay or options that the optimizer does not "
            f"have, for {counted(differ, 'parameter')}; {remedy}"
        )


def differs(decisions: tuple[Decision, ...], group: Mapping[str, Any]) -> bool:
    """Returns whether a param group has other values than the plan sets for a parameter in it."""
    first = next(each for each in decisions if each.trainable)
    lr = group.get("initial_lr", group["lr"])
    wanted = dict(first.options) | {"lr": first.lr, "weight_decay": first.weight_decay}
    present = dict(group) | {"lr": lr}
    return first.lr_mult not in (None, 1.0) or any(
        value is not None and present.get(key) != value for key, value in wanted.items()
    )


def named_by(
    args: TrainingArguments,
    model: Any,  # noqa: ANN401
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Returns the optimizer that the arguments name, and its options without lr."""
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    own = {"params", "model", "optimizer_dict"} & options.keys()
    if own or not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise FreezekitError(
            f"optim={str(args.optim)!r} groups the parameters in its own way; name a class that "
            "takes param groups, as in freeze.optimizer(torch.optim.AdamW)"
        )
    return cls, {key: value for key, value in options.items() if key != "lr"}


def checkpointing(model: torch.nn.Module) -> bool | None:
    """Returns whether checkpoints of activations are reentrant; None if there are none."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) is True:
            function = getattr(module, "_gradient_checkpointing_func", None)
            return bool(getattr(function, "keywords", {}).get("use_reentrant", True))
    return None


def check_checkpoints(applied: AppliedPlan, model: torch.nn.Module) -> None:
    """Raises where reentrant checkpoints lose gradients; warns where they spoil the saving."""
    layers = applied.resolved.layers
    if not checkpointing(model) or not layers:
        return
    stem = set(layers[0].parameter_names)
    if all(stem & phase.trainable for phase in applied.resolved.phases):
        return
    remedy = 'pass activation_checkpointing_kwargs={"use_reentrant": False}'
    if not getattr(model, "_require_grads_hooks", None):
        raise FreezekitError(
            "with reentrant checkpointing, what stands behind a frozen stem gets no gradients at "
            f"all; {remedy}"
        )
    warnings.warn(
        "with reentrant checkpointing, backward runs through everything, also through what is "
        f"frozen; {remedy}",
        stacklevel=2,
    )
