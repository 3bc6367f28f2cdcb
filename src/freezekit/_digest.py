"""What a tensor holds, in sixteen bytes: exact to the bit, aware of positions, fast."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Iterator

import torch
from torch.nn.parameter import is_lazy

NO_CONTENT = bytes(16)
"""The digest of a tensor that holds nothing: on meta, uninitialized, or its storage freed."""

_COLUMNS = 512
_BLOCK_ROWS = 1 << 14
_SMALL = 1 << 17


def digest(tensor: torch.Tensor) -> bytes:
    r"""Returns 16 bytes that tell whether a tensor still holds the same values.

    Tensors of one dtype and shape have the same digest if they agree in every bit, whatever their
    strides, their device and the number of threads. Up to 128 KiB go into BLAKE2b as they are. Of
    larger ones, each block of 32 MiB is read as 32-bit words :math:`x_{rc}`, 512 to a row, and
    three families of sums modulo :math:`2^{32}` go into BLAKE2b in its place:

    .. math::
        \sum_r w_r x_{rc} \qquad \sum_r w_r \lfloor x_{rc} / 2^{16} \rfloor \qquad \sum_c x_{rc}

    The weights are random and odd, and no two agree modulo :math:`2^{16}`. So a change is seen for
    certain if it touches some row or some column in one word only, and so is every swap of two
    elements. Anything else would have to keep every row's plain sum, and then passes the columns
    with a chance of :math:`2^{-64}`, or :math:`2^{-16}` if it flips nothing but signs. Those are
    what the second sum is for: the top bit of the first only tells odd from even. There is no
    secret in it: it finds mistakes, not forgeries.

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
    scratch = words.new_empty(size, _COLUMNS)
    table = torch.frombuffer(_weights(), dtype=torch.int32).to(words.device).unsqueeze(1)
    for block in torch.split(words, _BLOCK_ROWS):
        rows = words.new_empty(len(block))
        columns.zero_()
        parts = (torch.split(each, size) for each in (block, table[: len(block)], rows))
        for piece, weights, sums in zip(*parts, strict=True):
            (lower, upper), high = columns[:, : len(piece)], scratch[: len(piece)]
            torch.sum(piece, 1, dtype=torch.int32, out=sums)
            lower.addcmul_(piece, weights)
            torch.bitwise_right_shift(piece, 16, out=high)
            upper.addcmul_(high, weights)
        yield columns.sum(1, dtype=torch.int32)
        yield rows


def _piece_rows(words: torch.Tensor) -> int:
    """Returns how many rows to take at a time, so that scratch stays in the cache."""
    if words.device.type != "cpu":
        return 1 << 12
    return max(256, 64 * torch.get_num_threads())


@functools.cache
def _weights() -> bytearray:
    """Returns a 32-bit weight for each row of a block: odd, random, distinct modulo 2**16."""
    noise = array("I", hashlib.shake_128(b"freezekit").digest(8 * _BLOCK_ROWS))
    places = sorted(range(len(noise)), key=noise.__getitem__)
    pairs = zip(noise, places[:_BLOCK_ROWS], strict=False)
    return bytearray(array("I", ((high >> 16 << 16) + 2 * low + 1 for high, low in pairs)))
