"""Batches of which some rows are stored: only the others are computed."""

from collections.abc import Iterable, Sequence

import torch

from ._batch import Batch, prefixes
from ._tap import Tap

_LEAST = 8
"""One row in so many is to be stored, or it costs more to compute the others apart."""


def missing_rows(taps: Iterable[Tap], keys: Sequence[int]) -> list[int]:
    """Returns the rows of which a tensor is not stored, in order."""
    found: set[int] = set()
    for tap in taps:
        found.update(tap.missing(keys))
    return sorted(found)


def pays(missing: Sequence[int], size: int) -> bool:
    """Returns whether computing some rows of a batch costs less than computing all."""
    return 0 < len(missing) < size <= _LEAST * (size - len(missing))


def joined_rows(
    tap: Tap, keys: Sequence[int], batch: Batch, missing: Sequence[int], fresh: torch.Tensor
) -> torch.Tensor | None:
    """Returns a tensor with the rows of a batch: those that are stored, and those just computed.

    Args:
        tap: where rows are stored.
        keys: of all rows of the batch.
        batch: the batch.
        missing: the rows that were computed.
        fresh: what was computed, as long as the longest of them; it is changed.

    Returns:
        The tensor; None if a row is no longer stored.
    """
    length = batch.length if None in tap.row_shape else None
    there = sorted({*range(batch.size)} - {*missing})
    slots = tap.find([keys[row] for row in there])
    stored = None if slots is None else tap.gather(slots, length, fresh.device)
    if stored is None:
        return None
    out = stored.new_zeros(batch.size, *stored.shape[1:])
    out[there] = stored
    if length is not None and batch.lengths is not None:
        lengths = [batch.lengths[row] for row in missing]
        padding = ~prefixes(lengths, fresh.shape[1]).to(fresh.device)
        fresh.masked_fill_(padding.view(*padding.shape, *[1] * (fresh.dim() - 2)), 0)
        out[list(missing), : fresh.shape[1]] = fresh
    else:
        out[list(missing)] = fresh
    return out
