"""The guard: proof that what is frozen did not change, without a copy of it."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, Self

import torch

from ._digest import NO_CONTENT, digest
from .errors import FrozenChangedError

_SPELLED = 5
_GONE = "it is gone from the model"
_REPLACED = (
    "it is not the object that was frozen: the parameter was replaced; change the model before "
    "apply, or release the plan and apply it again"
)


class _Seen(NamedTuple):
    """What one tensor held when a block was entered."""

    digest: bytes
    tensor: weakref.ref[torch.Tensor]


class Guard:
    """A context manager that raises if a tensor that was frozen throughout has changed.

    Remembers a digest of each tensor. May be entered again, also while it is entered.
    """

    def __init__(
        self, find: Callable[[], Mapping[str, torch.Tensor]], why: Callable[[str], str]
    ) -> None:
        """Guards what `find` returns.

        Args:
            find: returns the tensors that are frozen at the time it is called, by name.
            why: returns the likely cause of a change of the tensor of a name.
        """
        self._find = find
        self._why = why
        self._blocks: list[dict[str, _Seen]] = []

    def narrow(self) -> None:
        """Forgets for good what is not frozen any more. To be called at every transition."""
        if self._blocks:
            frozen = self._find()
            self._blocks = [
                {name: seen for name, seen in block.items() if name in frozen}
                for block in self._blocks
            ]

    def check(self) -> None:
        """Compares now, in the middle of a block, with the start of the outermost one.

        Raises:
            FrozenChangedError: a tensor changed that was frozen throughout.
        """
        if self._blocks:
            self._compare(self._blocks[0])

    def __enter__(self) -> Self:
        self._blocks.append(
            {name: _Seen(digest(each), weakref.ref(each)) for name, each in self._find().items()}
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        block = self._blocks.pop()
        if error is None:
            self._compare(block)

    def _compare(self, block: Mapping[str, _Seen]) -> None:
        causes = dict(self._changed(block))
        if not causes:
            return
        names = tuple(causes)
        told = [f"  {name!r}: {causes[name] or self._why(name)}" for name in names[:_SPELLED]]
        if len(names) > _SPELLED:
            told.append(f"  and {len(names) - _SPELLED} more, all in `names` of this error")
        count = "1 frozen tensor" if len(names) == 1 else f"{len(names)} frozen tensors"
        raise FrozenChangedError(f"{count} changed:\n" + "\n".join(told), names)

    def _changed(self, block: Mapping[str, _Seen]) -> Iterator[tuple[str, str]]:
        """Yields each tensor that changed, with the cause where the tensor itself tells it."""
        frozen = self._find()
        for name, seen in block.items():
            tensor = frozen.get(name)
            if tensor is None:
                yield name, _GONE
            elif seen.digest != NO_CONTENT and digest(tensor) != seen.digest:
                replaced = isinstance(tensor, torch.nn.Parameter) and seen.tensor() is not tensor
                yield name, _REPLACED if replaced else ""


def likely_cause(
    name: str,
    tensor: torch.Tensor | None,
    optimizers: Iterable[torch.optim.Optimizer],
    training: bool = False,
) -> str:
    """Returns what most likely changed a frozen tensor, and the way out.

    Args:
        name: what the tensor is called.
        tensor: what stands under the name now.
        optimizers: those that train the model.
        training: whether the module it belongs to is in train mode.
    """
    if tensor is None:
        return _GONE
    if isinstance(tensor, torch.nn.Parameter):
        if tensor.requires_grad:
            return f"its requires_grad was switched back on; say unfreeze({name!r}) in the plan"
        if tensor.grad is not None and _is_held(tensor, optimizers):
            return (
                "an optimizer stepped it: it has a grad, which freezing clears and something set "
                "again; set it to None"
            )
    elif training:
        return (
            "its module is in train mode, where running statistics move; switch modes with train() "
            "and eval(), which leave frozen modules alone"
        )
    return (
        "it was written outside an optimizer (load_state_dict, an in-place operation, weight "
        "averaging); do that outside the guard"
    )


def _is_held(tensor: torch.Tensor, optimizers: Iterable[torch.optim.Optimizer]) -> bool:
    return any(
        tensor is each
        for optimizer in optimizers
        for group in optimizer.param_groups
        for each in group["params"]
    )
