"""What FSDP has made of parameters: parts of them, under their names or flattened into one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

FLAT = "_flat_param"
"""What the first generation of FSDP calls the parameter that all others are flattened into."""


def is_sharded(tensor: torch.Tensor) -> bool:
    """Returns whether FSDP of either generation has a parameter, and averages its gradients."""
    return is_dtensor(tensor) or is_flattened(tensor)


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor is spread over ranks, as FSDP2 does it.

    Takes long to import what knows, so without a group of processes it is not asked.
    """
    if not may_be_sharded():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def is_flattened(tensor: torch.Tensor) -> bool:
    """Returns whether the first generation of FSDP has a parameter: here is its part of it."""
    return getattr(tensor, "_fsdp_flattened", False) is True


def may_be_sharded() -> bool:
    """Returns whether a parameter may be sharded: it takes a group of processes."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized()


def own_shapes(wrappers: Iterable[torch.nn.Module]) -> Iterator[tuple[int, torch.Size]]:
    """Yields the identity of each flattened parameter in wrappers of FSDP, and its own shape.

    Args:
        wrappers: wrappers of any kind.
    """
    for wrapper in wrappers:
        handle = wrapper.__dict__.get("_handle")
        flat = getattr(handle, "flat_param", None)
        for parameter, shape in zip(
            getattr(flat, "_params", None) or (), getattr(flat, "_shapes", ()), strict=False
        ):
            yield id(parameter), shape


def reshard(modules: Iterable[torch.nn.Module]) -> None:
    """Puts the parts back that FSDP2 exchanges for whole parameters in a forward pass.

    After one without backward, an evaluation, the whole ones still stand in the root; what is
    written to them is lost.

    Args:
        modules: those of the model.
    """
    if may_be_sharded():
        from torch.distributed.fsdp import FSDPModule

        for module in modules:
            if isinstance(module, FSDPModule):
                module.reshard()


def ask_again(modules: Iterable[torch.nn.Module]) -> None:
    """Lets FSDP2 see what trains in groups that were all frozen when it first looked.

    It reads the dtypes of mixed precision off what trains in the first forward pass. A group of
    which nothing did then fails as soon as something does.

    Args:
        modules: those of the model, after a parameter began to train.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in modules:
        if isinstance(module, FSDPModule):
            state: Any = module._get_fsdp_state()
            single = () if hasattr(state, "_fsdp_param_groups") else (state._fsdp_param_group,)
            for group in getattr(state, "_fsdp_param_groups", single):
                if group is not None and getattr(group, "_orig_dtype", group) is None:
                    group._init_mp_dtypes()


def stored(parameter: torch.Tensor) -> torch.Tensor:
    """Returns what this rank keeps of a parameter, of which ZeRO 3 leaves nothing in its place."""
    part = getattr(parameter, "ds_tensor", None)
    return part if isinstance(part, torch.Tensor) else parameter


def problem(name: str) -> str:
    """Returns why a flattened parameter without a shape of its own cannot be planned for.

    Args:
        name: what it is called.
    """
    if name.rpartition(".")[2] == FLAT:
        return (
            f"FullyShardedDataParallel has flattened the parameters of the model into {name!r}, "
            "which can only train as a whole; wrap with use_orig_params=True"
        )
    return (
        f"{name!r} is flattened by a FullyShardedDataParallel around this model, and only that "
        "knows its shape; pass the wrapper, or apply the plan before the model is wrapped"
    )
