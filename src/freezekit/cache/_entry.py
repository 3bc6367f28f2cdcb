"""Stands in for the forward of the module whose calls are passes."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..errors import FreezekitError
from ._patches import Forward

Answer = Callable[[Forward, tuple[Any, ...], dict[str, Any]], Any]


class Entry:
    """Answers calls of a module by a function that gets its forward, until it is removed.

    Looks like the forward it stands in for. Copies and pickles of the model keep it, and there it
    only calls that forward.

    Attributes:
        module: the module.
    """

    def __init__(self, module: torch.nn.Module, answer: Answer, key: str | None = None) -> None:
        """Places itself as the module's own `forward`.

        Args:
            module: the module.
            answer: gets its forward and the arguments of each call.
            key: the name of a keyword argument that calls may have besides.

        Raises:
            FreezekitError: the module has a cache, or its forward an argument of that name.
        """
        self.module = module
        self._before: Forward | None = module.__dict__.get("forward")
        self._answer: Answer | None = answer
        if isinstance(self._before, Entry) and self._before._answer is not None:
            raise FreezekitError(
                f"{type(module).__name__} has a cache already: close() that one first"
            )
        self.__signature__ = _with(inspect.signature(module.forward), key)
        module.__dict__["forward"] = self

    @property
    def forward(self) -> Forward:
        """The forward that it stands in for."""
        if self._before is not None:
            return self._before
        forward: Forward = type(self.module).forward.__get__(self.module)
        return forward

    @property
    def __code__(self) -> Any:  # noqa: ANN401
        """Where the forward was written, which torch.export notes."""
        return self.forward.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Answers a call of the module."""
        if torch.compiler.is_compiling():
            if self._answer is not None:
                _tell_compiled(type(self.module).__name__)
            return self.forward(*args, **kwargs)
        if self._answer is None or _is_rehearsed():
            return self.forward(*args, **kwargs)
        return self._answer(self.forward, args, kwargs)

    def remove(self) -> None:
        """Puts back what stood there; something placed over it since keeps calling through it."""
        self._answer = None
        own = self.module.__dict__
        if own.get("forward") is self:
            if self._before is None:
                del own["forward"]
            else:
                own["forward"] = self._before

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the store behind: a copy of the model has none."""
        kept = vars(self) | {"_answer": None}
        del kept["__signature__"]
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__signature__ = inspect.signature(self.forward)


def check_key(module: torch.nn.Module, key: str | None) -> None:
    """Raises if the forward of a module has an argument of that name.

    Raises:
        FreezekitError: it does.
    """
    _with(inspect.signature(module.forward), key)


def _tell_compiled(kind: str) -> None:
    """Warns that a model is compiled as it is: what answers from a store cannot be."""
    exporting = getattr(torch.compiler, "is_exporting", None)  # new in torch 2.7
    if exporting is not None and exporting():
        return
    warnings.warn(
        f"the frozen part is not answered from a store (compiled): {kind} runs under "
        "torch.compile, and is compiled without its cache; compile the parts that train instead "
        "(model.head.compile()), or close the cache",
        stacklevel=2,
    )


# It is to be run while a graph is made, not to be part of it; what torch offers to say so,
# torch.compiler.assume_constant_result, imports the compiler.
_tell_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_rehearsed() -> bool:
    """Returns whether a pass only is to show what it would do, on tensors without data."""
    modes = _get_current_dispatch_mode_stack()
    return any(type(mode).__name__ == "FakeTensorMode" for mode in modes)


def _with(signature: inspect.Signature, key: str | None) -> inspect.Signature:
    """Returns a signature with one more keyword argument."""
    if key is None:
        return signature
    parameters = [*signature.parameters.values()]
    if key in signature.parameters:
        raise FreezekitError(f"key={key!r}: forward has an argument of that name; choose another")
    last = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    extra = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters.insert(len(parameters) - last, extra)
    return signature.replace(parameters=parameters)
