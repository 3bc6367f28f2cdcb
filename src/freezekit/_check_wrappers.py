"""What is wrong between a model and what it is wrapped in: FK010, FK011, FK014 and FK016."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn.parallel import DistributedDataParallel

from ._findings import Finding, several
from ._names import unwrap
from ._setup import Setup
from ._sync import covered, known_to


def checkpointed(setup: Setup) -> Iterator[Finding]:
    """FK010: blocks under reentrant checkpointing behind nothing but frozen parameters."""
    blocks = _reentrant(setup)
    if not blocks:
        return
    cut = {row for phase in range(len(setup.ahead)) for row in _cut(setup, blocks, phase)}
    if cut:
        names = tuple(setup.spots[row].name for row in sorted(cut))
        yield Finding(
            "FK010",
            "warning",
            several(
                names,
                "a parameter gets no gradient through reentrant checkpointing",
                "parameters get no gradient through reentrant checkpointing",
            ),
            "a checkpointed block with use_reentrant=True takes part in backward only if its input "
            "requires gradients, and all that stands before it is frozen",
            "checkpoint with use_reentrant=False, or call model.enable_input_require_grads() on a "
            "transformers model",
            names,
        )


def _reentrant(setup: Setup) -> list[int]:
    """Returns the rows of the modules under reentrant checkpointing, outer before inner."""
    rows = {id(module): row for row, module in enumerate(setup.modules)}
    found = {
        rows[id(unwrap(wrapper))]
        for wrapper in setup.wrapped
        if _is_reentrant(wrapper.__dict__.get("checkpoint_fn"))
    }
    for row, module in enumerate(setup.modules):
        own = module.__dict__
        if (
            own.get("gradient_checkpointing") is True
            and _is_reentrant(own.get("_gradient_checkpointing_func"))
            and any(base.__name__ == "GradientCheckpointingLayer" for base in type(module).__mro__)
        ):
            found.add(row)
    return sorted(found)


def _is_reentrant(function: object) -> bool:
    return isinstance(function, partial) and function.keywords.get("use_reentrant") is True


def _cut(setup: Setup, blocks: list[int], phase: int) -> Iterator[int]:
    """Yields the trainable parameters in blocks whose input requires no gradient.

    What is registered before a block is taken to feed it. A hook there may make its output
    require gradients, and a gradient inside proves that the block has its part in backward.
    """
    prefixes = [setup.tree.prefixes[row] for row in blocks]
    hooked = next(
        (
            row
            for row, module in enumerate(setup.modules)
            if module._forward_hooks or module._forward_pre_hooks
        ),
        len(setup.modules),
    )
    proven = {_block_of(prefixes, spot.name) for spot in setup.spots if spot.now and spot.has_grad}
    fed, entered, fed_before = False, None, False
    for row, spot in enumerate(setup.spots):
        block = _block_of(prefixes, spot.name)
        if block != entered:
            entered, fed_before = block, fed
        if not setup.phase_flags(spot)[phase]:
            continue
        if block is None or fed_before or hooked <= blocks[block] or block in proven:
            fed = True
        else:
            yield row


def _block_of(prefixes: list[str], name: str) -> int | None:
    return next((n for n, prefix in enumerate(prefixes) if name.startswith(prefix)), None)


def synchronized(setup: Setup) -> Iterator[Finding]:
    """FK011 and FK016: what DDP does not synchronise, and what it waits for in vain."""
    for ddp in setup.wrapped:
        if not isinstance(ddp, DistributedDataParallel):
            continue
        known = known_to(ddp)
        if known is None:
            continue
        inside = covered(ddp)
        spots = [spot for spot in setup.spots if id(spot.parameter) in inside]
        late = tuple(s.name for s in spots if any(s.coming) and id(s.parameter) not in known)
        if late:
            yield Finding(
                "FK011",
                "error",
                several(
                    late,
                    "a parameter trains, but not when DDP was built",
                    "parameters train, but did not when DDP was built",
                ),
                "DDP averages the gradients of what was trainable when it was built; the others "
                "stay local, and the ranks drift apart without an error",
                "build DDP while all that ever trains is trainable, with "
                "find_unused_parameters=True, and freeze afterwards; or build it anew",
                late,
            )
        waiting = tuple(
            spot.name
            for spot in spots
            if id(spot.parameter) in known and _is_missed(ddp, setup.phase_flags(spot))
        )
        if waiting:
            asked = "static_graph=True" if ddp.static_graph else "find_unused_parameters=False"
            yield Finding(
                "FK016",
                "error",
                several(
                    waiting,
                    f"DDP with {asked} waits for the gradient of a frozen parameter",
                    f"parameters are frozen while DDP with {asked} waits for their gradients",
                ),
                "the second step of a phase in which they are frozen raises",
                "build DDP with find_unused_parameters=True and without static_graph",
                waiting,
            )


def _is_missed(ddp: DistributedDataParallel, flags: tuple[bool, ...]) -> bool:
    if ddp.static_graph:
        return len(set(flags)) > 1
    return not ddp.find_unused_parameters and not all(flags)


def compiled(setup: Setup) -> Iterator[Finding]:
    """FK014: more different phases than torch.compile compiles a module for."""
    if setup.resolved is None:
        return
    rows = {id(module): row for row, module in enumerate(setup.modules)}
    for module in setup.wrapped:
        if module._compiled_call_impl is None and "_orig_mod" not in module._modules:
            continue
        from torch._dynamo import config

        states, limit = _states(setup, module), config.recompile_limit
        if states > limit:
            path = setup.path(rows[id(unwrap(module))])
            yield Finding(
                "FK014",
                "warning",
                f"{path} is compiled and goes through {states} different phases, more than the "
                f"{limit} that torch.compile compiles it for",
                "each phase compiles it once more; past torch._dynamo.config.recompile_limit it "
                "runs without being compiled, or raises with fullgraph=True",
                "compile the repeated blocks instead of the whole, raise the limit, or call "
                "torch._dynamo.reset() when a phase begins",
                (path,),
            )


def _states(setup: Setup, module: torch.nn.Module) -> int:
    """Returns how many different states of a module there are in the phases still to come."""
    inside = {id(parameter) for parameter in module.parameters()}
    spots = [spot for spot in setup.spots if id(spot.parameter) in inside]
    flags = zip(*(setup.phase_flags(spot) for spot in spots), strict=True)
    modules = {id(each) for each in module.modules()}
    held = (setup.held(phase) & modules for phase in setup.ahead)
    return len(set(zip(flags, held, strict=True)))
