"""Where each row of a tap is: columns, a slot each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence


class Slots:
    """Keys of rows, their sizes, and their places in memory and in files.

    Attributes:
        of: the slot of each key that has a row.
        keys: by slot.
        starts: where in memory each row begins; -1: not in memory.
        dense: whether each row lies in memory where its slot says, all being of one size.
        sizes: those that each row has for itself, end to end.
    """

    def __init__(self, width: int, unit: int) -> None:
        """Starts without rows.

        Args:
            width: how many sizes each row has for itself.
            unit: how many bytes a row has, where all have one size.
        """
        self.of: dict[int, int] = {}
        self.keys: list[int] = []
        self.starts = array("q")
        self.dense = True
        self.sizes = array("Q")
        self._width = width
        self._unit = unit
        self._names: list[str] = []
        self._files = array("i")
        self._offsets = array("q")
        self._sums = bytearray()
        self._seen = bytearray()

    def add(self, key: int, start: int, sizes: Iterable[int]) -> None:
        """Adds a row, in memory or not."""
        self.dense = self.dense and start == len(self.keys) * self._unit
        self.of[key] = len(self.keys)
        self.keys.append(key)
        self.starts.append(start)
        self.sizes.extend(sizes)

    def file(self, name: str | None, offset: int, checksum: bytes) -> None:
        """Says where in which file the row added last is; with a folder, of each row."""
        if name is not None and (not self._names or self._names[-1] != name):
            self._names.append(name)
        self._files.append(-1 if name is None else len(self._names) - 1)
        self._offsets.append(offset)
        self._sums += checksum
        self._seen.append(0)

    def forget(self, slot: int) -> None:
        """Takes the key from a row; nothing else moves."""
        key = self.keys[slot]
        if self.of.get(key) == slot:
            del self.of[key]

    def own(self, slot: int) -> Sequence[int]:
        """Returns the sizes that a row has for itself."""
        return self.sizes[slot * self._width : (slot + 1) * self._width]

    def largest(self, slots: Sequence[int]) -> list[int]:
        """Returns the largest of each of those sizes among some rows."""
        width, sizes = self._width, self.sizes
        return [
            max([sizes[slot * width + column] for slot in slots], default=0)
            for column in range(width)
        ]

    def place(self, slot: int) -> tuple[str, int]:
        """Returns the file of a row and its offset there."""
        return self._names[self._files[slot]], self._offsets[slot]

    def checksum(self, slot: int) -> bytes | None:
        """Returns the checksum of a row, None once it agreed."""
        return None if self._seen[slot] else bytes(self._sums[16 * slot : 16 * slot + 16])

    def agreed(self, slot: int) -> None:
        """Remembers that the checksum of a row agreed."""
        self._seen[slot] = 1
