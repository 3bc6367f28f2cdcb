"""What a cache has done so far."""

from typing import NamedTuple


class Stats(NamedTuple):
    """What a cache has done so far; `str` is a line.

    Attributes:
        hits: rows that were answered from the store.
        misses: rows that were computed.
        bytes: bytes of rows in memory.
        file_bytes: bytes of rows in files.
        seconds_saved: how much longer the forward passes of the hits would have taken.
        unstored: rows that could not be stored, each time one was given: there was no room, a
            smaller dtype could not hold it, or its file was damaged.
        rounding: the largest difference that a smaller dtype made to an element that is stored,
            over the largest element of its row.

    Example:
        >>> from freezekit.cache import Stats
        >>> print(Stats(hits=60, misses=20, bytes=1 << 20, file_bytes=0, seconds_saved=2.5))
        60 of 80 rows from the store (75.0%), 1.0 MiB in memory, about 2.5 s of forward passes saved
    """

    hits: int
    misses: int
    bytes: int
    file_bytes: int
    seconds_saved: float
    unstored: int = 0
    rounding: float = 0.0

    def __str__(self) -> str:
        """Returns the counts in a line."""
        total = self.hits + self.misses
        share = self.hits / total if total else 0.0
        files = f" and {self.file_bytes / 2**20:.1f} MiB in files" if self.file_bytes else ""
        unstored = f", {self.unstored:,} could not be stored" if self.unstored else ""
        off = f", off by up to {self.rounding:.1e}" if self.rounding else ""
        return (
            f"{self.hits:,} of {total:,} rows from the store ({share:.1%}), "
            f"{self.bytes / 2**20:.1f} MiB in memory{files}, "
            f"about {self.seconds_saved:.1f} s of forward passes saved{unstored}{off}"
        )


class Record:
    """Counts rows and seconds, of passes that were computed and of those that were answered."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.hits = self.misses = 0
        self._answered = self._computed = 0.0

    def hit(self, rows: int, seconds: float) -> None:
        """Counts a pass that was answered."""
        self.hits += rows
        self._answered += seconds

    def miss(self, rows: int, seconds: float) -> None:
        """Counts a pass that was computed."""
        self.misses += rows
        self._computed += seconds

    def completed(self, rows: int, seconds: float, computed: int, apart: float) -> None:
        """Counts a pass that was answered once some of its rows were computed, in a time apart."""
        self.hit(rows - computed, seconds - apart if computed else seconds)
        if computed:
            self.miss(computed, apart)

    def saved(self) -> float:
        """Returns how many seconds longer the answered rows would have taken."""
        if not self.misses:
            return 0.0
        return max(0.0, self.hits * self._computed / self.misses - self._answered)
