"""The picture of a plan over time, judged through the renderer."""

import re
import time
from functools import cache
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from pictures import (
    CASES,
    HATCHED,
    boxes,
    check_texts,
    forty_eight,
    grey,
    labels,
    outside,
    render,
    resolved,
    texts,
    thousand,
    touching,
)
from torch import nn

from freezekit import FreezePlan, PlanError
from freezekit._grid import grid
from freezekit.plot import schedule


def toy(plan: FreezePlan, **totals: int) -> Axes:
    """Draws a plan for four layers of 20 parameters and a head of 5."""
    layers = (nn.Linear(4, 4) for _ in range(4))
    return schedule(plan.resolve(nn.Sequential(*layers, nn.Linear(4, 1)), **totals), base_lr=0.01)


def gradual() -> FreezePlan:
    return (
        FreezePlan()
        .freeze("**")
        .unfreeze_layerwise(start_epoch=0, every_epochs=2)
        .layer_decay(decay=0.1)
    )


def timed(name: str) -> FreezePlan:
    """Returns the plan of a case with something that opens, and a few rates."""
    _, plan = CASES[name]()
    return plan.unfreeze("**", lr_mult=0.1, at_epoch=2).unfreeze("**.bias", lr=3.0, at_epoch=7)


def draw(name: str, ax: Axes | None = None) -> Axes:
    with torch.device("meta"):
        model, _ = CASES[name]()
    return schedule(timed(name).resolve(model, total_epochs=10), ax, base_lr=1e-3)


@cache
def picture(name: str) -> Axes:
    ax = draw(name)
    render(ax)
    return ax


def states(ax: Axes) -> list[list[str]]:
    """Returns what each cell shows, row by row: its text, "frozen", or both."""
    columns = [*pairwise(float(x) for x in ax.get_xticks())]
    found: dict[int, dict[float, str]] = {}
    for box in boxes(ax):
        row = found.setdefault(int(box.y0 + 0.5), {})
        for left, right in columns:
            if box.x0 <= left and right <= box.x1:
                row[left] = "+".join(filter(None, [row.get(left), box.what]))
    return [[row[x] for x in sorted(row)] for _, row in sorted(found.items())]


def frontiers(ax: Axes) -> list[tuple[float, float]]:
    """Returns, for each heavy line, where it begins and between which rows it stands."""
    (lines,) = (each for each in ax.collections if isinstance(each, LineCollection))
    return [(float(x), float(y)) for (x, y), _ in lines.get_segments()]


def ticks(ax: Axes) -> list[str]:
    return [label.get_text() for label in ax.get_xticklabels()]


@pytest.mark.parametrize("name", CASES)
def test_texts_are_apart_large_enough_and_whole(name: str) -> None:
    """No text touches another or leaves the figure, and none is below 6 points."""
    check_texts(picture(name))


@pytest.mark.parametrize("name", CASES)
def test_only_cells_with_room_have_a_hatch(name: str) -> None:
    """A hatch is 8 pixels each way, and in a figure of our own every frozen cell has it."""
    drawn = boxes(picture(name))
    assert min(min(box.width, box.height) for box in drawn if box.hatch) >= HATCHED
    assert {box.hatch for box in drawn if box.what == "frozen"} == {"xx"}
    assert len(labels(picture(name))) <= 48


@pytest.mark.parametrize("name", ["six", "forty_eight", "alternating"])
@pytest.mark.parametrize("size", [(6.4, 4.8), (4.0, 3.0), (12.0, 3.0)])
@pytest.mark.parametrize("layout", [None, "constrained"])
def test_given_axes_get_as_many_rows_as_fit(
    name: str, size: tuple[float, float], layout: str | None
) -> None:
    """In axes of any size no two texts intersect, and only cells of 8 pixels have a hatch."""
    figure = Figure(figsize=size, layout=layout)
    ax = figure.add_subplot()
    assert draw(name, ax) is ax
    assert figure.axes == [ax]
    shown = texts(ax, render(ax))
    assert touching(shown) == []
    assert min(text.get_fontsize() for text, _ in shown) >= 6
    hatched = [min(box.width, box.height) for box in boxes(ax) if box.hatch]
    assert min(hatched, default=HATCHED) >= HATCHED
    if layout:
        assert outside(ax, shown) == []


def test_cells_are_those_of_the_grid() -> None:
    """Each cell shows its state and its rate, from the input down and from the start on."""
    ax = toy(gradual(), total_epochs=10)
    assert labels(ax) == ["0", "1", "2", "3", "4"]
    rates = ["1e-06", "1e-05", "0.0001", "0.001", "0.01"]
    expected = [
        ["frozen" if phase < 4 - row else rates[row] for phase in range(5)] for row in range(5)
    ]
    assert states(ax) == expected


def test_the_higher_the_rate_the_darker() -> None:
    """Shades go from light to dark evenly on the log scale, and frozen is lighter than all."""
    drawn = boxes(toy(gradual(), total_epochs=10))
    lightness = {box.what: grey(box.face) for box in drawn}
    shades = [lightness[rate] for rate in ("1e-06", "1e-05", "0.0001", "0.001", "0.01")]
    steps = [one - two for one, two in pairwise(shades)]
    assert min(steps) > 4
    assert max(steps) < 3 * min(steps)
    assert lightness["frozen"] - shades[0] > 12
    assert shades[-1] < 35


def test_rates_are_written_once_in_contrast() -> None:
    """Each stretch of one rate has its text once, black on light and white on dark."""
    ax = toy(gradual(), total_epochs=10)
    inside = {text.get_text(): text.get_color() for text in ax.texts if "0" in text.get_text()}
    assert inside["1e-06"] == "black"
    assert inside["0.01"] == "white"
    assert [text.get_text() for text in ax.texts].count("0.01") == 1


def test_a_partial_layer_shows_both_halves() -> None:
    """Where some of a layer trains its cell is frozen above and filled below."""
    ax = toy(FreezePlan().freeze("**").unfreeze("[1].bias").unfreeze("[4]", lr=0.5))
    assert states(ax) == [["frozen"], ["frozen+0.01"], ["frozen"], ["frozen"], ["0.5"]]
    render(ax)
    above, below = (box for box in boxes(ax) if 0.4 < box.y0 < 1.5)
    assert (above.what, below.what) == ("frozen", "0.01")
    assert above.y1 == below.y0
    assert above.height >= HATCHED


def test_backward_stops_at_the_first_layer_that_trains() -> None:
    """The heavy line is at the input side of the frontier of each phase; a phase may have none."""
    ax = toy(gradual(), total_epochs=10)
    assert frontiers(ax) == [(2.0 * phase, 3.5 - phase) for phase in range(5)]
    plan = FreezePlan(allow_all_frozen=True).freeze("**").unfreeze("[1]", at_epoch=3)
    ax = toy(plan, total_epochs=5)
    assert frontiers(ax) == [(3.0, 0.5)]
    legend = ax.get_legend()
    assert legend is not None
    assert "Backward stops" in [text.get_text() for text in legend.get_texts()]
    ax = toy(FreezePlan(allow_all_frozen=True).freeze("**"))
    assert frontiers(ax) == []
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["Frozen"]


def test_an_order_that_is_not_known_is_said() -> None:
    """Where the order of the layers is only that of registration, the legend doubts the line."""
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("decoder", "encoder")})
    plan = FreezePlan().freeze("decoder")
    corrected = FreezePlan(layers={"blocks": ["encoder", "decoder"]}).freeze("encoder")
    assert plan.resolve(model).layers.notes
    for each, label in (
        (plan, "Backward stops (if layers run in this order)"),
        (corrected, "Backward stops"),
    ):
        legend = schedule(each.resolve(model)).get_legend()
        assert legend is not None
        assert legend.get_texts()[-1].get_text() == label


def test_frontiers_are_those_of_the_grid_where_rows_are_joined() -> None:
    """The line stands above the row that holds the frontier, whatever shares it."""
    with torch.device("meta"):
        model, _ = thousand()
    plan = FreezePlan().freeze("**").unfreeze("{600..998}").unfreeze("{300..998}", at_step=5)
    made = plan.resolve(model, total_steps=10)
    assert grid(made).frontiers == (600, 300)
    ax = schedule(made)
    assert labels(ax) == ["{0..299} x300", "{300..599} x300", "{600..998} x399"]
    assert frontiers(ax) == [(0.0, 1.5), (5.0, 0.5)]


def test_legend_names_a_few_rates() -> None:
    """The legend has frozen, the lowest and the highest rate, at most two between, and the line."""
    legend = toy(gradual(), total_epochs=10).get_legend()
    assert legend is not None
    named = [text.get_text() for text in legend.get_texts()]
    assert named[:2] == ["Frozen", "lr 1e-06"]
    assert named[-2:] == ["0.01", "Backward stops"]
    assert len(named) == 6


def test_rates_without_a_base() -> None:
    """Without base_lr multipliers are drawn; beside an absolute lr, what is not known says so."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    mult = FreezePlan().group("[0]", lr_mult=0.25).resolve(model)
    assert states(schedule(mult)) == [["x0.25"], ["x1"]]
    assert states(schedule(mult, base_lr=0.2)) == [["0.05"], ["0.2"]]
    ax = schedule(FreezePlan().group("[0]", lr=0.25).resolve(model))
    render(ax)
    assert states(ax) == [["0.25"], ["trainable"]]
    assert [box.hatch for box in boxes(ax)] == ["", "//"]
    legend = ax.get_legend()
    assert legend is not None
    assert "Trainable (its lr: pass base_lr)" in [text.get_text() for text in legend.get_texts()]


def test_a_range_of_rates_is_written_as_that() -> None:
    """A layer whose parts have two rates says both, and the legend names both."""
    ax = toy(FreezePlan().group("**.bias", lr=1e-4).group("**.weight", lr=1e-2))
    assert states(ax) == [["0.0001..0.01"]] * 5
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][1:3] == ["lr 0.0001", "0.01"]


def test_time_is_to_scale_where_it_can_be_read() -> None:
    """Columns are as long as their phases, with moments at the edges."""
    plan = FreezePlan().freeze("[0]", until_epoch=2).freeze("[1]", until_epoch=5)
    ax = toy(plan, total_epochs=10)
    assert ticks(ax) == ["0", "epoch 2", "epoch 5", "epoch 10"]
    assert list(ax.get_xticks()) == [0, 2, 5, 10]
    assert ax.get_xlabel() == "epoch"


def test_time_that_is_not_to_scale_says_so() -> None:
    """A phase that would be too narrow makes all columns equally wide."""
    plan = FreezePlan().freeze("[0]", until_step=5).freeze("[1]", until_step=9000)
    ax = toy(plan, total_steps=10_000)
    assert list(ax.get_xticks()) == [0, 1, 2, 3]
    assert ticks(ax) == ["0", "step 5", "step 9,000", "step 10,000"]
    assert ax.get_xlabel() == "step, not to scale"
    render(ax)
    widths = {round(box.width / (box.x1 - box.x0)) for box in boxes(ax)}
    assert len(widths) == 1
    narrow = toy(FreezePlan().freeze("[0]", until_epoch=1), total_epochs=18)
    assert narrow.get_xlabel() == "epoch, not to scale"
    wider = toy(FreezePlan().freeze("[0]", until_epoch=1), total_epochs=15)
    assert wider.get_xlabel() == "epoch"


def test_an_end_that_is_not_known_has_no_moment() -> None:
    """Without totals the last phase is as long as the longest other, and the axis says why."""
    ax = toy(FreezePlan().freeze("[0]", until_epoch=3).freeze("[1]", until_epoch=4))
    assert list(ax.get_xticks()) == [0, 3, 4, 7]
    assert ticks(ax) == ["0", "epoch 3", "epoch 4", ""]
    assert ax.get_xlabel() == "epoch, end not known"


def test_phases_after_the_end_are_left_out() -> None:
    """What a plan would do after the last epoch is not drawn."""
    ax = toy(FreezePlan().freeze("[0]", until_epoch=3).freeze("[1]", until_epoch=8), total_epochs=5)
    assert ticks(ax) == ["0", "epoch 3", "epoch 5"]
    assert ax.get_title(loc="left") == "Sequential, 2 phases"
    assert states(ax)[1] == ["frozen", "frozen"]


def test_phases_left_out_before_others_take_theirs_along() -> None:
    """Cells, frontiers and shares are those of the phases drawn, also where one between is over."""
    metric = {"monitor": "val", "mode": "min", "patience": 1}
    plan = FreezePlan().freeze("**").unfreeze("3").unfreeze("2", at_metric=metric)
    plan = plan.unfreeze("1", at_step=50)
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    ax = schedule(plan.resolve(layers, total_steps=40), base_lr=0.01)
    assert ticks(ax) == ["0", "val stalls", "step 40"]
    assert states(ax) == [["frozen"] * 2, ["frozen"] * 2, ["frozen", "0.01"], ["0.01"] * 2]
    assert frontiers(ax) == [(0.0, 2.5), (1.0, 1.5)]
    assert [text.get_text() for text in ax.texts if "%" in text.get_text()] == ["25 %", "50 %"]


def test_a_metric_is_a_moment() -> None:
    """Where a rule waits for a metric the boundary says which, and time has no scale."""
    plan = FreezePlan().freeze("[0]").unfreeze("[0]", at_metric={"monitor": "val_loss"})
    ax = toy(plan)
    assert ticks(ax) == ["", "val_loss stalls", ""]
    assert ax.get_xlabel() == "training, not to scale"
    assert states(ax)[0] == ["frozen", "0.01"]


def waits(*monitors: str) -> FreezePlan:
    """Returns a plan that opens layers 2, 1, ... as metrics stall."""
    plan = FreezePlan().freeze("**").unfreeze("3")
    for at, monitor in enumerate(monitors):
        metric = {"monitor": monitor, "mode": "min", "patience": 1}
        plan = plan.unfreeze(str(2 - at), at_metric=metric)
    return plan


def test_a_metric_and_a_clock_are_alternatives() -> None:
    """Where both decide there is a line of columns for each number of stalls, apart and named."""
    ax = toy(waits("val").unfreeze("1", at_step=5))
    assert ticks(ax) == ["0", "step 5", "", "0", "step 5", ""]
    first, second = ax.get_xticks()[:3], ax.get_xticks()[3:]
    assert second[0] - first[-1] > 0.5
    assert {"until val stalls", "once val has stalled"} <= {text.get_text() for text in ax.texts}
    assert states(ax)[1] == ["frozen", "0.01"] * 2
    assert states(ax)[2] == ["frozen", "frozen", "0.01", "0.01"]
    told = ax.get_xlabel().replace("\n", " ")
    assert told.endswith("once a metric stalls, training goes on in the next part at that step")
    check_texts(ax)


LONG = "eval_all-nli-dev_cosine_accuracy"
CROWDED = {
    "long_metrics": waits(LONG, LONG, "eval_loss_of_quora_duplicates_dev"),
    "metrics_and_clock": waits(LONG, LONG).unfreeze("1.bias", at_step=1_000_000),
    "many_metrics": waits(*[LONG] * 3).unfreeze("4", at_step=10**7, until_step=2 * 10**7),
    "long_steps": waits().unfreeze("2", at_step=10**7).unfreeze("1", at_step=123_456_789),
    "crowded_steps": FreezePlan()
    .freeze("**")
    .unfreeze_layerwise(start_step=1_000_000, every_steps=1_234_567),
}


@pytest.mark.parametrize("name", CROWDED)
def test_long_metrics_and_moments_leave_the_picture_whole(name: str) -> None:
    """Texts stay whole and apart, and of a metric so much is written that it can be told."""
    ax = toy(CROWDED[name])
    check_texts(ax)
    assert ax.get_title(loc="left").startswith("Sequential, ")
    said = [text for text in ticks(ax) if "stalls" in text]
    assert all(re.search("cosine_accuracy stalls|duplicates_dev stalls", text) for text in said)
    figure = Figure((5, 4), layout="constrained")
    narrow = figure.add_subplot()
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    check_texts(schedule(CROWDED[name].resolve(layers), narrow))
    said = [text for text in ticks(narrow) if "stalls" in text]
    assert all(re.search("sine_accuracy stalls|plicates_dev stalls", text) for text in said)


def test_many_phases_keep_their_texts_apart() -> None:
    """With sixty phases some edges have labels, turned, and none touch."""
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(60)))
    plan = FreezePlan().freeze("**").unfreeze_layerwise(start_epoch=0, every_epochs=1)
    check_texts(schedule(plan.resolve(layers, total_epochs=100)))
    ax = Figure((5, 4), layout="constrained").add_subplot()
    check_texts(schedule(plan.resolve(layers, total_epochs=100), ax))


def test_shares_stand_above_the_phases() -> None:
    """Above each phase stands what share of the parameters trains."""
    ax = toy(FreezePlan().freeze("**").unfreeze("[4]").unfreeze("**", at_epoch=2), total_epochs=4)
    shown = [text.get_text() for text in ax.texts if re.search("%", text.get_text())]
    assert shown == ["5.9 %", "100 %"]
    assert "trainable" in [text.get_text() for text in ax.texts]


def test_tiny_head_is_seen() -> None:
    """A head of 0.005 % of the model has a bar of a fifth of the bars' width, and its number."""
    model = nn.Sequential(nn.Embedding(30_522, 744), nn.Linear(384, 3))
    ax = schedule(FreezePlan().freeze("0").resolve(model))
    render(ax)
    (beside,) = ax.child_axes
    head = boxes(beside)[-1]
    assert head.x1 == 384 * 3 + 3
    assert head.width > beside.get_window_extent().width / 5
    assert [text.get_text() for text in beside.texts] == ["22,708,368", "1,155"]
    assert "0.0051 %" in [text.get_text() for text in ax.texts]
    assert beside.get_ylim() == ax.get_ylim()


def test_modules_at_a_depth() -> None:
    """With `depth` the rows are modules, in the order of the layers; their cells as the grid."""
    body = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model = nn.ModuleDict({"b": body, "a": nn.Linear(2, 1)})
    made = FreezePlan().freeze("b.0").resolve(model)
    assert labels(schedule(made, depth=1)) == ["b", "a"]
    assert labels(schedule(made, depth=2)) == ["b.0", "b.1", "a"]
    assert states(schedule(made, depth=2)) == [["frozen"], ["x1"], ["x1"]]


def test_neighbours_that_are_treated_alike_share_a_row() -> None:
    """Where there are too many rows equal ones are joined, then others; the counts add up."""
    with torch.device("meta"):
        model, _ = forty_eight()
    made = FreezePlan().freeze("**").unfreeze("block_{40..44}", "head").resolve(model)
    ax = schedule(made, max_rows=10)
    names = ["token_and_position_embeddings", "block_{0..39} x40", "block_{40..44} x5", "head"]
    assert labels(ax) == names
    assert labels(schedule(made, max_rows=3)) == [
        "token_and_position_embeddings to block_39 x41",
        "block_40 to head x6",
    ]
    total = sum(parameter.numel() for parameter in model.parameters())
    counted = sum(int(text.get_text().replace(",", "")) for text in ax.child_axes[0].texts)
    assert counted == total
    crowded = schedule(resolved("alternating"), max_rows=7)
    assert len(labels(crowded)) == 7
    assert all(row == ["frozen+x1"] for row in states(crowded))
    counted = sum(int(text.get_text().replace(",", "")) for text in crowded.child_axes[0].texts)
    assert counted == sum(row.numel for row in grid(resolved("alternating")).bands)


def test_a_thousand_rows_can_be_drawn() -> None:
    """Rows too low for a hatch are plain, without edges, and some have labels."""
    ax = schedule(resolved("thousand"), max_rows=1000)
    check_texts(ax)
    drawn = boxes(ax)
    assert len({box.row for box in drawn}) == 999
    assert {box.hatch for box in drawn} == {""}
    assert not any(box.edged for box in drawn)
    assert len(labels(ax)) < 250


def test_phases_in_which_a_row_stays_the_same_are_one_box() -> None:
    """Of 60 narrow phases the stretches that are frozen have a hatch, and each is one box."""
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(60)))
    plan = FreezePlan().freeze("**").unfreeze_layerwise(start_epoch=0, every_epochs=1)
    ax = schedule(plan.resolve(layers, total_epochs=60), max_rows=60)
    render(ax)
    drawn = boxes(ax)
    assert len(drawn) == 60 + 59
    assert {box.hatch for box in drawn if box.what == "frozen" and box.width > 9} == {"xx"}


@pytest.mark.timing
def test_many_layers_in_many_phases_take_seconds() -> None:
    """Drawing 300 layers in 300 phases costs no more than a few seconds of the processor."""
    with torch.device("meta"):
        layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(300)))
    plan = FreezePlan().freeze("**").unfreeze_layerwise(start_epoch=0, every_epochs=1)
    made = plan.layer_decay(decay=0.97).resolve(layers, total_epochs=300)
    start = time.process_time()
    schedule(made, base_lr=0.01, max_rows=300)
    seconds = time.process_time() - start
    assert seconds < 12, seconds


def test_extremes_are_drawn() -> None:
    """Rates that are almost 0, or whose product is, and moments far off, all have a picture."""
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tiny = FreezePlan().group("0", lr=1e-320)
    check_texts(schedule(tiny.resolve(layers), base_lr=1.0))
    none = FreezePlan().group("0", lr_mult=1e-200).group("1.bias", lr=1e300)
    ax = schedule(none.resolve(layers), base_lr=1e-200)
    check_texts(ax)
    assert states(ax)[0] == ["0"]
    for far in (10**18, 10**400):
        late = FreezePlan().freeze("0", until_step=far).freeze("1.bias", until_step=far + 1)
        made = late.resolve(layers, total_steps=far + 10)
        if far < 10**400:
            check_texts(schedule(made))
        assert len(states(schedule(made))[0]) == 3


def test_what_cannot_be_drawn_is_refused() -> None:
    """Each wrong argument is named, with the way out."""
    model = nn.Linear(2, 2)
    made = FreezePlan().resolve(model)
    with pytest.raises(TypeError, match=r"^schedule\(\) draws a resolved plan, not Linear; call "):
        schedule(model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^max_rows=0: a picture has at least one row$"):
        schedule(made, max_rows=0)
    with pytest.raises(ValueError, match=r"^depth=0: "):
        schedule(made, depth=0)
    with pytest.raises(PlanError, match=r"^base_lr must be a positive finite number, got -1$"):
        schedule(made, base_lr=-1)
    with pytest.raises(ValueError, match=r"^a schedule has at least one row, and this model has "):
        schedule(FreezePlan(allow_all_frozen=True).resolve(nn.ReLU()))


def test_settings_are_left_alone() -> None:
    """Drawing changes no matplotlib setting, also under a user's own style."""
    with mpl.rc_context({"hatch.linewidth": 3.0, "axes.grid": True, "font.size": 20}):
        before = dict(mpl.rcParams)
        check_texts(draw("six"))
        assert dict(mpl.rcParams) == before


def test_the_line_of_backward_is_seen_on_a_dark_page() -> None:
    """Around the line is a halo, so that it stands out from a page that is dark."""
    with mpl.rc_context({"figure.facecolor": "black", "axes.facecolor": "black"}):
        ax = draw("six")
        (line,) = (each for each in ax.collections if isinstance(each, LineCollection))
        assert grey(line.get_color()[0]) > 90
        canvas = render(ax)
        shown = np.asarray(canvas.buffer_rgba())
        (start, end) = ax.transData.transform(line.get_segments()[-1])
        x, y = int((start[0] + end[0]) / 2), int(ax.figure.bbox.height - start[1])
        around = shown[y - 4 : y + 5, x, 0]
        assert around.min() < 60
        assert around.max() > 180


def test_equal_phases_are_to_scale_however_narrow() -> None:
    """Of 300 equal epochs the axis says nothing, as they are to scale."""
    layers = nn.Sequential(*(nn.Linear(1, 1) for _ in range(300)))
    plan = FreezePlan().freeze("**").unfreeze_layerwise(start_epoch=0, every_epochs=1)
    assert schedule(plan.resolve(layers, total_epochs=300)).get_xlabel() == "epoch"
    assert schedule(plan.resolve(layers)).get_xlabel() == "epoch, end not known"
    assert schedule(plan.resolve(layers, total_epochs=301)).get_xlabel() == "epoch, not to scale"
