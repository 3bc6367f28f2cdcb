"""Runs the comparison: every cell that `results.csv` lacks, then the tables and the plots.

`python run.py` does all of it and can be stopped at any time: it goes on where it was. `python
run.py --check` trains a few cells again and says whether they agree with the file; `python run.py
--output again --against results.csv` trains all of them again and compares every mean.
"""

import argparse
import csv
import multiprocessing
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import report
import torch
from cells import (
    Cell,
    Result,
    Results,
    read_costs,
    read_results,
    row_of,
    write_costs,
    write_results,
)
from rule import POINT
from strategy import PROBE, SCRATCH, STRATEGIES
from tqdm import tqdm
from trial import Case, cells_of, relative_cost, run_cell

HERE = Path(__file__).resolve().parent
CASES = ("vision", "text")
CHECKED = (
    Cell("vision", "near", 8, "frozen", 0),
    Cell("vision", "near", 64, "probe", 0),
    Cell("vision", "far", 64, "gradual", 0),
    Cell("text", "middle", 24, "probe", 0),
    Cell("text", "near", 24, "frozen", 0),
)


@lru_cache
def case_of(name: str) -> Case:
    """Returns a case, made once in each process."""
    torch.set_num_threads(1)
    if name == "vision":
        from digits import Digits

        return Digits()
    from sentences import Sentences

    return Sentences()


def strategies_of(case: str) -> list[str]:
    """Returns the strategies of a case; the cheap one also has the lowest layers and no weights."""
    if case == "vision":
        return [PROBE, *STRATEGIES, SCRATCH]
    return [PROBE, *(name for name in STRATEGIES if name != "bottom")]


def train(cell: Cell) -> tuple[Cell, Result]:
    """Returns a cell with its result."""
    return cell, run_cell(case_of(cell.case), cell)


def trained(cells: list[Cell], jobs: int) -> Iterator[tuple[Cell, Result]]:
    """Yields cells with their results, trained in `jobs` processes."""
    if jobs == 1:
        yield from map(train, cells)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(train, cells)


def complete(path: Path, cells: Iterable[Cell], jobs: int = 1) -> Results:
    """Trains the cells that a file lacks, adds each as soon as it is done, and returns all."""
    results = read_results(path)
    missing = [cell for cell in cells if cell not in results]
    write_results(path, results)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for cell, result in tqdm(trained(missing, jobs), total=len(missing), unit="cell"):
            writer.writerow(row_of(cell, result))
            file.flush()
    write_results(path, read_results(path))
    return read_results(path)


def complete_costs(path: Path, cases: Iterable[str]) -> None:
    """Adds the costs that a file lacks; the network without weights costs what `full` does."""
    costs = read_costs(path)
    for case in cases:
        known = costs.setdefault(case, {})
        for name in tqdm([name for name in strategies_of(case) if name not in known], "costs"):
            known[name] = relative_cost(case_of(case), name)
    write_costs(path, costs)


def agrees(cell: Cell, again: Result, results: Results) -> bool:
    """Returns whether a cell's accuracies are within the error bars of what a file holds for it.

    A bar is two standard deviations over the seeds on either side, and a point at the least.
    """
    seeds = [result for other, result in results.items() if other[:-1] == cell[:-1]]
    return all(
        abs(getattr(again, field) - getattr(results[cell], field))
        <= max(2 * stdev(getattr(each, field) for each in seeds), POINT)
        for field in Result._fields
    )


def check(results: Results, cells: Iterable[Cell] = CHECKED) -> bool:
    """Trains cells again, and prints and returns whether they agree with what a file holds."""
    agreed = True
    for cell in cells:
        _, again = train(cell)
        fine = agrees(cell, again, results)
        agreed = agreed and fine
        name = f"{cell.case}, {cell.distance}, {cell.size} per class, {cell.strategy}"
        found, held = ("{:.3f}, source {:.3f}".format(*each) for each in (again, results[cell]))
        verdict = "agrees" if fine else "DIFFERS"
        print(f"{name}, seed {cell.seed}: {found}; in the file {held}: {verdict}")
    return agreed


def compare(again: Results, before: Results) -> bool:
    """Prints and returns whether every mean over the seeds is within the error bar of another file.

    The bar is a standard deviation over the seeds on either side, and a point at the least.
    """
    compared, apart = 0, 0
    for group, field in product(sorted({cell[:-1] for cell in before}), Result._fields):
        one, other = (
            [getattr(result, field) for cell, result in results.items() if cell[:-1] == group]
            for results in (again, before)
        )
        if not one:
            continue
        compared += 1
        if abs(mean(one) - mean(other)) > max(stdev(other), POINT):
            apart += 1
            where = ", ".join(map(str, (*group, field)))
            print(f"{where}: {mean(one):.3f}, before {mean(other):.3f}")
    print(f"{compared - apart} of {compared} means agree with those before")
    return compared > 0 and not apart


def main() -> int:
    """Does what the command line says; 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--output", type=Path, default=HERE, help="the folder of results.csv")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--check", action="store_true", help="train a few cells again and compare")
    parser.add_argument("--against", type=Path, metavar="FILE", help="other results, to compare")
    args = parser.parse_args()
    if args.against and not args.against.is_file():
        parser.error(f"--against: there is no file {args.against}")
    file = args.output / "results.csv"
    if args.check:
        return 0 if check(read_results(file)) else 1
    cells = [cell for name in args.cases for cell in cells_of(case_of(name), strategies_of(name))]
    args.output.mkdir(parents=True, exist_ok=True)
    results = complete(file, cells, args.jobs)
    if args.against:
        return 0 if compare(results, read_results(args.against)) else 1
    complete_costs(args.output / "costs.csv", args.cases)
    if args.output.resolve() == HERE:
        report.main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
