"""From a batch to rows of bytes and back: what a row keeps, and in which type."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch

from ..errors import FreezekitError


def predicted_bytes(
    row_shape: Sequence[int | None], dtype: torch.dtype, rows: int, mean_length: float = 1.0
) -> int:
    """Returns how many bytes rows take, before there are any.

    Beside them each takes about 150 bytes of memory for its key and place, 220 with a folder.

    Args:
        row_shape: of one row; None where each row has its own size.
        dtype: in which they are stored.
        rows: how many.
        mean_length: the mean of the sizes that are None in `row_shape`.

    Example:
        >>> import torch
        >>> from freezekit.cache._rows import predicted_bytes
        >>> predicted_bytes((None, 384), torch.float32, rows=1000, mean_length=29.5)
        45312000
    """
    one = prod(mean_length if size is None else size for size in row_shape)
    return round(rows * one * dtype.itemsize)


class Loss:
    """What casting rows to a smaller type has changed so far.

    Attributes:
        absolute: the largest difference of an element.
        relative: the largest difference of an element over the largest element of its row.
        overflowed: how many rows did not fit, and were not stored.
    """

    def __init__(self) -> None:
        """Nothing has changed yet."""
        self.absolute = 0.0
        self.relative = 0.0
        self.overflowed = 0

    def cast(self, rows: dict[int, torch.Tensor], dtype: torch.dtype) -> dict[int, torch.Tensor]:
        """Returns the rows in another type, without those that have an element it cannot hold."""
        cast = ((key, self._cast(row, dtype)) for key, row in rows.items())
        return {key: row for key, row in cast if row is not None}

    def _cast(self, row: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        cast = row.to(dtype)
        finite = row.isfinite()
        if not bool((cast.isfinite() | ~finite).all()):
            self.overflowed += 1
            return None
        if row.numel():
            wide = row.double().nan_to_num(0.0, 0.0, 0.0)
            change = (cast.double().nan_to_num(0.0, 0.0, 0.0) - wide).abs().max()
            self.absolute = max(self.absolute, float(change))
            self.relative = max(self.relative, float(change / wide.abs().max().clamp_min(1e-300)))
        return cast


class Batch(NamedTuple):
    """Rows that a tap is given, as they came."""

    keys: Sequence[int]
    rows: torch.Tensor
    lengths: Sequence[int] | None

    def check(self, row_shape: tuple[int | None, ...], dtype: torch.dtype) -> None:
        """Raises if these are not rows of that shape and type.

        Raises:
            FreezekitError: says what differs.
        """
        shape = tuple(self.rows.shape)
        fits = len(shape) == 1 + len(row_shape) and all(
            size in (None, found) for size, found in zip(row_shape, shape[1:], strict=True)
        )
        if not fits or self.rows.dtype is not dtype:
            raise FreezekitError(
                f"rows of shape {tuple(row_shape)} and {dtype} were expected, a batch of shape "
                f"{shape} and {self.rows.dtype} came"
            )
        if len(self.keys) != len(self.rows):
            raise FreezekitError(f"{len(self.keys)} keys came with {len(self.rows)} rows")
        if any(key >> 128 for key in self.keys):
            raise FreezekitError("a key must be at least 0 and less than 2**128")
        if self.lengths is None:
            return
        if not row_shape or row_shape[0] is not None:
            raise FreezekitError(f"rows of shape {tuple(row_shape)} all have one length")
        if len(self.lengths) != len(self.rows):
            raise FreezekitError(f"{len(self.lengths)} lengths came with {len(self.rows)} rows")
        if any(not 0 <= length <= shape[1] for length in self.lengths):
            raise FreezekitError(f"lengths {list(self.lengths)} do not fit into {shape[1]}")

    def kept(self, positions: Sequence[int]) -> list[torch.Tensor]:
        """Returns views of the rows at those positions, each without what lies beyond its end."""
        rows = self.rows.detach().as_subclass(torch.Tensor).unbind(0)
        if self.lengths is None:
            return [rows[each] for each in positions]
        return [rows[each][: self.lengths[each]] for each in positions]


def joined(rows: list[torch.Tensor]) -> torch.Tensor:
    """Returns the bytes of rows, end to end, in memory of their own on the CPU."""
    return torch.cat([row.reshape(-1) for row in rows]).to("cpu").view(torch.uint8)
