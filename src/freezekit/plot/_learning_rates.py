"""The learning rates of a run, step by step, under a plan and an LR scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch.optim.lr_scheduler import LRScheduler

from .._resolved import ResolvedPlan
from .._simulation import Run, Simulation, simulate
from ._canvas import SMALL, is_light, new_figure, room, title_above
from ._courses import HUGE, TINY, Course, distinct
from ._moments import moments
from ._texts import shortened, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = 12  # lines with names
_LINE = 0.14  # inches from name to name
_TYPE = 7.0
_LEADER = 0.35  # inches between lines and names
_BELOW = 100  # by how much less than the lowest peak a rate may be before it leaves the scale
_LEADER_STYLE: dict[str, Any] = {"color": "0.6", "linewidth": 0.6, "zorder": 1, "clip_on": False}
_START_STYLE: dict[str, Any] = {"color": "0.55", "linewidth": 0.8, "linestyle": ":", "zorder": 0.9}


def learning_rates(
    resolved: ResolvedPlan,
    ax: Axes | None = None,
    *,
    lr: float,
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    interval: Literal["step", "epoch"] = "step",
) -> Axes:
    """Draws the learning rate that each param group has at every optimizer step, on a log scale.

    It is what `AppliedPlan.lrs()` would give in a run: the plan is carried out on an optimizer
    without a model, beside a real LR scheduler, and nothing is trained. A line has gaps while its
    group is frozen. Groups that always have the same rate share a line, named after the first;
    of more than twelve lines twelve have their names. Vertical lines are where phases begin. What
    falls to a hundredth of the lowest group's peak leaves the scale; a group that trains only at a
    rate of 0 is a line at its bottom, and says so. No metric is measured, so
    what waits for one stays closed. Of runs of more than 800 steps a sample is drawn, of
    very many groups a smaller one; a rate that goes up and down between two steps of it is drawn as
    a band, from the least to the greatest.

    Args:
        resolved: the plan, resolved against a model; of an applied plan `applied.resolved`.
        ax: where to draw; without it a new figure is made, reached by `ax.figure`.
        lr: base learning rate, as for `AppliedPlan.optimizer`.
        scheduler: takes an optimizer and returns an LR scheduler of torch.
        total_steps: optimizer steps of the run; by default as given to `resolve`.
        steps_per_epoch: optimizer steps of an epoch; by default as given to `resolve`.
        interval: whether the scheduler is stepped after each "step" or each "epoch".

    Returns:
        The axes drawn into, which `save` writes to a file.

    Raises:
        TypeError: if `resolved` is no resolved plan, or `scheduler` builds no LR scheduler.
        PlanError: if how long the run or an epoch is, is not known or contradicts what the plan
            was resolved with, or `lr` is not positive.
        FreezekitError: if nothing ever trains.
        ValueError: if the scheduler follows a metric, as ReduceLROnPlateau, or `interval` is
            neither of its values.

    Example:
        >>> from torch import nn
        >>> from torch.optim.lr_scheduler import OneCycleLR
        >>> from freezekit import FreezePlan, plot
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> resolved = FreezePlan().freeze("0").unfreeze("0", at_step=40).resolve(model)
        >>> ax = plot.learning_rates(
        ...     resolved,
        ...     lr=0.1,
        ...     scheduler=lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=100),
        ...     total_steps=100,
        ... )
        >>> [text.get_text() for text in ax.texts]
        ['0', '1', 'step 40']
    """
    if not isinstance(resolved, ResolvedPlan):
        kind = type(resolved).__name__
        raise TypeError(
            f"learning_rates() draws a resolved plan, not {kind}; call plan.resolve(model), or "
            "pass applied.resolved"
        )
    run = simulate(resolved, Run(lr, scheduler, total_steps, steps_per_epoch, interval))
    courses = distinct(run)
    sheet = _sheet(courses, ax)
    _draw_lines(sheet, courses, run.total)
    _draw_scales(sheet, run.total)
    _draw_starts(sheet, resolved, run)
    waits = ", as long as no metric stalls" if resolved.metrics else ""
    share = sheet.share
    sheet.ax.set_xlabel(f"optimizer step{waits}", x=share / 2, ha="center", fontsize=SMALL)
    count = len(run.rates)
    title = f"{resolved._tree.class_names[0]}, {count} param group{'s' if count > 1 else ''}"
    title_above(sheet.ax, title, 14.0)
    return sheet.ax


class _Sheet(NamedTuple):
    """Axes for lines with names behind them, in inches.

    Attributes:
        ax: the axes.
        width: of all of it.
        height: of all of it.
        names: of the names at the right.
        low: the least rate of the scale.
        high: the greatest.
    """

    ax: Axes
    width: float
    height: float
    names: float
    low: float
    high: float

    @property
    def share(self) -> float:
        """What share of the width the lines have."""
        return 1 - (self.names + _LEADER) / self.width

    def up(self, rate: float) -> float:
        """Returns where a rate stands, from 0 at the bottom to 1 at the top."""
        low, high = math.log(self.low), math.log(self.high)
        return min(1.0, (math.log(max(rate, self.low)) - low) / (high - low))


def _sheet(courses: Sequence[Course], ax: Axes | None) -> _Sheet:
    """Makes room for lines, in a new figure or in given axes, with a scale for their rates."""
    names = max((text_width(course.label + course.off, _TYPE) for course in courses), default=0.5)
    if ax is None:
        names = min(names, 2.5)
        width = 5.0 + names + _LEADER
        height = max(2.6, _LINE * 1.2 * min(len(courses), _LABELS) + 0.4)
        ax = new_figure(width + 0.7, height + 1.0)
    else:
        width, height, _ = room(ax, 1.0)
        width *= 1.0 if ax.figure.get_layout_engine() is None else 1.4
        names = min(names, 0.35 * width)
    peaks = [min(course.peak, HUGE) for course in courses if not course.off] or [1.0]
    least = min(
        (rate for course in courses for rate in (*course.rates, *course.lows) if rate >= TINY),
        default=1.0,
    )
    depth = _BELOW**2 if any(course.lows for course in courses) else _BELOW
    low, high = max(least, min(peaks) / depth), max(peaks)
    margin = max(high**0.05 / low**0.05, 2.0 if high < 2 * low else 1.0)
    sheet = _Sheet(ax, width, height, names, low / margin, high * margin)
    ax.set_yscale("log")
    ax.set_ylim(sheet.low, sheet.high)
    return sheet


def _draw_lines(sheet: _Sheet, courses: Sequence[Course], total: int) -> None:
    """Draws the lines, those with names thick, and the names in the order of their ends."""
    from matplotlib import colormaps

    ax, limit = sheet.ax, max(1, min(_LABELS, int(sheet.height / _LINE)))
    shades = colormaps["viridis"]
    first, span = (0.0, 0.88) if is_light(ax.get_facecolor()) else (0.3, 0.7)
    ends = [(sheet.up(course.end[1]), course.peak) for course in courses]
    by_end = sorted(range(len(courses)), key=ends.__getitem__)
    named = by_end if len(by_end) <= limit else [
        by_end[round(k * (len(by_end) - 1) / max(1, limit - 1))] for k in range(limit)
    ]  # fmt: skip
    for k, course in enumerate(courses):
        colour = shades(first + span * k / max(1, len(courses) - 1))
        thick = 1.8 if k in named else 0.7
        last = course.rates[-1]
        steps, rates = [*course.steps, total], [*course.rates, last]
        if course.off:
            rates = [max(rate, sheet.low) for rate in rates]
        (line,) = ax.plot(steps, rates, color=colour, linewidth=thick, drawstyle="steps-post")
        line.set_gid(course.label)
        if course.lows:
            lows = [*course.lows, course.lows[-1]]
            ax.fill_between(steps, lows, rates, step="post", color=colour, alpha=0.3, linewidth=0)
    heights = _apart([ends[k][0] * sheet.height for k in named], sheet.height)
    for k, height in zip(named, heights, strict=True):
        step, rate = courses[k].end
        place = sheet.share + 0.7 * _LEADER / sheet.width, height / sheet.height
        start = min(step + 1, total) / total * sheet.share, sheet.up(rate)
        ax.plot(*zip(start, place, strict=True), transform=ax.transAxes, **_LEADER_STYLE)
        ax.annotate(
            shortened(courses[k].label, courses[k].off, sheet.names, _TYPE),
            place,
            xycoords="axes fraction",
            xytext=(3, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=_TYPE,
            parse_math=False,
        )


def _apart(wanted: Sequence[float], height: float) -> list[float]:
    """Returns places, from the bottom up, as near to those wanted as lines of text allow."""
    pitch = min(_LINE * 1.1, height / max(1, len(wanted)))
    found: list[float] = []
    for place in wanted:
        found.append(max(place, found[-1] + pitch if found else 0.0))
    ceiling = height
    for k in reversed(range(len(found))):
        found[k] = min(found[k], ceiling)
        ceiling = found[k] - pitch
    return found


def _draw_scales(sheet: _Sheet, total: int) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator

    ax, room = sheet.ax, sheet.width * sheet.share
    locator = MaxNLocator(max(1, int(room / 0.8)), integer=True)
    steps = [int(tick) for tick in locator.tick_values(0, total) if 0 <= tick <= total]
    ax.set_xlim(0, total / sheet.share)
    ax.set_xticks(steps, [f"{step:,}" for step in steps])
    powers = range(math.floor(math.log10(sheet.low)), math.ceil(math.log10(sheet.high)) + 1)
    inside = [
        (digit, float(f"{digit}e{power}"))
        for power in powers
        for digit in (1, 2, 5)
        if sheet.low <= float(f"{digit}e{power}") <= sheet.high
    ]
    whole = [rate for digit, rate in inside if digit == 1]
    most = max(2, int(sheet.height / 0.3))
    ticks = [rate for _, rate in inside] if len(inside) <= most else whole
    ticks = ticks[:: math.ceil(len(ticks) / most)] if ticks else []
    ax.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(sheet.low, sheet.high)
    ax.tick_params(labelsize=_TYPE)
    ax.set_ylabel("learning rate (log scale)", fontsize=SMALL)
    ax.grid(False)
    ax.hlines(ticks, 0, total, color="0.87", linewidth=0.5, zorder=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines["bottom"].set_bounds(0, total)


def _draw_starts(sheet: _Sheet, resolved: ResolvedPlan, run: Simulation) -> None:
    """Draws a line where each phase begins, and above it which moment that is."""
    ax, edges = sheet.ax, moments(resolved).begins
    inch = sheet.width * sheet.share / run.total
    begins = [(start, edges[index]) for start, index in run.starts if start]
    texts = [edge.long for _, edge in begins]
    free = 0.0
    for (start, _), text in zip(begins, texts, strict=True):
        ax.axvline(start, **_START_STYLE)
        half = text_width(text, _TYPE) / 2
        if start * inch - half < free:
            continue
        free = start * inch + half + 0.08
        ax.annotate(
            text,
            (start, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=_TYPE,
            parse_math=False,
        )
