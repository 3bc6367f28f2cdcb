"""What a plan does over time: layers by phases, filled by learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .._grid import Grid, grid
from .._resolved import ResolvedPlan
from ._bands import Strip, strips
from ._canvas import (
    COUNTS,
    EDGED,
    FROZEN,
    LEAST_PITCH,
    MAX_ROWS,
    SMALL,
    START,
    WIDEST,
    Frame,
    Heading,
    decades_of,
    fill,
    hatched_pitch,
    is_light,
    key,
    label_rows,
    new_figure,
    own_dpi,
    pitch_of,
    room,
    rounded,
    scale_counts,
    write,
)
from ._cells import HIGH, Sheet, draw_cells
from ._columns import BETWEEN, Columns, columns, wanted
from ._moments import Moments, moments
from ._rates import Rates
from ._texts import shortened, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP = 0.2  # inches between the phases and the bars
_BARS = 1.9  # inches of bars in a figure of our own
_EXACT = 1.5  # inches of bars from which counts are exact
_COLUMN = 0.8  # inches of a phase in a figure of our own
_READABLE = 0.5  # inches of a phase in which a rate has room
_LONGEST = 8.0  # inches of all phases
_AROUND = 1.5  # inches above and below the rows
_TICKS = 7.0
_FRONTIER = 2.4  # points


def schedule(
    resolved: ResolvedPlan,
    ax: Axes | None = None,
    *,
    base_lr: float | None = None,
    depth: int | None = None,
    max_rows: int = MAX_ROWS,
) -> Axes:
    """Draws what a plan does over time: the layers of a model by the phases of training.

    Layers stand from the input at the top to the output at the bottom, phases from left to right.
    A cell is cross-hatched where the layer is frozen, and filled by its learning rate where it
    trains, the darker the higher, on a log scale; where only some of it trains, one above the
    other. A heavy line in each phase shows where backward stops: nothing above it costs a backward
    pass. Above each phase stands the share of parameters that train, beside each layer how many
    it has, on a log scale; in narrow axes these numbers are rounded.

    Where the order of the layers is not known for sure, as `infer_layers` notes, the legend says
    that backward stops there only if they run in the order drawn; `FreezePlan(layers=...)` says
    which order is right.

    Time is to scale where every phase is then wide enough to be read, and the axis says so where
    it is not. Phases that begin after the end of training are left out. Where there are more
    layers than rows, neighbours that the plan treats alike share one, and then others. The fills
    of cells too small for a hatch, 8 pixels, are plain: frozen ones are the lightest.

    Args:
        resolved: the plan, resolved against a model; of an applied plan `applied.resolved`.
        ax: where to draw; without it a new figure of fitting size is made, reached by `ax.figure`.
            Given axes get no more rows than their height has room for.
        base_lr: the optimizer's own lr, which multipliers multiply. Without it the rates are
            multipliers, or, where the plan sets an lr, not known for what it sets none for.
        depth: draw modules at this many levels of nesting, 1 for the children of the model, where
            the first of their layers is; None draws the layers.
        max_rows: most rows drawn.

    Returns:
        The axes drawn into, which `save` writes to a file; the bars are in an inset,
        `ax.child_axes[0]`.

    Raises:
        TypeError: if `resolved` is something else.
        PlanError: if `base_lr` is not a positive number.
        ValueError: if `depth` or `max_rows` is not positive, or the model has no parameters.

    Example:
        >>> from torch import nn
        >>> from freezekit import FreezePlan, plot
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        >>> plan = FreezePlan().freeze("[:2]").unfreeze("[1]", lr_mult=0.1, at_epoch=1)
        >>> ax = plot.schedule(plan.resolve(model, total_epochs=3))
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['0', 'epoch 1', 'epoch 3']
    """
    if not isinstance(resolved, ResolvedPlan):
        kind = type(resolved).__name__
        raise TypeError(
            f"schedule() draws a resolved plan, not {kind}; call plan.resolve(model), or pass "
            "applied.resolved"
        )
    if max_rows < 1:
        raise ValueError(f"max_rows={max_rows}: a picture has at least one row")
    if not resolved.rows:
        raise ValueError("a schedule has at least one row, and this model has no parameters")
    when = moments(resolved)
    data = _during(grid(resolved, base_lr=base_lr, depth=depth), when)
    sheet = _new(data, when, max_rows) if ax is None else _given(data, when, ax, max_rows)
    draw_cells(sheet)
    stops = _draw_frontiers(sheet, data)
    _draw_counts(sheet)
    count = len(when.phases)
    title = f"{resolved._tree.class_names[0]}, {count} phase{'s' if count > 1 else ''}"
    _draw_around(sheet, title, data, stops)
    return sheet.ax


def _during(data: Grid, when: Moments) -> Grid:
    """Returns the grid of the phases that are drawn."""
    shown = [phase.index for phase in when.phases]
    bands = (band._replace(cells=tuple(band.cells[k] for k in shown)) for band in data.bands)
    frontiers = tuple(data.frontiers[k] for k in shown)
    return data._replace(bands=tuple(bands), frontiers=frontiers)


def _bars(width: float) -> float:
    """Returns the inches of the bars in axes of a width."""
    return min(_BARS, 0.35 * width)


def _sheet(ax: Axes, frame: Frame, rows: Sequence[Strip], data: Grid, time: Columns) -> Sheet:
    """Gathers the sizes of a picture, and the range of its rates."""
    cells = [cell for row in rows for cell in row.cells]
    return Sheet(ax, frame, _bars(frame.width), rows, time, Rates(cells, data.unit))


def _new(data: Grid, when: Moments, max_rows: int) -> Sheet:
    rows, dpi = strips(data, max_rows), own_dpi()
    width = _width(when) + _GAP + _BARS
    partial = any(cell.state == "partial" for row in rows for cell in row.cells)
    least = max(0.17, hatched_pitch(dpi, HIGH / 2 if partial else HIGH))
    frame = Frame(width, WIDEST, pitch_of(len(rows), least, dpi), dpi)
    size, stride = frame.font_size, frame.stride(len(rows))
    labels = [text_width(_label(row, WIDEST, size), size) for row in rows[::stride]]
    time = columns(when, width - _bars(width) - _GAP)
    height = frame.pitch * len(rows) + _AROUND + time.more
    ax = new_figure(width + max(*labels, 0.7) + 0.3, height)
    return _sheet(ax, frame, rows, data, time)


def _width(when: Moments) -> float:
    """Returns the inches of the phases in a figure of our own, more where that gives a scale."""
    count = len(when.phases) + BETWEEN * (len(when.lines) - 1)
    least = max(3.2, min(_LONGEST, max(_COLUMN, wanted(when)) * count))
    if not when.times:
        return least
    shortest = min(b - a for a, b in pairwise(when.times))
    scaled = _READABLE / (shortest / when.times[-1] or 1e-9)
    return max(least, scaled) if scaled <= _LONGEST else least


def _given(data: Grid, when: Moments, ax: Axes, max_rows: int) -> Sheet:
    width, height, label_width = room(ax, _AROUND)
    time = columns(when, width - _bars(width) - _GAP)
    if ax.figure.get_layout_engine() is not None:
        height = max(LEAST_PITCH, height - time.more)
    rows = strips(data, max(1, min(max_rows, int(height / LEAST_PITCH))))
    frame = Frame(width, label_width, height / len(rows), ax.figure.dpi)
    return _sheet(ax, frame, rows, data, time)


def _label(row: Strip, room: float, size: float) -> str:
    end = f" x{row.joined}" if row.joined > 1 else ""
    return shortened(row.name or "(own)", end, room, size)


def _frontier(ax: Axes) -> dict[str, Any]:
    """Returns how the line of backward looks: told from the page, and from the cells by a halo."""
    from matplotlib.patheffects import withStroke

    colour, around = ("#111111", "white") if is_light(ax.get_facecolor()) else ("white", "black")
    halo = withStroke(foreground=around, linewidth=_FRONTIER + 1.6)
    return {"color": colour, "linewidth": _FRONTIER, "path_effects": [halo]}


def _draw_frontiers(sheet: Sheet, data: Grid) -> bool:
    """Draws where backward stops in each phase; returns whether it does in any."""
    from matplotlib.collections import LineCollection

    rows = {part: y for y, row in enumerate(sheet.rows) for part in row.parts}
    lines = [
        [(x, rows[at] - 0.5) for x in span]
        for at, span in zip(data.frontiers, sheet.time.spans, strict=True)
        if at is not None
    ]
    made = LineCollection(lines, **_frontier(sheet.ax), zorder=3, clip_on=False)
    made.set_gid("backward stops")
    sheet.ax.add_collection(made, autolim=False)
    return bool(lines)


def _draw_counts(sheet: Sheet) -> None:
    """Draws the bars of parameter counts in an inset that shares the rows."""
    ax, frame, rows = sheet.ax, sheet.frame, sheet.rows
    size, stride = frame.font_size, frame.stride(len(rows))
    left = 1 - sheet.bars / frame.width
    beside = ax.inset_axes((left, 0, sheet.bars / frame.width, 1), sharey=ax)
    counts = [row.numel for row in rows]
    exact = sheet.bars >= _EXACT
    texts = [f"{count:,}" if exact else rounded(count) for count in counts[::stride]]
    decades = decades_of(counts, texts, sheet.bars, size, stride)
    half = HIGH / 2
    boxes = [(START, max(count, 1), y - half, y + half) for y, count in enumerate(counts)]
    fill(beside, boxes, COUNTS, edges=len(rows) <= EDGED, label="parameters")
    scale_counts(beside, max(counts), decades, sheet.bars)
    for place, text in enumerate(texts):
        write(beside, text, (max(counts[place * stride], 1), place * stride), size)
    beside.tick_params(axis="y", left=False, labelleft=False)
    beside.tick_params(axis="x", labelsize=_TICKS)
    beside.grid(False, axis="y")
    beside.spines[["top", "right", "bottom"]].set_visible(False)


def _draw_around(sheet: Sheet, title: str, data: Grid, stops: bool) -> None:
    """Draws the names, the moments, the shares that train, the legend and the title."""
    from matplotlib.lines import Line2D

    ax, frame, time = sheet.ax, sheet.frame, sheet.time
    size, stride = frame.font_size, frame.stride(len(sheet.rows))
    labels = [""] * len(sheet.rows)
    labels[::stride] = [_label(row, frame.label_width, size) for row in sheet.rows[::stride]]
    label_rows(ax, labels, stride, size)
    share = 1 - (sheet.bars + _GAP) / frame.width
    ax.set_xlim(time.xs[0], time.xs[0] + (time.xs[-1] - time.xs[0]) / share)
    time.draw_edges(ax)
    ax.set_xlabel(time.caption, x=share / 2, ha="center", fontsize=SMALL)
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    whole = max(1, sum(band.numel for band in data.bands))
    phases = zip(*(band.cells for band in data.bands), strict=True)
    shares = [_percent(sum(cell.trainable for cell in phase) / whole) for phase in phases]
    lift = time.draw_above(ax, shares)
    ax.annotate(
        "trainable",
        (0, 1),
        xycoords="axes fraction",
        xytext=(-3, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=_TICKS,
    )
    keys = [key("Frozen", FROZEN, "xx"), *sheet.rates.keys()]
    if stops:
        doubt = " (if layers run in this order)" if data.notes else ""
        keys.append(Line2D([], [], label=f"Backward stops{doubt}", **_frontier(ax)))
    Heading(title, "", keys, lift).draw(ax, frame.width)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if 100 * share < 9.95 else f"{100 * share:.0f} %"
