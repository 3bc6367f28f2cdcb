"""Batches that are made anew: joined, sorted by length, cut where only padding is left."""

from collections.abc import Iterator, Sequence

import torch

from ._batch import Batch, row_keys


def refilled(batches: Sequence[Batch], size: int) -> Iterator[Batch]:
    """Yields the rows of some batches in new ones, those of like length together.

    Args:
        batches: of any forms.
        size: rows of the new ones.
    """
    forms: dict[object, list[Batch]] = {}
    for batch in batches:
        forms.setdefault(batch.form(), []).append(batch)
    for some in forms.values():
        whole = joined(some)
        order = torch.arange(whole.size)
        if whole.lengths is not None:
            order = torch.tensor(whole.lengths).argsort(descending=True, stable=True)
        for start in range(0, whole.size, size):
            yield part(whole, order[start : start + size])


def part(batch: Batch, rows: torch.Tensor) -> Batch:
    """Returns some rows of a batch (n,), cut to the longest of them."""
    numbers = rows.tolist()
    ids = None if batch.ids is None else tuple(batch.ids[row] for row in numbers)
    if batch.lengths is None:
        return batch._replace(leaves=batch.taken(rows, None), size=len(rows), ids=ids)
    lengths = [batch.lengths[row] for row in numbers]
    length = max([1, *lengths])
    leaves = batch.taken(rows, length)
    return Batch(leaves, batch.layout, len(rows), length, lengths, ids)


def distinct(batch: Batch) -> list[int]:
    """Returns the first of each of the rows that differ from each other."""
    tensors = [at for at in range(len(batch.leaves)) if batch.rows_at(at)]
    wide = [at for at in tensors if batch.leaves[at].dim() > 1]
    found: dict[int, int] = {}
    for row, key in enumerate(row_keys(batch, wide or tensors)):
        found.setdefault(key, row)
    return [*found.values()]


def joined(batches: list[Batch]) -> Batch:
    """Returns batches of one form as one, padded with zeros to the longest."""
    first = batches[0]
    length = None if first.length is None else max(batch.length or 0 for batch in batches)
    leaves = list(first.leaves)
    for at in range(len(leaves)):
        if first.rows_at(at):
            parts = [batch.leaves[at] for batch in batches]
            if first.follows_length(at) and length is not None:
                parts = [_padded(each, length) for each in parts]
            leaves[at] = torch.cat(parts)
    lengths: list[int] | None = None
    if first.lengths is not None:
        lengths = [each for batch in batches for each in batch.lengths or ()]
    ids = None
    if first.ids is not None:
        ids = tuple(each for batch in batches for each in batch.ids or ())
    size = sum(batch.size for batch in batches)
    return Batch(leaves, first.layout, size, length, lengths, ids)


def _padded(leaf: torch.Tensor, length: int) -> torch.Tensor:
    missing = length - leaf.shape[1]
    if not missing:
        return leaf
    return torch.cat([leaf, leaf.new_zeros(len(leaf), missing, *leaf.shape[2:])], 1)
