"""What one pass is called with: its form, its rows, their lengths, and a key for each row."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch.utils._pytree import TreeSpec, keystr, tree_flatten_with_path

from .._digest import digest
from ._identities import Id
from ._refusals import is_plain, refuse

_LARGE = 1 << 14
"""Bytes of a row from which on it is digested by itself."""
_FACTOR = 0x2545F4914F6CDD1D

Words: TypeAlias = np.ndarray[Any, np.dtype[Any]]


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
        marks = _array(mask)
        lengths = marks.sum(1, dtype=np.int64)
        if (marks == _prefixes(lengths, length)).all():
            return Batch(leaves, layout, size, length, torch.from_numpy(lengths))
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
    ends = None
    if batch.lengths is not None:
        ends = _array(batch.lengths)[:, None] * _weights(1)
    sums: Words | int = 0
    for at in roots:
        part = ends if at == batch.layout.mask else None
        sums = sums * _FACTOR + (_row_sums(batch, at, ends) if part is None else part)
    if isinstance(sums, int):
        return [0] * batch.size
    return [high << 64 | low for high, low in sums.view(np.uint64).tolist()]


def _row_sums(batch: Batch, at: int, ends: Words | None) -> Words:
    """Returns two words for each row of a leaf (B, 2), or for a leaf without rows (1, 2)."""
    leaf = batch.leaves[at].detach()
    follows, rows = batch.follows_length(at), batch.rows_at(at)
    shape = tuple(leaf.shape[2 if follows else 1 if rows else 0 :])
    start = _start(batch.layout.labels[at], leaf.dtype, shape, rows)
    if not rows:
        sums = _words(digest(leaf))
    elif follows and batch.lengths is not None and ends is not None:
        kept = _array(batch.leaves[batch.layout.mask or 0])
        sums = ends + _weighed(_unpadded(_as_integers(leaf), kept, batch.lengths))
    elif batch.size and leaf[0].nbytes >= _LARGE:
        sums = np.concatenate([_words(digest(row)) for row in leaf])
    else:
        sums = _weighed(_as_integers(leaf))
    total: Words = start + sums
    return total


def _weighed(words: Words) -> Words:
    flat = words.reshape(len(words), -1)
    sums: Words = flat @ _weights(flat.shape[1])
    return sums


def _unpadded(words: Words, mask: Words, lengths: torch.Tensor) -> Words:
    """Returns words (B, length, ...) less what stands in the padding, if it is the same there."""
    marks = mask.reshape(*mask.shape, *[1] * (words.ndim - 2))
    kept: Words = words * marks
    if not (kept != words).any():
        return words
    last = np.minimum(_array(lengths), words.shape[1] - 1)
    first = words[np.arange(len(words)), last][:, None]
    less: Words = words - first * (1 - marks.astype(np.int64))
    return less


def _prefixes(lengths: Words, length: int) -> Words:
    within: Words = np.arange(length) < lengths[:, None]
    return within


@functools.cache
def _start(label: str, dtype: torch.dtype, shape: tuple[int, ...], rows: bool) -> Words:
    text = repr((label, str(dtype), shape, rows))
    return _words(hashlib.blake2b(text.encode(), digest_size=16).digest())


def _as_integers(leaf: torch.Tensor) -> Words:
    if leaf.is_floating_point() or leaf.is_complex():
        kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32}
        leaf = leaf.resolve_conj().resolve_neg().contiguous()
        leaf = leaf.view(kinds.get(leaf.element_size(), torch.int32))
    return _array(leaf.to(torch.int64))


def _array(tensor: torch.Tensor) -> Words:
    """Returns integers as an array; nothing is copied that is on the CPU."""
    words: Words = tensor.numpy() if tensor.is_cpu else tensor.cpu().numpy()
    return words


def _words(content: bytes) -> Words:
    return np.frombuffer(content, dtype=np.int64).reshape(1, 2)


def _weights(count: int) -> Words:
    """Returns two random odd words for each of so many places."""
    return _all_weights(max(1 << 10, 1 << (count - 1).bit_length()))[:count]


@functools.cache
def _all_weights(count: int) -> Words:
    noise = hashlib.shake_128(b"freezekit.cache").digest(16 * count)
    return np.frombuffer(noise, dtype=np.int64).reshape(count, 2) | 1
