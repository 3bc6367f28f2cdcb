"""What a plan computes, phase by phase, and where backward stops: data with a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_LISTED = 3


class Stop(NamedTuple):
    """A place where backward stops: nothing that its operations take in requires gradients.

    Attributes:
        module: path of the largest module call that begins there and trains as a whole, or of the
            innermost one; "" for the whole model.
        parameters: the parameters with which it begins; none where the model itself asked for
            gradients there.
    """

    module: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        if not self.parameters:
            return f"{self.module or 'the model'}, which makes its output require gradients"
        return self.module or self.parameters[0]


class Trap(NamedTuple):
    """A few parameters at the bottom for whose sake backward crosses much of a model.

    Attributes:
        names: the parameters.
        numel: their elements.
        layers: names of the layers in which they are.
        scattered: whether such parameters are in most of the layers that backward crosses for
            their sake, as where only biases train, and not just next to the input.
        flops: FLOPs forward and backward if they were frozen too.
        activation_bytes: likewise.
    """

    names: tuple[str, ...]
    numel: int
    layers: tuple[str, ...]
    scattered: bool
    flops: int
    activation_bytes: int


class PhaseCompute(NamedTuple):
    """What one step computes in one phase, on the example inputs.

    Attributes:
        stops: where backward stops, in the order of execution; empty where there is no backward.
        frozen_calls: modules of the outermost frozen calls, in order: no parameter below trains
            and nothing that comes in requires gradients, so that backward does not get there.
        crossed: modules with a call that backward goes through.
        reached: parameters that get a gradient.
        forward_flops: as torch's `FlopCounterMode` counts them.
        backward_flops: likewise.
        activation_bytes: memory that is kept for backward, without parameters, buffers and inputs.
        trap: parameters at the bottom that cost more than one would think.
    """

    stops: tuple[Stop, ...]
    frozen_calls: tuple[str, ...]
    crossed: frozenset[str]
    reached: frozenset[str]
    forward_flops: int
    backward_flops: int
    activation_bytes: int
    trap: Trap | None = None

    @property
    def flops(self) -> int:
        """FLOPs forward and backward."""
        return self.forward_flops + self.backward_flops

    @property
    def frontier(self) -> str | None:
        """The first trainable parameter in the order of data flow; None where there is none."""
        return next((name for stop in self.stops for name in stop.parameters), None)

    @property
    def where(self) -> str:
        """Where backward stops, in words."""
        if not self.stops:
            return "there is no backward pass: the output depends on nothing that trains"
        listed = [str(stop) for stop in self.stops]
        shown = " and at ".join([", at ".join(listed[:-1]), listed[-1]][len(listed) < 2 :])
        if len(listed) > _LISTED:
            more = len(listed) - _LISTED
            shown = f"{', at '.join(listed[:_LISTED])} and {more} more places"
        return f"backward stops at {shown}"


class Compute(NamedTuple):
    """What a plan computes on example inputs.

    Attributes:
        phases: one for each phase of the plan.
        full: the same if every parameter that can train does.
        called: modules that were called.
        used: parameters that were used.
        simulated: whether nothing was computed to know it: the model ran on tensors without data.
    """

    phases: tuple[PhaseCompute, ...]
    full: PhaseCompute
    called: frozenset[str]
    used: frozenset[str]
    simulated: bool

    def summary(self, phase: int, blocks: Sequence[Sequence[str]]) -> str:
        """Returns a sentence on one phase: where backward stops, and what that is of all.

        Args:
            phase: its index.
            blocks: for each block of the model the names of its parameters.
        """
        here, whole = self.phases[phase], self.full
        text = here.where
        crossed = sum(
            not here.crossed.isdisjoint(self.module_of(name) for name in names) for names in blocks
        )
        if blocks and here.stops:
            count = {0: "none", len(blocks): "all"}.get(crossed, str(crossed))
            text += f" and crosses {count} of the {len(blocks)} layers"
        return (
            f"{text}; {percent(here.flops, whole.flops)} of the FLOPs and "
            f"{percent(here.activation_bytes, whole.activation_bytes)} of the activations of full "
            "fine-tuning"
        )

    def module_of(self, name: str) -> str:
        """Returns the path of the module that was called for a parameter."""
        path = name.rpartition(".")[0]
        while path and path not in self.called:
            path = path.rpartition(".")[0]
        return path

    def explain(self, phase: int, name: str, trains: bool) -> str:
        """Returns a sentence on what backward has to do with a parameter in one phase.

        Args:
            phase: index of the phase.
            name: canonical name.
            trains: whether it trains.
        """
        here = self.phases[phase]
        if name not in self.used:
            return "not used on the example inputs"
        if name in here.reached:
            stops = [stop for stop in here.stops if name in stop.parameters]
            return f"reaches it, and stops at {stops[0]}" if stops else "reaches it"
        if trains:
            return "does not reach it: a detach() or no_grad() is in the way"
        owner = self.module_of(name)
        module = owner or "the model"
        if owner in here.crossed:
            if any(stop.module == owner for stop in here.stops):
                return f"goes as far as {module} and stops there"
            below = f", for {here.frontier} below" if here.frontier else ""
            return f"goes through {module}{below}"
        if not here.stops:
            return "there is none: the output depends on nothing that trains"
        return f"does not go through {module}: it {here.where.removeprefix('backward ')}"


def percent(part: int, whole: int) -> str:
    """Returns a share as text.

    Example:
        >>> percent(1, 3), percent(1, 2000), percent(0, 0)
        ('33.3 %', '0.05 %', '0 %')
    """
    share = 100 * part / whole if whole else 0.0
    return f"{share:.1f} %" if share >= 0.1 else f"{share:.2g} %"
