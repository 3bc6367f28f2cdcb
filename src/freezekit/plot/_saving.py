"""Pictures to files that are the same from run to run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ._texts import quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What would differ from run to run is left out.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


def save(
    ax: Axes, file: str | os.PathLike[str] | IO[bytes], *, format: str | None = None, dpi: int = 150
) -> None:
    """Writes the figure that axes are in as PNG, SVG or PDF.

    The same picture gives the same bytes in every process, so files under version control change
    only when the picture does. Texts stay text in SVG: they can be searched, selected and read out,
    and a changed number is a changed line in a diff. Where DejaVu Sans is not installed a viewer
    takes one of the fonts that are named behind it, all of which are about as wide or narrower.

    Args:
        ax: the axes, as the functions of this module return them.
        file: path, or a file opened for bytes.
        format: "png", "svg" or "pdf"; by default what the path ends in.
        dpi: pixels in an inch, for PNG.

    Raises:
        ValueError: the format is none of the three, or a file object is given without one.

    Example:
        >>> import io
        >>> from torch import nn
        >>> from freezekit import plot
        >>> file = io.BytesIO()
        >>> plot.save(plot.trainability(nn.Linear(8, 4)), file, format="svg")
        >>> "Trainable" in file.getvalue().decode()
        True
    """
    from matplotlib import rc_context

    kind = _format(file, format)
    with rc_context({"svg.hashsalt": "freezekit", "svg.fonttype": "none"}):
        # Of axes in a SubFigure this is the figure around it.
        figure = ax.figure.figure
        with quiet():
            figure.savefig(file, format=kind, dpi=dpi, metadata=_METADATA[kind])


def _format(file: str | os.PathLike[str] | IO[bytes], format: str | None) -> str:
    """Returns the format wanted.

    Raises:
        ValueError: as in `save`.
    """
    known = "png, svg or pdf"
    if format is not None:
        kind, said = format.lower(), f"format={format!r}"
    elif isinstance(file, str | os.PathLike):
        kind, said = Path(file).suffix.lower().lstrip("."), f"save to {os.fspath(file)!r}"
    else:
        raise ValueError(f"a file object has no suffix; pass format=..., one of {known}")
    if kind not in _METADATA:
        raise ValueError(f"{said}: pictures are saved as {known}")
    return kind
