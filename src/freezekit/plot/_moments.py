"""The phases of a plan along an axis of time: where each begins, and how that is called."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from .._resolved import Phase, ResolvedPlan


class Edge(NamedTuple):
    """A boundary between phases.

    Attributes:
        short: what is written where its unit stands elsewhere, e.g. "3".
        long: what is written where there is room, e.g. "epoch 3".
    """

    short: str
    long: str


class Moments(NamedTuple):
    """The phases of training that are drawn.

    Attributes:
        phases: those that begin before training ends.
        edges: one more: the start, what lies between two, and the end.
        times: the moment of each edge; none where a metric decides about one.
        unit: "epoch", "step", or "" for a plan that does not count.
    """

    phases: tuple[Phase, ...]
    edges: tuple[Edge, ...]
    times: tuple[float, ...]
    unit: str


def moments(resolved: ResolvedPlan) -> Moments:
    """Returns the phases that begin before training ends, with what lies between them."""
    time = resolved._cascade.time
    phases = tuple(each for each in resolved.phases if not time.is_over(each.start))
    unit = time.unit or ""
    monitors = [dict(rule.at_metric or ())["monitor"] for rule in resolved.metrics]
    edges = [_edge(unit, 0)]
    for before, after in pairwise(phases):
        if after.stalls > before.stalls:
            text = f"{monitors[after.stalls - 1]} stalls"
            edges.append(Edge(text, text))
        else:
            edges.append(_edge(unit, after.start))
    total = time.total
    edges.append(Edge("", "") if total is None else _edge(unit, total))
    if monitors or not unit:
        return Moments(phases, tuple(edges), (), unit)
    starts = [float(phase.start) for phase in phases]
    return Moments(phases, tuple(edges), (*starts, _end(starts, total)), unit)


def _edge(unit: str, moment: int) -> Edge:
    if not unit:
        return Edge("", "")
    return Edge(f"{moment:,}", f"{unit} {moment:,}" if moment else "0")


def _end(starts: Sequence[float], total: int | None) -> float:
    """Returns where the last phase ends; one without an end is as long as the longest other."""
    if total is not None:
        return float(total)
    return starts[-1] + max((b - a for a, b in pairwise(starts)), default=1.0)
