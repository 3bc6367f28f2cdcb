"""Rows of tensors by key: in memory up to a budget, and in a folder that outlives the process."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from ..errors import FreezekitError
from ._files import Folder
from ._tap import Shared, Tap


class Store:
    """Taps, in memory up to a budget and, with a folder, in files.

    With a folder each row is written to it when it is given, and lasts from the next `flush`, which
    comes by itself at `close`, with the last reference, at the end of the interpreter, and now and
    then. Rows beyond the budget of memory are read from there. Without a folder they are not
    stored, only counted.

    One process at a time writes to a folder. Any other opens it `readonly`: it finds what was
    flushed, and keeps what it is given in memory alone.

    Attributes:
        counts: rows refused and lost.

    Example:
        >>> import torch
        >>> from freezekit.cache._store import Store
        >>> store = Store(memory=1 << 20)
        >>> tap = store.tap("5eed", (None, 2), torch.float32)
        >>> tap.put([7, 8], torch.ones(2, 3, 2), lengths=[3, 1])
        2
        >>> tap.gather(tap.find([8]), length=2)
        tensor([[[1., 1.],
                 [0., 0.]]])
    """

    def __init__(
        self,
        *,
        memory: int,
        folder: Path | None = None,
        disk: int | None = None,
        dtype: torch.dtype | None = None,
        fingerprint: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Opens a store.

        Args:
            memory: how many bytes of rows to hold in memory.
            folder: where to keep them; created if need be.
            disk: how many bytes of rows to write there; None: any number.
            dtype: a smaller floating type in which to store what is floating.
            fingerprint: what the rows depend on. A folder that was made with something else is
                refused.

        Raises:
            FreezekitError: the folder cannot be used, or holds something else.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise FreezekitError(f"rows cannot be stored as {dtype}: give a floating type, or none")
        opened = None if folder is None else Folder(Path(folder), fingerprint, disk)
        self._shared = Shared(memory, opened)
        self._dtype = dtype
        self._taps: dict[str, Tap] = {}
        self._closing = None if opened is None else weakref.finalize(self, opened.close)
        self.counts = self._shared.counts

    @property
    def readonly(self) -> bool:
        """Whether there is a folder and another process writes to it."""
        folder = self._shared.folder
        return folder is not None and folder.readonly

    @property
    def nbytes(self) -> int:
        """How many bytes of rows are in memory."""
        return self._shared.budget.used

    @property
    def file_bytes(self) -> int:
        """How many bytes of rows are in files."""
        folder = self._shared.folder
        return 0 if folder is None else folder.nbytes

    @property
    def rows(self) -> int:
        """How many rows the opened taps have."""
        return sum(map(len, self._taps.values()))

    def tap(self, name: str, row_shape: Sequence[int | None], dtype: torch.dtype) -> Tap:
        """Returns a tap, new or with the rows it has.

        Args:
            name: in hexadecimal digits, as of a hash.
            row_shape: the shape of a row, None where each has its own size.
            dtype: of the rows.

        Raises:
            FreezekitError: the name is none, or rows of another kind are stored under it.
        """
        known = self._taps.get(name)
        if known is None:
            if not name or set(name) - set("0123456789abcdef"):
                raise FreezekitError(f"{name!r} cannot name a tap: give hexadecimal digits")
            stored = self.stored_dtype(dtype)
            known = self._taps[name] = Tap(self._shared, name, tuple(row_shape), dtype, stored)
        if (known.row_shape, known.dtype) != (tuple(row_shape), dtype):
            raise FreezekitError(
                f"tap {name} has rows of shape {known.row_shape} and {known.dtype}, not of "
                f"{tuple(row_shape)} and {dtype}: drop it first"
            )
        return known

    def drop(self, name: str) -> None:
        """Deletes a tap and its rows, from the folder too unless another process writes to it."""
        self._drop([name])

    def forget(self, names: Sequence[str]) -> None:
        """Lets go of taps; what they have in the folder stays there, and is found again."""
        with self._shared.lock:
            self.flush()
            for tap in [self._taps.pop(name) for name in names if name in self._taps]:
                tap.clear()

    def clear(self) -> None:
        """Deletes all taps and their rows, from the folder too unless another writes to it."""
        folder = self._shared.folder
        saved = () if folder is None else folder.manifest.taps
        self._drop(list(dict.fromkeys((*self._taps, *saved))))

    def flush(self) -> None:
        """Makes what was given so far last, if there is a folder."""
        with self._shared.lock:
            if self._shared.folder is not None:
                self._shared.folder.flush()

    def refresh(self) -> None:
        """Finds what the process that writes to the folder has flushed since.

        Raises:
            FreezekitError: the folder is damaged, or now holds something else.
        """
        with self._shared.lock:
            if self._shared.folder is not None and self.readonly:
                self._shared.folder.refresh()
                for tap in self._taps.values():
                    tap.refresh()

    def close(self) -> None:
        """Flushes, lets another process write, and forgets all rows in memory."""
        with self._shared.lock:
            if self._closing is not None:
                self._closing()
            for tap in self._taps.values():
                tap.clear()

    def stored_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the type in which rows of a type are stored."""
        smaller = self._dtype is not None and self._dtype.itemsize < dtype.itemsize
        return self._dtype if self._dtype and smaller and dtype.is_floating_point else dtype

    def _drop(self, names: Sequence[str]) -> None:
        with self._shared.lock:
            for tap in [self._taps.pop(name) for name in names if name in self._taps]:
                tap.clear()
            if self._shared.folder is not None:
                self._shared.folder.drop(names)
