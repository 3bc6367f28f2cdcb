"""Files that last: headers of .npy files, writes that reach the disk, one writer to a folder."""

from __future__ import annotations

import os
import sys
from hashlib import blake2b
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

HEADER = 128
"""How many bytes come before the elements in each .npy file written here."""

_BINARY: int = getattr(os, "O_BINARY", 0)


def header(descr: str, shape: tuple[int, ...]) -> bytes:
    """Returns the first bytes of a .npy file of that type and shape, in C order."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape})
    length = HEADER - 10
    return (
        b"\x93NUMPY\x01\x00"
        + length.to_bytes(2, "little")
        + text.ljust(length - 1).encode()
        + b"\n"
    )


def checksum(data: memoryview | bytes) -> bytes:
    """Returns 16 bytes that differ if the data differ: BLAKE2b."""
    return blake2b(data, digest_size=16).digest()


def create(path: Path) -> int:
    """Creates a file that must not exist yet, and returns its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)


def write_at(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """Writes all of the data at that place of a file."""
    rest = memoryview(data)
    while rest:
        if sys.platform == "win32":
            os.lseek(descriptor, offset, os.SEEK_SET)
            count = os.write(descriptor, rest)
        else:
            count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


def read_at(descriptor: int, into: memoryview, offset: int) -> bool:
    """Fills memory from that place of a file; false if the file ends before.

    A read instead of a mapping: where a mapped file has been cut short, or its disk fails, touching
    it kills the process; and mapped pages count as memory of the process.
    """
    rest = into
    while rest:
        if sys.platform == "win32":
            os.lseek(descriptor, offset, os.SEEK_SET)
            part = os.read(descriptor, len(rest))
            count = len(part)
            rest[:count] = part
        else:
            count = os.preadv(descriptor, [rest], offset)
        if not count:
            return False
        rest, offset = rest[count:], offset + count
    return True


def open_to_read(path: Path) -> int:
    """Opens a file and returns its descriptor."""
    return os.open(path, os.O_RDONLY | _BINARY)


def write_new(path: Path, data: bytes) -> None:
    """Writes a file that must not exist yet, to the disk."""
    descriptor = create(path)
    try:
        write_at(descriptor, data, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Makes a file hold exactly the data: all of them or, if it fails, what it held before."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    write_new(fresh, data)
    os.replace(fresh, path)
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def lock(path: Path) -> int | None:
    """Locks a file for this process alone, and returns its descriptor; None if another has it.

    The lock ends with `unlock`, at the latest with the process and those forked from it.

    Raises:
        OSError: the file cannot be created, or files there cannot be locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def unlock(descriptor: int, *, own: bool) -> None:
    """Closes the descriptor of a lock.

    Args:
        descriptor: from `lock`.
        own: whether this process locked the file. Then the lock ends for processes forked from it
            too, which have the descriptor as well; one of those only closes its own.
    """
    if own and sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
