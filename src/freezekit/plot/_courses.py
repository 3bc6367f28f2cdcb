"""The courses of learning rates over a run that a picture tells apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from .._simulation import Simulation
from ._texts import plain

TINY, HUGE = 1e-290, 1e290
"""Between them is what a log scale shows."""
_POINTS = 800  # of a line, more than pixels
_LEAST_POINTS = 100
_DRAWN = 60_000  # points of all lines together
_SWING = 1.1  # what a rate goes up and down by, between the steps drawn, that is to be seen


class Course(NamedTuple):
    """The rates of the groups that always have the same one.

    Attributes:
        label: their name.
        steps: the steps drawn.
        rates: the rate at each, or the greatest until the next one where it goes up and down
            between them; NaN while nothing of it trains.
        lows: the least one until the next; none where it is about the same.
    """

    label: str
    steps: list[int]
    rates: list[float]
    lows: list[float]

    @property
    def peak(self) -> float:
        """The highest rate."""
        return max(rate for rate in self.rates if not math.isnan(rate))

    @property
    def off(self) -> str:
        """What is said of a rate that no scale shows, always 0 or almost."""
        return f" lr {self.peak:.3g}" if self.peak < TINY else ""

    @property
    def end(self) -> tuple[int, float]:
        """The last step at which it trains, and its rate there."""
        known = zip(self.steps, self.rates, strict=True)
        return [each for each in known if not math.isnan(each[1])][-1]


def distinct(run: Simulation) -> list[Course]:
    """Returns the distinct courses, in the order of the groups; those that train at all."""
    alike: dict[object, list[str]] = {}
    for name, rates in run.rates.items():
        if any(run.trains[name]):
            key = (rates, run.lows[name], run.highs[name], run.trains[name])
            alike.setdefault(key, []).append(name)
    most = min(_POINTS, max(_LEAST_POINTS, _DRAWN // max(1, len(alike))))
    stride = math.ceil(len(run.steps) / most)
    begins = {start for start, _ in run.starts}
    last = run.steps[-1]
    kept = [
        k
        for k, step in enumerate(run.steps)
        if k % stride == 0 or {step, step + 1} & begins or step == last
    ]
    return [_course(run, names, kept) for names in alike.values()]


def _course(run: Simulation, names: Sequence[str], kept: Sequence[int]) -> Course:
    """Returns what is drawn of groups: the rates at steps, or the range from each to the next."""
    name = names[0]
    label = plain(name) + (f" +{len(names) - 1}" if len(names) > 1 else "")
    trains, steps = run.trains[name], [run.steps[k] for k in kept]
    spans = [*pairwise([*kept, len(run.steps)])]
    lows = [min(run.lows[name][a:b]) if trains[a] else math.nan for a, b in spans]
    highs = [max(run.highs[name][a:b]) if trains[a] else math.nan for a, b in spans]
    rates = [run.rates[name][k] if trains[k] else math.nan for k in kept]
    if _swings(lows, highs):
        for k in range(1, len(kept)):  # beside others a single step says nothing of a range
            single = [*steps, steps[-1] + 1][k + 1] - steps[k] == 1
            if single and not math.isnan(lows[k] + lows[k - 1]):
                lows[k], highs[k] = min(lows[k - 1 : k + 1]), max(highs[k - 1 : k + 1])
        return Course(label, steps, highs, lows)
    return Course(label, steps, rates, [])


def _swings(lows: Sequence[float], highs: Sequence[float]) -> bool:
    """Returns whether a rate goes up and down between the steps drawn, not only one way."""
    ranges = [each for each in zip(lows, highs, strict=True) if not math.isnan(each[0])]
    return any(
        high > _SWING * low and min(high, before[1]) > _SWING * max(low, before[0])
        for before, (low, high) in pairwise(ranges)
    )
