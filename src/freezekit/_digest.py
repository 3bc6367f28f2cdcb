"""What a tensor holds, in sixteen bytes: exact to the bit, aware of positions, fast."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.nn.parameter import is_lazy

NO_CONTENT = bytes(16)
"""The digest of a tensor that holds nothing yet: on meta, uninitialized, or its storage freed."""

_COLUMNS = 512
_BLOCK_ROWS = 1 << 14
_SMALL = 1 << 17
# Of order 2**30 modulo 2**32, as it is 5 modulo 8, and of good lattice structure.
_FACTOR = 1566083941


def digest(tensor: torch.Tensor) -> bytes:
    r"""Returns 16 bytes that tell whether a tensor still holds the same values.

    Tensors of one dtype and shape have the same digest if they agree in every bit, whatever their
    strides, their device and the number of threads. Up to 128 KiB go into BLAKE2b as they are. Of
    larger ones, each block of 32 MiB is read as 32-bit words :math:`x_{rc}`, 512 to a row, and
    three families of sums modulo :math:`2^{32}` go into BLAKE2b in its place:

    .. math::
        \sum_r M^r x_{rc} \qquad \sum_r M^r \lfloor x_{rc} / 2^{16} \rfloor \qquad \sum_c x_{rc}

    The sums over a column see every change within one word, every two flipped bits and every swap
    of two elements for certain. Other changes pass one column with a chance of :math:`2^{-64}`, or
    of :math:`2^{-17}` if signs alone flip; without the second sum half of those would pass, as the
    top bit of the first only tells odd from even. The sums over rows see whatever stays within
    one column. There is no secret in it: it finds mistakes, not forgeries.

    Scratch memory is bounded, except that a tensor that is not contiguous, or not aligned at four
    bytes, is copied for the time of its digest. Of a DTensor the local shard counts.

    Args:
        tensor: of any shape, dtype, layout and device.
    """
    if not _has_content(tensor):
        return NO_CONTENT
    state = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    if hasattr(tensor, "__tensor_flatten__"):
        for part in (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]):
            if isinstance(part, torch.Tensor):
                state.update(digest(part))
        return state.digest()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    plain = tensor.detach().as_subclass(torch.Tensor)
    flat = plain.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)
    if flat.numel() > _SMALL:
        if flat.storage_offset() % 4:
            flat = flat.clone()
        count = flat.numel() // (4 * _COLUMNS)
        whole, flat = flat.tensor_split((4 * _COLUMNS * count,))
        for sums in _sums(whole.view(torch.int32).view(count, _COLUMNS)):
            state.update(sums.cpu().numpy().data)
    state.update(flat.cpu().numpy().data)
    return state.digest()


def _has_content(tensor: torch.Tensor) -> bool:
    if is_lazy(tensor) or tensor.is_meta:
        return False
    if tensor.layout is not torch.strided or hasattr(tensor, "__tensor_flatten__"):
        return True
    return tensor.numel() == 0 or tensor.untyped_storage().size() > 0


def _sums(words: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields the sums over columns and over rows, for each block of a grid of 32-bit words.

    Args:
        words: of shape (rows, columns). Taken in pieces that stay in the cache; how large they
            are makes no difference to the sums.
    """
    size = _piece_rows(words)
    columns = words.new_empty(2, size, _COLUMNS)
    lower, upper, scratch = columns[0], columns[1], words.new_empty(size, _COLUMNS)
    step = pow(_FACTOR, size, 1 << 32)
    for block in torch.split(words, _BLOCK_ROWS):
        rows = words.new_empty(len(block))
        columns.zero_()
        weight = 1
        for piece, sums in zip(torch.split(block, size), torch.split(rows, size), strict=True):
            if len(piece) < size:
                lower, upper, scratch = (each[: len(piece)] for each in (lower, upper, scratch))
            torch.sum(piece, 1, dtype=torch.int32, out=sums)
            lower.add_(piece, alpha=weight)
            torch.bitwise_right_shift(piece, 16, out=scratch)
            upper.add_(scratch, alpha=weight)
            weight = _signed(weight * step)
        yield _folded(columns)
        yield rows


def _folded(columns: torch.Tensor) -> torch.Tensor:
    """Returns the sums of a piece over its rows, weighted, by halves; writes into it."""
    half = columns.shape[1]
    while half > 1:
        half //= 2
        weight = _signed(pow(_FACTOR, half, 1 << 32))
        columns = columns[:, :half].add_(columns[:, half:], alpha=weight)
    return columns.contiguous()


def _piece_rows(words: torch.Tensor) -> int:
    """Returns how many rows to take at a time: a power of two, at most a block."""
    if words.device.type != "cpu":
        return 1 << 12
    threads = torch.get_num_threads()
    return min(1 << max(8, (64 * threads - 1).bit_length()), _BLOCK_ROWS)


def _signed(weight: int) -> int:
    """Returns a weight modulo 2**32 as a 32-bit integer."""
    return (weight + (1 << 31)) % (1 << 32) - (1 << 31)
