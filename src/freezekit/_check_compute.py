"""What a plan computes for little: FK018."""

from __future__ import annotations

from collections.abc import Iterator

from ._cost import bytes_text
from ._findings import Finding, few
from ._frontier import Compute, Trap, percent
from ._resolved import ResolvedPlan
from ._setup import Setup


def bottom_trains(setup: Setup) -> Iterator[Finding]:
    """FK018: a few parameters at the bottom make backward cross much of the model."""
    if setup.resolved is None or setup.resolved.compute is None:
        return
    seen: dict[tuple[str, ...], None] = {}
    for index in setup.ahead:
        trap = setup.resolved.compute.phases[index].trap
        if trap is not None and trap.names not in seen:
            seen[trap.names] = None
            yield _finding(setup.resolved, setup.resolved.compute, index, trap)


def _finding(resolved: ResolvedPlan, compute: Compute, index: int, trap: Trap) -> Finding:
    here, whole = compute.phases[index], compute.full.flops
    total = sum(map(resolved._numel, range(len(resolved.rows))))
    when = f" in the phase '{resolved.phases[index]}'" if len(resolved.phases) > 1 else ""
    where = f"layer {trap.layers[0]!r}" if len(trap.layers) == 1 else f"{len(trap.layers)} layers"
    return Finding(
        "FK018",
        "info" if trap.scattered else "warning",
        f"{percent(trap.numel, total)} of the parameters, in {where}, make backward cross what is "
        f"frozen above{when}: {few(trap.names)}",
        f"{here.where}: a step computes {percent(here.flops, whole)} of the FLOPs of full "
        f"fine-tuning and keeps {bytes_text(here.activation_bytes)} of activations; with these "
        f"frozen too, {percent(trap.flops, whole)} and {bytes_text(trap.activation_bytes)}",
        "none is needed if they are what should train"
        if trap.scattered
        else "freeze them as well, unless the model needs them to train",
        trap.names,
    )
