"""Runs a training with a cache and without, and says whether both came to the same."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from freezekit import AppliedPlan, FreezePlan
from freezekit.cache import ActivationCache, CacheRefusedError

Batch = tuple[Any, ...] | dict[str, Any]


class Run(NamedTuple):
    """One training run: its model, its plan that was applied, and what is to be compared.

    Attributes:
        model: the model.
        applied: the plan.
        optimizer: of what trains.
        seen: tensors to compare, in order.
    """

    model: nn.Module
    applied: AppliedPlan
    optimizer: torch.optim.Optimizer
    seen: list[torch.Tensor]

    def note(self, value: Any) -> None:  # noqa: ANN401
        """Notes the tensors in a value."""
        leaves = (each for each in tree_leaves(value) if isinstance(each, torch.Tensor))
        self.seen.extend(each.detach().clone() for each in leaves)

    def call(self, batch: Batch) -> Any:  # noqa: ANN401
        """Calls the model with a batch and notes what it returns."""
        result = self.model(**batch) if isinstance(batch, dict) else self.model(*batch)
        self.note(result)
        return result

    def step(self, batch: Batch) -> None:
        """Takes a training step, and notes outputs, gradients, and what the model holds after."""
        self.optimizer.zero_grad()
        loss = total(self.call(batch))
        if loss is not None:
            loss.backward()
            self.note([each.grad for each in self.model.parameters()])
            self.optimizer.step()
        self.note([*self.model.parameters(), *self.model.buffers()])


class UnfitError(Exception):
    """A run fails without a cache too."""


class Verdict(NamedTuple):
    """What a trial came to.

    Attributes:
        difference: the largest between the runs.
        hits: rows that were answered.
        refused: the reason, if it was refused.
        cut: whether rows were stored without their padding.
    """

    difference: float
    hits: int
    refused: str
    cut: bool = False

    @property
    def right(self) -> bool:
        """Whether nothing was wrong, refused or not."""
        return bool(self.refused) or self.difference < 1e-4


Drive = Callable[[Run], None]


def total(result: Any) -> torch.Tensor | None:  # noqa: ANN401
    """Returns a scalar of all that has a gradient in what a model returns."""
    leaves = [each for each in tensors_of(result) if each.requires_grad]
    parts = [
        (each * torch.linspace(0.5, 1.5, each.numel()).view(each.shape)).sum() for each in leaves
    ]
    return sum(parts[1:], parts[0]) if parts else None


def tensors_of(value: Any) -> list[torch.Tensor]:  # noqa: ANN401
    """Returns the tensors in a value, in objects too."""
    if (
        not isinstance(value, torch.Tensor)
        and hasattr(value, "__dict__")
        and not isinstance(value, dict)
    ):
        value = vars(value)
    return [each for each in tree_leaves(value) if isinstance(each, torch.Tensor)]


def steps(*batches: Batch) -> Drive:
    """Returns a drive that takes a training step with each of some batches."""

    def drive(run: Run) -> None:
        for batch in batches:
            run.step(batch)

    return drive


def trial(
    build: Callable[[], nn.Module],
    plan: FreezePlan,
    drive: Drive,
    **options: Any,  # noqa: ANN401
) -> Verdict:
    """Returns how a run with a cache compares with the same run without.

    Args:
        build: makes the model; seeded.
        plan: what is frozen.
        drive: does the training, of a run.
        options: of the cache.
    """
    runs: list[list[torch.Tensor]] = []
    hits, refused, cut = 0, "", False
    for cached in (False, True):
        torch.manual_seed(0)
        model = build()
        applied = plan.apply(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.5)
        run = Run(model, applied, optimizer, [])
        torch.manual_seed(1)
        if not cached:
            try:
                drive(run)
            except RuntimeError as error:
                raise UnfitError from error
        else:
            with ActivationCache(applied, **options) as cache:
                try:
                    drive(run)
                except CacheRefusedError as error:
                    refused = error.reason
                hits = cache.stats().hits
                ways = (way for way in cache._ways._known.values() if way is not None)
                cut = any(None in tap.row_shape for way in ways for tap in way.taps())
        runs.append(run.seen)
    if refused:
        return Verdict(0.0, hits, refused)
    return Verdict(distance(*runs), hits, "", cut)


def distance(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """Returns the largest difference between tensors, relative to the largest value of each."""
    if len(ones) != len(others):
        return float("inf")
    found = 0.0
    for one, other in zip(ones, others, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return float("inf")
        one, other = one.double(), other.double()
        if not torch.equal(one.isfinite(), other.isfinite()):
            return float("inf")
        kept = one.isfinite()
        if kept.any():
            size = max(float(one[kept].abs().max()), 1e-2)
            found = max(found, float((one[kept] - other[kept]).abs().max()) / size)
    return found
