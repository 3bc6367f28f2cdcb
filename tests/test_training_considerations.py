"""The training considerations: the rule of thumb, the plans compared, and the page's numbers."""

import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import matplotlib as mpl
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples/training_considerations"))

import report
import run
from cells import DISTANCES, Cell, Result, Results, read_results, write_results
from digits import DigitNet, Digits, digits_from
from probe import INVERSE_PENALTY, fit_head
from rule import FEW, Group, Rule, always, amount, divide, fit, judge
from sentences import Sentences
from sklearn.linear_model import LogisticRegression
from strategy import PROBE, STRATEGIES, Budget, plan_for
from trial import batches, cells_of, relative_cost

from freezekit import plot

pytestmark = pytest.mark.untraced

ROOT = Path(__file__).resolve().parent.parent
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
BUDGET = Budget(steps=40, batch=4, head_lr=1e-2, lr=1e-3, top=1)
COST = {"cheap": 0.3, "middling": 0.6, "dear": 1.0}
GROUPS = [
    Group(case, distance, size)
    for case, sizes in (("vision", (8, 16, 32, 64)), ("text", (8, 24)))
    for distance in DISTANCES
    for size in sizes
]
PLANTED = {
    (distance, few): name
    for (distance, few), name in zip(
        itertools.product(DISTANCES, ("few", "more")),
        ("cheap", "middling", "dear", "cheap", "middling", "dear"),
        strict=True,
    )
}


def planted(rule: Rule) -> dict[Group, dict[str, float]]:
    """Returns scores in which the strategy of a rule is ahead by two points."""
    return {
        group: {
            name: 0.8 + 0.02 * (rule[group.distance, amount(group.size)] == name) for name in COST
        }
        for group in GROUPS
    }


def test_the_rule_finds_what_is_best_everywhere() -> None:
    """Where a strategy is ahead for a distance and amount, the rule names it, and judges all so."""
    scores = planted(PLANTED)
    fitted, judged = divide(scores)
    rule = fit(scores, fitted, COST)
    assert rule == PLANTED
    verdict = judge(rule, scores, judged)
    assert (verdict.within, verdict.groups, verdict.mean_regret) == (9, 9, 0)


def test_groups_are_divided_as_a_chessboard() -> None:
    """Every group is in one half; neighbours by distance or by size are in different ones."""
    fitted, judged = divide(GROUPS)
    assert sorted(fitted + judged) == sorted(GROUPS)
    assert len(fitted) == len(judged)
    for group in fitted:
        at = DISTANCES.index(group.distance)
        beside = {DISTANCES[i] for i in (at - 1, at + 1) if 0 <= i < 3}
        assert {
            other
            for other in GROUPS
            if (other.case, other.size) == (group.case, group.size) and other.distance in beside
        } <= set(judged)
    assert {(g.distance, amount(g.size)) for g in judged} <= {
        (g.distance, amount(g.size)) for g in fitted
    }


def test_what_judges_the_rule_does_not_fit_it() -> None:
    """Other scores in the judged groups change the verdict and leave the rule."""
    scores = planted(PLANTED)
    fitted, judged = divide(scores)
    turned = scores | {
        group: {
            "cheap": 0,
            "middling": 0,
            "dear": 0,
            PLANTED[group.distance, amount(group.size)]: -1,
        }
        for group in judged
    }
    rule = fit(turned, fitted, COST)
    assert rule == PLANTED
    assert judge(rule, turned, judged).within == 0


def test_of_equals_the_rule_takes_the_cheaper() -> None:
    """Where strategies are equally good, cost decides."""
    scores = {group: {"cheap": 0.5, "middling": 0.9, "dear": 0.9} for group in GROUPS}
    assert set(fit(scores, GROUPS, COST).values()) == {"middling"}


def test_a_point_behind_the_best_is_within_and_more_is_not() -> None:
    """The tolerance is one point of accuracy, inclusive."""
    group = Group("vision", "near", FEW)
    scores = {group: {"cheap": 0.89, "middling": 0.8899, "dear": 0.9}}
    within = {name: judge(always(name, [group]), scores, [group]).within for name in COST}
    assert within == {"cheap": 1, "middling": 0, "dear": 1}


def trained_by(name: str, step: int) -> set[str]:
    """Returns the parts of the digits' network that a strategy trains at a step."""
    model = DigitNet()
    resolved = plan_for(name, model, BUDGET).resolve(
        model, steps_per_epoch=BUDGET.steps, total_epochs=1
    )
    names = resolved.at(epoch=0, step=step).trainable
    return {".".join(each.split(".")[:2]) if "blocks" in each else "head" for each in names}


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("frozen", {"head"}, {"head"}),
        ("top", {"blocks.3", "head"}, {"blocks.3", "head"}),
        ("bottom", {"blocks.0", "head"}, {"blocks.0", "head"}),
        ("gradual", {"head"}, {"head", *(f"blocks.{i}" for i in range(4))}),
        ("lp_ft", {"head"}, {"head", *(f"blocks.{i}" for i in range(4))}),
        (
            "full",
            {"head", *(f"blocks.{i}" for i in range(4))},
            {"head", *(f"blocks.{i}" for i in range(4))},
        ),
    ],
)
def test_a_strategy_trains_what_it_says(name: str, first: set[str], last: set[str]) -> None:
    """What trains at the first step and at the last is what the strategy's line says."""
    assert trained_by(name, 0) == first
    assert trained_by(name, BUDGET.steps - 1) == last


def test_gradual_unfreezing_is_open_at_half_of_the_training() -> None:
    """The last layer opens neither long before the middle nor after it."""
    opened = [len(trained_by("gradual", step)) for step in range(BUDGET.steps)]
    assert opened == sorted(opened)
    assert 0.25 * BUDGET.steps <= opened.index(5) <= 0.5 * BUDGET.steps


def test_every_strategy_has_the_rates_of_the_budget() -> None:
    """The head has its own rate, what is pre-trained the other, but where a strategy says so."""
    model = DigitNet()
    expected = {"bitfit": 10 * BUDGET.lr, "discriminative": 0.7 * BUDGET.lr}
    for name in STRATEGIES:
        resolved = plan_for(name, model, BUDGET).resolve(
            model, steps_per_epoch=BUDGET.steps, total_epochs=1
        )
        last = resolved.at(epoch=0, step=BUDGET.steps - 1)
        head = BUDGET.head_lr / 10 if name == "lp_ft" else BUDGET.head_lr
        assert last.lr("head.bias", base=BUDGET.lr) == pytest.approx(head)
        if "blocks.3.norm.bias" in last.trainable:
            rate = expected.get(name, BUDGET.lr)
            assert last.lr("blocks.3.norm.bias", base=BUDGET.lr) == pytest.approx(rate)


def test_digits_to_learn_and_held_out_are_different_images() -> None:
    """No image that a network is judged by is among those that it learns from, at any size."""
    split = digits_from(5)
    learned = {image.numpy().tobytes() for image in split.inputs}
    judged = [image.numpy().tobytes() for image in split.test_inputs]
    assert not learned & set(judged)
    assert len(judged) == 450
    assert min(split.labels.bincount()) >= max(Digits.sizes)


def test_batches_go_round_all_rows() -> None:
    """In each round every row comes once, and there are as many full batches as steps."""
    found = batches(12, BUDGET, seed=3)
    assert [len(rows) for rows in found] == [BUDGET.batch] * BUDGET.steps
    assert sorted(torch.cat(found[:3]).tolist()) == list(range(12))
    assert sorted(torch.cat(found[3:6]).tolist()) == list(range(12))


def test_a_stopped_run_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cell is in the file when it is done, and is not trained a second time."""
    cells = [Cell("vision", "near", 8, "full", seed) for seed in range(4)]
    begun: list[int] = []

    def train(cell: Cell) -> tuple[Cell, Result]:
        begun.append(cell.seed)
        if begun == [0, 1, 2]:
            raise KeyboardInterrupt
        return cell, Result(cell.seed / 8, 0.5)

    monkeypatch.setattr(run, "train", train)
    file = tmp_path / "results.csv"
    with pytest.raises(KeyboardInterrupt):
        run.complete(file, cells)
    assert [cell.seed for cell in read_results(file)] == [0, 1]
    assert run.complete(file, cells) == {cell: Result(cell.seed / 8, 0.5) for cell in cells}
    assert begun == [0, 1, 2, 2, 3]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    """A file of results gives them back, in the order of the cells."""
    results = {
        Cell("vision", "near", size, "full", 0): Result(size / 128, 0.25) for size in (64, 8)
    }
    write_results(tmp_path / "results.csv", results)
    assert read_results(tmp_path / "results.csv") == results
    assert [cell.size for cell in read_results(tmp_path / "results.csv")] == [8, 64]


def test_a_torn_line_is_trained_again(tmp_path: Path) -> None:
    """What a killed run left half written is not read, and does not stop the next one."""
    cells = [Cell("vision", "near", 8, "full", seed) for seed in range(2)]
    file = tmp_path / "results.csv"
    write_results(file, {cell: Result(0.5, 0.25) for cell in cells})
    file.write_text(file.read_text()[:-4])
    assert list(read_results(file)) == cells[:1]


def test_a_cell_agrees_within_its_error_bar_only() -> None:
    """Two standard deviations over the seeds, or a point, decide."""
    cells = [Cell("vision", "near", 8, "full", seed) for seed in range(3)]
    results: Results = {
        cell: Result(value, 1.0) for cell, value in zip(cells, (0.80, 0.82, 0.84), strict=True)
    }
    assert run.agrees(cells[1], Result(0.859, 1.0), results)
    assert not run.agrees(cells[1], Result(0.861, 1.0), results)
    assert not run.agrees(cells[1], Result(0.82, 0.98), results)
    same = {cell: Result(0.9, 1.0) for cell in cells}
    assert run.agrees(cells[0], Result(0.909, 1.0), same)
    assert not run.agrees(cells[0], Result(0.911, 1.0), same)


@pytest.fixture(scope="module")
def comparison() -> report.Comparison:
    """Returns the committed results."""
    return report.load()


def test_the_committed_results_are_complete(comparison: report.Comparison) -> None:
    """Every cell is there, from three seeds on, and no other."""
    for case in (Digits, Sentences):
        assert len(case.seeds) >= 3
        expected = set(cells_of(case, run.strategies_of(case.name)))
        assert {cell for cell in comparison.results if cell.case == case.name} == expected
        assert set(comparison.costs[case.name]) == set(run.strategies_of(case.name))


def test_the_page_has_the_tables_of_the_data(comparison: report.Comparison) -> None:
    """What stands between the markers is what the committed results give."""
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.rewritten(page, comparison) == page


@pytest.mark.skipif(
    mpl.__version__ != PINNED["matplotlib"], reason=f"drawn by matplotlib {PINNED['matplotlib']}"
)
@pytest.mark.parametrize("name", ["accuracy", "kept"])
def test_the_plots_are_those_of_the_data(comparison: report.Comparison, name: str) -> None:
    """Drawn again from the committed results, a plot has the same bytes."""
    file = io.BytesIO()
    with mpl.rc_context(mpl.rcParamsDefault):
        plot.save(getattr(report, f"{name}_plot")(comparison), file, format="svg")
    assert file.getvalue() == (report.PLOTS / f"considerations_{name}.svg").read_bytes()


def test_cells_trained_again_agree_with_the_committed_ones(
    comparison: report.Comparison, one_thread: Iterator[None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Cheap cells of both cases are within the error bars of the file, and it says so."""
    assert run.check(comparison.results)
    assert capsys.readouterr().out.count(": agrees\n") == len(run.CHECKED)


def test_a_check_that_differs_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell outside its error bar is named, and the check fails, also if the others agree."""
    cells = [Cell("vision", "near", 8, "full", seed) for seed in range(2)]
    again = dict(zip(cells, (Result(0.7, 1.0), Result(0.8, 1.0)), strict=True))
    monkeypatch.setattr(run, "train", lambda cell: (cell, again[cell]))
    results = {cell: Result(0.8, 1.0) for cell in cells}
    assert not run.check(results, cells)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("seed 0: 0.700, source 1.000; in the file 0.800, source 1.000: DIFFERS")
    assert second.endswith(": agrees")
    assert run.check(results, cells[1:])


@pytest.fixture(scope="module")
def sentences() -> Sentences:
    return Sentences()


@pytest.mark.parametrize("exchanged", [False, True])
def test_sentences_to_learn_and_held_out_are_different_ones(
    sentences: Sentences, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    """None is in both, whatever the distance and the roles, and there are enough to learn from."""
    monkeypatch.setattr(sentences, "exchanged", exchanged)
    for distance in DISTANCES:
        split = sentences.data(distance, max(Sentences.sizes), 0)
        learned, held_out = (
            {tuple(row[row != 0].tolist()) for row in rows}
            for rows in (split.inputs, split.test_inputs)
        )
        assert not learned & held_out
        if exchanged:  # What the comparison is judged by is not what its rates are chosen by.
            monkeypatch.setattr(sentences, "exchanged", False)
            judged = sentences.data(distance, 1, 0).test_inputs
            monkeypatch.setattr(sentences, "exchanged", True)
            assert not held_out & {tuple(row[row != 0].tolist()) for row in judged}
        else:
            assert (split.labels.bincount() == max(Sentences.sizes)).all()
            assert len(held_out) == 144


def test_a_foreign_language_keeps_what_is_special(sentences: Sentences) -> None:
    """Every word piece is replaced by one word piece, and no two by the same."""
    ids = torch.arange(sentences.encoder.config.vocab_size)
    foreign = sentences.foreign(ids)
    assert torch.equal(foreign[:1000], ids[:1000])
    assert torch.equal(foreign.sort().values, ids)
    assert (foreign[1000:] == ids[1000:]).float().mean() < 0.001


@pytest.mark.parametrize("classes", [2, 5])
def test_a_fitted_head_decides_as_the_logistic_regression_does(classes: int) -> None:
    """As a linear layer it gives each row the same probabilities, for two classes as for more."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(classes).repeat(8)
    features = torch.randn(len(labels), 6, generator=generator) + labels[:, None]
    expected = LogisticRegression(C=INVERSE_PENALTY, max_iter=10_000).fit(features, labels)
    with torch.no_grad():
        found = fit_head(features, labels)(features).softmax(1)
    torch.testing.assert_close(
        found, torch.tensor(expected.predict_proba(features)).float(), atol=1e-4, rtol=0
    )


def test_a_probe_costs_each_sample_once() -> None:
    """The steps of the others see a sample again and again; the probe's features are kept."""
    case = Digits()
    samples = mean(5 * size for size in case.sizes)
    seen = case.budget.steps * case.budget.batch
    assert relative_cost(case, PROBE) == pytest.approx(
        relative_cost(case, "frozen") * samples / seen
    )


def test_a_file_is_compared_with_another_mean_by_mean(capsys: pytest.CaptureFixture[str]) -> None:
    """A mean outside the error bar is named and fails; cells of a part are compared as a part."""
    before: Results = {
        Cell("vision", "near", 8, name, seed): Result(value, 1.0)
        for name in ("full", "top")
        for seed, value in enumerate((0.80, 0.82, 0.84))
    }
    shifted = {cell: Result(result.accuracy + 0.019, 1.0) for cell, result in before.items()}
    assert run.compare(shifted, before)
    assert capsys.readouterr().out == "4 of 4 means agree with those before\n"
    apart = shifted | {
        cell: Result(result.accuracy + 0.021, 1.0)
        for cell, result in before.items()
        if cell.strategy == "top"
    }
    assert not run.compare(apart, before)
    assert capsys.readouterr().out == (
        "vision, near, 8, top, accuracy: 0.841, before 0.820\n"
        "3 of 4 means agree with those before\n"
    )
    part = {cell: result for cell, result in shifted.items() if cell.strategy == "full"}
    assert run.compare(part, before)
    assert not run.compare({}, before)
