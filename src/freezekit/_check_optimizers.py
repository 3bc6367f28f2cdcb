"""What is wrong between a model and its optimizers: FK001 to FK004 and FK017."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.parameter import is_lazy

from ._findings import Finding, few, several
from ._setup import Setup

_INNER = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

TIE = "let both names hold one Parameter object, as in `head.weight = embedding.weight`"


def without_optimizer(setup: Setup) -> Iterator[Finding]:
    """FK001: what trains, now or later, but is in no optimizer."""
    if not setup.groups:
        return
    stale = set(_stale(setup))
    missing = [
        spot
        for spot in setup.spots
        if any(spot.coming) and not setup.holds(spot) and spot.name not in stale
    ]
    build = "build the optimizer from all parameters that train, or freeze these"
    if setup.resolved is not None:
        build = "build the optimizer with applied.optimizer(...), which takes all that ever trains"
    now = tuple(spot.name for spot in missing if spot.now)
    if now:
        yield Finding(
            "FK001",
            "error",
            several(
                now,
                "a parameter trains but is in no optimizer",
                "parameters train but are in no optimizer",
            ),
            "it gets gradients, but nothing steps it"
            if len(now) == 1
            else "they get gradients, but nothing steps them",
            build,
            now,
        )
    later = tuple(spot.name for spot in missing if not spot.now)
    if later:
        yield Finding(
            "FK001",
            "error",
            several(
                later,
                "a parameter opens in a later phase but is in no optimizer",
                "parameters open in a later phase but are in no optimizer",
            ),
            "a phase only sets requires_grad; without an optimizer nothing trains, silently",
            build,
            later,
        )


def never_trained(setup: Setup) -> Iterator[Finding]:
    """FK002: what is in an optimizer, but is frozen in every phase."""
    idle = [spot for spot in setup.spots if not spot.ever and setup.holds(spot)]
    if setup.claimed or not idle:
        return
    names = tuple(spot.name for spot in idle)
    holders = (group.optimizer for spot in idle for group in setup.holders[id(spot.parameter)])
    stepped = any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in holders)
    why = (
        "an optimizer skips what has no gradient, so this costs nothing; but perhaps more was "
        "meant to train"
    )
    yield Finding(
        "FK002",
        "error" if stepped else "info",
        several(
            names,
            "a parameter is in an optimizer but never trains",
            "parameters are in an optimizer but never train",
        ),
        "LBFGS moves frozen parameters too" if stepped else why,
        "give the optimizer only what trains, or unfreeze what should",
        names,
    )


def held_twice(setup: Setup) -> Iterator[Finding]:
    """FK003: a tensor in two places of the optimizers, as one object or as two."""
    twice = [spot for spot in setup.spots if len(setup.holders.get(id(spot.parameter), ())) > 1]
    if twice:
        first = " and ".join(
            f"{group.label!r} of {type(group.optimizer).__name__}"
            for group in setup.holders[id(twice[0].parameter)]
        )
        names = tuple(spot.name for spot in twice)
        yield Finding(
            "FK003",
            "error",
            several(names, "a parameter is held twice", "parameters are held twice"),
            f"each place makes a step of its own, so it moves twice; {names[0]} is in {first}",
            "give each optimizer a part of its own, as in applied.optimizer(cls, pattern, lr=...)",
            names,
        )
    for spots in setup.shared:
        names = tuple(spot.name for spot in spots if spot.now and setup.holds(spot))
        if len(names) > 1:
            yield Finding(
                "FK003",
                "error",
                f"{len(names)} parameters in optimizers lie in the same memory: {few(names)}",
                "two objects on one tensor have each a part of its gradient and a state of their "
                "own, and both move it",
                TIE,
                names,
            )


def stale_objects(setup: Setup) -> Iterator[Finding]:
    """FK004: what an optimizer or the plan holds is no longer in the model."""
    stale = _stale(setup)
    if stale:
        yield Finding(
            "FK004",
            "error",
            several(
                stale,
                "a parameter in an optimizer is not in the model any more",
                "parameters in optimizers are not in the model any more",
            ),
            "other Parameter objects stand there now: a module was replaced, or "
            "load_state_dict(assign=True) or a wrapper put them there; steps change the old ones",
            "build the optimizer after the last change of the model",
            stale,
        )
    if setup.replaced:
        yield Finding(
            "FK004",
            "error",
            several(
                setup.replaced,
                "a module was replaced since the plan was applied",
                "modules were replaced since the plan was applied",
            ),
            "the plan holds on to the old one, and no phase that touches it can begin",
            "release the plan, apply it again and build the optimizer anew",
            setup.replaced,
        )


def unattached(setup: Setup) -> Iterator[Finding]:
    """FK017: what the plan does inside steps, and no attached optimizer to do it in."""
    if setup.lacking is not None and setup.groups:
        name, what = setup.lacking
        yield Finding(
            "FK017",
            "error",
            f"the plan {what} for {name}, and no attached optimizer holds it",
            "it does so inside optimizer.step(), by hooks that it has only on attached optimizers",
            "build the optimizer with applied.optimizer(...), or call applied.attach(optimizer)",
            (name,),
        )


def _stale(setup: Setup) -> tuple[str, ...]:
    """Returns the parameters of which the optimizers hold an object that is not there any more.

    An object without a name is taken for the parameter of its shape that no optimizer holds. What
    fits nowhere belongs to something else, such as a loss with parameters of its own.
    """
    unheld: dict[torch.Size, list[str]] = {}
    for spot in setup.spots:
        if spot.ever and not setup.holds(spot) and not is_lazy(spot.parameter):
            unheld.setdefault(spot.parameter.shape, []).append(spot.name)
    found: dict[str, None] = {}
    for group in setup.groups:
        for name, parameter in group.members():
            if id(parameter) in setup.by_id or is_lazy(parameter):
                continue
            if name is not None:
                known = _unheld_name(setup, name)
                found |= {known: None} if known else {}
            elif alike := unheld.get(parameter.shape):
                found[alike.pop(0)] = None
    return tuple(found)


def _unheld_name(setup: Setup, name: str) -> str | None:
    """Returns the canonical name of a parameter that no optimizer holds, or that is gone."""
    bare = ".".join(part for part in name.split(".") if part not in _INNER)
    for each in (name, bare):
        if each in setup.row_of:
            spot = setup.spots[setup.row_of[each]]
            return None if setup.holds(spot) else spot.name
        if each in setup.tree.spelled or (setup.resolved and each in setup.resolved._row_of):
            return each
    return None
