"""The parts of a model in the rows of a picture: neighbours that are treated alike are one row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import NamedTuple

from .._grid import Band, Cell, Grid

_NUMBERED = re.compile(r"(|.*\D)(0|[1-9]\d*)(|\D.*)")


class Strip(NamedTuple):
    """A row of a picture: a part of a model, or neighbours that share a row.

    Attributes:
        name: that of the part, or a pattern.
        joined: how many parts.
        numel: elements of their parameters.
        cells: one for each phase.
        parts: which parts of the grid.
    """

    name: str
    joined: int
    numel: int
    cells: tuple[Cell, ...]
    parts: range


def strips(grid: Grid, limit: int) -> list[Strip]:
    """Returns the rows of a picture, at most `limit`.

    Parts without parameters are left out. Where there are too many, neighbours that are treated
    alike in all phases share a row: numbered ones of one name, and only where that does not do any,
    and only then also neighbours that are treated differently.
    """
    bands = [(at, band) for at, band in enumerate(grid.bands) if _says(band)]
    if len(bands) <= limit:
        return [_strip([each]) for each in bands]
    for named in (True, False):
        alike = [[*run] for _, run in groupby(bands, partial(_treatment, named=named))]
        if len(alike) <= limit:
            return [_strip(run) for run in alike]
    cuts = [round(k * len(bands) / limit) for k in range(limit + 1)]
    return [_strip(bands[a:b]) for a, b in pairwise(cuts)]


def _says(band: Band) -> bool:
    return any(cell.state != "none" for cell in band.cells)


def _treatment(part: tuple[int, Band], named: bool) -> tuple[object, ...]:
    """Returns what parts have in common that may share a row: their cells, and what they are."""
    band = part[1]
    family = _NUMBERED.sub(r"\1#\3", band.name) if named else ""
    return (family, *((cell.state, cell.low, cell.high) for cell in band.cells))


def _strip(run: Sequence[tuple[int, Band]]) -> Strip:
    bands = [band for _, band in run]
    columns = zip(*(band.cells for band in bands), strict=True)
    return Strip(
        name=_name([band.name for band in bands]),
        joined=len(bands),
        numel=sum(band.numel for band in bands),
        cells=tuple(map(_joined, columns)),
        parts=range(run[0][0], run[-1][0] + 1),
    )


def _joined(cells: Sequence[Cell]) -> Cell:
    """Returns what holds for several parts together."""
    states = {cell.state for cell in cells} - {"none"}
    if len(cells) == 1 or not states:
        return cells[0]
    live = [cell for cell in cells if cell.state in ("trainable", "partial")]
    lows = [cell.low for cell in live if cell.low is not None]
    highs = [cell.high for cell in live if cell.high is not None]
    known = bool(live) and len(lows) == len(live)
    return Cell(
        state=states.pop() if len(states) == 1 else "partial",
        trainable=sum(cell.trainable for cell in cells),
        low=min(lows) if known else None,
        high=max(highs) if known else None,
    )


def _name(names: Sequence[str]) -> str:
    """Returns one name for neighbours: "layer.{3..9}" where they are numbered in a row."""
    first, last = names[0], names[-1]
    if len(names) == 1:
        return first
    found = [_NUMBERED.fullmatch(name) for name in names]
    matches = [match for match in found if match]
    numbers = [int(match[2]) for match in matches]
    alike = len({(match[1], match[3]) for match in matches}) == 1
    if alike and numbers == [*range(numbers[0], numbers[0] + len(names))]:
        return f"{matches[0][1]}{{{numbers[0]}..{numbers[-1]}}}{matches[0][3]}"
    return f"{first} to {last.removeprefix(first[: first.rfind('.') + 1])}"
