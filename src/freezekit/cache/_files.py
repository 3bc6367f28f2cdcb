"""The folder of a store: files that are only ever added to, and a manifest that names them.

A flush writes two `.npy` files a tap, elements and a table of the rows in them, and then puts a new
`manifest.json` in the place of the old one. What the manifest does not name does not exist: a
writer that dies leaves at most files that the next writer deletes. `numpy.load` opens both.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from .._verbs import counted
from ..errors import FreezekitError
from . import _durable, _manifest
from ._manifest import Kind, Part, Saved

COLUMNS = 5
"""Columns of a table: key (low, high), offset of the bytes, checksum (low, high); then sizes."""

_LOCK = "lock"
_OURS = re.compile(r"tap-[0-9a-f]+-\d+(-table)?\.npy|manifest\.json\.new")
_FLUSHED_AT = 1 << 26
_OPEN = 64
_LOW = (1 << 64) - 1
_ORDER = "<" if sys.byteorder == "little" else ">"
_LETTERS = {
    "bool": "b", "uint8": "u", "uint16": "u", "uint32": "u", "uint64": "u",
    "float16": "f", "float32": "f", "float64": "f", "complex64": "c", "complex128": "c",
}  # fmt: skip


class Row(NamedTuple):
    """One row to write: its key, its place in the data, its checksum and its free sizes."""

    key: int
    offset: int
    checksum: bytes
    sizes: Sequence[int]


class _Growing:
    """A data file being written, with the table of its rows so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = _durable.create(path)
        self.size = 0
        self.rows = 0
        self.table = array("Q")


class Folder:
    """Files of rows, of which one process writes and any others read.

    Attributes:
        path: where.
        readonly: whether nothing can be written, because another process writes or the folder
            cannot be locked.
        manifest: what it held when last read or written.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, str], limit: int | None) -> None:
        """Opens a folder, to write if no one else does.

        Raises:
            FreezekitError: it cannot be created or read, is not a cache's, or its rows depend on
                something else.
        """
        fingerprint = {**fingerprint, "byte order": sys.byteorder}
        self.path = path
        self._limit = limit
        self._process = os.getpid()
        self._growing: dict[str, _Growing] = {}
        self._reading: dict[str, int] = {}
        self._pending = 0
        self._stopped = False
        self._lock: int | None = None
        self._claim()
        self.readonly = self._lock is None
        try:
            self.manifest = _manifest.read(path, fingerprint)
        except FreezekitError:
            self._unlock()
            raise
        self._sweep()

    @property
    def nbytes(self) -> int:
        """How many bytes of rows the files hold, those not yet flushed included."""
        saved = sum(part.nbytes for tap in self.manifest.taps.values() for part in tap.parts)
        return saved + sum(each.size for each in self._growing.values())

    @property
    def writing(self) -> bool:
        """Whether rows are written: by the process that opened it first, until writing fails."""
        return self._lock is not None and not self._stopped and os.getpid() == self._process

    def declare(self, name: str, kind: Kind) -> list[Part]:
        """Returns the parts of a tap, which may be new.

        Raises:
            FreezekitError: the folder holds rows of another kind under that name.
        """
        saved = self.manifest.taps.setdefault(name, Saved(kind, []))
        if saved.kind != kind:
            now, before = kind._asdict(), saved.kind._asdict()
            differing = [f"{key}: {before[key]} -> {now[key]}" for key in now
                         if before[key] != now[key]]  # fmt: skip
            raise FreezekitError(
                f"the cache in {self.path} holds other rows for tap {name}: "
                f"{'; '.join(differing)}; go back to that, give another folder, or drop the tap"
            )
        return saved.parts

    def append(self, name: str, data: memoryview, rows: Sequence[Row]) -> tuple[str, int] | None:
        """Writes rows of a tap, and returns the file and the offset of their first byte.

        Returns None if nothing is written: another process writes, the limit is reached, the tap
        was dropped, or writing failed, now or before.
        """
        full = self._limit is not None and self.nbytes + len(data) > self._limit
        if full or not self.writing or name not in self.manifest.taps:
            return None
        try:
            growing = self._growing.get(name) or self._begin(name)
            _durable.write_at(growing.descriptor, data, _durable.HEADER + growing.size)
        except OSError as error:
            self._stop(error)
            return None
        first = growing.size
        for row in rows:
            low, high = (int.from_bytes(row.checksum[at : at + 8], "little") for at in (0, 8))
            growing.table.extend((row.key & _LOW, row.key >> 64, first + row.offset, low, high))
            growing.table.extend(row.sizes)
        growing.size += len(data)
        growing.rows += len(rows)
        self._pending += len(data)
        file = growing.path.name
        if self._pending >= max(_FLUSHED_AT, self.nbytes // 16):
            self.flush()
        return file, first

    def table(self, part: Part) -> array[int] | None:
        """Returns the table of a part, None if it is not what was written."""
        try:
            data = (self.path / part.table).read_bytes()
        except OSError:
            return None
        if _durable.checksum(data).hex() != part.checksum:
            return None
        table = array("Q")
        table.frombytes(data[_durable.HEADER :])
        if sys.byteorder == "big":
            table.byteswap()
        return table

    def size(self, part: Part) -> int:
        """Returns how many bytes of rows the data file of a part still has."""
        try:
            return (self.path / part.data).stat().st_size - _durable.HEADER
        except OSError:
            return 0

    def read(self, file: str, offset: int, into: memoryview) -> bool:
        """Fills memory from a data file; false if that cannot be."""
        try:
            descriptor = self._reading.get(file)
            if descriptor is None:
                if len(self._reading) >= _OPEN:
                    os.close(self._reading.pop(next(iter(self._reading))))
                descriptor = _durable.open_to_read(self.path / file)
                self._reading[file] = descriptor
            return _durable.read_at(descriptor, into, _durable.HEADER + offset)
        except OSError:
            return False

    def flush(self) -> None:
        """Makes what was appended last: files first, then the manifest that names them."""
        if not self.writing or not self._growing:
            return
        try:
            for name, growing in list(self._growing.items()):
                self._finish(name, growing)
            _durable.replace(self.path / _manifest.NAME, _manifest.text(self.manifest))
        except OSError as error:
            self._stop(error)
            return
        self._pending = 0

    def drop(self, names: Sequence[str]) -> None:
        """Deletes the rows of taps: from the manifest first, then the files."""
        for name in names:
            growing = self._growing.pop(name, None)
            if growing is not None:
                self._pending -= growing.size
                os.close(growing.descriptor)
            self.manifest.taps.pop(name, None)
        if not self.writing:
            return
        try:
            _durable.replace(self.path / _manifest.NAME, _manifest.text(self.manifest))
        except OSError as error:
            self._stop(error)
            return
        self._sweep()

    def refresh(self) -> None:
        """Reads what the writer has flushed since; nothing for the writer itself.

        Raises:
            FreezekitError: the manifest cannot be read, or is about rows of something else.
        """
        if self.readonly:
            self.manifest = _manifest.read(self.path, self.manifest.fingerprint)

    def close(self) -> None:
        """Flushes, closes all files and lets another process write."""
        self.flush()
        for growing in self._growing.values():
            os.close(growing.descriptor)
        self._growing.clear()
        self._close_read()
        self._sweep()
        self._unlock()

    def _claim(self) -> None:
        """Creates the folder if need be, and locks it unless another process has.

        Raises:
            FreezekitError: it cannot be created, or has files named as if they were a cache's.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in self.path.iterdir()}
        except OSError as error:
            raise FreezekitError(f"the cache cannot be kept in {self.path}: {error}") from error
        alike = sorted(name for name in names if _OURS.fullmatch(name))
        if alike and not names & {_LOCK, _manifest.NAME}:
            raise FreezekitError(
                f"{self.path} has no cache, but {counted(alike, 'file')}, named as a cache's would "
                "be: give another folder, or delete them"
            )
        try:
            self._lock = _durable.lock(self.path / _LOCK)
        except OSError as error:
            self._stop(error)

    def _begin(self, name: str) -> _Growing:
        while (self.path / f"tap-{name}-{self.manifest.number}.npy").exists():
            self.manifest = self.manifest._replace(number=self.manifest.number + 1)
        number = self.manifest.number
        self.manifest = self.manifest._replace(number=number + 1)
        self._growing[name] = _Growing(self.path / f"tap-{name}-{number}.npy")
        return self._growing[name]

    def _finish(self, name: str, growing: _Growing) -> None:
        """Completes a data file and writes its table."""
        saved = self.manifest.taps[name]
        size = getattr(torch, saved.kind.stored).itemsize
        letter = _LETTERS.get(saved.kind.stored, "i")
        descr = f"{_ORDER if size > 1 else '|'}{letter}{size}"
        _durable.write_at(growing.descriptor, _durable.header(descr, (growing.size // size,)), 0)
        os.fsync(growing.descriptor)
        table = growing.path.with_name(growing.path.stem + "-table.npy")
        if sys.byteorder == "big":
            growing.table.byteswap()
        shape = (growing.rows, len(growing.table) // growing.rows)
        content = _durable.header("<u8", shape) + growing.table.tobytes()
        _durable.write_new(table, content)
        part = Part(
            growing.path.name, table.name, growing.rows, growing.size,
            _durable.checksum(content).hex(),
        )  # fmt: skip
        saved.parts.append(part)
        del self._growing[name]
        os.close(growing.descriptor)

    def _stop(self, error: OSError) -> None:
        self._stopped = True
        warnings.warn(
            f"nothing more is written to the cache in {self.path}: {error}. What it held stays, "
            "training goes on, and rows that do not fit into memory are computed again",
            stacklevel=2,
        )

    def _close_read(self) -> None:
        for descriptor in self._reading.values():
            os.close(descriptor)
        self._reading.clear()

    def _sweep(self) -> None:
        """Deletes files of this format that the manifest in the folder does not name."""
        if self._lock is None or os.getpid() != self._process:
            return
        try:
            named = _manifest.read(self.path, self.manifest.fingerprint)
            for path in self._strays(named):
                path.unlink()
        except (FreezekitError, OSError):
            return  # the next writer's turn

    def _strays(self, named: _manifest.Manifest) -> list[Path]:
        parts = [part for tap in named.taps.values() for part in tap.parts]
        kept = {name for part in parts for name in (part.data, part.table)}
        kept |= {growing.path.name for growing in self._growing.values()}
        return [
            path
            for path in self.path.iterdir()
            if _OURS.fullmatch(path.name) and path.name not in kept
        ]

    def _unlock(self) -> None:
        if self._lock is not None:
            _durable.unlock(self._lock, own=os.getpid() == self._process)
            self._lock = None
