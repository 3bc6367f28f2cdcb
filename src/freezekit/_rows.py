"""Rules about some rows of a tensor: the others are as they were after every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.utils.hooks import RemovableHandle

from ._cascade import Decision
from ._rules import parse_rows
from ._sharding import is_sharded
from .errors import FreezekitError

Index: TypeAlias = slice | list[int]


def frozen_rows(decision: Decision, count: int) -> list[Index]:
    """Returns what picks the rows of a trainable tensor that stay frozen.

    Args:
        decision: what holds for the tensor.
        count: how many rows it has.
    """
    if decision.rows is None:
        return []
    named = range(count)[parse_rows(decision.rows)]
    if not decision.rows_train:
        return [slice(named.start, named.stop, named.step)]
    if named.step > 1:
        return [[row for row in range(count) if row not in named]]
    runs = [slice(0, named.start), slice(named.stop, count)]
    return [run for run in runs if run.start < run.stop]


class RowKeeper:
    """Keeps the frozen rows of one tensor, and keeps their gradients out of norms and moments."""

    def __init__(
        self, name: str, find: Callable[[], torch.nn.Parameter], runs: list[Index], count: int
    ) -> None:
        """Watches the gradients of the tensor.

        Args:
            name: its canonical name.
            find: returns it as it stands in the model.
            runs: the frozen rows.
            count: how many rows it has.

        Raises:
            FreezekitError: it is not whole here: sharded or flattened.
        """
        self._name = name
        self._find = find
        self._count = count
        self._runs = runs
        self._kept: list[torch.Tensor] = []
        watched: Any = self._whole()
        self._mask(watched)
        self._handle: RemovableHandle = watched.register_post_accumulate_grad_hook(self._mask)

    def before(self) -> None:
        """Notes the frozen rows."""
        parameter = self._whole()
        self._kept = [parameter.detach()[run].clone() for run in self._runs]

    def after(self) -> None:
        """Puts the frozen rows back."""
        if self._kept:
            with torch.no_grad():
                for run, kept in zip(self._runs, self._kept, strict=True):
                    self._find()[run] = kept
            self._kept = []

    def remove(self) -> None:
        """Lets the tensor go."""
        self._handle.remove()

    def _mask(self, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        if not gradient.is_sparse:
            for run in self._runs:
                gradient[run] = 0
            return
        gradient = gradient.coalesce()
        frozen = torch.zeros(self._count, dtype=torch.bool, device=gradient.device)
        for run in self._runs:
            frozen[run] = True
        live = ~frozen[gradient.indices()[0]]
        parameter.grad = torch.sparse_coo_tensor(
            gradient.indices()[:, live],
            gradient.values()[live],
            gradient.shape,
            check_invariants=False,
            is_coalesced=True,
        )

    def _whole(self) -> torch.nn.Parameter:
        parameter = self._find()
        check_whole(self._name, parameter, self._count)
        return parameter


def check_whole(name: str, parameter: torch.nn.Parameter, count: int) -> None:
    """Raises where a tensor does not have all its rows here: it is sharded, or resized."""
    if is_sharded(parameter) or len(parameter) != count:
        raise FreezekitError(
            f"rows of {name!r} cannot be kept: it had {count} rows when the plan was applied and "
            "is sharded or resized now; unfreeze the whole tensor instead"
        )
