"""What functions of torch do with the tensors they get, as far as their names say it."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

import torch
from torch.utils._pytree import tree_flatten

LOOKS = frozenset((
    "size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point",
    "is_complex", "is_contiguous", "element_size", "__len__", "get_device", "storage_offset",
    "is_signed", "is_inference", "data_ptr", "__hash__", "shape", "dtype", "device", "ndim",
    "layout", "requires_grad", "is_cuda", "is_leaf", "grad_fn", "itemsize", "nbytes", "names",
    "is_nested", "is_sparse", "is_quantized", "is_meta", "is_mps", "is_xpu", "is_cpu",
    "_version", "output_nr", "is_sparse_csr", "is_mkldnn", "has_names", "is_conj", "is_neg",
    "dim_order", "retains_grad", "_is_view", "is_tensor", "is_same_size", "result_type",
    "is_shared", "is_pinned",
))  # fmt: skip
"""What reads of a tensor its form only."""

_SHAPED = frozenset((
    "nonzero", "argwhere", "unique", "unique_consecutive", "unique_dim", "masked_select",
))  # fmt: skip
"""What gives tensors whose form depends on values: whatever follows may depend on it."""

COUNTS = ("histc", "bincount")
"""What counts the rows of each kind, as where a mixture of experts sorts them to compute with."""

_PICKS = (torch.bool, torch.uint8)
"""What picks some elements where it is an index."""

CREATES = frozenset((
    "zeros_like", "ones_like", "empty_like", "rand_like", "randn_like", "randint_like",
    "full_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided",
    "new_tensor",
))  # fmt: skip
"""What reads of its first argument its form only."""

HEAVY = (
    "linear",
    "conv",
    "mm",
    "mv",
    "matmul",
    "einsum",
    "attention",
    "lstm",
    "gru",
    "rnn",
    "scan",
)
"""Parts of the names of functions that are worth to be spared."""


def tells(name: str, result: object, tensors: Sequence[torch.Tensor]) -> bool:
    """Returns whether a function told Python something about values."""
    if name in _SHAPED or (name == "where" and len(tensors) == 1):
        return True
    if name == "__getitem__" and any(each.dtype in _PICKS for each in tensors[1:]):
        return True
    return any(leaf is not None and not is_tensor(leaf) for leaf in tree_flatten(result)[0])


def function_name(func: Any) -> str:  # noqa: ANN401
    """Returns the name of what a torch function mode intercepts; of a property, the property's."""
    name: str = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        prefix = "" if name == "__get__" else "set "
        name = prefix + getattr(func.__self__, "__name__", name)
    return name or type(func).__name__


def flattened(value: object) -> Iterator[object]:
    """Yields what is in nested lists, tuples, dicts and what pytrees know."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from flattened(each)
    elif isinstance(value, Mapping):
        yield from flattened(list(value.values()))
    else:
        yield value


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Returns whether a value is a tensor."""
    return isinstance(value, torch.Tensor)


def version(tensor: torch.Tensor) -> int:
    """Returns how often a tensor was written to in place; -1 if that is not counted."""
    return -1 if tensor.is_inference() else tensor._version


def place_of(tensor: torch.Tensor) -> int | None:
    """Returns which memory a tensor lies in; None if it has none of its own."""
    try:
        place: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return None
    return place


def random_state() -> torch.Tensor:
    """Returns the state of torch's generators, of the CPU and of accelerators in use."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += torch.cuda.get_rng_state_all()
    return torch.cat(states)


def rewinding() -> Callable[[], None]:
    """Returns what puts torch's generators back to now, of the CPU and of accelerators in use."""
    cpu = torch.get_rng_state()
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    others = torch.cuda.get_rng_state_all() if used else []

    def rewind() -> None:
        torch.set_rng_state(cpu)
        if others:
            torch.cuda.set_rng_state_all(others)

    return rewind


def uncompiled() -> AbstractContextManager[None]:
    """Runs compiled functions as they were written: what they do could not be followed else."""
    if "torch._dynamo" not in sys.modules:  # To import it takes seconds, and nothing is compiled.
        return nullcontext()
    found: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return found
