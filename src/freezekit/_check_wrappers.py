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
from ._verbs import counted


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
    frames: dict[object, list[torch.nn.Module]] = {}
    for module in setup.wrapped:
        in_place = module._compiled_call_impl is not None
        if in_place or "_orig_mod" in module._modules:
            for frame in _frames(unwrap(module)) if in_place else [unwrap(module)]:
                frames.setdefault(_code(frame), []).append(frame)
    if not frames:
        return
    from torch._dynamo import config

    # torch 2.6 has it under the name before.
    limit = getattr(config, "recompile_limit", None) or config.cache_size_limit
    for modules in frames.values():
        by_phase = [*zip(*(_states(setup, module) for module in modules), strict=True)]
        states = {state for phase in by_phase for state in phase}
        if len(states) > limit >= len(set(by_phase[0])):
            rows = {id(module): row for row, module in enumerate(setup.modules)}
            paths = tuple(setup.path(rows[id(module)]) for module in modules)
            what, each = f"{paths[0]} is compiled and goes through", "phases"
            if len(paths) > 1:
                what, each = f"{counted(paths, 'module')} are compiled and go through", "states"
            yield Finding(
                "FK014",
                "warning",
                f"{what} {len(states)} different {each}, more than the {limit} that torch.compile "
                f"compiles {'it' if len(paths) == 1 else 'the code they share'} for",
                "each phase compiles it once more; past torch._dynamo.config.recompile_limit it "
                "runs without being compiled, or raises with fullgraph=True",
                "compile the repeated blocks instead of the whole, raise the limit, or call "
                "torch._dynamo.reset() when a phase begins",
                paths,
            )


def _frames(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yields what is compiled by itself where a module is compiled in place.

    Torch does not compile the code of its own classes then, only what they call.
    """
    if _is_torchs(module):
        for child in module.children():
            yield from _frames(unwrap(child))
    else:
        yield module


def _code(module: torch.nn.Module) -> object:
    """Returns what the limit is counted for: the code, whichever modules run it."""
    if _is_torchs(module):
        return "torch"  # Wrapped, they all run through one function of torch's.
    return getattr(type(module).forward, "__code__", type(module))


def _is_torchs(module: torch.nn.Module) -> bool:
    return type(module).forward.__module__.startswith("torch.nn.")


def _states(setup: Setup, module: torch.nn.Module) -> list[object]:
    """Returns the state of a module in each of the phases still to come.

    It is what is compiled for: shapes, flags and modes, and whether the input requires gradients.
    What is registered before a module is taken to feed it.
    """
    inside = {id(parameter) for parameter in module.parameters()}
    rows = [row for row, spot in enumerate(setup.spots) if id(spot.parameter) in inside]
    below = {id(each): place for place, each in enumerate(module.modules())}
    shapes = tuple(tuple(setup.spots[row].parameter.shape) for row in rows)
    before = [setup.phase_flags(spot) for spot in setup.spots[: rows[0] if rows else 0]]
    flags = [setup.phase_flags(setup.spots[row]) for row in rows]
    return [
        (
            shapes,
            tuple(each[at] for each in flags),
            frozenset(below[key] for key in setup.held(phase) & below.keys()),
            any(each[at] for each in before),
        )
        for at, phase in enumerate(setup.ahead)
    ]
