"""The rows of one tensor, by key, wherever they lie."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from ..errors import FreezekitError
from ._arena import Arena, Budget
from ._durable import checksum
from ._files import COLUMNS, Folder, Row
from ._manifest import Kind, Part
from ._rows import Batch, Loss, joined
from ._slots import Slots

if TYPE_CHECKING:
    from ._arena import Bytes

# By size, a type that torch selects rows of.
_SELECTABLE = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.float32,
    8: torch.float64,
    16: torch.complex128,
}


class Counts:
    """What a store could not do.

    Attributes:
        refused: rows that were given and not stored, for want of room or of range.
        lost: rows in files that were not what was written: missing from then on.
        rounding: the largest difference that a smaller type made to an element, over the largest
            element of its row.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self.refused = 0
        self.lost = 0
        self.rounding = 0.0


class Shared:
    """What the taps of a store share."""

    def __init__(self, memory: int, folder: Folder | None) -> None:
        self.lock = threading.RLock()
        self.budget = Budget(memory)
        self.folder = folder
        self.counts = Counts()

    def lose(self, rows: int) -> None:
        """Counts lost rows, and says so the first time."""
        first = not self.counts.lost
        self.counts.lost += rows
        if first and rows and self.folder is not None:
            warnings.warn(
                f"{rows} rows of the cache in {self.folder.path} are not what was written: they "
                "are computed again. Should there be more, nothing will be said, only counted",
                stacklevel=2,
            )


class Tap:
    """The rows of one tensor, by key.

    A row has a number, its slot, which it keeps. Rows are given and returned as copies.

    Attributes:
        name: of the tap.
        row_shape: the shape of a row, None where each has its own size.
        dtype: the type in which rows are given and returned.
        stored_dtype: the type in which they are stored.
        loss: what that changed.
    """

    def __init__(
        self,
        shared: Shared,
        name: str,
        row_shape: tuple[int | None, ...],
        dtype: torch.dtype,
        stored_dtype: torch.dtype,
    ) -> None:
        """Opens what the folder holds of it."""
        self.name = name
        self.row_shape = row_shape
        self.dtype = dtype
        self.stored_dtype = stored_dtype
        self.loss = Loss()
        self._shared = shared
        self._free = tuple(at for at, size in enumerate(row_shape) if size is None)
        self._ragged = self._free == (0,)
        # Bytes of a row, or of one position of a ragged one.
        self._own = [size for size in row_shape if size is not None]
        self._unit = prod(self._own) * stored_dtype.itemsize
        self._arena = Arena(shared.budget)
        self._grid: Any = None
        self._grid_of = torch.empty(0, device="cpu")
        self._parts: list[Part] = []
        self._slots = Slots(len(self._free), self._unit)
        self.refresh()

    def __len__(self) -> int:
        """Returns how many rows there are."""
        return len(self._slots.of)

    def __contains__(self, key: int) -> bool:
        """Returns whether there is a row with that key."""
        return key in self._slots.of

    @property
    def nbytes(self) -> int:
        """How many bytes of rows are in memory."""
        return self._arena.used

    def find(self, keys: Sequence[int]) -> list[int] | None:
        """Returns the slot of each key, None if one is missing."""
        try:
            return list(map(self._slots.of.__getitem__, keys))
        except KeyError:
            return None

    def missing(self, keys: Sequence[int]) -> list[int]:
        """Returns the positions of the keys that have no row."""
        return [position for position, key in enumerate(keys) if key not in self._slots.of]

    def lengths(self, slots: Sequence[int]) -> list[int]:
        """Returns the own length of each row, which is its first size."""
        if self.row_shape and self.row_shape[0] is not None:
            return [self.row_shape[0]] * len(slots)
        return [self._slots.own(slot)[0] for slot in slots]

    def put(
        self, keys: Sequence[int], rows: torch.Tensor, lengths: Sequence[int] | None = None
    ) -> int:
        """Stores rows under keys that have none yet, and returns how many it stored.

        Args:
            keys: one a row, at least 0 and less than 2**128.
            rows: of shape (B, *row_shape), on any device.
            lengths: how many positions each row keeps; None: all.

        Raises:
            FreezekitError: these are not rows of this tap.
        """
        batch = Batch(keys, rows, lengths)
        batch.check(self.row_shape, self.dtype)
        with self._shared.lock:
            new: dict[int, int] = {}
            for position in self.missing(keys):
                new.setdefault(keys[position], position)
            found = dict(zip(new, batch.kept(list(new.values())), strict=True))
            if self.stored_dtype is not self.dtype:
                found = self.loss.cast(found, self.stored_dtype)
                counts = self._shared.counts
                counts.rounding = max(counts.rounding, self.loss.relative)
            stored = self._put(list(found), list(found.values()))
            self._shared.counts.refused += len(new) - stored
            return stored

    def gather(
        self,
        slots: Sequence[int],
        length: int | None = None,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor | None:
        """Returns the rows in those slots, stacked in a fresh tensor of shape (B, *sizes).

        A size that is None in `row_shape` is that of the largest of the rows; beyond a row's own
        end there are zeros.

        Args:
            slots: from `find`, since when no other thread has cleared or refreshed the store.
            length: the first size, where `row_shape` has None.
            device: where to put them.

        Returns:
            The tensor; None if a row turned out to be corrupted in its file, which is missing from
            now on: find again.

        Raises:
            FreezekitError: a row is longer than `length`.
        """
        with self._shared.lock:
            out = self._select(slots)
            if out is None:
                sizes = self._sizes_of(slots, length)
                out = torch.empty((len(slots), *sizes), dtype=self.stored_dtype, device="cpu")
                lost = self._fill(out, slots) if out.numel() else []
                if lost:
                    self._lose(lost)
                    return None
        if torch.device(device).type != "cpu":
            out = out.to(device)
        return out if out.dtype is self.dtype else out.to(self.dtype)

    def get(
        self,
        keys: Sequence[int],
        length: int | None = None,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor | None:
        """Returns the rows of those keys as `gather` does, None if one is missing.

        Args:
            keys: any that `put` takes, one also twice.
            length: the first size, where `row_shape` has None.
            device: where to put them.

        Raises:
            FreezekitError: a row is longer than `length`.
        """
        with self._shared.lock:
            slots = self.find(keys)
            return None if slots is None else self.gather(slots, length, device)

    def refresh(self) -> None:
        """Adds what the folder's manifest names and this tap has not read yet."""
        folder = self._shared.folder
        if folder is None:
            return
        kind = Kind(self.row_shape, _name(self.dtype), _name(self.stored_dtype))
        with self._shared.lock:
            parts = folder.declare(self.name, kind)
            if parts[: len(self._parts)] != self._parts:
                self.clear()
            lost = sum(self._load(folder, part) for part in parts[len(self._parts) :])
            self._parts = list(parts)
            self._shared.lose(lost)

    def clear(self) -> None:
        """Forgets all rows; those in files stay there."""
        with self._shared.lock:
            self._arena.free()
            self._parts = []
            self._slots = Slots(len(self._free), self._unit)

    def _put(self, keys: Sequence[int], rows: list[torch.Tensor]) -> int:
        """Stores rows of the stored type, each as long as it is."""
        if not keys:
            return 0
        data: Bytes = joined(rows).numpy()
        ends, size = [0], self.stored_dtype.itemsize
        for row in rows:
            ends.append(ends[-1] + row.numel() * size)
        sizes = [[row.shape[at] for at in self._free] for row in rows]
        folder, written, sums = self._shared.folder, None, [bytes(16)] * len(rows)
        if folder is not None and folder.writing:
            sums = [checksum(data[ends[at] : ends[at + 1]].data) for at in range(len(rows))]
            table = [Row(*each) for each in zip(keys, ends, sums, sizes, strict=False)]
            written = folder.append(self.name, data.data, table)
        file, first = (None, 0) if written is None else written
        stored = 0
        for at, key in enumerate(keys):
            start = self._arena.place(data[ends[at] : ends[at + 1]])
            if start >= 0 or file is not None:
                self._slots.add(key, start, sizes[at])
                if folder is not None:
                    self._slots.file(file, first + ends[at], sums[at])
                stored += 1
        return stored

    def _load(self, folder: Folder, part: Part) -> int:
        """Adds the rows of a part and returns how many of them are lost."""
        table = folder.table(part)
        if table is None:
            return part.rows
        width, there, lost = COLUMNS + len(self._free), folder.size(part), 0
        for at in range(0, len(table), width):
            low, high, offset, *total = table[at : at + COLUMNS]
            sizes = table[at + COLUMNS : at + width]
            if offset + self._unit * prod(sizes) > there:
                lost += 1
                continue
            self._slots.add(high << 64 | low, -1, sizes)
            self._slots.file(
                part.data, offset, b"".join(each.to_bytes(8, "little") for each in total)
            )
        return lost

    def _sizes_of(self, slots: Sequence[int], length: int | None) -> list[int]:
        """Returns the sizes of a row of a batch."""
        found = list(self.row_shape)
        for at, size in zip(self._free, self._slots.largest(slots), strict=True):
            found[at] = size
        if length is not None and self._free[:1] == (0,):
            longest = found[0] or 0
            if longest > length:
                raise FreezekitError(
                    f"a row of tap {self.name} has {longest} positions, {length} were asked for: "
                    "is its key used for two samples?"
                )
            found[0] = length
        return [size or 0 for size in found]

    def _select(self, slots: Sequence[int]) -> torch.Tensor | None:
        """Returns rows of one size that are all in memory, None if they are not."""
        if self._free or not self._unit or not slots:
            return None
        starts, unit, arena = self._slots.starts, self._unit, self._arena
        places = slots if self._slots.dense else [starts[slot] // unit for slot in slots]
        if max(slots) >= len(starts):
            raise IndexError(f"tap {self.name} has no row {max(slots)}")
        if not self._slots.dense and min(places) < 0:
            return None
        if self._grid_of is not arena.tensor:
            self._grid_of = arena.tensor
            whole = arena.tensor[: len(arena.data) // unit * unit]
            whole = whole.view(_SELECTABLE[self.stored_dtype.itemsize])
            self._grid = whole.view(-1, *self._own).numpy()
        out = torch.from_numpy(self._grid.take(places, 0))
        return out if out.dtype is self.stored_dtype else out.view(self.stored_dtype)

    def _fill(self, out: torch.Tensor, slots: Sequence[int]) -> list[int]:
        """Copies rows into a batch and returns the slots of those that are lost."""
        if self._free and not self._ragged:
            return self._fill_free(out, slots)
        batch: Bytes = out.view(torch.uint8).reshape(len(slots), -1).numpy()
        if not self._free:
            pairs = zip(slots, batch, strict=True)
            return [slot for slot, row in pairs if not self._copy(slot, row)]
        starts, sizes, unit, lost = self._slots.starts, self._slots.sizes, self._unit, []
        for slot, row in zip(slots, batch, strict=True):
            count, start = sizes[slot] * unit, starts[slot]
            if start >= 0:
                row[:count] = self._arena.data[start : start + count]  # copying one may move them
            elif not self._copy(slot, row[:count]):
                lost.append(slot)
            row[count:] = 0
        return lost

    def _fill_free(self, out: torch.Tensor, slots: Sequence[int]) -> list[int]:
        lost = []
        for slot, place in zip(slots, out.zero_(), strict=True):
            own = iter(self._slots.own(slot))
            sizes = [next(own) if size is None else size for size in self.row_shape]
            row = torch.empty(sizes, dtype=out.dtype, device="cpu")
            if row.numel() and not self._copy(slot, row.reshape(-1).view(torch.uint8).numpy()):
                lost.append(slot)
            place[tuple(slice(size) for size in row.shape)] = row
        return lost

    def _copy(self, slot: int, into: Bytes) -> bool:
        """Copies one row from wherever it is; false if it is not what was written."""
        start, folder = self._slots.starts[slot], self._shared.folder
        if start >= 0:
            into[:] = self._arena.data[start : start + len(into)]
            return True
        if folder is None or not len(into):
            return not len(into)
        if not folder.read(*self._slots.place(slot), into.data):
            return False
        wanted = self._slots.checksum(slot)
        if wanted is not None:
            if checksum(into.data) != wanted:
                return False
            self._slots.agreed(slot)
        self._slots.starts[slot] = self._arena.place(into)
        return True

    def _lose(self, slots: Sequence[int]) -> None:
        lost = set(slots)
        for slot in lost:
            self._slots.forget(slot)
        self._shared.lose(len(lost))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
