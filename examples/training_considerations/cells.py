"""What is compared and what came out: cells, their results, and the files that hold them."""

import csv
from pathlib import Path
from typing import NamedTuple, TypeAlias

DISTANCES = ("near", "middle", "far")


class Cell(NamedTuple):
    """One training of the comparison.

    Attributes:
        case: "vision" or "text".
        distance: one of `DISTANCES`: how far the new task is from the pre-training.
        size: training samples of each class.
        strategy: what trains, a name of `strategy.py`.
        seed: draws the samples, the head and the order.
    """

    case: str
    distance: str
    size: int
    strategy: str
    seed: int


class Result(NamedTuple):
    """What a cell gave.

    Attributes:
        accuracy: on the held-out samples of the new task.
        source: on the task of the pre-training, after the transfer.
    """

    accuracy: float
    source: float


Results: TypeAlias = dict[Cell, Result]
Costs: TypeAlias = dict[str, dict[str, float]]
"""FLOPs of each strategy over those of full fine-tuning, by case."""


def row_of(cell: Cell, result: Result) -> list[object]:
    """Returns a line of the file of results."""
    return [*cell, *(f"{value:.4f}" for value in result)]


def read_results(path: Path) -> Results:
    """Returns the results in a file, none if it is not there."""
    return {
        Cell(case, distance, int(size), strategy, int(seed)): Result(float(accuracy), float(source))
        for case, distance, size, strategy, seed, accuracy, source in _rows(path)
    }


def write_results(path: Path, results: Results) -> None:
    """Writes results in the order of their cells."""
    _write(
        path, (*Cell._fields, *Result._fields), [row_of(*each) for each in sorted(results.items())]
    )


def read_costs(path: Path) -> Costs:
    """Returns the costs in a file, none if it is not there."""
    costs: Costs = {}
    for case, strategy, cost in _rows(path):
        costs.setdefault(case, {})[strategy] = float(cost)
    return costs


def write_costs(path: Path, costs: Costs) -> None:
    """Writes costs, case by case."""
    rows = [[case, name, f"{cost:.3f}"] for case in costs for name, cost in costs[case].items()]
    _write(path, ("case", "strategy", "cost"), rows)


def _rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # a killed run tears a line
    return list(csv.reader(whole.splitlines()))[1:]


def _write(path: Path, header: tuple[str, ...], rows: list[list[object]]) -> None:
    written = path.with_suffix(".new")
    with written.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([header, *rows])
    written.replace(path)  # so that a killed run leaves the old file or the new one
