"""What all pictures share: sizes of texts and axes, boxes of one style, legends and headings.

Lengths are inches, sizes of type points. matplotlib is imported where something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from ._texts import plain, text_width

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.typing import ColorType

MAX_ROWS = 48
SMALL = 8.0
TITLE = 10.0
LEAST_TYPE = 6.0
LEAST_PITCH = 0.125
"""The least height of a row that has a label."""
WIDEST = 4.0
"""The widest label in a figure of our own."""
MARGIN = 1.15
"""What stands above and below the rows."""
TALLEST = 24.0
"""The highest stack of rows in a figure of our own, while each row has a pixel."""
MOST_LABELS = 120
"""The most rows with labels: each costs as much as hundreds of boxes."""
EDGED = 60
"""The most rows whose boxes have edges: those of more would turn their fills grey."""
START = 0.5
"""Where bars of counts start on the log scale, so that a single parameter has a length."""
FROZEN: dict[str, str] = {"facecolor": "#dbe3ea", "edgecolor": "#5d7487"}
TRAINABLE: dict[str, str] = {"facecolor": "#e58a3c", "edgecolor": "#7a3a0c"}
COUNTS: dict[str, str] = {"facecolor": "#8aa4ba", "edgecolor": "#3c5266"}

_HATCHED = 8.0 * 1.1  # pixels; the tenth is what constrained layout may take
_HATCH_LINE = 0.7
_UNITS = ("", "k", "M", "B", "T")

Box: TypeAlias = tuple[float, float, float, float]
"""A rectangle: left, right, top and bottom in the units of the axes."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The sizes of axes with rows.

    Attributes:
        width: of the rows.
        label_width: of the labels beside them.
        pitch: from one row to the next.
        dpi: pixels of the figure in an inch.
    """

    width: float
    label_width: float
    pitch: float
    dpi: float

    @property
    def font_size(self) -> float:
        """The size of type that a row has room for."""
        return min(9.0, max(LEAST_TYPE, 0.6 * 72 * self.pitch))

    def stride(self, count: int) -> int:
        """Returns every which of some rows is labelled: those with room, and not hundreds."""
        return max(math.ceil(LEAST_PITCH / self.pitch - 1e-6), math.ceil(count / MOST_LABELS))

    def hatches(self, width: float, height: float) -> bool:
        """Returns whether a box is so large that its hatch can be told: 8 pixels each way."""
        return min(width, height) * self.dpi >= _HATCHED


def hatched_pitch(dpi: float, share: float) -> float:
    """Returns the least row height in which a box of a share of it has a hatch."""
    return 1.001 * _HATCHED / (share * dpi)


def pitch_of(count: int, least: float, dpi: float) -> float:
    """Returns the row height of a figure of our own.

    Args:
        count: its rows.
        least: what a row needs where there is height for all.
        dpi: pixels in an inch.
    """
    wanted = max(least, min(0.28, 0.32 - 0.003 * count))
    return max(min(wanted, TALLEST / count), 1 / dpi)


def new_figure(width: float, height: float) -> Axes:
    """Returns the axes of a figure of our own."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def own_dpi() -> float:
    """Returns the pixels in an inch of a figure of our own."""
    from matplotlib import rcParams

    return float(rcParams["figure.dpi"])


def room(ax: Axes, around: float = MARGIN) -> tuple[float, float, float]:
    """Returns the width and the height that given axes have for rows, and the width for labels.

    Args:
        ax: the axes.
        around: what stands above and below the rows, which a layout takes from their height.
    """
    figure, spec = ax.figure, ax.get_subplotspec()
    dpi = figure.dpi
    box = ax.get_window_extent()
    width, height, label_width = box.width / dpi, box.height / dpi, box.x0 / dpi - 0.1
    if figure.get_layout_engine() is not None and spec is not None:
        cell, page = spec.get_position(cast("Figure", figure)), figure.subplotpars
        full = cell.width / (page.right - page.left) * figure.bbox.width / dpi
        height = cell.height / (page.top - page.bottom) * figure.bbox.height / dpi
        height = max(LEAST_PITCH, height - around - 0.15)
        width, label_width = 0.55 * full, 0.4 * full
    return width, height, label_width


def fill(
    ax: Axes,
    boxes: Sequence[Box],
    colours: dict[str, str],
    *,
    hatch: str = "",
    edges: bool = True,
    label: str = "",
) -> None:
    """Draws boxes of one style as one path: twenty thousand cost little more than one.

    Args:
        ax: where.
        boxes: none is fine.
        colours: of face and edge.
        hatch: the hatch, in the colour of the edge.
        edges: whether edges are drawn.
        label: what they are, for whoever reads the figure or its SVG.
    """
    from matplotlib import rc_context
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path

    if not boxes:
        return
    corners = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)] for x0, x1, y0, y1 in boxes]
    vertices = [corner for box in corners for corner in box]
    codes = [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY] * len(boxes)
    looks: dict[str, Any] = {**colours, "hatch": hatch or None, "linewidth": 0.6 if edges else 0}
    with rc_context({"hatch.linewidth": _HATCH_LINE}):
        made = PathCollection([Path(vertices, codes)], **looks)
    made.set_label(f"_{label}")
    made.set_gid(label or None)
    ax.add_collection(made, autolim=False)


def write(ax: Axes, text: str, place: tuple[float, float], size: float) -> None:
    """Writes a number beside a place."""
    ax.annotate(
        text,
        place,
        xytext=(3, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=size,
        parse_math=False,
    )


def label_rows(ax: Axes, labels: Sequence[str], stride: int, size: float) -> None:
    """Names rows, from the top down, or every second, third, ... where they are too low."""
    ax.set_yticks(range(0, len(labels), stride), labels[::stride], parse_math=False)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, labelsize=size)
    ax.grid(False, axis="y")


def scale_counts(ax: Axes, most: int, decades: float, width: float) -> None:
    """Sets up a log scale of parameter counts, of a number of decades."""
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log")
    ax.set_xlim(START, START * 10**decades)
    stride = math.ceil(decades * 0.4 / width)
    ticks = range(0, math.floor(math.log10(max(most, 1))) + 1, stride)
    ax.set_xticks([10**k for k in ticks], [_thousands(k) for k in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("parameters (log scale)", fontsize=SMALL)
    ax.grid(True, axis="x", color="0.5", alpha=0.3, linewidth=0.5)
    ax.set_axisbelow(True)


def decades_of(
    counts: Sequence[int], texts: Sequence[str], width: float, size: float, stride: int = 1
) -> float:
    """Returns how many decades fit into a width so that each count has room for its text.

    Args:
        counts: all counts.
        texts: those of every `stride`-th count.
        width: of the scale.
        size: of the texts.
        stride: every which of the counts has a text.
    """
    wide = math.log10(max(*counts, 1) / START)
    decades = max(1.0, wide * width / max(0.2 * width, width - 0.1))
    for count, text in zip(counts[::stride], texts, strict=True):
        left = max(0.2 * width, width - text_width(text, size) - 0.1)
        decades = max(decades, math.log10(max(count, 1) / START) * width / left)
    return decades


def rounded(count: int) -> str:
    """Returns a count in few characters, e.g. "11.9M"."""
    power = 0 if count < 1000 else min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g}{_UNITS[power]}"


def _thousands(power: int) -> str:
    return f"{10 ** (power % 3)}{_UNITS[min(power // 3, 4)]}"


def is_light(colour: ColorType) -> bool:
    """Returns whether black is the better colour for a text on a fill."""
    from matplotlib.colors import to_rgb

    red, green, blue = (part**2.2 for part in to_rgb(colour))
    return bool(0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18)


def title_above(ax: Axes, title: str, pad: float) -> None:
    """Writes a title some points above axes, at their left."""
    title = "\n".join(map(plain, title.split("\n")))
    ax.set_title(title, loc="left", fontsize=TITLE, fontweight="bold", pad=pad, parse_math=False)


def key(label: str, colours: dict[str, str], hatch: str = "") -> Patch:
    """Returns an entry of a legend."""
    from matplotlib.patches import Patch

    looks: dict[str, Any] = {**colours, "hatch": hatch or None}
    return Patch(label=label, linewidth=0.6, **looks)


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands above axes, from the top down.

    Attributes:
        title: in bold.
        line: below it; may be empty.
        keys: the legend, below that.
        lift: points between the axes and the legend.
    """

    title: str
    line: str
    keys: Sequence[Artist]
    lift: float = 0.0

    def draw(self, ax: Axes, width: float) -> None:
        """Stacks it above axes of a width, in points so that any height will do."""
        from matplotlib.transforms import ScaledTranslation

        line, title = self.line, plain(self.title)
        if text_width(line, SMALL) > width:
            line = line.replace(" || ", "\n")
        if text_width(title, TITLE, bold=True) > width:
            title = title.replace(", ", "\n", 1)
        columns = _columns([str(key.get_label()) for key in self.keys], width)
        # matplotlib fills column by column; here it is to be read line by line.
        rowwise = [
            self.keys[at] for k in range(columns) for at in range(k, len(self.keys), columns)
        ]
        lifted = ScaledTranslation(0, (3.0 + self.lift) / 72, ax.figure.dpi_scale_trans)
        ax.legend(
            handles=rowwise,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            bbox_transform=ax.transAxes + lifted,
            ncols=columns,
            fontsize=SMALL,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            labelspacing=0.3,
            handlelength=2.0,
            handleheight=1.0,
            columnspacing=1.2,
        )
        height = self.lift + 2.0 + 1.6 * SMALL * math.ceil(len(self.keys) / columns)
        if line:
            ax.annotate(
                line,
                (0, 1),
                xycoords="axes fraction",
                xytext=(0, height),
                textcoords="offset points",
                va="bottom",
                fontsize=SMALL,
            )
            height += 1.25 * SMALL * (1 + line.count("\n"))
        title_above(ax, title, height + 3.0)


def _columns(labels: Sequence[str], width: float) -> int:
    """Returns in how many columns a legend fits into a width."""
    for columns in range(len(labels), 1, -1):
        widest = [max(text_width(label, SMALL) for label in labels[at::columns])
                  for at in range(columns)]  # fmt: skip
        if sum(widest) + (columns * 2.9 + (columns - 1) * 1.2) * SMALL / 72 <= width:
            return columns
    return 1
