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

_PLAIN_KINDS = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.float32, torch.float64,
)  # fmt: skip


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
    lengths: list[int] | None
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

    def small(self, roots: Sequence[int]) -> list[int]:
        """Returns those of some leaves that are read in no time."""
        most = _LARGE * max(1, self.size)
        return [at for at in roots if self.leaves[at].nbytes < most]

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
    for path, _ in paths:
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
    for leaf in leaves:
        if not is_plain(leaf):
            refuse(
                "opaque",
                f"it is called with a {type(leaf).__name__}, of which nothing is known",
                "call it with tensors and plain values, in tuples and dicts",
            )
    mask = None if layout.mask is None else leaves[layout.mask]
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and not mask.is_floating_point():
        size, length = mask.shape
        lengths = _ends(mask, length)
        if lengths is not None:
            return Batch(leaves, layout, size, length, lengths)
        return Batch(leaves, layout, size, None, None)
    sizes = [len(each) for each in leaves if isinstance(each, torch.Tensor) and each.dim()]
    if not sizes:
        refuse("batch", "it is called without a tensor that has rows", "pass tensors (B, ...)")
    return Batch(leaves, layout, max(sizes, key=sizes.count), None, None)


def prefixes(lengths: Sequence[int], length: int) -> torch.Tensor:
    """Returns what belongs to rows of some lengths, as booleans (B, length)."""
    places = torch.arange(length, device="cpu")
    return places < torch.tensor(lengths, dtype=torch.int64, device="cpu").unsqueeze(1)


def row_keys(batch: Batch, roots: Sequence[int]) -> list[int]:
    """Returns a number below 2**128 for each row, of what it holds in some of the leaves.

    Padding is no part of it, if it is the same in all of a row.

    Args:
        batch: the arguments of a pass.
        roots: which leaves.
    """
    lengths = batch.lengths
    kinds, parts = [], []
    for at in roots:
        leaf = batch.leaves[at]
        rows, follows = batch.rows_at(at), batch.follows_length(at)
        shape = tuple(leaf.shape[2 if follows else 1 if rows else 0 :])
        kinds.append((batch.layout.labels[at], leaf.dtype, shape, rows))
        if at == batch.layout.mask and lengths is not None:
            parts.append([length.to_bytes(8, "little") for length in lengths])
        else:
            parts.append(_contents(batch, at, lengths if follows else None))
    kind = _digest_of(tuple(kinds))
    found = []
    for row in zip(*parts, strict=True) if parts else [()] * batch.size:
        whole = hashlib.blake2b(b"".join((kind, *row)), digest_size=16)
        found.append(int.from_bytes(whole.digest(), "little"))
    return found


def _contents(batch: Batch, at: int, lengths: list[int] | None) -> list[bytes]:
    """Returns what each row of a leaf holds, or a digest of it."""
    leaf = batch.leaves[at].detach()
    if not batch.rows_at(at):
        return [digest(leaf)] * batch.size
    if leaf.is_complex() or leaf.dtype not in _PLAIN_KINDS:
        leaf = leaf.resolve_conj().resolve_neg().contiguous()
        leaf = leaf.unsqueeze(-1).view(torch.uint8)
    if lengths is None and batch.size and leaf[0].nbytes >= _LARGE:
        return [digest(row) for row in leaf]
    content = _array(leaf).tobytes()
    size = len(content) // max(1, batch.size)
    rows = [content[start : start + size] for start in range(0, len(content), size or 1)]
    if lengths is None:
        return rows or [b""] * batch.size
    return [
        _unpadded(row, length, leaf.shape[1]) for row, length in zip(rows, lengths, strict=True)
    ]


def _unpadded(row: bytes, length: int, places: int) -> bytes:
    """Returns a row without its padding, with how long it is."""
    unit = len(row) // places
    end = length * unit
    padding = row[end:]
    if padding == padding[:unit] * (places - length):
        row = row[:end]
    return b"".join((length.to_bytes(8, "little"), len(row).to_bytes(8, "little"), row))


def _ends(mask: torch.Tensor, length: int) -> list[int] | None:
    """Returns how many places of each row a mask says are kept; None if others follow."""
    marks = _array(mask)
    content, one = marks.tobytes(), marks.dtype.type(1).tobytes()
    size, ones = len(one) * length, one * length
    zeros, found = bytes(size), []
    for start in range(0, len(content), size or 1):
        row = content[start : start + size]
        kept = row.count(1)
        end = len(one) * kept
        if row[:end] != ones[:end] or row[end:] != zeros[end:]:
            return None
        found.append(kept)
    return found or [0] * len(marks)


def _array(tensor: torch.Tensor) -> Any:  # noqa: ANN401
    """Returns a tensor as an array; nothing is copied that is on the CPU."""
    return tensor.numpy() if tensor.is_cpu else tensor.cpu().numpy()


@functools.cache
def _digest_of(kinds: tuple[object, ...]) -> bytes:
    return hashlib.blake2b(repr(kinds).encode(), digest_size=16).digest()
