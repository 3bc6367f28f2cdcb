"""What the command line prints: data to stdout, notes to stderr, files where asked. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO, TypeAlias

from ..errors import FreezekitError

Label: TypeAlias = Literal["error", "warning", "note"]

_COLOURS = {"error": "31", "warning": "33", "note": "36"}


class CommandError(FreezekitError):
    """The command could not run: its options, a file or the model stand in the way, not the plan.

    Example:
        >>> print(CommandError("no file 'plan.yaml'"))
        no file 'plan.yaml'
    """


def say(label: Label, text: str) -> None:
    """Prints one line to stderr, its label in colour on a terminal unless NO_COLOR is set.

    Args:
        label: what kind of line it is.
        text: what it says.
    """
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    shown = f"\x1b[{_COLOURS[label]}m{label}\x1b[0m" if coloured else label
    print(_encodable(f"{shown}: {text}", sys.stderr), file=sys.stderr)


def write(data: str | bytes, file: str | None = None, what: str = "") -> None:
    """Writes data to a file and says so, or to stdout.

    Args:
        data: text, to which the last newline is added, or bytes.
        file: where to; None: stdout, where a reader that has gone is no error, and escapes stand
            for the characters that its encoding lacks.
        what: how the message calls the data.

    Raises:
        CommandError: the file or stdout cannot be written.
    """
    if isinstance(data, str) and not data.endswith("\n"):
        data += "\n"
    if file is None:
        _to_stdout(data)
        return
    raw = data.encode() if isinstance(data, str) else data
    try:
        Path(file).write_bytes(raw)
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror}") from None
    say("note", f"wrote {what} to {file}")


def _to_stdout(data: str | bytes) -> None:
    with _writing_to_stdout():
        if isinstance(data, str):
            sys.stdout.write(_encodable(data, sys.stdout))
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
    flush()


def flush() -> None:
    """Empties the buffer of stdout; quietly, where the reader has gone.

    Raises:
        CommandError: stdout takes no more.
    """
    with _writing_to_stdout():
        sys.stdout.flush()


@contextmanager
def _writing_to_stdout() -> Iterator[None]:
    """Drops what cannot be written: quietly, where the reader has gone.

    Raises:
        CommandError: stdout takes no more.
    """
    try:
        yield
    except OSError as error:
        # What is still buffered would be tried, and complained about, once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise CommandError(f"cannot write to stdout: {error.strerror}") from None


def _encodable(text: str, stream: TextIO) -> str:
    """Returns text with escapes in place of the characters that a stream's encoding lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
