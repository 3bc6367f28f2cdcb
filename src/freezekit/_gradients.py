"""The gradients of a model that is not to change: a pass over stand-ins for its tensors."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.func import functional_call

from .errors import FreezekitError

LossFn = Callable[[torch.nn.Module, Any], torch.Tensor]
"""Computes the loss of a model on a batch."""

_PIECE = 4096  # elements whose squares are summed in single precision


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Computes gradients inside, whatever the mode outside, and leaves no trace of them.

    Torch's random generators are put back, and what modules keep of a pass: attributes of their
    own, and the members of their lists and dicts, among them buffers that are new.
    """
    devices = {parameter.device for parameter in model.parameters()}
    kinds = {device.type for device in devices} - {"cpu", "meta", "mps"}  # fork_rng has no mps
    attributes = [module.__dict__ for module in model.modules()]
    kept = [each for held in attributes for each in (held, *held.values()) if _is_kept(each)]
    before = [each.copy() for each in kept]
    kind = kinds.pop() if kinds else "cuda"
    numbers = [device.index or 0 for device in devices if device.type == kind]
    rng = torch.random.fork_rng(numbers, device_type=kind)
    with rng, torch.inference_mode(False), torch.enable_grad():
        try:
            yield
        finally:
            for held, members in zip(kept, before, strict=True):
                held.clear()
                if isinstance(held, list):
                    held.extend(members)
                else:
                    held.update(members)


def _is_kept(held: object) -> bool:
    return type(held) in (dict, OrderedDict, list, set)


def gradient_norms(
    model: torch.nn.Module,
    named: Mapping[str, torch.nn.Parameter],
    batches: Iterable[Any],
    loss_fn: LossFn,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields, for each batch, the gradient norms of the parameters that the loss depends on.

    Every batch meets the model as it is: the stand-ins share memory with the parameters, and the
    buffers are copied anew. A gradient is dropped once its norm is known, so that hardly more
    than one is in memory at a time. To be used within `undisturbed`.

    Args:
        model: the model, without wrappers.
        named: its parameters by canonical name.
        batches: what `loss_fn` gets, one after the other.
        loss_fn: computes the loss.

    Raises:
        FreezekitError: a loss is no finite scalar or depends on no parameter, or a gradient is
            not finite.
    """
    norms: dict[str, torch.Tensor] = {}
    leaves: dict[int, torch.Tensor] = {}
    for name, parameter in named.items():
        if parameter.is_floating_point() or parameter.is_complex():
            leaf = leaves[id(parameter)] = parameter.detach().requires_grad_()
            hook = partial(_take, norms, name)
            leaf.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    run = Carrier(model)
    for number, batch in enumerate(batches):
        norms.clear()
        backward = partial(_backward, loss_fn, batch, number, tuple(leaves.values()))
        # The slots hold each tensor at all its names already.
        functional_call(run, run.slots(leaves), (backward,), tie_weights=False)
        if not norms:
            raise FreezekitError(_no_gradient(model, number))
        for name, found in norms.items():
            if not found.isfinite():
                raise FreezekitError(
                    f"the gradient of {name!r} in batch {number} is not finite; score in float32, "
                    "or look for the operation that overflows"
                )
        yield norms


class Carrier(torch.nn.Module):
    """A model with what is done to it, so that backward meets the stand-ins too.

    Activation checkpointing calls the model again during backward.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[torch.nn.Module], None]) -> None:
        """Does with the model what is to be done."""
        work(self.model)

    def slots(
        self,
        leaves: Mapping[int, torch.Tensor],
        copied: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
    ) -> dict[str, torch.Tensor]:
        """Returns the stand-in for each tensor of each module: leaves, and copies of buffers.

        Args:
            leaves: the stand-ins for parameters, by the identity of these.
            copied: copies a buffer.
        """
        found, copies = dict[str, torch.Tensor](), dict[int, torch.Tensor]()
        for path, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if id(parameter) in leaves:
                    found[f"{path}.{name}"] = leaves[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    copy = copies.setdefault(id(buffer), copied(buffer.detach()))
                    found[f"{path}.{name}"] = copy
        return found


def _backward(
    loss_fn: LossFn,
    batch: object,
    number: int,
    leaves: Sequence[torch.Tensor],
    model: torch.nn.Module,
) -> None:
    """Computes the loss and the gradients of the leaves, no others."""
    loss = loss_fn(model, batch)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        shape = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise FreezekitError(
            f"loss_fn returned {shape} for batch {number}; expected a tensor with one element, "
            "e.g. loss.mean()"
        )
    if not loss.requires_grad:
        raise FreezekitError(_no_gradient(model, number))
    if not loss.isfinite():
        raise FreezekitError(f"the loss of batch {number} is {loss.item()}, without gradients")
    torch.autograd.backward(loss, inputs=leaves)


def _no_gradient(model: torch.nn.Module, number: int) -> str:
    return (
        f"the loss of batch {number} does not depend on any parameter of {type(model).__name__}; "
        "compute it from what model(...) returns, without detach() or no_grad()"
    )


def _take(norms: dict[str, torch.Tensor], name: str, leaf: torch.Tensor) -> None:
    """Keeps the norm of a gradient that has arrived and drops the gradient."""
    assert leaf.grad is not None
    norms[name] = norm(leaf.grad)
    leaf.grad = None


@torch.no_grad()
def norm(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the Euclidean norm.

    Long sums lose digits in single precision, a tenth of a percent in an embedding, and a copy in
    double would need the memory: so the norms of short pieces, then the norm of these in double.
    """
    if tensor.layout != torch.strided:
        tensor = tensor.coalesce().values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    flat = tensor.flatten()
    whole = len(flat) // _PIECE * _PIECE
    pieces = (flat[:whole].view(-1, _PIECE), flat[whole:].view(1, -1))
    kind = torch.float64 if flat.dtype == torch.float64 else torch.float32
    norms = [torch.linalg.vector_norm(piece, dim=1, dtype=kind) for piece in pieces]
    wide = torch.float32 if flat.device.type == "mps" else torch.float64
    found: torch.Tensor = torch.linalg.vector_norm(torch.cat(norms), dtype=wide)
    return found


def joint_norm(norms: Iterable[torch.Tensor]) -> float:
    """Returns the norm of several tensors as one vector, given the norm of each."""
    return math.hypot(*(each.item() for each in norms))
