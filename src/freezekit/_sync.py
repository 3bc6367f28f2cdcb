"""Ranks: whose gradients are averaged between them, and by what."""

from collections.abc import Collection, Container, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from ._sharding import is_sharded, may_be_sharded
from ._verbs import counted
from .errors import FreezekitError

_REMEDY = (
    "wrap the model with freezekit.integrations.distributed.ddp(applied, model), with Accelerate "
    "freezekit.integrations.accelerate.prepare(accelerator, applied, model), which build DDP while "
    "all that ever trains is trainable"
)


def several_ranks() -> bool:
    """Returns whether other processes train the same model."""
    return may_be_sharded() and torch.distributed.get_world_size() > 1


def on_any_rank(here: bool, device: torch.device) -> bool:
    """Returns whether something holds on any rank; every rank must ask at the same moment."""
    if not several_ranks():
        return here
    said = torch.tensor(here, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
    return bool(said)


class Sync:
    """What averages the gradients of one applied model, as far as it is known.

    Attributes:
        trusted: something averages them that cannot be asked, or nothing is meant to.
    """

    def __init__(self) -> None:
        self.trusted = False
        self._known: WeakKeyDictionary[DistributedDataParallel, set[int] | None]
        self._known = WeakKeyDictionary()

    def register(
        self,
        wrapper: DistributedDataParallel,
        trained: Iterable[tuple[str, torch.Tensor]],
        closes: Container[int],
    ) -> None:
        """Takes a wrapper; among several ranks only if it goes along with all phases of a plan.

        Args:
            wrapper: DDP around the model or a part of it.
            trained: name and tensor of all that ever trains.
            closes: identities of the plan's tensors that are frozen in some phase.

        Raises:
            FreezekitError: it does not average the gradients of something inside it that trains,
                or waits in vain for those of something that is frozen.
        """
        known = known_to(wrapper)
        if several_ranks():
            inside = covered(wrapper)
            late = [name for name, each in trained if id(each) in inside and not _in(each, known)]
            if late:
                raise FreezekitError(
                    "DDP was built while these were frozen, so it will never average their "
                    f"gradients between the ranks: {counted(late, 'parameter')}; {_REMEDY}"
                )
            if any(each in closes for each in known or inside):
                _check_options(wrapper)
        self._known[wrapper] = known

    def asks(self) -> bool:
        """Returns whether it matters what averages the gradients of what begins to train."""
        return not self.trusted and several_ranks()

    def check(self, opening: Collection[tuple[str, torch.Tensor]]) -> None:
        """Raises if the ranks would drift apart because of what begins to train; see `asks`.

        Args:
            opening: name and tensor of what begins to train.

        Raises:
            FreezekitError: nothing is known to average their gradients.
        """
        alone = [name for name, tensor in opening if not self._averages(tensor)]
        if not alone:
            return
        if self._known:
            problem = "the DDP that the plan knows does not average the gradients of"
        else:
            problem = "no wrapper is known to average, between the ranks, the gradients of"
        raise FreezekitError(
            f"{problem} {counted(alone, 'parameter')}, so the ranks would drift apart without an "
            f"error; {_REMEDY}, or tell the plan what does it with "
            "freezekit.integrations.distributed.register(applied, wrapper), which also takes the "
            "bare model where they are averaged by other means or are not meant to be"
        )

    def _averages(self, tensor: torch.Tensor) -> bool:
        if is_sharded(tensor):
            return True
        return any(_in(tensor, known) for known in self._known.values())


def _in(tensor: torch.Tensor, known: set[int] | None) -> bool:
    return known is None or id(tensor) in known


def _check_options(wrapper: DistributedDataParallel) -> None:
    """Raises if DDP cannot go along with a parameter that is frozen in some phase."""
    if wrapper.static_graph:
        raise FreezekitError(
            "DDP with static_graph=True expects the parameters that train in the first step to "
            "train in all, and the plan freezes some meanwhile; build it without"
        )
    if not wrapper.find_unused_parameters:
        raise FreezekitError(
            "DDP with find_unused_parameters=False waits for the gradients of parameters that the "
            "plan freezes; build it with find_unused_parameters=True"
        )


def covered(ddp: DistributedDataParallel) -> set[int]:
    """Returns the identities of the parameters inside DDP that it was not told to ignore."""
    return {
        id(parameter)
        for name, parameter in ddp.module.named_parameters()
        if name not in ddp.parameters_to_ignore
    }


def known_to(ddp: DistributedDataParallel) -> set[int] | None:
    """Returns the identities of the parameters that DDP synchronises; None if it does not tell.

    It does not while a bucket for sparse gradients is still empty.
    """
    logged = ddp._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    if logged["num_parameter_tensors"] == len(ddp._module_parameters):
        return {id(parameter) for parameter in ddp._module_parameters}
    try:
        with _WithoutMemory():  # type: ignore[no-untyped-call]
            buckets = ddp.reducer._get_zeros_like_grad_buckets()
    except RuntimeError:
        return None
    return {id(parameter) for bucket in buckets for parameter in bucket.parameters()}


class _WithoutMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers `zeros_like` with a tensor that takes no memory."""

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple[Any, ...] = (), kwargs: object = None
    ) -> torch.Tensor:
        return torch.empty_like(args[0], device="meta")
