"""What a case of the comparison offers, and how one cell of it is trained and judged."""

import copy
from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple, Protocol

import torch
from cells import Cell, Result
from probe import fit_head
from strategy import PROBE, SCRATCH, Budget, plan_for
from torch import Tensor, nn


class Split(NamedTuple):
    """Inputs and labels to train with, and those to judge with."""

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


class Case(Protocol):
    """A pre-trained model and what it may be asked to learn.

    Attributes:
        name: "vision" or "text".
        distances: how far the new task is from the pre-training, nearest first.
        sizes: training samples of each class.
        seeds: each draws other samples, another head and another order.
        budget: the training that each strategy gets.
    """

    name: str
    distances: Sequence[str]
    sizes: Sequence[int]
    seeds: Sequence[int]
    budget: Budget

    def model(self, distance: str) -> nn.Module:
        """Returns the pre-trained model with a new `head`; the generator of torch draws it."""

    def untrained(self, distance: str) -> nn.Module:
        """Returns the same model without what was learned."""

    def data(self, distance: str, size: int, seed: int) -> Split:
        """Returns `size` samples of each class, drawn with the seed, and the held-out ones."""

    def source_accuracy(self, model: nn.Module) -> float:
        """Returns how well the model still does what it was pre-trained for."""

    def trim(self, inputs: Tensor) -> Tensor:
        """Returns a batch without the padding that none of its rows needs."""


def cells_of(case: Case, strategies: Sequence[str]) -> list[Cell]:
    """Returns the cells of a case: seed by seed, so that a part of them is a whole comparison."""
    return [
        Cell(case.name, distance, size, strategy, seed)
        for seed in case.seeds
        for size in case.sizes
        for distance in case.distances
        for strategy in strategies
    ]


def run_cell(case: Case, cell: Cell) -> Result:
    """Trains one cell and judges it."""
    split = case.data(cell.distance, cell.size, cell.seed)
    torch.manual_seed(cell.seed)
    make = case.untrained if cell.strategy == SCRATCH else case.model
    model = make(cell.distance)
    if cell.strategy == PROBE:
        model.head = fit_head(features(case, model, split.inputs), split.labels)
    else:
        train(case, model, cell, split)
    held_out = accuracy(case, model, split.test_inputs, split.test_labels)
    return Result(held_out, case.source_accuracy(model))


def train(case: Case, model: nn.Module, cell: Cell, split: Split) -> None:
    """Trains a model by the plan of a cell's strategy."""
    budget = case.budget
    applied = plan_for(cell.strategy, model, budget).apply(
        model, steps_per_epoch=budget.steps, total_epochs=1
    )
    optimizer = applied.optimizer(torch.optim.AdamW, lr=budget.lr, weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, budget.steps)
    order = batches(len(split.labels), budget, cell.seed)
    model.train()
    with applied.guard():
        for step, rows in enumerate(order):
            applied.advance(epoch=0, step=step)
            logits = model(case.trim(split.inputs[rows]))
            loss = nn.functional.cross_entropy(logits, split.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


def batches(rows: int, budget: Budget, seed: int) -> list[Tensor]:
    """Returns the rows of each batch: all of them in a new order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    needed = budget.steps * budget.batch
    rounds = [torch.randperm(rows, generator=generator) for _ in range(-(-needed // rows))]
    return list(torch.cat(rounds)[:needed].split(budget.batch))


def draw(labels: Tensor, size: int, seed: int) -> Tensor:
    """Returns rows of `size` samples of each label, or all; the same first ones for any size."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in labels.unique():
        pool = (labels == label).nonzero().flatten()
        rows.append(pool[torch.randperm(len(pool), generator=generator)[:size]])
    return torch.cat(rows)


@torch.no_grad()
def accuracy(case: Case, model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Returns the share of inputs that a model gives the right label."""
    model.eval()
    right = sum(
        int((model(case.trim(x)).argmax(1) == y).sum())
        for x, y in zip(inputs.split(64), labels.split(64), strict=True)
    )
    return right / len(labels)


@torch.no_grad()
def features(case: Case, model: nn.Module, inputs: Tensor) -> Tensor:
    """Returns what the head of a model gets for inputs (N, ...): features (N, width)."""
    extractor = with_head(model, nn.Identity()).eval()
    return torch.cat([extractor(case.trim(each)) for each in inputs.split(64)])


def relative_cost(case: Case, strategy: str) -> float:
    """Returns what freezekit predicts a plan to cost: its FLOPs over those of full fine-tuning.

    Nothing is trained for it: the model runs forward and backward once for each phase, on tensors
    without data. A phase counts by its steps. For the probe every sample counts once, in the mean
    over the sizes, and not again and again; to fit the head on its features costs next to nothing.
    """
    nearest, steps = case.distances[0], case.budget.steps
    if strategy == PROBE:
        samples = mean(len(case.data(nearest, size, 0).labels) for size in case.sizes)
        return relative_cost(case, "frozen") * samples / (steps * case.budget.batch)
    model = case.model(nearest)
    inputs = case.data(nearest, min(case.sizes), 0).inputs[: case.budget.batch]
    resolved = plan_for(strategy, model, case.budget).resolve(
        model, steps_per_epoch=steps, total_epochs=1, example_inputs=case.trim(inputs)
    )
    phases = [resolved.at(epoch=0, step=step).index for step in range(steps)]
    taken = sum(resolved.compute.phases[index].flops for index in phases)
    return taken / (resolved.compute.full.flops * steps)


def with_head(model: nn.Module, head: nn.Module) -> nn.Module:
    """Returns a copy of a model with another head."""
    model = copy.deepcopy(model)
    model.head = head
    return model
