"""The picture of learning rates over a run, judged through the renderer."""

import math

import matplotlib as mpl
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pictures import CASES, check_texts, grey, outside, render, texts, touching
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
)

from freezekit import FreezePlan, PlanError
from freezekit.plot import learning_rates


def draw(name: str, ax: Axes | None = None) -> Axes:
    """Draws a case with a group for each layer, under a cosine that goes to almost nothing."""
    with torch.device("meta"):
        model, plan = CASES[name]()
    plan = plan.unfreeze("**", at_step=40).layer_decay(decay=0.9)
    made = plan.resolve(model, total_steps=100)
    return learning_rates(
        made, ax, lr=0.01, scheduler=lambda optimizer: CosineAnnealingLR(optimizer, 100)
    )


def lines(ax: Axes) -> dict[str, Line2D]:
    """Returns the lines of groups, by their names."""
    return {str(line.get_gid()): line for line in ax.lines if line.get_gid()}


def three(plan: FreezePlan, **totals: int) -> Axes:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    return learning_rates(plan.resolve(model, **totals), lr=0.1)


@pytest.mark.parametrize("name", CASES)
def test_texts_are_apart_large_enough_and_whole(name: str) -> None:
    """No text touches another or leaves the figure, and none is below 6 points."""
    check_texts(draw(name))


@pytest.mark.parametrize("name", ["six", "forty_eight", "thousand_repeated"])
@pytest.mark.parametrize("size", [(6.4, 4.8), (3.5, 2.5), (12.0, 3.0)])
@pytest.mark.parametrize("layout", [None, "constrained"])
def test_given_axes_get_as_many_names_as_fit(
    name: str, size: tuple[float, float], layout: str | None
) -> None:
    """In axes of any size no two texts intersect, and the axes returned are those given."""
    figure = Figure(figsize=size, layout=layout)
    ax = figure.add_subplot()
    assert draw(name, ax) is ax
    assert figure.axes == [ax]
    shown = texts(ax, render(ax))
    assert touching(shown) == []
    if layout:
        assert outside(ax, shown) == []


def test_a_line_is_the_rates_of_its_groups() -> None:
    """Lines are what the simulation gives, with gaps while a group is frozen, to the last step."""
    plan = FreezePlan().group("[0]", lr_mult=0.1).freeze("[0]", at_step=2, until_step=4)
    ax = three(plan, total_steps=6)
    found = lines(ax)
    assert set(found) == {"0", "1-2"}
    nan = math.nan
    rates = [0.1 * 0.1] * 2 + [nan] * 2 + [0.1 * 0.1] * 3
    assert found["0"].get_ydata().tolist() == pytest.approx(rates, nan_ok=True)
    assert found["0"].get_xdata().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert found["1-2"].get_ydata().tolist() == [0.1] * 7
    assert ax.get_yscale() == "log"


def test_groups_with_one_rate_share_a_line() -> None:
    """Groups that differ in weight decay alone are one line, which says how many it stands for."""
    ax = three(FreezePlan().no_decay(), total_steps=4)
    assert list(lines(ax)) == ["0-2 +1"]
    assert ax.get_title(loc="left") == "Sequential, 2 param groups"


def test_phases_are_marked_with_their_moments() -> None:
    """A vertical line stands where each phase begins, in steps, and says which moment it is."""
    ax = three(FreezePlan().freeze("[0]", until_epoch=2), steps_per_epoch=5, total_epochs=4)
    marks = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in marks] == [[10, 10]]
    assert "epoch 2" in [text.get_text() for text in ax.texts]


def test_of_many_lines_twelve_have_names() -> None:
    """The others are thin, and none is left out."""
    ax = draw("forty_eight")
    widths = [line.get_linewidth() for line in lines(ax).values()]
    assert len(widths) > 40
    assert sum(width > 1 for width in widths) == 12
    assert sum(text.get_text() in lines(ax) for text in ax.texts) == 12


def test_rates_far_below_leave_the_scale() -> None:
    """A rate of zero does not stretch the scale: it ends at a hundredth of the lowest peak."""
    made = FreezePlan().resolve(nn.Linear(2, 2), total_steps=50)
    ax = learning_rates(
        made, lr=1.0, scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=49)
    )
    low, high = ax.get_ylim()
    assert 0.005 < low < 0.011
    assert 1 < high < 2


def test_metrics_that_are_not_measured_are_said() -> None:
    """The axis says that what waits for a metric stays closed."""
    plan = FreezePlan().freeze("[0]").unfreeze("[0]", at_metric={"monitor": "loss"})
    ax = three(plan, total_steps=5)
    assert ax.get_xlabel() == "optimizer step, as long as no metric stalls"
    assert set(lines(ax)) == {"1-2"}


def test_what_cannot_be_simulated_is_refused() -> None:
    """Another object, a scheduler that follows a metric, a run without an end."""
    made = FreezePlan().resolve(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"^learning_rates\(\) draws a resolved plan, not Linear; "):
        learning_rates(nn.Linear(2, 2), lr=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^ReduceLROnPlateau follows a metric"):
        learning_rates(made, lr=0.1, scheduler=ReduceLROnPlateau, total_steps=3)
    with pytest.raises(PlanError, match=r"^how long training is"):
        learning_rates(made, lr=0.1)


def test_settings_are_left_alone() -> None:
    """Drawing changes no matplotlib setting, also under a user's own style."""
    with mpl.rc_context({"axes.grid": True, "font.size": 20, "lines.linewidth": 5}):
        before = dict(mpl.rcParams)
        check_texts(draw("six"))
        assert dict(mpl.rcParams) == before


def test_the_picture_of_a_long_run_is_small() -> None:
    """Of 100,000 steps in many groups not more than a sample is drawn."""
    layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(80)))
    made = FreezePlan().layer_decay(decay=0.95).resolve(layers, total_steps=100_000)
    ax = learning_rates(made, lr=0.1)
    points = sum(len(line.get_xdata()) for line in lines(ax).values())
    assert len(lines(ax)) == 80
    assert points < 70_000


def test_a_rate_that_swings_between_the_steps_drawn_is_a_band() -> None:
    """Of a cycle that is shorter than the sample's steps the range is drawn, not an alias."""
    made = FreezePlan().resolve(nn.Linear(2, 2), total_steps=100_000)

    def cyclic(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return CyclicLR(optimizer, base_lr=1e-4, max_lr=0.1, step_size_up=25)

    ax = learning_rates(made, lr=0.1, scheduler=cyclic)
    (band,) = ax.collections[:1]
    _, low, _, high = band.get_paths()[0].get_extents().extents
    assert (low, high) == pytest.approx((1e-4, 0.1), rel=0.05)
    (line,) = lines(ax).values()
    assert min(line.get_ydata()) == pytest.approx(0.1, rel=0.05)
    assert ax.get_ylim()[0] < 1.2e-4
    steady = learning_rates(
        made, lr=0.1, scheduler=lambda optimizer: CosineAnnealingLR(optimizer, 100_000)
    )
    assert len(steady.collections) == len(ax.collections) - 1


def test_a_group_that_trains_at_zero_is_seen() -> None:
    """A group that opens when the schedule is at 0 is a line at the bottom, and says so."""
    made = FreezePlan().freeze("0").unfreeze("0", at_step=100)
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ax = learning_rates(
        made.resolve(layers, total_steps=200),
        lr=0.1,
        scheduler=lambda optimizer: LinearLR(optimizer, 1, 0, total_iters=100),
    )
    assert set(lines(ax)) == {"0", "1"}
    assert "0 lr 0" in [text.get_text() for text in ax.texts]
    rates = lines(ax)["0"].get_ydata().tolist()
    assert all(math.isnan(rate) for rate in rates[:100])
    assert set(rates[100:]) == {ax.get_ylim()[0]}
    check_texts(ax)


@pytest.mark.parametrize("lr", [1e-320, 1e-300, 1e300])
def test_extreme_rates_are_drawn(lr: float) -> None:
    """A rate at the end of what numbers can be is drawn, or said."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    plan = FreezePlan().group("0", lr=lr).group("1", lr=0.1)
    check_texts(learning_rates(plan.resolve(layers, total_steps=3), lr=0.1))
    check_texts(learning_rates(FreezePlan().resolve(layers, total_steps=3), lr=lr))


def test_lines_are_seen_on_a_dark_page() -> None:
    """No line is as dark as a dark page, nor as light as a light one."""
    for page, way in (("black", 1), ("white", -1)):
        with mpl.rc_context({"axes.facecolor": page}):
            shades = [grey(line.get_color()) for line in lines(draw("forty_eight")).values()]
        assert min(way * (shade - grey(page)) for shade in shades) > 15
