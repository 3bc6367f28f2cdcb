"""The picture of what trains, judged through the renderer: texts, hatches, sizes of rows."""

import io
import time
from functools import cache

import matplotlib as mpl
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from pictures import (
    CASES,
    HATCHED,
    SIZES,
    boxes,
    check_texts,
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

from freezekit import FreezePlan
from freezekit.plot import save, trainability

HATCHES = {"Frozen": "xx", "Trainable": "//"}


def draw(name: str, ax: Axes | None = None) -> Axes:
    return trainability(resolved(name), ax)


@cache
def picture(name: str) -> Axes:
    """Returns a case in a figure of its own, drawn and rendered once."""
    ax = draw(name)
    render(ax)
    return ax


def check_hatches(ax: Axes) -> None:
    """Fails where a hatch is in too small a box; call `render` first."""
    hatched = [min(box.width, box.height) for box in boxes(ax) if box.hatch]
    assert min(hatched, default=HATCHED) >= HATCHED


def hatches(ax: Axes) -> dict[int, set[str]]:
    """Returns the hatches in each row, whatever their density."""
    found: dict[int, set[str]] = {row: set() for row in range(len(ax.get_yticks()))}
    for box in boxes(ax):
        found[box.row].add(box.hatch[:2])
    return found


@pytest.mark.parametrize(("name", "count"), SIZES.items())
def test_cases_have_the_size_they_claim(name: str, count: int) -> None:
    """The models drawn here have 6, 48 and 1,000 modules, with or without the root."""
    with torch.device("meta"):
        model, _ = CASES[name]()
    below = sum(1 for _ in model.modules()) - 1
    assert below in {count, count - 1}


@pytest.mark.parametrize("name", CASES)
def test_texts_are_apart_large_enough_and_whole(name: str) -> None:
    """No text touches another or leaves the figure, and none is below 6 points."""
    check_texts(picture(name))


@pytest.mark.parametrize("name", CASES)
def test_rows_are_visible_and_equally_high(name: str) -> None:
    """Rows are as high as each other, and every bar, also half of one, has room for its hatch."""
    ax = picture(name)
    drawn = boxes(ax)
    assert min(box.height for box in drawn) >= HATCHED
    assert min(box.width for box in drawn) >= HATCHED
    assert all(box.hatch for box in drawn)
    spans = [
        max(box.y1 for box in drawn if box.row == k) - min(box.y0 for box in drawn if box.row == k)
        for k in range(len(labels(ax)))
    ]
    assert max(spans) - min(spans) < 0.01


def test_every_row_of_six_has_the_hatch_of_its_state() -> None:
    """Frozen rows are cross-hatched and trainable ones diagonally, in forward order."""
    ax = picture("six")
    assert labels(ax) == ["0 (Linear)", "2 (Linear)", "5 (Linear)"]
    assert hatches(ax) == {0: {"xx"}, 1: {"xx"}, 2: {"//"}}


def test_every_row_of_forty_eight_has_the_hatch_of_its_state() -> None:
    """A module each, and one that holds both states shows both hatches."""
    ax = picture("forty_eight")
    names = labels(ax)
    assert names == ["token_and_position_embeddings", *(f"block_{k}" for k in range(45)), "head"]
    expected = [{"xx"}, *[{"xx", "//"}] * 40, *[{"//"}] * 6]
    assert hatches(ax) == dict(enumerate(expected))


def test_every_row_of_a_thousand_has_the_hatch_of_its_state() -> None:
    """Neighbours of one state share a row, and every change of state is still seen."""
    ax = picture("thousand")
    names, found = labels(ax), hatches(ax)
    assert 40 <= len(names) <= 48
    trainable = {name for row, name in enumerate(names) if found[row] == {"//"}}
    assert trainable == {f"{k} (Linear)" for k in (*range(500, 510), 998)}
    assert all(len(hatch) == 1 for hatch in found.values())
    assert "510 to " not in " ".join(trainable)


def test_repeated_blocks_share_a_row_when_there_are_too_many() -> None:
    """A thousand modules of a repeated block need one row per state."""
    ax = picture("thousand_repeated")
    assert labels(ax) == [
        "0 (Embedding)",
        "{1..189} (Sequential) x189",
        "{190..199} (Sequential) x10",
        "200 (Linear)",
    ]
    assert hatches(ax) == {0: {"xx"}, 1: {"xx"}, 2: {"//"}, 3: {"//"}}


def test_rows_of_both_states_when_states_change_too_often() -> None:
    """Where no row can be of one state, each shows both hatches."""
    found = hatches(picture("alternating"))
    assert len(found) == 48
    assert all(hatch == {"xx", "//"} for hatch in found.values())


def test_repeated_blocks_stand_apart_while_there_is_room() -> None:
    """Twelve equal layers are twelve rows."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(12)))
    names = labels(trainability(FreezePlan().freeze("[:6]").resolve(model)))
    assert names == [f"{k} (Sequential)" for k in range(12)]


def test_legend_names_the_hatches() -> None:
    """The legend ties the two words to the two hatches."""
    legend = picture("six").get_legend()
    assert isinstance(legend, Legend)
    words = [text.get_text() for text in legend.get_texts()]
    assert (
        dict(zip(words, (key.get_hatch() for key in legend.legend_handles), strict=True)) == HATCHES
    )


def test_states_differ_in_grey() -> None:
    """Without colour the fills differ in lightness, beside the hatch."""
    lightness = {box.what: grey(box.face) for box in boxes(picture("six"))}
    assert lightness["Frozen"] - lightness["Trainable"] > 20


def test_bars_end_at_their_counts() -> None:
    """A bar ends at its number of parameters on a log axis, the number beside it."""
    ax = picture("six")
    assert ax.get_xscale() == "log"
    counts = [784 * 256 + 256, 256 * 64 + 64, 64 * 3 + 3]
    assert [round(box.x1) for box in boxes(ax)] == counts
    beside = {text.get_text() for text in ax.texts}
    assert {f"{count:,}" for count in counts} <= beside


def test_tiny_head_is_seen() -> None:
    """A head of 0.005 % of the model has a bar of a third of the axes and more."""
    model = nn.Sequential(nn.Embedding(30_522, 744), nn.Linear(384, 3))
    ax = trainability(FreezePlan().freeze("0").resolve(model))
    renderer = render(ax)
    head = boxes(ax)[-1]
    assert head.what == "Trainable"
    assert head.width > ax.get_window_extent(renderer).width / 3


def test_a_module_of_both_states_is_split_by_count() -> None:
    """The two bars of a partial row end at the frozen and at the trainable count."""
    ax = trainability(FreezePlan().freeze("weight").resolve(nn.Linear(30, 10)))
    ends = {box.hatch: round(box.x1) for box in boxes(ax)}
    assert ends == {"xxxx": 300, "////": 10}
    assert "10 of 310 trainable" in {text.get_text() for text in ax.texts}


def test_tied_module_says_so() -> None:
    """A module whose only parameter is another's is drawn in its state and names the other."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    ax = trainability(FreezePlan().freeze("0").resolve(model))
    assert hatches(ax) == {0: {"xx"}, 1: {"xx"}}
    assert "tied to 0.weight" in {text.get_text() for text in ax.texts}


def test_model_without_parameters_has_a_row_without_a_bar() -> None:
    """A model with nothing to train is drawn as that."""
    ax = trainability(nn.Sequential(nn.ReLU()))
    render(ax)
    assert hatches(ax) == {0: set()}


def test_axes_given_are_the_axes_returned() -> None:
    """The picture goes into the axes passed in, and nothing else in the figure changes."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert draw("six", left) is left
    assert boxes(right) == []
    assert figure.axes == [left, right]


@pytest.mark.parametrize("name", ["six", "forty_eight", "alternating"])
@pytest.mark.parametrize("size", [(6.4, 4.8), (3.5, 2.5), (12.0, 3.0)])
@pytest.mark.parametrize("layout", [None, "constrained"])
def test_given_axes_get_as_many_rows_as_fit(
    name: str, size: tuple[float, float], layout: str | None
) -> None:
    """In axes of any size no two texts intersect, and only bars of 8 pixels have a hatch."""
    ax = draw(name, Figure(figsize=size, layout=layout).add_subplot())
    renderer = render(ax)
    shown = texts(ax, renderer)
    assert touching(shown) == []
    assert min(text.get_fontsize() for text, _ in shown) >= 6
    check_hatches(ax)
    if layout:
        assert outside(ax, shown) == []


def test_max_rows_is_kept() -> None:
    """The number of rows can be set, and 0 is refused by name."""
    with torch.device("meta"):
        model, plan = thousand()
    assert len(labels(trainability(plan.resolve(model), max_rows=7))) <= 7
    with pytest.raises(ValueError, match=r"^max_rows=0: a picture has at least one row$"):
        trainability(plan.resolve(model), max_rows=0)


def test_other_objects_are_refused() -> None:
    """What is neither a model nor a plan's result is named by its type."""
    expected = r"^trainability\(\) draws a model, a resolved or an applied plan, not dict$"
    with pytest.raises(TypeError, match=expected):
        trainability({})  # type: ignore[arg-type]


def test_a_model_is_drawn_as_it_is_now() -> None:
    """Of a bare model the flags count, also while a plan is applied to it."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[1].requires_grad_(False)
    assert hatches(trainability(model)) == {0: {"//"}, 1: {"xx"}}
    applied = FreezePlan().freeze("0").unfreeze("1").apply(model)
    assert hatches(trainability(model)) == {0: {"xx"}, 1: {"//"}}
    applied.release()
    assert hatches(trainability(model)) == {0: {"//"}, 1: {"xx"}}


def test_a_plan_is_drawn_at_its_moment() -> None:
    """A resolved plan is drawn at the clock given, an applied one where it stands."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    plan = FreezePlan().freeze("0").unfreeze("0", at_epoch=2)
    resolved = plan.resolve(model)
    assert hatches(trainability(resolved))[0] == {"xx"}
    assert hatches(trainability(resolved, epoch=2))[0] == {"//"}
    assert "phase 2 of 2" in trainability(resolved, epoch=2).get_title(loc="left")
    applied = plan.apply(model)
    applied.advance(epoch=2)
    assert hatches(trainability(applied))[0] == {"//"}
    assert hatches(trainability(applied, epoch=0))[0] == {"xx"}


def test_counts_stand_above() -> None:
    """The line that people paste is above the rows."""
    line = "trainable params: 195 || all params: 217,603 || trainable%: 0.0896"
    assert line in {text.get_text() for text in picture("six").texts}


def test_names_are_never_read_as_formulas() -> None:
    """A dollar sign in a module's name stays one."""
    model = nn.Sequential()
    model.add_module("cost$a_b$", nn.Linear(2, 2))
    ax = trainability(model)
    render(ax)
    assert labels(ax) == ["cost$a_b$"]
    assert not ax.get_yticklabels()[0].get_parse_math()


def test_settings_are_left_alone() -> None:
    """Drawing changes no matplotlib setting, also under a user's own style."""
    with mpl.rc_context({"hatch.linewidth": 3.0, "axes.grid": True, "font.size": 20}):
        before = dict(mpl.rcParams)
        ax = draw("forty_eight")
        shown = texts(ax, render(ax))
        assert dict(mpl.rcParams) == before
    assert touching(shown) == []


@pytest.mark.parametrize("size", [(3.5, 2.5), (12.0, 3.0)])
def test_boxes_without_room_for_a_hatch_are_plain(size: tuple[float, float]) -> None:
    """Where half a bar is too low, both states have their plain fills, light and dark."""
    ax = draw("alternating", Figure(figsize=size).add_subplot())
    render(ax)
    drawn = boxes(ax)
    assert {box.hatch for box in drawn} == {""}
    assert {round(grey(box.face)) for box in drawn if box.what == "Frozen"} == {90}
    assert {round(grey(box.face)) for box in drawn if box.what == "Trainable"} == {66}


@pytest.mark.parametrize("limit", [200, 1000])
def test_all_of_a_thousand_rows_can_be_drawn(limit: int) -> None:
    """Above 60 rows boxes have no edges, and labels stand where there is room for them."""
    ax = trainability(resolved("thousand"), max_rows=limit)
    check_texts(ax)
    drawn = boxes(ax)
    assert len({box.row for box in drawn}) == {200: 199, 1000: 999}[limit]
    assert not any(box.edged for box in drawn)
    assert any(box.edged for box in boxes(picture("forty_eight")))
    check_hatches(ax)
    assert min(box.height for box in drawn) >= 0.8
    assert 100 <= len(labels(ax)) <= 120
    assert labels(ax)[1] in ("2 (Linear)", "9 (Linear)")


@pytest.mark.timing
def test_twenty_thousand_rows_are_drawn_and_saved_in_time() -> None:
    """Every row of 20,000 modules is drawn and written as SVG in under 6 s of processor time."""
    modules = [nn.Module() for _ in range(20_000)]
    for place, module in enumerate(modules):
        module.weight = nn.Parameter(torch.empty(place % 97 + 1, 8, device="meta"))
        module.bias = nn.Parameter(torch.empty(place % 97 + 1, device="meta"))
    plan = FreezePlan().freeze("**").unfreeze("[::3]").unfreeze("[::7].bias")
    made = plan.resolve(nn.Sequential(*modules))
    start = time.process_time()
    ax = trainability(made, max_rows=20_000)
    save(ax, io.BytesIO(), format="svg")
    seconds = time.process_time() - start
    assert len({box.row for box in boxes(ax)}) == 20_000
    assert len(ax.collections) <= 4
    assert seconds < 6, seconds
