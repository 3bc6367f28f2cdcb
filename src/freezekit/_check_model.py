"""What is wrong inside a model: FK005 to FK009, FK013 and FK015."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm

from ._check_optimizers import TIE
from ._findings import Finding, few, several
from ._names import MARK
from ._setup import Setup, Spot
from ._writer import Hold


def left_grads(setup: Setup) -> Iterator[Finding]:
    """FK005: gradients on frozen parameters."""
    left = [spot for spot in setup.spots if not spot.now and spot.has_grad]
    if not left:
        return
    names = tuple(spot.name for spot in left)
    yield Finding(
        "FK005",
        "error" if any(setup.holds(spot) for spot in left) else "warning",
        several(names, "a frozen parameter has a gradient", "frozen parameters have gradients"),
        "an optimizer steps whatever has a gradient, even one of zeros (momentum, weight decay), "
        "and clipping counts it",
        "set parameter.grad = None after freezing; a plan does",
        names,
    )


def frozen_norms(setup: Setup) -> Iterator[Finding]:
    """FK006: frozen norms in train mode."""
    left_alone = {spot.owner for spot in setup.spots if spot.plan and spot.plan.leaves_mode}
    found = []
    for row, module in enumerate(setup.modules):
        if module.training and _follows_mode(module) and row not in left_alone:
            unknown = setup.claimed and not isinstance(module.__dict__.get("train"), Hold)
            if not unknown and setup.is_frozen(row):
                found.append(setup.path(row))
    if found:
        yield Finding(
            "FK006",
            "error",
            several(found, "a frozen norm is in train mode", "frozen norms are in train mode"),
            "train mode changes its statistics at every forward pass, so what is frozen does not "
            "stay the same",
            "freeze it by a plan, which holds it in eval, or call eval() on it after each train()",
            tuple(found),
        )


def half_frozen(setup: Setup) -> Iterator[Finding]:
    """FK007: parameters in the same memory, some of which train while others do not."""
    for spots in setup.shared:
        phases = zip(*(setup.phase_flags(spot) for spot in spots), strict=True)
        if all(len(set(flags)) == 1 for flags in phases):
            continue
        names = tuple(spot.name for spot in spots)
        yield Finding(
            "FK007",
            "error",
            f"{len(names)} parameters in the same memory are not frozen together: {few(names)}",
            "they are different objects on one tensor, so what trains moves what is frozen",
            TIE,
            names,
        )


def nothing_trains(setup: Setup) -> Iterator[Finding]:
    """FK008: nothing is trainable."""
    if any(spot.now for spot in setup.spots):
        return
    if setup.resolved is not None and setup.resolved.plan.allow_all_frozen:
        return
    count = len(setup.spots)
    problem = f"all {count} parameters are frozen" if count else "the model has no parameters"
    yield Finding(
        "FK008",
        "error",
        f"nothing is trainable: {problem}",
        "backward raises, unless something outside the model requires gradients",
        "unfreeze what should train",
        tuple(spot.name for spot in setup.spots),
    )


def unreached(setup: Setup) -> Iterator[Finding]:
    """FK009: trainable parameters without a gradient beside others with one.

    Only what one optimizer clears together is compared, and nothing that opened after the
    gradients may have come, or that the optimizer stepped before.
    """
    together: dict[torch.optim.Optimizer | None, list[Spot]] = {}
    for spot in setup.spots:
        if spot.now and not setup.claimed:
            holders = setup.holders.get(id(spot.parameter), [None])
            together.setdefault(holders[0] and holders[0].optimizer, []).append(spot)
    names: list[str] = []
    for optimizer, spots in together.items():
        last = max((spot.opened for spot in spots if spot.has_grad), default=-1)
        state = optimizer.state if optimizer else {}
        names += [
            spot.name
            for spot in spots
            if not spot.has_grad and spot.opened <= last and not state.get(spot.parameter)
        ]
    if names:
        yield Finding(
            "FK009",
            "warning",
            several(
                names,
                "a trainable parameter got no gradient while others did",
                "trainable parameters got no gradient while others did",
            ),
            "backward did not get there: a detach(), a no_grad() block or an unused module is in "
            "the way",
            "freeze what is not meant to train, and let the rest take part in the loss",
            tuple(names),
        )


def held_copies(setup: Setup) -> Iterator[Finding]:
    """FK013: holds that came along with a copy of an applied model."""
    orphaned: list[bool] = []
    found = []
    for row, (module, parent) in enumerate(zip(setup.modules, setup.tree.parents, strict=True)):
        mark = module.__dict__.get(MARK)
        orphaned.append(not mark.live if mark else parent >= 0 and orphaned[parent])
        if orphaned[row] and isinstance(module.__dict__.get("train"), Hold):
            found.append(setup.path(row))
    if found:
        yield Finding(
            "FK013",
            "warning",
            several(
                found,
                "a module of a copy is still held in its mode",
                "modules of a copy are still held in their mode",
            ),
            "the model was copied or pickled while a plan was applied to it; what was frozen then "
            "ignores train() in the copy, and no phase of the plan will ever open it",
            "to train the copy, apply a plan to it; only to let go: "
            "FreezePlan(allow_all_frozen=True).apply(copy).release()",
            tuple(found),
        )


def changed_flags(setup: Setup) -> Iterator[Finding]:
    """FK015: requires_grad written by other code since the plan was applied."""
    if setup.replaced:
        return
    names = tuple(
        spot.name
        for spot in setup.spots
        if spot.plan and spot.now != spot.plan.coming[0] and spot.name not in setup.waiting
    )
    if names:
        yield Finding(
            "FK015",
            "error",
            several(
                names,
                "a parameter is not as the plan left it",
                "parameters are not as the plan left them",
            ),
            "other code wrote requires_grad since, so what the plan freezes may train, or the "
            "reverse",
            "remove that code, or say in the plan what it was meant to do",
            names,
        )


def _follows_mode(module: torch.nn.Module) -> bool:
    """Returns whether a norm updates statistics of its own in train mode."""
    if isinstance(module, _NormBase):
        return module.running_mean is not None
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, parametrizations._SpectralNorm) or any(
        isinstance(hook, SpectralNorm) for hook in hooks
    )
