"""Learning rates as shades and as texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from .._grid import Cell
from ._canvas import TRAINABLE, key
from ._texts import text_width

if TYPE_CHECKING:
    from matplotlib.artist import Artist

_MAP = "Oranges"
_LIGHTEST, _DARKEST = 0.45, 1.0  # what of the map is used: all of it is darker than frozen
_ALONE = 0.3  # where a rate stands that has no other beside it
_KEYS = 4
_LEAST = 5e-324
UNKNOWN_HATCH = "//"
_UNKNOWN = "Trainable (its lr: pass base_lr)"


class Rates:
    """The learning rates of a picture: the darker the higher, on a log scale."""

    def __init__(self, cells: Iterable[Cell], unit: Literal["lr", "lr_mult"]) -> None:
        """Reads the range of the rates.

        Args:
            cells: the cells drawn.
            unit: whether their rates are learning rates or multipliers.
        """
        live = [cell for cell in cells if cell.state in ("trainable", "partial")]
        self._unit = unit
        bounds = {rate for cell in live for rate in (cell.low, cell.high)}
        self._values = sorted(rate for rate in bounds if rate is not None)
        self._unknown = any(cell.low is None for cell in live)
        self._shades: dict[float, dict[str, str]] = {}
        self._widths: dict[tuple[str, float], float] = {}

    def width(self, text: str, size: float) -> float:
        """Returns the width of a text about a cell."""
        if (text, size) not in self._widths:
            self._widths[text, size] = text_width(text, size)
        return self._widths[text, size]

    def text(self, cell: Cell) -> str:
        """Returns the rate of a cell that trains, or the range of its rates; "" if not known."""
        if cell.low is None or cell.high is None:
            return ""
        if cell.low == cell.high:
            return self._said(cell.low)
        return f"{self._said(cell.low)}..{self._said(cell.high)}"

    def colours(self, cell: Cell) -> dict[str, str]:
        """Returns the colours of a cell that trains; of a range its middle counts."""
        return TRAINABLE if cell.low is None else self._shade(_middle(cell))

    def keys(self) -> list[Artist]:
        """Returns the entries of a legend: up to four of the rates, from the lowest on."""
        shown = _spread(self._values, _KEYS)
        made: list[Artist] = [
            key(f"{'' if place else 'lr '}{self._said(value)}", self._shade(value))
            for place, value in enumerate(shown)
        ]
        return made + ([key(_UNKNOWN, TRAINABLE, UNKNOWN_HATCH)] if self._unknown else [])

    def _said(self, value: float) -> str:
        return f"{value:.3g}" if self._unit == "lr" else f"x{value:.3g}"

    def _shade(self, value: float) -> dict[str, str]:
        if value not in self._shades:
            self._shades[value] = self._made(value)
        return self._shades[value]

    def _made(self, value: float) -> dict[str, str]:
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        low, high = _log(self._values[0]), _log(self._values[-1])
        share = (_log(value) - low) / (high - low) if high > low else _ALONE
        colour = colormaps[_MAP](_LIGHTEST + (_DARKEST - _LIGHTEST) * share)
        return {"facecolor": to_hex(colour), "edgecolor": TRAINABLE["edgecolor"]}


def _log(rate: float) -> float:
    """Returns the logarithm of a rate; one that is 0, a product too small for it, is the least."""
    return math.log(max(rate, _LEAST))


def _middle(cell: Cell) -> float:
    """Returns the rate that a cell is filled by."""
    assert cell.low is not None
    assert cell.high is not None
    return cell.low if cell.low == cell.high else math.exp((_log(cell.low) + _log(cell.high)) / 2)


def _spread(values: Sequence[float], limit: int) -> list[float]:
    """Returns some of sorted values: the least, the greatest, and what lies between on a log."""
    if len(values) <= limit:
        return list(values)
    low, high = _log(values[0]), _log(values[-1])
    wanted = [low + (high - low) * k / (limit - 1) for k in range(limit)]
    near = [min(values, key=lambda value: abs(_log(value) - each)) for each in wanted]
    return sorted(set(near))
