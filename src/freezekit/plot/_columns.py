"""The axis of time of a picture: where the columns stand, and what is written at their edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ._canvas import LEAST_PITCH, LEAST_TYPE, text_width
from ._moments import Moments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 7.0
_NARROWEST = 0.2  # inches of a column drawn to scale: a hatch, and a text turned upright


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the phases stand along an axis of time.

    Attributes:
        xs: the edges of the columns; moments where time is to scale.
        inch: inches of one unit.
        texts: what is written at the edges.
        upright: whether these texts are turned.
        caption: what the axis shows.
    """

    xs: tuple[float, ...]
    inch: float
    texts: tuple[str, ...]
    upright: bool
    caption: str

    @property
    def spans(self) -> list[tuple[float, float]]:
        """The left and the right of each column."""
        return [*pairwise(self.xs)]

    def width(self, column: int) -> float:
        """Returns the inches of a column."""
        return (self.xs[column + 1] - self.xs[column]) * self.inch

    def draw_edges(self, ax: Axes) -> None:
        """Labels the edges below the axes and draws lines between the columns."""
        ax.set_xticks(
            self.xs,
            self.texts,
            rotation=90 if self.upright else 0,
            fontsize=_SIZE,
            parse_math=False,
        )
        if not self.upright:  # beside the last one stands another scale
            ax.get_xticklabels()[-1].set_horizontalalignment("right")
        ax.tick_params(axis="x", length=3)
        ax.grid(False, axis="x")

    def draw_above(self, ax: Axes, texts: Sequence[str]) -> float:
        """Writes a text above each column, turned where that is too wide; returns their height."""
        widths = [text_width(text, _SIZE) for text in texts]
        upright = any(width + 0.05 > self.width(k) for k, width in enumerate(widths))
        narrow = min(self.width(k) for k in range(len(texts)))
        stride = math.ceil(LEAST_PITCH / narrow) if upright else 1
        for column in range(0, len(texts), stride):
            ax.annotate(
                texts[column],
                (sum(self.spans[column]) / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=90 if upright else 0,
                fontsize=LEAST_TYPE if upright else _SIZE,
                annotation_clip=False,
            )
        return 72 * max(widths) + 4 if upright else _SIZE * 1.3


def columns(when: Moments, width: float) -> Columns:
    """Returns the columns of phases in a width: to scale where each is wide enough for that."""
    count = len(when.phases)
    short, long = ([getattr(edge, form) for edge in when.edges] for form in ("short", "long"))
    evenly = tuple(map(float, range(count + 1)))
    caption = when.unit or "training"
    if when.times:
        inch = width / (when.times[-1] - when.times[0])
        narrowest = min(b - a for a, b in pairwise(when.times)) * inch
        end = "" if when.edges[-1].short else ", end not known"
        for texts in (long, short):
            if narrowest >= _NARROWEST and _fits(when.times, inch, texts):
                return Columns(when.times, inch, tuple(texts), False, caption + end)
    inch = width / count
    told = f"{caption}, not to scale" if count > 1 else caption
    for texts in (long, short):
        if _fits(evenly, inch, texts):
            return Columns(evenly, inch, tuple(texts), False, told)
    stride = math.ceil(LEAST_PITCH / inch)
    kept = [text if k % stride == 0 else "" for k, text in enumerate(short)]
    return Columns(evenly, inch, tuple(kept), True, told)


def _fits(xs: Sequence[float], inch: float, texts: Sequence[str]) -> bool:
    """Returns whether texts that are centred at edges, and the last one before it, stay apart."""
    widths = [text_width(text, _SIZE) if text else 0.0 for text in texts]
    widths[-1] *= 2
    return all(
        (b - a) * inch >= (one + two) / 2 + 0.08
        for (a, b), (one, two) in zip(pairwise(xs), pairwise(widths), strict=True)
    )
