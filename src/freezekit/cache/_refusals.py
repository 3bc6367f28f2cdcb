"""Why something cannot be answered from a store: each reason with its remedy."""

import enum
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import torch
from torch.utils._pytree import tree_flatten

from .._sharding import is_sharded
from ..errors import FreezekitError

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, slice, type(...), type, enum.Enum,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format,
)  # fmt: skip
_DEPTH = 6
_SHOWN = 3

Versions = Sequence[tuple[str, torch.Tensor, int]]
States = Sequence[tuple[object, list[tuple[int, int]]]]


class CacheRefusedError(FreezekitError):
    """The frozen part of a model cannot be answered from a store, and why.

    Attributes:
        reason: a word for it, such as "random" or "no_prefix".

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan
        >>> from freezekit.cache import ActivationCache, CacheRefusedError
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> applied = FreezePlan().freeze("[1]").apply(model)
        >>> with ActivationCache(applied):
        ...     try:
        ...         _ = model(torch.randn(8, 4))
        ...     except CacheRefusedError as error:
        ...         print(error.reason)
        no_prefix
    """

    def __init__(self, message: str, reason: str = "") -> None:
        """Says what is wrong and what to do."""
        super().__init__(message)
        self.reason = reason


def refuse(reason: str, problem: str, remedy: str) -> NoReturn:
    """Raises what says that, and why, nothing is answered from a store."""
    raise CacheRefusedError(f"the frozen part cannot be cached: {problem}; {remedy}", reason)


def check_call(
    path: str, module: torch.nn.Module, states: States, buffers: Versions, result: object
) -> None:
    """Raises if a frozen call did more than compute its output from its inputs.

    Args:
        path: of the module.
        module: the module that was called.
        states: objects among its inputs, with what they held before.
        buffers: its buffers, with their versions before.
        result: what it returned.
    """
    for value, before in states:
        if before or tensors_within(value):
            refuse(
                "state",
                f"{path!r} got a {type(value).__name__}, which holds tensors of its own (a key-"
                "value cache, or the state of steps before)",
                "pass use_cache=False, or tensors in tuples and dicts",
            )
    for leaf in tree_flatten(result)[0]:
        if not (isinstance(leaf, torch.Tensor) or is_plain(leaf)):
            refuse(
                "state",
                f"{path!r} returns a {type(leaf).__name__}, of which nothing is known",
                "let it return tensors in tuples, dicts or dataclasses that torch.utils._pytree "
                "knows",
            )
    written = [name for name, tensor, version in buffers if tensor._version != version]
    if written:
        at = next(
            (name for name, each in module.named_modules() if each.training and has_stats(each)),
            "",
        )
        place = ".".join(part for part in (path, at) if part)
        refuse(
            "norm",
            f"{path!r} writes its buffer {written[0]!r} in each pass ({place!r} is in train mode)",
            "hold it in eval mode: let a rule freeze it without frozen_mode='train'",
        )


def refuse_random(path: str, module: torch.nn.Module) -> NoReturn:
    """Raises because a module with frozen parameters draws random numbers."""
    noisy = [
        ".".join(part for part in (path, name) if part)
        for name, each in module.named_modules()
        if each.training and "drop" in type(each).__name__.lower() and _rate(each)
    ]
    if noisy:
        kind = type(module.get_submodule(noisy[0][len(path) :].lstrip("."))).__name__
        refuse(
            "dropout",
            f"{path!r} draws random numbers: {_few(noisy)} ({kind}) in train mode",
            "hold it in eval mode: let a rule freeze it without frozen_mode='train'",
        )
    refuse(
        "random",
        f"{path!r} draws random numbers in each pass, in eval mode too",
        "give its functions training=self.training, or name a boundary above with boundary=...",
    )


def refuse_in_place(path: str) -> NoReturn:
    """Raises because a module with frozen parameters changes what it is given."""
    refuse(
        "in_place",
        f"{path!r} changes what it is given in place, as ReLU(inplace=True) does",
        "let it return a new tensor (inplace=False), or name a boundary above with boundary=...",
    )


def check_module(path: str, module: torch.nn.Module) -> None:
    """Raises if frozen modules are called for more than what they return, or hold parts only."""
    for name, each in module.named_modules():
        place = ".".join(part for part in (path, name) if part)
        hooks = (
            each._forward_hooks, each._forward_pre_hooks,
            each._backward_hooks, each._backward_pre_hooks,
        )  # fmt: skip
        if any(hooks):
            found = next(hook for some in hooks for hook in some.values())
            what = getattr(found, "__qualname__", type(found).__name__)
            refuse(
                "hooks",
                f"{place!r} is frozen and has a hook, {what}, which would no longer be called",
                "remove it, or name a boundary below it with boundary=...",
            )
        if each._compiled_call_impl is not None or hasattr(each, "_orig_mod"):
            refuse(
                "compiled",
                f"{place!r} is frozen and compiled",
                "compile the parts that train only, or do without the cache",
            )
        for parameter in each._parameters.values():
            if parameter is not None and is_sharded(parameter):
                refuse(
                    "sharded",
                    f"{place!r} is frozen and its parameters are spread over ranks",
                    "shard what trains only, or do without the cache",
                )


def has_stats(module: torch.nn.Module) -> bool:
    """Returns whether a module gathers statistics of what it sees."""
    return getattr(module, "track_running_stats", False) is True


def is_plain(value: object) -> bool:
    """Returns whether a value is a tensor or one that says all of itself."""
    return isinstance(value, (torch.Tensor, functools.partial, *_PLAIN))


def tensors_within(value: object) -> list[tuple[int, int]]:
    """Returns identities and sizes of the tensors that an object holds."""
    return [(id(each), each.numel()) for each in _search(value, _DEPTH)]


def _search(value: object, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for each in value.values():
            yield from _search(each, depth - 1)
    elif depth and isinstance(value, list | tuple | set):
        for each in value:
            yield from _search(each, depth - 1)
    elif depth and not isinstance(value, torch.nn.Module) and hasattr(value, "__dict__"):
        yield from _search(vars(value), depth - 1)


def _rate(module: torch.nn.Module) -> float:
    rate = getattr(module, "p", getattr(module, "drop_prob", 1.0))
    return float(rate) if isinstance(rate, int | float) else 1.0


def _few(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
