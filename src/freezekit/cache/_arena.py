"""Memory that grows without being copied: the rows of one tap, end to end."""

from __future__ import annotations

import mmap
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:
    import numpy as np

    Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

_FIRST = 1 << 20


class Budget:
    """How many bytes several arenas may hold together.

    Attributes:
        limit: the most.
        used: what they hold now.
    """

    def __init__(self, limit: int) -> None:
        """Starts with nothing used."""
        self.limit = limit
        self.used = 0


class Arena:
    """Rows of bytes, end to end, in one stretch of memory.

    It is an anonymous mapping of its own, a quarter larger each time it is full: Linux then moves
    page tables instead of bytes (1 ms in all on the way to 1 GiB, and at no time two copies), a
    page that nothing was written to takes no memory, and all of it goes back to the system at
    once. Elsewhere than on Linux growing copies.

    Attributes:
        tensor: the bytes, of which those after the last row are zeros. It is another object after
            each row that made the arena grow, and the one before then points nowhere.
        data: the same as an array.
        used: how many hold rows.
    """

    def __init__(self, budget: Budget) -> None:
        """Takes no memory yet."""
        self._budget = budget
        self._mapped: mmap.mmap | None = None
        self._show(torch.empty(0, dtype=torch.uint8, device="cpu"))
        self.used = 0

    def place(self, row: Bytes) -> int:
        """Copies a row in and returns where it starts, -1 if the budget or the machine is full."""
        start, stop = self.used, self.used + len(row)
        if self._budget.used + len(row) > self._budget.limit:
            return -1
        if stop > len(self.data) and not self._grow(stop):
            return -1
        self.data[start:stop] = row
        self._budget.used += len(row)
        self.used = stop
        return start

    def free(self) -> None:
        """Gives all memory back; every start is void."""
        self._budget.used -= self.used
        self.used = 0
        self._show(torch.empty(0, dtype=torch.uint8, device="cpu"))
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None

    def _grow(self, least: int) -> bool:
        size = max(_FIRST, least, len(self.data) + len(self.data) // 4)
        size += -size % mmap.PAGESIZE
        try:
            self._mapped = _resized(self._mapped, size, self.used)
        except (OSError, MemoryError):
            return False
        self._show(torch.frombuffer(self._mapped, dtype=torch.uint8))
        return True

    def _show(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.data: Bytes = tensor.numpy()


def _resized(mapped: mmap.mmap | None, size: int, used: int) -> mmap.mmap:
    """Returns a mapping of that size that begins with what is used of another."""
    if mapped is not None and sys.platform == "linux":
        mapped.resize(size)
        return mapped
    if sys.platform == "win32":
        larger = mmap.mmap(-1, size)
    else:
        larger = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if mapped is not None:
        larger[:used] = mapped[:used]
        mapped.close()
    return larger
