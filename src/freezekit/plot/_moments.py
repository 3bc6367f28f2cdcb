"""The phases of a plan along an axis of time: where each begins, and how that is called."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from .._resolved import Phase, ResolvedPlan


class Edge(NamedTuple):
    """A boundary between phases.

    Attributes:
        short: what is written where its unit stands elsewhere, e.g. "3".
        long: what is written where there is room, e.g. "epoch 3".
        monitor: the metric that decides about it; these texts are then what is said of it.
    """

    short: str
    long: str
    monitor: str = ""


class Line(NamedTuple):
    """Phases that follow each other.

    Attributes:
        phases: the phases.
        edges: one more: the start, what lies between two, and the end.
        monitor: the metric that tells this line from others; "" for the only one.
        said: what is said before and after it, e.g. "until " and " stalls".
    """

    phases: tuple[Phase, ...]
    edges: tuple[Edge, ...]
    monitor: str = ""
    said: tuple[str, str] = ("", "")


class Moments(NamedTuple):
    """The phases of training that are drawn: those that begin before it ends.

    Attributes:
        lines: one; where both metrics and a clock decide, one for each number of metrics that have
            stalled, as a run changes from one to the next at a moment that is not known.
        times: the moment of each edge; none where a metric decides about one.
        unit: "epoch", "step", or "" for a plan that does not count.
    """

    lines: tuple[Line, ...]
    times: tuple[int, ...]
    unit: str

    @property
    def phases(self) -> list[Phase]:
        """All phases, line by line."""
        return [phase for line in self.lines for phase in line.phases]

    @property
    def begins(self) -> dict[int, Edge]:
        """Where each phase begins, by its index."""
        pairs = (zip(line.phases, line.edges, strict=False) for line in self.lines)
        return {phase.index: edge for line in pairs for phase, edge in line}


def moments(resolved: ResolvedPlan) -> Moments:
    """Returns the phases that begin before training ends, with what lies between them."""
    time = resolved._cascade.time
    unit, total = time.unit or "", time.total
    phases = tuple(each for each in resolved.phases if not time.is_over(each.start))
    monitors = [dict(rule.at_metric or ())["monitor"] for rule in resolved.metrics]
    end = Edge("", "") if total is None else _edge(unit, total)
    by_stalls = [tuple(same) for _, same in groupby(phases, lambda phase: phase.stalls)]
    if len(by_stalls) > 1 and max(map(len, by_stalls)) > 1:
        lines = (
            Line(each, (*(_edge(unit, phase.start) for phase in each), end), *_told(monitors, k))
            for k, each in enumerate(by_stalls)
        )
        return Moments(tuple(lines), (), unit)
    edges = (
        Edge(" stalls", " stalls", monitors[phase.stalls - 1])
        if len(by_stalls) > 1 and phase.stalls
        else _edge(unit, phase.start)
        for phase in phases
    )
    line = Line(phases, (*edges, end))
    if monitors or not unit:
        return Moments((line,), (), unit)
    starts = [phase.start for phase in phases]
    return Moments((line,), (*starts, _end(starts, total)), unit)


def _told(monitors: Sequence[str], stalls: int) -> tuple[str, tuple[str, str]]:
    """Returns the metric that a number of stalls is told by, and what is said around it."""
    if not stalls:
        return monitors[0], ("until ", " stalls")
    last = monitors[stalls - 1]
    times = monitors[:stalls].count(last)
    return last, ("once ", " has stalled" + (f" {times} times" if times > 1 else ""))


def _edge(unit: str, moment: int) -> Edge:
    if not unit:
        return Edge("", "")
    return Edge(f"{moment:,}", f"{unit} {moment:,}" if moment else "0")


def _end(starts: Sequence[int], total: int | None) -> int:
    """Returns where the last phase ends; one without an end is as long as the longest other."""
    if total is not None:
        return total
    return starts[-1] + max((b - a for a, b in pairwise(starts)), default=1)
