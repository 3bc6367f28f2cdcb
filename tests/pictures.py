"""What the tests of the pictures share: models of several sizes, and eyes for what is drawn."""

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from torch import nn

from freezekit import FreezePlan, ResolvedPlan

HATCHED = 8.0
"""The least pixels, each way, of a box with a hatch."""


def six() -> tuple[nn.Module, FreezePlan]:
    model = nn.Sequential(
        nn.Linear(784, 256),
        nn.ReLU(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(64, 3),
    )
    return model, FreezePlan().freeze("[:5]")


def forty_eight() -> tuple[nn.Module, FreezePlan]:
    """Returns 48 modules: a long stem name, 45 blocks of different widths, a small head."""
    model = nn.Sequential()
    model.add_module("token_and_position_embeddings", nn.Embedding(30_000, 64))
    for k in range(45):
        model.add_module(f"block_{k}", nn.Linear(64 + k, 65 + k))
    model.add_module("head", nn.Linear(109, 2))
    return model, FreezePlan().freeze("**").unfreeze("head", "block_{40..44}").unfreeze("**.bias")


def thousand() -> tuple[nn.Module, FreezePlan]:
    """Returns 1,000 modules that all differ in size, so that none can be collapsed."""
    model = nn.Sequential(*(nn.Linear(k, k + 1) for k in range(1, 1000)))
    return model, FreezePlan().freeze("**").unfreeze("998", "{500..509}")


def thousand_repeated() -> tuple[nn.Module, FreezePlan]:
    blocks = (
        nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        for _ in range(199)
    )
    model = nn.Sequential(
        nn.Embedding(100, 8), *blocks, nn.Linear(8, 2), nn.Softmax(-1), nn.Flatten()
    )
    return model, FreezePlan().freeze("**").unfreeze("{190..200}")


def alternating() -> tuple[nn.Module, FreezePlan]:
    """Returns 1,000 modules whose state changes at every one: more often than there are rows."""
    model = nn.Sequential(*(nn.Linear(k, k + 1) for k in range(1, 1000)))
    return model, FreezePlan().freeze("**").unfreeze("[::2]")


CASES = {
    "six": six,
    "forty_eight": forty_eight,
    "thousand": thousand,
    "thousand_repeated": thousand_repeated,
    "alternating": alternating,
}
SIZES = {"six": 6, "forty_eight": 48, "thousand": 1000, "thousand_repeated": 1000}


def resolved(name: str) -> ResolvedPlan:
    """Returns a case's plan, resolved against its model."""
    with torch.device("meta"):
        model, plan = CASES[name]()
    return plan.resolve(model)


def render(ax: Axes) -> RendererAgg:
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    return canvas.get_renderer()


def texts(ax: Axes, renderer: RendererAgg) -> list[tuple[Text, Bbox]]:
    """Returns every text that the rendered figure shows, with its box in pixels."""
    found = ax.figure.findobj(Text)
    shown = [text for text in found if text.get_visible() and text.get_text().strip()]
    return [(text, text.get_window_extent(renderer)) for text in shown]


def touching(shown: list[tuple[Text, Bbox]]) -> list[tuple[str, str]]:
    pairs = combinations(shown, 2)
    return [(a.get_text(), b.get_text()) for (a, one), (b, two) in pairs if one.overlaps(two)]


def outside(ax: Axes, shown: list[tuple[Text, Bbox]]) -> list[str]:
    """Returns the texts that the figure cuts off."""
    page = ax.figure.bbox
    return [
        text.get_text()
        for text, box in shown
        if box.x0 < 0 or box.y0 < 0 or box.x1 > page.width or box.y1 > page.height
    ]


def check_texts(ax: Axes, *, whole: bool = True) -> None:
    """Fails where texts touch, are below 6 points, or are cut off by the figure."""
    shown = texts(ax, render(ax))
    assert len(shown) > 4
    assert touching(shown) == []
    assert min(text.get_fontsize() for text, _ in shown) >= 6
    if whole:
        assert outside(ax, shown) == []


class Drawn(NamedTuple):
    """A box of a picture, in the units of its axes, with its style and its size in pixels."""

    x0: float
    x1: float
    y0: float
    y1: float
    what: str
    hatch: str
    face: tuple[float, float, float]
    edged: bool
    width: float
    height: float

    @property
    def row(self) -> int:
        """The row that the middle of the box is in."""
        return round((self.y0 + self.y1) / 2)


def boxes(ax: Axes) -> list[Drawn]:
    """Returns the boxes of axes, from the top down; call `render` first for their pixels."""
    return sorted(_boxes(ax), key=lambda box: (box.y0, box.x0))


def _boxes(ax: Axes) -> Iterator[Drawn]:
    for style in ax.collections:
        if not isinstance(style, PathCollection):
            continue
        (path,) = style.get_paths()
        for corners in path.vertices.reshape(-1, 5, 2):
            (x0, y0), (x1, y1) = corners[0], corners[2]
            low, high = ax.transData.transform([(x0, y0), (x1, y1)])
            yield Drawn(
                *map(float, (x0, x1, y0, y1)),
                what=str(style.get_gid()),
                hatch=style.get_hatch() or "",
                face=to_rgb(style.get_facecolor()[0]),
                edged=bool(style.get_linewidth()[0]),
                width=abs(float(high[0] - low[0])),
                height=abs(float(high[1] - low[1])),
            )


def grey(colour: object) -> float:
    """Returns the lightness of a colour, 0 for black and 100 for white (CIE L*)."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
             for part in to_rgb(colour)]  # fmt: skip
    light = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return 116 * light ** (1 / 3) - 16 if light > 0.008856 else 903.3 * light


def labels(ax: Axes) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]
