"""Tables and plots of the page from the results: `python report.py` writes them anew.

A value is a mean over seeds; what stands behind the ± and the bars of the plots is one standard
deviation over the seeds. Only seeds count for which a group has every strategy.
"""

import re
from pathlib import Path
from statistics import mean, stdev

from cells import DISTANCES, Cell, Costs, Results, read_costs, read_results
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rule import FEW, Group, Rule, Scores, Verdict, always, divide, fit, is_close, judge
from strategy import PROBE, SCRATCH

from freezekit import plot

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "training-considerations.md"
PLOTS = PAGE.parent / "_static"
LOOK = {  # colour and marker of each strategy, in the order of the tables
    PROBE: ("#7f7f00", "h"),
    "frozen": ("#000000", "s"),
    "top": ("#e69f00", "^"),
    "bottom": ("#8c564b", "v"),
    "gradual": ("#009e73", "D"),
    "lp_ft": ("#0072b2", "o"),
    "bitfit": ("#cc79a7", "P"),
    "discriminative": ("#56b4e9", "X"),
    "full": ("#d55e00", "*"),
    SCRATCH: ("#888888", "."),
}


class Comparison:
    """Results by group, strategy and seed.

    Args:
        results: of all cells.
        costs: of all strategies.
    """

    def __init__(self, results: Results, costs: Costs) -> None:
        """Sorts the results into groups."""
        self.costs = {case: by_name for case, by_name in costs.items() if by_name}
        self.results = results
        self.seeds: dict[Group, list[int]] = {}
        for group in sorted({Group(*cell[:3]) for cell in results}):
            names = self.strategies(group.case)
            seeds = [
                {cell.seed for cell in results if (*cell[:3], cell.strategy) == (*group, name)}
                for name in names
            ]
            common = sorted(set.intersection(*seeds))
            if len(common) > 1:
                self.seeds[group] = common

    @property
    def cases(self) -> list[str]:
        """The cases, vision first."""
        return [case for case in ("vision", "text") if any(g.case == case for g in self.seeds)]

    def strategies(self, case: str) -> list[str]:
        """Returns the strategies of a case in the order of the tables."""
        return [name for name in LOOK if name in self.costs[case]]

    def sizes(self, case: str) -> list[int]:
        """Returns the sizes of a case."""
        return sorted({group.size for group in self.seeds if group.case == case})

    def of(self, group: Group, strategy: str, field: str = "accuracy") -> list[float]:
        """Returns a value of every seed."""
        cells = [Cell(*group, strategy, seed) for seed in self.seeds[group]]
        return [getattr(self.results[cell], field) for cell in cells]

    def overall(self, groups: list[Group], strategy: str, field: str) -> list[float]:
        """Returns the mean over groups, for each of as many seeds as all of them have."""
        count = min(len(self.seeds[group]) for group in groups)
        columns = [self.of(group, strategy, field)[:count] for group in groups]
        return [mean(column) for column in zip(*columns, strict=True)]

    def scores(self) -> Scores:
        """Returns the mean accuracy of every strategy that every case has, in every group."""
        names = [name for name in LOOK if all(name in self.costs[case] for case in self.cases)]
        return {group: {name: mean(self.of(group, name)) for name in names} for group in self.seeds}

    def groups(self, case: str, distance: str | None = None) -> list[Group]:
        """Returns the groups of a case, or only those of one distance."""
        return [
            group
            for group in self.seeds
            if group.case == case and distance in (None, group.distance)
        ]


def told(values: list[float]) -> str:
    """Returns mean and standard deviation in points."""
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table, its first column to the left."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy_table(comparison: Comparison, case: str) -> str:
    """Returns the accuracy of each strategy at the ends of the sizes; bold: within a point."""
    sizes = comparison.sizes(case)
    groups = [Group(case, d, s) for d in DISTANCES for s in (sizes[0], sizes[-1])]
    best = {
        g: max(mean(comparison.of(g, n)) for n in comparison.strategies(case) if n != SCRATCH)
        for g in groups
    }
    rows = []
    for name in comparison.strategies(case):
        cells = []
        for group in groups:
            values = comparison.of(group, name)
            near = name != SCRATCH and is_close(best[group] - mean(values))
            cells.append(f"**{told(values)}**" if near else told(values))
        rows.append([f"`{name}`", *cells])
    return table(["strategy", *(f"{g.distance}, {g.size}" for g in groups)], rows)


def kept_table(comparison: Comparison, case: str) -> str:
    """Returns for each strategy what it costs, reaches, and leaves of the source."""
    rows = []
    for name in comparison.strategies(case):
        if name == SCRATCH:
            continue
        kept = [
            told(comparison.overall(comparison.groups(case, distance), name, "source"))
            for distance in DISTANCES
        ]
        reached = told(comparison.overall(comparison.groups(case), name, "accuracy"))
        rows.append([f"`{name}`", f"{comparison.costs[case][name]:.2f}", reached, *kept])
    header = ["strategy", "cost", "accuracy", *(f"source after {each}" for each in DISTANCES)]
    return table(header, rows)


class Thumb:
    """The rule of thumb, and what was judged of it."""

    def __init__(self, comparison: Comparison) -> None:
        """Fits and judges."""
        self.scores = comparison.scores()
        names = next(iter(self.scores.values()))
        self.cost = {
            name: mean(costs[name] for costs in comparison.costs.values()) for name in names
        }
        fitted, self.judged = divide(self.scores)
        self.rule: Rule = fit(self.scores, fitted, self.cost)
        self.verdict = judge(self.rule, self.scores, self.judged)
        self.others = {
            name: judge(always(name, self.judged), self.scores, self.judged) for name in names
        }

    def across(self, fitted: str, judged: str) -> Verdict:
        """Returns how the rule of one case does in the other."""
        parts = [[group for group in self.scores if group.case == c] for c in (fitted, judged)]
        return judge(fit(self.scores, parts[0], self.cost), self.scores, parts[1])


def rule_table(thumb: Thumb) -> str:
    """Returns the rule."""
    rows = [
        [distance, *(f"`{thumb.rule[distance, amount]}`" for amount in ("few", "more"))]
        for distance in DISTANCES
    ]
    return table(["distance", f"up to {FEW} per class", "more"], rows)


def verdict_table(thumb: Thumb, cases: list[str]) -> str:
    """Returns how the rule does where it was not fitted, beside always the same strategy."""
    lines = {"the rule of thumb": thumb.verdict}
    lines |= {f"always `{name}`": verdict for name, verdict in thumb.others.items()}
    if len(cases) == 2:
        first, second = cases
        lines[f"a rule fitted on {first}, in all of {second}"] = thumb.across(first, second)
        lines[f"a rule fitted on {second}, in all of {first}"] = thumb.across(second, first)
    rows = [
        [what, f"{v.within} of {v.groups}", f"{100 * v.mean_regret:.1f}"]
        for what, v in lines.items()
    ]
    return table(["choice", "within one point of the best", "points behind it, mean"], rows)


def tables(comparison: Comparison) -> dict[str, str]:
    """Returns what stands between the markers of the page."""
    thumb = Thumb(comparison)
    found = {"rule": rule_table(thumb), "verdict": verdict_table(thumb, comparison.cases)}
    for case in comparison.cases:
        found[f"{case} accuracy"] = accuracy_table(comparison, case)
        found[f"{case} kept"] = kept_table(comparison, case)
    return found


def rewritten(page: str, comparison: Comparison) -> str:
    """Returns a page with its tables anew."""
    for name, text in tables(comparison).items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        page, count = re.subn(pattern, lambda _, new=f"{begin}{text}\n{end}": new, page, flags=re.S)
        assert count == 1, f"the page has {count} places for {name!r}"
    return page


def accuracy_plot(comparison: Comparison) -> Axes:
    """Returns the accuracy by the number of samples: a row for each case."""
    cases = comparison.cases
    figure = Figure(figsize=(10, 3.4 * len(cases)), layout="constrained")
    grid = figure.subplots(len(cases), 3, sharey="row", squeeze=False)
    for row, case in zip(grid, cases, strict=True):
        sizes = comparison.sizes(case)
        for axes, distance in zip(row, DISTANCES, strict=True):
            for index, name in enumerate(comparison.strategies(case)):
                lists = [comparison.of(Group(case, distance, size), name) for size in sizes]
                aside = 1.025 ** (index - 4)  # so that no bar hides another
                draw(axes, name, [size * aside for size in sizes], lists)
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_title(f"{case}, {distance}", fontsize=10)
            axes.set_xlabel("training samples of each class")
            axes.grid(alpha=0.3)
        row[0].set_ylabel("held-out accuracy in %")
    return finished(figure, grid[0][0])


def draw(axes: Axes, name: str, xs: list[float], lists: list[list[float]]) -> None:
    """Draws one strategy's means, joined by a line, with a standard deviation on either side."""
    colour, marker = LOOK[name]
    axes.errorbar(
        xs,
        [100 * mean(values) for values in lists],
        [100 * stdev(values) for values in lists],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.2,
        linestyle=":" if name in (PROBE, SCRATCH) else "-",
        elinewidth=0.9,
        capsize=2,
        label=name,
    )


def kept_plot(comparison: Comparison) -> Axes:
    """Returns accuracy beside cost, and what is left of the source beside accuracy."""
    cases = comparison.cases
    figure = Figure(figsize=(9, 3.6 * len(cases)), layout="constrained")
    grid = figure.subplots(len(cases), 2, squeeze=False)
    for (left, right), case in zip(grid, cases, strict=True):
        groups = comparison.groups(case)
        for name in comparison.strategies(case):
            if name == SCRATCH:
                continue
            reached = comparison.overall(groups, name, "accuracy")
            draw(left, name, [comparison.costs[case][name]], [reached])
            draw(right, name, [100 * mean(reached)], [comparison.overall(groups, name, "source")])
        left.set_xlabel("FLOPs, full fine-tuning = 1")
        left.set_ylabel("held-out accuracy in %")
        left.set_xlim(-0.05, 1.08)
        right.set_xlabel("held-out accuracy in %")
        right.set_ylabel("accuracy on the source in %")
        for axes in (left, right):
            axes.set_title(f"{case}, all distances and sizes", fontsize=10)
            axes.grid(alpha=0.3)
    return finished(figure, grid[0][0])


def finished(figure: Figure, axes: Axes) -> Axes:
    """Returns axes of the figure, which has got one legend for all."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return axes


def load() -> Comparison:
    """Returns the comparison that is committed."""
    return Comparison(read_results(HERE / "results.csv"), read_costs(HERE / "costs.csv"))


def main() -> None:
    """Rewrites the tables of the page and the plots."""
    comparison = load()
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(rewritten(page, comparison), encoding="utf-8")
    plot.save(accuracy_plot(comparison), PLOTS / "considerations_accuracy.svg")
    plot.save(kept_plot(comparison), PLOTS / "considerations_kept.svg")


if __name__ == "__main__":
    main()
