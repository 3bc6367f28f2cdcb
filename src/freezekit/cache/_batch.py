"""What one pass is called with: its form, its rows, their lengths, and a key for each row."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import TreeSpec, keystr, tree_flatten_with_path

from .._digest import digest
from ._identities import Id
from ._refusals import is_plain, refuse

_LARGE = 1 << 14
"""Bytes of a row from which on it is digested by itself."""
_LOW = (1 << 64) - 1
_FACTOR = 0x2545F4914F6CDD1D


class Layout(NamedTuple):
    """The form of the arguments of a pass.

    Attributes:
        spec: how its leaves are nested.
        labels: a name for each leaf, of the parameter of `forward` it belongs to.
        mask: which leaf is the mask; None if there is none.
    """

    spec: TreeSpec
    labels: tuple[str, ...]
    mask: int | None

    def __hash__(self) -> int:
        return hash(self.labels)


class Batch(NamedTuple):
    """The arguments of one pass.

    Attributes:
        leaves: what they hold, flat.
        layout: what they are and how they are nested.
        size: how many rows there are.
        length: the length of the mask, if its rows are padded at their end; None otherwise.
        lengths: for each row how much of it is no padding.
        ids: for each row what names it, where that is known.
    """

    leaves: list[Any]
    layout: Layout
    size: int
    length: int | None
    lengths: torch.Tensor | None
    ids: tuple[Id, ...] | None = None

    def rows_at(self, at: int) -> bool:
        """Returns whether a leaf has a row for each sample."""
        leaf = self.leaves[at]
        return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and len(leaf) == self.size

    def follows_length(self, at: int) -> bool:
        """Returns whether a leaf is as long as the mask."""
        leaf = self.leaves[at]
        return self.rows_at(at) and leaf.dim() > 1 and leaf.shape[1] == self.length

    def taken(self, rows: torch.Tensor, length: int | None) -> list[Any]:
        """Returns the leaves with some of the rows only, cut to a length."""
        found = list(self.leaves)
        for at, leaf in enumerate(self.leaves):
            if self.rows_at(at):
                found[at] = leaf[rows.to(leaf.device)]
                if length is not None and self.follows_length(at):
                    found[at] = found[at][:, :length]
        return found

    def is_small(self, roots: Sequence[int]) -> bool:
        """Returns whether some leaves are read in no time."""
        leaves = (self.leaves[at] for at in roots)
        total: int = sum(leaf.nbytes for leaf in leaves)
        return total < _LARGE * max(1, self.size)

    def form(self) -> tuple[Any, ...]:
        """Returns what the passes have in common that go the same way."""
        return (self.layout, self.length is None, *map(self._form, range(len(self.leaves))))

    def _form(self, at: int) -> object:
        leaf = self.leaves[at]
        if not isinstance(leaf, torch.Tensor):
            return (type(leaf), repr(leaf))
        shape = tuple(leaf.shape)
        if self.rows_at(at):
            shape = shape[2 if self.follows_length(at) else 1 :]
        place = (self.rows_at(at), self.follows_length(at))
        return (leaf.dtype, leaf.device, leaf.requires_grad, *place, shape)


def layout_of(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], mask: str | None
) -> Layout:
    """Returns the names of what a forward is called with."""
    try:
        parameters = [*inspect.signature(forward).parameters]
    except (TypeError, ValueError):
        parameters = []
    paths, spec = tree_flatten_with_path((args, kwargs))
    labels = []
    for path, leaf in paths:
        if not is_plain(leaf):
            refuse(
                "opaque",
                f"it is called with a {type(leaf).__name__}, of which nothing is known",
                "call it with tensors and plain values, in tuples and dicts",
            )
        inner = keystr(path[2:])
        first: Any = path[1]
        if hasattr(first, "key"):
            name = str(first.key)
        else:
            name = parameters[first.idx] if first.idx < len(parameters) else str(first.idx)
        labels.append(name + inner)
    return Layout(spec, tuple(labels), labels.index(mask) if mask in labels else None)


def read_batch(leaves: list[Any], layout: Layout) -> Batch:
    """Returns the arguments of a pass as a batch.

    Args:
        leaves: the arguments, flat.
        layout: what they are.

    Raises:
        CacheRefusedError: no argument has rows.
    """
    mask = None if layout.mask is None else leaves[layout.mask]
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and not mask.is_floating_point():
        size, length = mask.shape
        lengths = mask.sum(1)
        if torch.equal(mask, prefixes(lengths, length).to(mask.dtype)):
            return Batch(leaves, layout, size, length, lengths)
        return Batch(leaves, layout, size, None, None)
    sizes = [len(each) for each in leaves if isinstance(each, torch.Tensor) and each.dim()]
    if not sizes:
        refuse("batch", "it is called without a tensor that has rows", "pass tensors (B, ...)")
    return Batch(leaves, layout, max(sizes, key=sizes.count), None, None)


def prefixes(lengths: torch.Tensor, length: int) -> torch.Tensor:
    """Returns what belongs to rows of some lengths (B,), as booleans (B, length)."""
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(1)


def row_keys(batch: Batch, roots: Sequence[int]) -> list[int]:
    r"""Returns a number below 2**128 for each row, of what it holds in some of the leaves.

    Small rows are read as words :math:`x_j`, and two sums :math:`\sum_j w_j x_j` modulo
    :math:`2^{64}` with random weights tell them apart, of which padding is no part. Large rows
    are digested one by one.

    Args:
        batch: the arguments of a pass.
        roots: which leaves.
    """
    sums: torch.Tensor | int = 0
    for at in roots:
        if at == batch.layout.mask and batch.lengths is not None:
            part = batch.lengths.cpu().unsqueeze(1) * _weights(1)
        else:
            part = _row_sums(batch, at)
        sums = sums * _FACTOR + part
    if isinstance(sums, int):
        return [0] * batch.size
    return [(high & _LOW) << 64 | (low & _LOW) for high, low in sums.tolist()]


def _row_sums(batch: Batch, at: int) -> torch.Tensor:
    """Returns two words for each row of a leaf (B, 2), or for a leaf without rows (1, 2)."""
    leaf = batch.leaves[at].detach()
    follows, rows = batch.follows_length(at), batch.rows_at(at)
    shape = tuple(leaf.shape[2 if follows else 1 if rows else 0 :])
    start = _start(batch.layout.labels[at], leaf.dtype, shape, rows)
    if not rows:
        return start + _words(digest(leaf))
    if follows and batch.lengths is not None and batch.length is not None:
        kept = prefixes(batch.lengths, batch.length)
        start = start + batch.lengths.cpu().unsqueeze(1) * _weights(1)
        return start + _weighed(_unpadded(_as_integers(leaf), batch.lengths, kept))
    if batch.size and leaf[0].nbytes >= _LARGE:
        return start + torch.cat([_words(digest(row)) for row in leaf])
    return start + _weighed(_as_integers(leaf))


def _weighed(words: torch.Tensor) -> torch.Tensor:
    flat = words.reshape(len(words), -1).cpu()
    return flat @ _weights(flat.shape[1])


def _unpadded(words: torch.Tensor, lengths: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Returns words (B, length, ...) less what stands in the padding, if it is the same there."""
    shape = (*kept.shape, *[1] * (words.dim() - 2))
    padding = words.masked_fill(kept.view(shape), 0)
    if not padding.any():
        return words
    last = lengths.clamp(max=words.shape[1] - 1).view(-1, *[1] * (words.dim() - 1))
    first = words.gather(1, last.expand(-1, 1, *words.shape[2:]))
    return words - first.masked_fill(kept.view(shape), 0)


@functools.cache
def _start(label: str, dtype: torch.dtype, shape: tuple[int, ...], rows: bool) -> torch.Tensor:
    text = repr((label, str(dtype), shape, rows))
    return _words(hashlib.blake2b(text.encode(), digest_size=16).digest())


def _as_integers(leaf: torch.Tensor) -> torch.Tensor:
    leaf = leaf.resolve_conj().resolve_neg().contiguous()
    if leaf.is_floating_point() or leaf.is_complex():
        kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32}
        words = leaf.view(kinds.get(leaf.element_size(), torch.int32))
        return words.to(torch.int64)
    return leaf.to(torch.int64)


def _words(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.int64).view(1, 2)


def _weights(count: int) -> torch.Tensor:
    """Returns two random odd words for each of so many places."""
    return _all_weights(max(1 << 10, 1 << (count - 1).bit_length()))[:count]


@functools.cache
def _all_weights(count: int) -> torch.Tensor:
    noise = hashlib.shake_128(b"freezekit.cache").digest(16 * count)
    return torch.frombuffer(bytearray(noise), dtype=torch.int64).view(count, 2) | 1
