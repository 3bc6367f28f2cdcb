"""Runs the comparison: every cell that `results.csv` lacks, then the tables and the plots.

`python run.py` does it all and can be stopped at any time: it goes on where it was. `python run.py
--check` trains a few cells again and says whether they agree with what is in the file.
"""

import argparse
import csv
import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import torch
from strategy import SCRATCH, STRATEGIES
from task import Case, Cell, Result, cells_of, relative_cost, run_cell
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
FIELDS = (*Cell._fields, *Result._fields)
CHECKED = [Cell("vision", "near", 8, name, 0) for name in ("frozen", "top", "full")]
Results = dict[Cell, Result]


@lru_cache
def case_of(name: str) -> Case:
    """Returns a case, made once in each process."""
    torch.set_num_threads(1)
    if name == "vision":
        from digits import Digits

        return Digits()
    from sentences import Sentences

    return Sentences()


def train(cell: Cell) -> tuple[Cell, Result]:
    """Returns a cell with its result."""
    return cell, run_cell(case_of(cell.case), cell)


def trained(cells: list[Cell], jobs: int) -> Iterator[tuple[Cell, Result]]:
    """Yields cells with their results, in `jobs` processes."""
    if jobs == 1:
        yield from map(train, cells)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(train, cells)


def read(path: Path) -> Results:
    """Returns the results in a file, none if it is not there."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            Cell(row["case"], row["distance"], int(row["size"]), row["strategy"], int(row["seed"])): (
                Result(float(row["accuracy"]), float(row["source"]))
            )
            for row in csv.DictReader(file)
        }


def write(path: Path, results: Results) -> None:
    """Writes results in the order of their cells."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        for cell in sorted(results, key=str):
            writer.writerow([*cell, *(f"{value:.4f}" for value in results[cell])])


def run(path: Path, cells: Iterable[Cell], jobs: int) -> Results:
    """Trains the cells that a file lacks, and adds each to it as soon as it is done."""
    results = read(path)
    missing = [cell for cell in cells if cell not in results]
    write(path, results)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for cell, result in tqdm(trained(missing, jobs), total=len(missing), unit="cell"):
            writer.writerow([*cell, *(f"{value:.4f}" for value in result)])
            file.flush()
    results = read(path)
    write(path, results)
    return results


def main() -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=("vision", "text"), default=["vision", "text"])
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.csv")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one thread")
    args = parser.parse_args()
    path = args.output / "results.csv"
    cells = [
        cell for name in args.cases for cell in cells_of(case_of(name), strategies_of(name))
    ]
    run(path, cells, args.jobs)


def strategies_of(case: str) -> list[str]:
    """Returns the strategies of a case; the cheap one also has the lowest layers and no weights."""
    if case == "vision":
        return [*STRATEGIES, SCRATCH]
    return [name for name in STRATEGIES if name != "bottom"]


if __name__ == "__main__":
    main()
