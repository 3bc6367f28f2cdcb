"""Rules that wait for a metric: when it has stalled."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ._rules import Rule, is_real, whole_number
from ._sync import several_ranks
from ._verbs import did_you_mean
from .errors import PlanError


class Stalls:
    """Watches the metrics that rules wait for, one rule after the other.

    A rule opens at the observation that is the `patience`-th without an improvement by more than
    `min_delta`, counted from the one after which the rule before it opened. Only this state is not
    a function of the plan and the clock.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Waits for the first of the rules."""
        self._metrics = [dict(rule.at_metric or ()) for rule in rules]
        self.fired: list[int] = []
        self.unit: str | None = None
        self._last = -1
        self._best: float | None = None
        self._bad = 0

    def opened(self, now: int) -> int:
        """Returns how many rules have opened by a moment."""
        return bisect(self.fired, now)

    def observe(self, now: int, unit: str, metrics: Mapping[str, Any]) -> None:
        """Takes what was measured at a moment; a moment counts once.

        With several ranks, that of rank 0 counts for all.

        Args:
            now: the moment.
            unit: "epoch" or "step".
            metrics: values by name; others than the one waited for are ignored.

        Raises:
            PlanError: the metric is missing or no number, or the moments were counted in another
                unit before.
        """
        if len(self.fired) == len(self._metrics):
            return
        monitor, mode, patience, min_delta = self._metrics[len(self.fired)].values()
        if monitor not in metrics:
            raise PlanError(
                f"the plan waits for the metric {monitor!r}, which is not among those given"
                f"{did_you_mean(monitor, map(str, metrics))}"
            )
        value = _shared(_number(monitor, metrics[monitor]))
        self._check_unit(unit)
        if now <= self._last:
            return
        self.unit, self._last = unit, now
        value = -value if mode == "max" else value
        is_first = self._best is None and not math.isnan(value)
        if is_first or (self._best is not None and value < self._best - min_delta):
            self._best, self._bad = value, 0
            return
        self._bad += 1
        if self._bad >= max(1, patience):
            self.fired.append(now)
            self._best, self._bad = None, 0

    def _check_unit(self, unit: str) -> None:
        """Raises if moments were counted in another unit before."""
        if self.unit not in (None, unit):
            raise PlanError(f"the metric was observed in {self.unit}s so far; pass {self.unit}=...")

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data; the keys never change."""
        return {
            "fired": list(self.fired),
            "unit": self.unit,
            "last": self._last,
            "best": self._best,
            "bad": self._bad,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` returned; rules that are no more are left out."""
        self.fired = [whole_number("fired", at, 0) for at in state["fired"]][: len(self._metrics)]
        self.unit, self._last = state["unit"], int(state["last"])
        self._best, self._bad = state["best"], int(state["bad"])


def _number(name: str, value: object) -> float:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if is_real(value) or (isinstance(value, float) and not math.isfinite(value)):
        return float(value)  # type: ignore[arg-type]
    raise PlanError(f"the metric {name!r} must be a number, got {value!r}")


def _shared(value: float) -> float:
    """Returns the value of rank 0 on every rank."""
    if not several_ranks():
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
