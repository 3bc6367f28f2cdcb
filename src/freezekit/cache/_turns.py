"""When to compute a row again, and when to give up: counted in rows and epochs."""

import time
import warnings

import torch

from .._apply import AppliedPlan

_PATIENCE = 32
"""Passes of another epoch than the first that are computed as if nothing were stored."""


class Turns:
    """Counts what decides about audits, and about whether storing is worth it.

    Attributes:
        over: whether the cache has stepped aside for good.
        random: draws the rows that are computed again, and disturbs no other generator.
    """

    def __init__(self, applied: AppliedPlan) -> None:
        """Counts from the clock of a plan."""
        self.over = False
        self.random = torch.Generator().manual_seed(0)
        self._applied = applied
        self._phase = applied.phase
        self._since = 0
        self._first: int | None = None
        self._misses = 0
        self._looked = 0.0

    def is_due(self, rows: int, every: int) -> bool:
        """Counts answered rows and returns whether one of them is to be computed again."""
        self._since += rows
        if self._since < every:
            return False
        self._since = 0
        return True

    def row(self, size: int) -> int:
        """Returns one of so many rows, drawn."""
        return int(torch.randint(size, (), generator=self.random))

    def may_look(self) -> bool:
        """Returns whether it is time to see what another process has written: once a second."""
        now = time.monotonic()
        if now < self._looked + 1:
            return False
        self._looked = now
        return True

    def hit(self) -> None:
        """Notes that some of a batch was stored: its inputs come again."""
        self._misses = 0
        self._first = None

    def missed(self) -> bool:
        """Notes that all of a batch was computed, and returns whether to give up.

        Inputs that are new in every epoch, as augmented ones are, will never be answered. The
        first epoch of a phase is to fill the store; after that, so many in a row are a sign.
        """
        epoch = self._applied._clock[0]
        if self._applied.phase is not self._phase:
            self._phase, self._first, self._misses = self._applied.phase, None, 0
        if self._first is None:
            self._first = epoch
        if epoch is None or self._first is None or epoch <= self._first:
            return False
        self._misses += 1
        if self._misses < _PATIENCE:
            return False
        self.over = True
        warnings.warn(
            f"the cache steps aside: all of the last {self._misses} batches had rows that are not "
            f"stored since epoch {self._first}. Inputs that change each time (augmentation, random "
            "masking) cannot be answered: augment after the frozen part, or close the cache; where "
            "memory=... holds only some of the rows, allow more",
            stacklevel=2,
        )
        return True
