"""When a model first uses each of its parameters: one forward pass, watched from below."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from ._gradients import undisturbed
from .errors import FreezekitError

_LOOKS = ("new_", "_like")
"""What operators have in their names that read of a tensor its shape, dtype and device only."""


def first_uses(model: torch.nn.Module, inputs: object) -> dict[int, int]:
    """Runs a model once, without gradients, and returns the operation that first uses each tensor.

    Operators are watched where torch dispatches them, so that parameters count which no module of
    their own reads, as in `torch.nn.functional.linear(x, self.head.weight)`. Modes stay as they
    are; buffers are copied for the pass and torch's random generators put back.

    Args:
        model: the model, without wrappers.
        inputs: a tuple of positional arguments, a mapping of keyword arguments, or one argument.

    Returns:
        The number of the operation, by the id of each parameter that was used.

    Raises:
        FreezekitError: the model does not run on these inputs.
    """
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, Mapping) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    buffers = {name: each.detach().clone() for name, each in model.named_buffers()}
    watch = _Watch(model.parameters())
    # What is compiled runs as written; torch._dynamo is loaded where something is.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else None
    with undisturbed(model), torch.no_grad(), eager or nullcontext(), watch:
        try:
            functional_call(model, buffers, args, kwargs)
        except Exception as error:
            raise FreezekitError(
                f"{type(model).__name__} does not run on example_inputs: {type(error).__name__}: "
                f"{error}; give a tuple of positional arguments, a mapping of keyword arguments, "
                "or the only argument"
            ) from error
    return watch.uses


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operation in which each of some tensors takes part."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._waiting = {id(parameter) for parameter in parameters}
        self._count = 0
        self.uses: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        self._count += 1
        if not any(text in func.__name__ for text in _LOOKS):
            for tensor in _tensors((args, kwargs or {})):
                if id(tensor) in self._waiting:
                    self._waiting.discard(id(tensor))
                    self.uses[id(tensor)] = self._count
        return func(*args, **(kwargs or {}))


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """Yields the tensors in nested arguments."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
