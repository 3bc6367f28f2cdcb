"""Pictures of what trains: matplotlib axes in, axes out."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from ._apply import AppliedPlan
from ._blocks import Block, block_tree, shorten
from ._modes import ModuleRow, module_rows
from ._names import walk
from ._plan import FreezePlan
from ._resolved import ResolvedPlan
from ._summary import phase_text, rows_in, trainable_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["trainability"]

_MAX_ROWS = 48
_BAR = 0.8  # height of a bar in rows
_SMALL = 8.0  # points
_WIDEST = 4.0  # inches of label in a figure of our own
_DEEPEST = 8  # levels opened where all below is of one state
_MARGIN = 1.15  # inches above and below the rows
_START = 0.5  # where bars start on the log scale, so that a single parameter has a length
_STYLES: dict[str, dict[str, Any]] = {
    "frozen": {"label": "Frozen", "hatch": "xx", "facecolor": "#dbe3ea", "edgecolor": "#5d7487"},
    "trainable": {
        "label": "Trainable",
        "hatch": "//",
        "facecolor": "#e58a3c",
        "edgecolor": "#7a3a0c",
    },
}
_NUMBERED = re.compile(r"(.*?)(\d+|\{\d+\.\.\d+\})")


def trainability(
    model_or_resolved: nn.Module | ResolvedPlan | AppliedPlan,
    ax: Axes | None = None,
    *,
    epoch: int | None = None,
    step: int | None = None,
    max_rows: int = _MAX_ROWS,
) -> Axes:
    """Draws which parts of a model train and how many parameters they have.

    Rows of equal height stand in forward order, each with a bar as long as its parameter count on
    a log scale: cross-hatched for "Frozen", diagonally hatched for "Trainable", one above the
    other in a row that holds both. Where the modules are more than the rows, repeated blocks and
    then neighbours of one state share a row.

    Args:
        model_or_resolved: what to draw: a model as it is now, or a plan's result for a model.
        ax: where to draw; without it a new figure of fitting size is made, reached by `ax.figure`.
            Given axes get no more rows than their height has room for.
        epoch: the epoch drawn, for plans with moments in epochs. Without a clock an applied plan
            is drawn in its present phase, a resolved one in its first.
        step: the step drawn, for plans with moments in steps.
        max_rows: most rows drawn.

    Returns:
        The axes drawn into.

    Raises:
        TypeError: if `model_or_resolved` is none of the three.
        PlanError: if the clock that the plan uses is missing from those given.
        ValueError: if `max_rows` is not positive.

    Example:
        >>> from torch import nn
        >>> from freezekit import FreezePlan
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> ax = trainability(FreezePlan().freeze("0").resolve(model))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['0 (Linear)', '2 (Linear)']
        >>> ax.figure.savefig("trainability.png")  # doctest: +SKIP
    """
    if max_rows < 1:
        raise ValueError(f"max_rows={max_rows}: a picture has at least one row")
    rows, phase = _shown(model_or_resolved, epoch, step)
    heading = f"{rows[0].class_name}, phase {phase}" if phase else rows[0].class_name
    return _draw(rows, heading, ax, max_rows)


def _shown(
    source: nn.Module | ResolvedPlan | AppliedPlan, epoch: int | None, step: int | None
) -> tuple[Sequence[ModuleRow], str]:
    """Returns the modules and, of a plan with several phases, which one it is."""
    if isinstance(source, nn.Module):
        tree = walk(source, FreezePlan()._automaton).tree
        return module_rows(tree, tree.flags, [False] * len(tree.prefixes), set(), {}), ""
    if not isinstance(source, ResolvedPlan | AppliedPlan):
        kind = type(source).__name__
        raise TypeError(f"trainability() draws a model, a resolved or an applied plan, not {kind}")
    phase = source.phase if isinstance(source, AppliedPlan) else source.phases[0]
    resolved = source.resolved if isinstance(source, AppliedPlan) else source
    if epoch is not None or step is not None:
        phase = resolved.at(epoch=epoch, step=step)
    return rows_in(resolved, phase), phase_text(resolved, phase)


@dataclass(frozen=True, slots=True)
class _Frame:
    """The sizes of axes, in inches."""

    width: float
    label_width: float
    pitch: float

    @property
    def font_size(self) -> float:
        return min(9.0, max(6.0, 0.6 * 72 * self.pitch))


def _draw(rows: Sequence[ModuleRow], heading: str, ax: Axes | None, max_rows: int) -> Axes:
    line = trainable_line(rows[0].trainable, rows[0].numel)
    if ax is None:
        blocks = _choose(rows, max_rows)
        ax, frame = _new_axes(blocks, max(5.0, _width(line, _SMALL) + 0.1))
    else:
        blocks, frame = _fit(rows, ax, max_rows)
    _draw_bars(ax, blocks)
    _draw_labels(ax, blocks, frame)
    _draw_header(ax, heading, line, frame.width)
    return ax


def _choose(rows: Sequence[ModuleRow], limit: int) -> Sequence[Block]:
    """Returns the most detailed rows within the limit, repeats apart where there is room."""
    best: Sequence[Block] = ()
    for collapse in (False, True):
        root = block_tree(rows, collapse=collapse)
        shallow = _cut(root, 1)
        for depth in range(1, _DEEPEST):
            cut = _cut(root, depth)
            if len(cut) > limit:
                break
            best = max(best, cut, key=len)
    return best or shorten(shallow, limit)


def _cut(block: Block, depth: int) -> list[Block]:
    """Opens what holds both states, and the rest to `depth`, but no repeated block of one state."""
    kids = [kid for kid in block.children if kid.state != "none"]
    if not kids or (block.state != "partial" and depth <= 0):
        return [block]
    families = Counter(_family(kid) for kid in kids)
    cut: list[Block] = []
    for kid in kids:
        whole = kid.state != "partial" and (kid.repeat > 1 or families[_family(kid)] > 1)
        cut += [kid] if whole else _cut(kid, depth - 1)
    return cut


def _family(block: Block) -> tuple[str, str]:
    numbered = _NUMBERED.fullmatch(block.name)
    return (numbered[1] + "#" if numbered else block.name, block.class_name)


def _new_axes(blocks: Sequence[Block], width: float) -> tuple[Axes, _Frame]:
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    least = 0.22 if any(block.state == "partial" for block in blocks) else 0.17
    pitch = max(_least_pitch(rcParams["figure.dpi"]), min(0.28, 0.32 - 0.003 * len(blocks)), least)
    frame = _Frame(width, _WIDEST, pitch)
    labels = max(
        _width(_label(block, _WIDEST, frame.font_size), frame.font_size) for block in blocks
    )
    size = (width + labels + 0.3, pitch * len(blocks) + _MARGIN)
    return Figure(figsize=size, layout="constrained").add_subplot(), frame


def _fit(rows: Sequence[ModuleRow], ax: Axes, max_rows: int) -> tuple[Sequence[Block], _Frame]:
    """Chooses the rows that given axes have room for."""
    figure, spec = ax.figure, ax.get_subplotspec()
    dpi = figure.dpi
    box = ax.get_window_extent()
    width, height, label_width = box.width / dpi, box.height / dpi, box.x0 / dpi - 0.1
    if figure.get_layout_engine() is not None and spec is not None:
        cell, page = spec.get_position(cast("Figure", figure)), figure.subplotpars
        full = cell.width / (page.right - page.left) * figure.bbox.width / dpi
        height = cell.height / (page.top - page.bottom) * figure.bbox.height / dpi
        height -= _MARGIN + 0.15
        width, label_width = 0.55 * full, 0.4 * full
    limit = max(1, min(max_rows, int(height / _least_pitch(dpi))))
    blocks = _choose(rows, limit)
    return blocks, _Frame(width, label_width, height / len(blocks))


def _least_pitch(dpi: float) -> float:
    """Returns the least row height in inches: 6 points of text, 4 pixels for half a bar."""
    return max(0.125, 4 / (0.5 * _BAR * dpi))


def _width(text: str, size: float) -> float:
    """Returns the width of a text in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def _label(block: Block, room: float, size: float) -> str:
    """Returns the pattern and what it stands for, without inner segments where it is too wide."""
    text = block.path or block.class_name
    times = f" x{block.repeat}" if block.repeat > 1 else ""
    if not re.search("[A-Za-z]", text) and block.class_name:
        times = f" ({block.class_name}){times}"
    head, *segments = text.split(".")
    while len(segments) > 1 and _width(text + times, size) > room:
        segments = segments[1:]
        text = f"{head}...{'.'.join(segments)}"
    tail = text
    while len(tail) > 4 and _width(text + times, size) > room:
        tail = tail[1:]
        text = f"...{tail.lstrip('.')}"
    return text + times


def _number(block: Block, room: float, size: float) -> str:
    """Returns the count and what is to be said about it, shortly where that is too wide."""
    short = f"{block.numel:,}" if block.numel or not block.note else block.note.split()[0]
    long = f"{short}, {block.note}" if block.note and block.numel else block.note or short
    if block.state == "partial":
        short = f"{block.trainable:,} of {short}"
        long = f"{short} trainable"
    return long if _width(long, size) <= room else short


def _draw_bars(ax: Axes, blocks: Sequence[Block]) -> None:
    from matplotlib import rc_context

    ax.set_xscale("log")
    for state, style in _STYLES.items():
        bars = [bar for y, block in enumerate(blocks) for bar in _bar(y, block, state)]
        if bars:
            ys, heights, counts = zip(*bars, strict=True)
            lengths = [max(count, 1) - _START for count in counts]
            # In half a bar the hatch is twice as dense, or it would show half a cross.
            hatch = [style["hatch"] * (2 if height < _BAR else 1) for height in heights]
            looks = style | {"hatch": hatch, "left": _START, "linewidth": 0.6}
            with rc_context({"hatch.linewidth": 0.7}):
                ax.barh(ys, lengths, height=heights, **looks)
    ax.set_ylim(len(blocks) - 0.5, -0.5)


def _bar(y: int, block: Block, state: str) -> Iterator[tuple[float, float, int]]:
    """Yields centre, height and count of the bar that a row has in one state, if it has one."""
    if block.state == state:
        yield y, _BAR, block.numel
    elif block.state == "partial" and state == "frozen":
        yield y - _BAR / 4, _BAR / 2, block.numel - block.trainable
    elif block.state == "partial":
        yield y + _BAR / 4, _BAR / 2, block.trainable


def _draw_labels(ax: Axes, blocks: Sequence[Block], frame: _Frame) -> None:
    from matplotlib.ticker import NullLocator

    size = frame.font_size
    texts = [_number(block, 0.7 * frame.width, size) for block in blocks]
    ends = [max(block.numel - block.trainable, block.trainable, 1) for block in blocks]
    decades = 1.0
    for y, (text, end) in enumerate(zip(texts, ends, strict=True)):
        ax.annotate(
            text,
            (end, y),
            xytext=(3, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=size,
            parse_math=False,
        )
        room = max(0.2 * frame.width, frame.width - _width(text, size) - 0.1)
        decades = max(decades, math.log10(end / _START) * frame.width / room)
    ax.set_xlim(_START, _START * 10**decades)
    stride = math.ceil(decades * 0.4 / frame.width)
    ticks = range(0, math.floor(math.log10(max(ends))) + 1, stride)
    ax.set_xticks([10**k for k in ticks], [_tick(k) for k in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("parameters (log scale)", fontsize=_SMALL)
    labels = [_label(block, frame.label_width, size) for block in blocks]
    ax.set_yticks(range(len(blocks)), labels, parse_math=False)
    ax.tick_params(axis="y", length=0, labelsize=size)
    ax.tick_params(axis="x", labelsize=max(6.0, size - 1))
    ax.grid(False, axis="y")
    ax.grid(True, axis="x", color="0.5", alpha=0.3, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "bottom"]].set_visible(False)


def _tick(power: int) -> str:
    return f"{10 ** (power % 3)}{('', 'k', 'M', 'B', 'T')[min(power // 3, 4)]}"


def _draw_header(ax: Axes, heading: str, line: str, width: float) -> None:
    """Stacks heading, counts and legend above the axes, in points so that any height will do."""
    from matplotlib.patches import Patch

    if _width(line, _SMALL) > width:
        line = line.replace(" || ", "\n")
    if 1.2 * _width(heading, 10) > width:
        heading = heading.replace(", phase", "\nphase")
    keys = [Patch(linewidth=0.6, **style) for style in _STYLES.values()]
    ax.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(keys),
        fontsize=_SMALL,
        frameon=False,
        borderpad=0,
        borderaxespad=0.3,
        handlelength=2.5,
        handleheight=1.0,
    )
    ax.annotate(
        line,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 15),
        textcoords="offset points",
        va="bottom",
        fontsize=_SMALL,
    )
    pad = 18 + 1.25 * _SMALL * (1 + line.count("\n"))
    ax.set_title(heading, loc="left", fontsize=10, fontweight="bold", pad=pad, parse_math=False)
