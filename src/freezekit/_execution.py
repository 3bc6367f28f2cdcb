"""When a model first uses each of its parameters: one forward pass, watched from below."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import torch
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from ._gradients import undisturbed
from .errors import FreezekitError, PlanError

_LOOKS = ("new_", "_like")
"""What operators have in their names that read of a tensor its shape, dtype and device only."""


class Use(NamedTuple):
    """The first operation that uses a parameter.

    Attributes:
        moment: its number among the operations of the pass.
        behind: which parameters had a part in what it was used with, a bit for each.
    """

    moment: int
    behind: int


def first_uses(
    model: torch.nn.Module, parameters: Sequence[torch.nn.Parameter], inputs: object
) -> list[Use | None]:
    """Runs a model once, without gradients, and returns when it first uses each parameter.

    Operators are watched where torch dispatches them, so that parameters count which no module of
    their own reads, as in `torch.nn.functional.linear(x, self.head.weight)`. Modes stay as they
    are; buffers are copied for the pass, attributes and torch's random generators put back.

    Args:
        model: the model, without wrappers.
        parameters: what to watch.
        inputs: a tuple of positional arguments, a mapping of keyword arguments, or one argument.

    Returns:
        For each parameter its first use, None where there was none.

    Raises:
        PlanError: a parameter is lazy and has no shape yet.
        FreezekitError: the model does not run on these inputs.
    """
    refuse_lazy(model, parameters)
    args, kwargs = call_arguments(inputs)
    buffers = {name: each.detach().clone() for name, each in model.named_buffers()}
    watch = _Watch(parameters)
    with undisturbed(model), torch.no_grad(), uncompiled(), watch:
        try:
            functional_call(model, buffers, args, kwargs)
        except Exception as error:
            raise does_not_run(model, error) from error
    return [watch.uses.get(id(parameter)) for parameter in parameters]


def refuse_lazy(model: torch.nn.Module, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Raises a PlanError if a parameter is lazy and has no shape yet."""
    if any(is_lazy(parameter) for parameter in parameters):
        raise PlanError(
            f"{type(model).__name__} has parameters without a shape yet; run one batch through the "
            "model before example_inputs can show how it runs"
        )


def call_arguments(inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and the keyword arguments that example inputs stand for."""
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, Mapping) else (inputs,)
    return args, dict(inputs) if isinstance(inputs, Mapping) else {}


def uncompiled() -> AbstractContextManager[Any]:
    """Lets what is compiled run as written; torch._dynamo is loaded where something is."""
    compiled = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def does_not_run(model: torch.nn.Module, error: Exception) -> FreezekitError:
    """Returns what to say where a model raises on its example inputs."""
    return FreezekitError(
        f"{type(model).__name__} does not run on example_inputs: {type(error).__name__}: "
        f"{error}; give a tuple of positional arguments, a mapping of keyword arguments, "
        "or the only argument (a list is one), and where modules in train mode want more, "
        "a larger batch or model.eval()"
    )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operation in which each of some parameters takes part.

    What flows on is followed by storage, so that views and what is written in place count.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._waiting = {id(parameter) for parameter in parameters}
        self._reached = {storage_of(each): 1 << bit for bit, each in enumerate(parameters)}
        self._count = 0
        self.uses: dict[int, Use] = {}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        self._count += 1
        looks = any(text in func.__name__ for text in _LOOKS)
        taken = [] if looks else [*tensors((args, kwargs or {}))]
        places = {storage_of(tensor) for tensor in taken}
        flow = reduce(or_, (self._reached.get(place, 0) for place in places), 0)
        for tensor in taken:
            if id(tensor) in self._waiting:
                self._waiting.discard(id(tensor))
                self.uses[id(tensor)] = Use(self._count, flow)
        result = func(*args, **(kwargs or {}))
        for tensor in tensors(result):
            place = storage_of(tensor)
            self._reached[place] = flow | (self._reached.get(place, 0) if place in places else 0)
        return result


def storage_of(tensor: torch.Tensor) -> int:
    """Returns what tensors have in common that share memory."""
    try:
        place: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return -id(tensor)
    return place


def tensors(value: object) -> Iterator[torch.Tensor]:
    """Yields the tensors in nested arguments or results."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors([getattr(value, each.name, None) for each in fields(value)])
