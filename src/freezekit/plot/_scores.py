"""What `score_layers` found, as bars or as a heat map."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..scoring import Score, Scores
from ._canvas import (
    COUNTS,
    EDGED,
    MARGIN,
    SMALL,
    WIDEST,
    Frame,
    fill,
    label_rows,
    new_figure,
    own_dpi,
    room,
    title_above,
    write,
)
from ._texts import plain, shortened, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR = 0.8  # height of a bar in rows
_TALLEST = 12.0  # inches of rows in a figure of our own
_LEAST_BAR = 4.0  # pixels of a bar in a figure of our own
_COLUMN = 0.45  # inches of a column
_LOG_FROM = 50  # ratio of the largest to the least score from which their scale is logarithmic
_INFINITE = {"facecolor": "#4d647a", "edgecolor": "#dbe3ea"}
_MEASURES = {
    "relative_gradient_norm": "gradient norm / weight norm",
    "fisher": "mean squared gradient",
    "snr": "signal-to-noise ratio",
}


def scores(scored: Scores, ax: Axes | None = None) -> Axes:
    """Draws what `score_layers` found, from the input at the top to the output at the bottom.

    Each row is a bar with its score at the end; the scale is logarithmic where the scores differ
    by a factor of more than 50. Scores with kinds that several blocks have become a heat map
    instead, a row for each block and a column for each kind. A kind is compared with itself, so
    the shade is the share of the best score in its column. What stands outside the blocks has a
    row with its number alone. With many rows only every second or third has its name, and none
    its number.

    Args:
        scored: the scores.
        ax: where to draw; without it a new figure of fitting size is made, reached by `ax.figure`.

    Returns:
        The axes drawn into, which `save` writes to a file.

    Raises:
        TypeError: if `scored` is something else.
        ValueError: if there is no row in it.

    Example:
        >>> from freezekit import plot
        >>> from freezekit.scoring import Score, Scores
        >>> rows = (Score("stem", None, ("0",), 80, 0.5), Score("head", None, ("1",), 20, 0.25))
        >>> ax = plot.scores(Scores("fisher", rows, 100))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['stem', 'head']
    """
    if not isinstance(scored, Scores):
        raise TypeError(f"scores() draws what score_layers() returns, not {type(scored).__name__}")
    if not scored.rows:
        raise ValueError("a picture has at least one row, and these scores have none")
    kinds = [kind for kind, count in Counter(row.kind for row in scored.rows).items() if count > 1]
    columns = [kind for kind in kinds if kind is not None]
    ax = _draw_grid(scored.rows, columns, ax) if len(columns) > 1 else _draw_scores(scored, ax)
    title_above(ax, scored.method, 6.0)
    return ax


def _sheet(names: Sequence[str], ax: Axes | None, width: float, above: float) -> tuple[Axes, Frame]:
    """Makes room for rows of these names, in a new figure of this width or in given axes.

    Where rows are too low for their labels, every second, third, ... has one.
    """
    count = len(names)
    if ax is None:
        dpi = own_dpi()
        pitch = max(min(0.28, 0.32 - 0.003 * count), min(0.17, _TALLEST / count))
        frame = Frame(width, WIDEST, max(pitch, _LEAST_BAR / (_BAR * dpi)), dpi)
        size = frame.font_size
        labels = max(text_width(shortened(name, "", WIDEST, size), size) for name in names)
        ax = new_figure(width + labels + 0.3, frame.pitch * count + above)
    else:
        width, height, label_width = room(ax)
        frame = Frame(width, label_width, height / count, ax.figure.dpi)
    size, stride = frame.font_size, frame.stride(count)
    texts = [""] * count
    texts[::stride] = [shortened(name, "", frame.label_width, size) for name in names[::stride]]
    label_rows(ax, texts, stride, size)
    return ax, frame


def _draw_scores(scored: Scores, given: Axes | None) -> Axes:
    """Draws a bar for each row, an infinite one to the end of the others, hatched and darker."""
    ax, frame = _sheet([row.name or "model" for row in scored.rows], given, 5.0, MARGIN)
    values = [row.value for row in scored.rows]
    known = [value for value in values if 0 < value < math.inf] or [1.0]
    most = max(known)
    log = most / min(known) > _LOG_FROM
    start = 10 ** math.floor(math.log10(min(known)) - 0.3) if log else 0.0
    ends = [min(max(value, start), most) for value in values]
    boxes = [(start, end, y - _BAR / 2, y + _BAR / 2) for y, end in enumerate(ends)]
    edges = len(boxes) <= EDGED
    finite = [box for box, value in zip(boxes, values, strict=True) if value < math.inf]
    fill(ax, finite, COUNTS, edges=edges, label="score")
    infinite = [box for box, value in zip(boxes, values, strict=True) if value == math.inf]
    hatch = "//" if frame.hatches(frame.width, _BAR * frame.pitch) else ""
    fill(ax, infinite, _INFINITE, hatch=hatch, edges=edges, label="infinite")
    size = frame.font_size
    for place in range(len(ends)) if frame.stride(len(ends)) == 1 else ():
        write(ax, f"{values[place]:.3g}", (ends[place], place), size)
    widest = max(text_width(f"{value:.3g}", size) for value in values) + 0.15
    stretch = frame.width / max(0.2 * frame.width, frame.width - widest)
    measure = _MEASURES.get(scored.method, "score")
    ax.set_xlabel(f"{measure} (log scale)" if log else measure, fontsize=SMALL)
    _scale(ax, (start, most, stretch), frame)
    return ax


def _scale(ax: Axes, span: tuple[float, float, float], frame: Frame) -> None:
    """Sets up the scale of scores: from a start to the most, and by what factor longer."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    start, most, stretch = span
    if start:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(start, start * (most / start) ** stretch)
        powers = range(round(math.log10(start)), math.floor(math.log10(most)) + 1)
        ticks = [10.0**power for power in powers[:: math.ceil(len(powers) / (2 * frame.width))]]
    else:
        ax.set_xlim(0, most * stretch)
        steps = MaxNLocator(max(1, int(frame.width))).tick_values(0, most)
        ticks = [float(step) for step in steps if 0 <= step <= most]
    ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    ax.tick_params(axis="x", labelsize=max(6.0, frame.font_size - 1))
    ax.grid(True, axis="x", color="0.5", alpha=0.3, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "bottom"]].set_visible(False)


def _draw_grid(rows: Sequence[Score], kinds: Sequence[str], given: Axes | None) -> Axes:
    """Draws a shade for each block and kind, and a number for each row outside the blocks."""
    lines: dict[str, dict[str, float]] = {}
    for row in rows:
        inside = row.kind in kinds
        block = row.name.removesuffix(row.kind or "").removesuffix(".") if inside else row.name
        lines.setdefault(block, {})[row.kind if inside and row.kind else ""] = row.value
    size = 7.0
    above = max(text_width(plain(kind), size) for kind in kinds) + 0.6
    width = max(2.5, min(16.0, _COLUMN * len(kinds)))
    ax, frame = _sheet([name or "model" for name in lines], given, width, above)
    column, numbered = frame.width / len(kinds), frame.stride(len(lines)) == 1
    best = {kind: max(line.get(kind, 0.0) for line in lines.values()) for kind in kinds}
    shades = [[_share(line.get(kind), best[kind]) for kind in kinds] for line in lines.values()]
    ax.imshow(shades, cmap="Blues", vmin=-0.2, vmax=1.3, aspect="auto", interpolation="nearest")
    for y, line in enumerate(lines.values()):
        if "" in line and numbered:
            write(ax, f"{line['']:.3g}", (-0.5, y), frame.font_size)
        for x, kind in enumerate(kinds):
            text = f"{line[kind]:.2g}" if kind in line else ""
            if text and numbered and text_width(text, frame.font_size) < column - 0.05:
                ax.text(x, y, text, ha="center", va="center_baseline", fontsize=frame.font_size)
    step = math.ceil(0.125 / column)
    ax.set_xticks(
        range(0, len(kinds), step), [*map(plain, kinds[::step])], rotation=90, parse_math=False
    )
    ax.tick_params(axis="x", top=False, bottom=False, labelsize=size)
    ax.tick_params(axis="x", labeltop=True, labelbottom=False)
    ax.set_xlabel("shade: share of the best of the column", fontsize=SMALL)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def _share(value: float | None, best: float) -> float:
    if value is None:
        return math.nan
    return value / best if 0 < best < math.inf else float(value == best > 0)
