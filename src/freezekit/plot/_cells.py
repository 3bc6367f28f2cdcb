"""The cells of a picture of layers by phases: what is frozen, and what trains at which rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple

from .._grid import Cell
from ._bands import Strip
from ._canvas import EDGED, FROZEN, Box, Frame, fill, is_light
from ._columns import Columns
from ._rates import UNKNOWN_HATCH, Rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HIGH = 0.88
"""The height of a cell in rows."""
_RATE = 8.0


@dataclass(frozen=True, slots=True)
class Sheet:
    """Axes with rows and columns.

    Attributes:
        ax: the axes.
        frame: their sizes; its width is that of all of it.
        bars: inches of the bars at the right.
        rows: the rows.
        time: the columns.
        rates: the shades.
    """

    ax: Axes
    frame: Frame
    bars: float
    rows: Sequence[Strip]
    time: Columns
    rates: Rates


class _Stretch(NamedTuple):
    """What a row shows, in phases that follow each other and in which it shows the same.

    Attributes:
        y: the row.
        left: where it begins.
        right: where it ends.
        cell: what is shown.
    """

    y: int
    left: float
    right: float
    cell: Cell


def _stretches(sheet: Sheet) -> Iterator[_Stretch]:
    """Yields what the rows show, from the top down."""
    lines = [[*pairwise(line)] for line in sheet.time.lines]
    for y, row in enumerate(sheet.rows):
        cells = iter(row.cells)
        for line in lines:
            spans = zip(line, cells, strict=False)
            for _, same in groupby(spans, lambda each: each[1]._replace(trainable=0)):
                found = [*same]
                yield _Stretch(y, found[0][0][0], found[-1][0][1], found[0][1])


def draw_cells(sheet: Sheet) -> None:
    """Draws what is frozen and each shade of what trains at once, then the rates inside."""
    boxes: dict[tuple[str, str], list[Box]] = {}
    colours: dict[str, dict[str, str]] = {"frozen": FROZEN}
    stretches = [*_stretches(sheet)]
    for y, left, right, cell in stretches:
        text = sheet.rates.text(cell)
        colours.setdefault(text or "trainable", sheet.rates.colours(cell))
        for part, what, hatch in zip(
            _halves(y, cell),
            ("frozen", text or "trainable"),
            ("xx", "" if text else UNKNOWN_HATCH),
            strict=True,
        ):
            if part:
                height = (part[1] - part[0]) * sheet.frame.pitch
                large = sheet.frame.hatches((right - left) * sheet.time.inch, height)
                boxes.setdefault((what, hatch if large else ""), []).append((left, right, *part))
    edges = len(sheet.rows) <= EDGED
    for (what, hatch), made in boxes.items():
        fill(sheet.ax, made, colours[what], hatch=hatch, edges=edges, label=what)
    for stretch in stretches:
        _write_rate(sheet, stretch)


def _halves(y: int, cell: Cell) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Returns top and bottom of what a cell shows as frozen, and of what it shows as trainable."""
    top, bottom = y - HIGH / 2, y + HIGH / 2
    if cell.state == "partial":
        return (top, y), (y, bottom)
    if cell.state == "trainable":
        return None, (top, bottom)
    return ((top, bottom) if cell.state == "frozen" else None), None


def _write_rate(sheet: Sheet, stretch: _Stretch) -> None:
    """Writes the rate of a stretch that trains, where there is room."""
    size = min(_RATE, sheet.frame.font_size)
    y, left, right, cell = stretch
    _, warm = _halves(y, cell)
    text = sheet.rates.text(cell)
    if not (warm and text) or 72 * (warm[1] - warm[0]) * sheet.frame.pitch < 1.1 * size:
        return
    if sheet.rates.width(text, size) > (right - left) * sheet.time.inch - 0.06:
        return
    sheet.ax.text(
        (left + right) / 2,
        sum(warm) / 2,
        text,
        ha="center",
        va="center_baseline",
        fontsize=size,
        color="black" if is_light(sheet.rates.colours(cell)["facecolor"]) else "white",
    )
