"""Which parts of a model train, at one moment."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from math import log10
from typing import TYPE_CHECKING

from torch import nn

from .._apply import AppliedPlan
from .._blocks import Block, block_tree, shorten
from .._modes import ModuleRow, module_rows
from .._names import walk
from .._plan import FreezePlan
from .._resolved import ResolvedPlan
from .._summary import phase_text, rows_in, trainable_line
from ._canvas import (
    EDGED,
    FROZEN,
    LEAST_PITCH,
    MARGIN,
    MAX_ROWS,
    SMALL,
    START,
    TRAINABLE,
    WIDEST,
    Box,
    Frame,
    Heading,
    decades_of,
    fill,
    hatched_pitch,
    key,
    label_rows,
    new_figure,
    own_dpi,
    pitch_of,
    room,
    scale_counts,
    write,
)
from ._texts import shortened, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR = 0.8  # height of a bar in rows
_DEEPEST = 8  # levels opened where all below is of one state
_STYLES = {"frozen": ("Frozen", "xx", FROZEN), "trainable": ("Trainable", "//", TRAINABLE)}
_NUMBERED = re.compile(r"(.*?)(\d+|\{\d+\.\.\d+\})")


def trainability(
    model_or_resolved: nn.Module | ResolvedPlan | AppliedPlan,
    ax: Axes | None = None,
    *,
    epoch: int | None = None,
    step: int | None = None,
    max_rows: int = MAX_ROWS,
) -> Axes:
    """Draws which parts of a model train and how many parameters they have.

    Rows of equal height stand in forward order, each with a bar as long as its parameter count on
    a log scale: cross-hatched for "Frozen", diagonally hatched for "Trainable", one above the
    other in a row that holds both. Where the modules are more than the rows, repeated blocks and
    then neighbours of one state share a row. Bars that are too small for a hatch, 8 pixels, have
    the plain fill, which is light for frozen and dark for trainable; of rows too low for a label
    some have one.

    Args:
        model_or_resolved: what to draw: a model as it is now, or a plan's result for a model.
        ax: where to draw; without it a new figure of fitting size is made, reached by `ax.figure`.
            Given axes get no more rows than their height has room for.
        epoch: the epoch drawn, for plans with moments in epochs. Without a clock an applied plan
            is drawn in its present phase, a resolved one in its first.
        step: the step drawn, for plans with moments in steps.
        max_rows: most rows drawn.

    Returns:
        The axes drawn into, which `save` writes to a file.

    Raises:
        TypeError: if `model_or_resolved` is none of the three.
        PlanError: if the clock that the plan uses is missing from those given.
        ValueError: if `max_rows` is not positive.

    Example:
        >>> from torch import nn
        >>> from freezekit import FreezePlan, plot
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> ax = plot.trainability(FreezePlan().freeze("0").resolve(model))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['0 (Linear)', '2 (Linear)']
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


def _draw(rows: Sequence[ModuleRow], heading: str, ax: Axes | None, max_rows: int) -> Axes:
    line = trainable_line(rows[0].trainable, rows[0].numel)
    if ax is None:
        blocks = _choose(rows, max_rows)
        ax, frame = _new_axes(blocks, max(5.0, text_width(line, SMALL) + 0.1))
    else:
        blocks, frame = _fit(rows, ax, max_rows)
    decades = _draw_labels(ax, blocks, frame)
    _draw_bars(ax, blocks, frame, decades)
    keys = [key(label, colours, hatch) for label, hatch, colours in _STYLES.values()]
    Heading(heading, line, keys).draw(ax, frame.width)
    return ax


def _choose(rows: Sequence[ModuleRow], limit: int) -> Sequence[Block]:
    """Returns the most detailed rows within the limit, repeats apart where there is room."""
    best: Sequence[Block] = ()
    for collapse in (False, True):
        root = block_tree(rows, collapse=collapse)
        cut = shallow = _cut(root, 1)
        depth = 1
        while len(cut) <= limit:
            best = max(best, cut, key=len)
            depth += 1
            deeper = _cut(root, depth)
            if depth == _DEEPEST or len(deeper) == len(cut):
                return best  # a level that opens nothing is the last
            cut = deeper
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


def _new_axes(blocks: Sequence[Block], width: float) -> tuple[Axes, Frame]:
    dpi = own_dpi()
    partial = any(block.state == "partial" for block in blocks)
    least = max(0.17, hatched_pitch(dpi, _BAR / 2 if partial else _BAR))
    frame = Frame(width, WIDEST, pitch_of(len(blocks), least, dpi), dpi)
    size = frame.font_size
    labels = max(
        text_width(_label(each, WIDEST, size), size)
        for each in blocks[:: frame.stride(len(blocks))]
    )
    return new_figure(width + labels + 0.3, frame.pitch * len(blocks) + MARGIN), frame


def _fit(rows: Sequence[ModuleRow], ax: Axes, max_rows: int) -> tuple[Sequence[Block], Frame]:
    """Chooses the rows that given axes have room for."""
    width, height, label_width = room(ax)
    limit = max(1, min(max_rows, int(height / LEAST_PITCH)))
    blocks = _choose(rows, limit)
    return blocks, Frame(width, label_width, height / len(blocks), ax.figure.dpi)


def _label(block: Block, room: float, size: float) -> str:
    """Returns the pattern and what it stands for, without inner segments where it is too wide."""
    text = block.path or block.class_name
    times = f" x{block.repeat}" if block.repeat > 1 else ""
    if not re.search("[A-Za-z]", text) and block.class_name:
        times = f" ({block.class_name}){times}"
    return shortened(text, times, room, size)


def _number(block: Block, room: float, size: float) -> str:
    """Returns the count and what is to be said about it, shortly where that is too wide."""
    short = f"{block.numel:,}" if block.numel or not block.note else block.note.split()[0]
    long = f"{short}, {block.note}" if block.note and block.numel else block.note or short
    if block.state == "partial":
        short = f"{block.trainable:,} of {short}"
        long = f"{short} trainable"
    return long if text_width(long, size) <= room else short


def _draw_labels(ax: Axes, blocks: Sequence[Block], frame: Frame) -> float:
    """Writes names and counts, and returns the decades of the scale."""
    size, stride = frame.font_size, frame.stride(len(blocks))
    texts = [_number(block, 0.7 * frame.width, size) for block in blocks[::stride]]
    ends = [max(block.numel - block.trainable, block.trainable, 1) for block in blocks]
    longest = max(ends)
    decades = decades_of(ends, texts, frame.width, size, stride)
    scale_counts(ax, longest, decades, frame.width)
    for place, text in enumerate(texts):
        write(ax, text, (ends[place * stride], place * stride), size)
    labels = [""] * len(blocks)
    labels[::stride] = [_label(block, frame.label_width, size) for block in blocks[::stride]]
    label_rows(ax, labels, stride, size)
    ax.tick_params(axis="x", labelsize=max(6.0, size - 1))
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    return decades


def _draw_bars(ax: Axes, blocks: Sequence[Block], frame: Frame, decades: float) -> None:
    """Draws the bars of each style at once, hatched where they are large enough."""
    inches = frame.width / decades
    for (state, (label, hatch, colours)), height in product(_STYLES.items(), (_BAR, _BAR / 2)):
        hatched: list[Box] = []
        plain: list[Box] = []
        for y, block in enumerate(blocks):
            for top, count in _bar(y, block, state, height):
                box = (START, max(count, 1), top, top + height)
                width = log10(box[1] / START) * inches
                large = frame.hatches(width, height * frame.pitch)
                (hatched if large else plain).append(box)
        edges = len(blocks) <= EDGED
        # In half a bar the hatch is twice as dense, or it would show half a cross.
        dense = hatch * (1 if height == _BAR else 2)
        fill(ax, hatched, colours, hatch=dense, edges=edges, label=label)
        fill(ax, plain, colours, edges=edges, label=label)


def _bar(y: int, block: Block, state: str, height: float) -> Iterator[tuple[float, int]]:
    """Yields top and count of the bar of a state and height that a row has, if it has one."""
    if height == _BAR and block.state == state:
        yield y - _BAR / 2, block.numel
    elif height < _BAR and block.state == "partial":
        if state == "frozen":
            yield y - _BAR / 2, block.numel - block.trainable
        else:
            yield y, block.trainable
