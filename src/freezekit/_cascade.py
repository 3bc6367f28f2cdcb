"""The cascade: which rules select what, and which of them wins, property by property."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ._matches import Selection
from ._names import Alias, Tree
from ._rules import Pairs, Rule
from ._timeline import Entry, Timeline
from .errors import PlanError

FLAG, SMALL, FIXED = 1, 2, 4
"""Traits of a parameter: required grad before; a vector or bias; of a dtype without gradient."""

History: TypeAlias = Mapping[str, tuple[int, ...]]
"""For each property, the rules that set it, in order; the last one wins."""


class Decision(NamedTuple):
    """What holds for a parameter in one phase; None (or no options): no rule says.

    Attributes:
        trainable: whether it trains.
        decided: whether a rule says so, rather than its own flag.
        lr: learning rate.
        lr_mult: factor on the base learning rate.
        weight_decay: weight decay.
        warmup_steps: optimizer steps of warm-up after each opening.
        warmup_from: when the rule that says so opens, as in `Timeline.openings`.
        options: other keys of its param group.
        frozen_mode: "train" leaves the mode of its modules alone.
        rows: slice of rows, named by the rule that decided `trainable`.
        rows_train: whether those rows train and the others do not, or the reverse.
    """

    trainable: bool
    decided: bool
    lr: float | None = None
    lr_mult: float | None = None
    weight_decay: float | None = None
    warmup_steps: int | None = None
    warmup_from: tuple[int, int] | None = None
    options: Pairs = ()
    frozen_mode: str | None = None
    rows: str | None = None
    rows_train: bool = True

    def optimized(self) -> Decision | None:
        """Returns what an optimizer sees of it; None: frozen."""
        return self._replace(decided=True, frozen_mode=None) if self.trainable else None


class Outcome(NamedTuple):
    """What the plan means for all parameters that the same rules select.

    Attributes:
        histories: one for each cell of the timeline, or for each phase.
        decisions: what holds in each.
    """

    histories: tuple[History, ...]
    decisions: tuple[Decision, ...]

    def at(self, cells: Sequence[int]) -> Outcome:
        """Returns the outcome in the given cells only."""
        return Outcome(
            tuple(self.histories[k] for k in cells), tuple(self.decisions[k] for k in cells)
        )


class Cascade:
    """The rules of a plan, ready to decide for sets of patterns that match."""

    def __init__(self, entries: Sequence[Entry], selection: Selection, time: Timeline) -> None:
        """Reads what each rule sets."""
        self.entries = entries
        self.time = time
        self._selection = selection
        self._settings = [settings(entry.rule) for entry in entries]
        self._everywhere: list[int] = []
        self._within: dict[int, list[int]] = {}
        for number, entry in enumerate(entries):
            if entry.layers is None:
                self._everywhere.append(number)
            for layer in entry.layers or ():
                self._within.setdefault(layer, []).append(number)

    def outcome(self, accept: int, traits: int, layer: int) -> Outcome:
        """Returns what holds where the patterns of an accept id match.

        Args:
            accept: the accept id.
            traits: of a parameter; 0 for a module's buffers.
            layer: where it stands, for rules that select in some layers only.
        """
        selected = [
            number
            for number in sorted([*self._everywhere, *self._within.get(layer, ())])
            if self._selects(number, accept)
            and (self.entries[number].rule.verb != "no_decay" or traits & SMALL)
        ]
        return self._decided(
            [self._history(selected, cell.active) for cell in self.time.cells], traits
        )

    def tied(
        self,
        tree: Tree,
        row: int,
        own: Outcome,
        others: Sequence[tuple[Alias, Outcome]],
        traits: int,
    ) -> Outcome:
        """Returns the outcome of a parameter that further names reach too.

        Rules that reach the canonical name decide through it. One that reaches only others counts
        for a property that nothing decides through the canonical name.

        Raises:
            PlanError: two names decide a property differently, or a rule takes one of them away.
        """
        name, accept = tree.names[row], tree.accepts[row]
        merged = []
        for cell, history in enumerate(own.histories):
            names = dict.fromkeys(history, name)
            whole = dict(history)
            for alias, outcome in others:
                self._check_kept(history, name, alias)
                for key, numbers in outcome.histories[cell].items():
                    if self._selects(numbers[-1], accept) is not None:
                        continue
                    if key not in whole:
                        whole[key], names[key] = numbers, alias.name
                    elif self.value(key, numbers) != self.value(key, whole[key]):
                        first, second = (names[key], whole[key][-1]), (alias.name, numbers[-1])
                        raise PlanError(self._conflict(key, name, first, second))
            merged.append(whole)
        return self._decided(merged, traits)

    def effective(self, outcomes: Iterable[Outcome]) -> set[int]:
        """Returns the plan's rules that change something somewhere at some time."""
        found: set[int] = set()
        cells = [k for k, each in enumerate(self.time.cells) if not self.time.is_over(each.start)]
        for outcome in outcomes:
            for cell in cells:
                decision = outcome.decisions[cell]
                for key, numbers in outcome.histories[cell].items():
                    matters = decision.trainable != (key == "frozen_mode")
                    if key == "trainable":
                        wanted, rows = self.value(key, numbers)
                        matters = rows is not None or wanted == decision.trainable
                    if matters:
                        found.add(self.entries[numbers[-1]].source)
        return found

    def _selects(self, number: int, accept: int) -> bool | None:
        return self._selection.selects(self.entries[number].source, accept)

    def _check_kept(self, history: History, name: str, alias: Alias) -> None:
        """Raises where the rule that decides through one name takes the other away."""
        for numbers in history.values():
            if self._selects(numbers[-1], alias.accept) is False:
                raise PlanError(
                    f"{self.label(numbers[-1])}: it selects {name!r} and takes away "
                    f"{alias.name!r}, but the two name one tied tensor; take {name!r} away as "
                    "well, or untie them"
                )

    def _history(self, selected: Sequence[int], active: frozenset[int]) -> History:
        history: dict[str, tuple[int, ...]] = {}
        for number in selected:
            if number in active:
                for key in self._settings[number]:
                    history[key] = (*history.get(key, ()), number)
        return history

    def value(self, key: str, numbers: Sequence[int]) -> Any:  # noqa: ANN401
        """Returns what the last of several rules sets a property to."""
        return self._settings[numbers[-1]][key]

    def _decided(self, histories: Sequence[History], traits: int) -> Outcome:
        return Outcome(tuple(histories), tuple(self._decide(each, traits) for each in histories))

    def _decide(self, history: History, traits: int) -> Decision:
        said = {key: self.value(key, numbers) for key, numbers in history.items()}
        trainable, rows = said.get("trainable", (bool(traits & FLAG), None))
        unit, rate = said.get("lr", (None, None))
        warms = history.get("warmup_steps")
        return Decision(
            trainable=(trainable or rows is not None) and not traits & FIXED,
            decided="trainable" in said,
            lr=rate if unit == "lr" else None,
            lr_mult=rate if unit == "lr_mult" else None,
            weight_decay=said.get("weight_decay"),
            warmup_steps=said.get("warmup_steps"),
            warmup_from=self.time.openings[warms[-1]] if warms else None,
            options=tuple(
                (key.removeprefix("options."), said[key])
                for key in sorted(said)
                if key.startswith("options.")
            ),
            frozen_mode=said.get("frozen_mode"),
            rows=rows,
            rows_train=trainable or rows is None,
        )

    def _conflict(
        self, key: str, canonical: str, first: tuple[str, int], second: tuple[str, int]
    ) -> str:
        said = [
            f"{self.label(number)} sets {spoken(key, self._settings[number][key])} through {name!r}"
            for name, number in (first, second)
        ]
        return (
            f"{first[0]!r} and {second[0]!r} name one tied tensor, but {said[0]} and {said[1]}; "
            f"say one thing for both, e.g. name {canonical!r} in the later rule, or untie them"
        )

    def label(self, number: int) -> str:
        """Returns how messages name an entry's rule."""
        return self.entries[number].label


def settings(rule: Rule) -> dict[str, Any]:
    """Returns what a rule sets, by property; `lr` and `lr_mult` are one property in two units."""
    found: dict[str, Any] = {}
    if rule.verb in ("freeze", "unfreeze"):
        found["trainable"] = (rule.verb == "unfreeze", rule.rows)
    if rule.verb == "no_decay":
        found["weight_decay"] = 0.0
    for unit in ("lr", "lr_mult"):
        if getattr(rule, unit) is not None:
            found["lr"] = (unit, getattr(rule, unit))
    for key in ("weight_decay", "warmup_steps", "frozen_mode"):
        if getattr(rule, key) is not None:
            found[key] = getattr(rule, key)
    for key, value in dict(rule.options or ()).items():
        found[f"options.{key}"] = value
    return found


def spoken(key: str, value: Any) -> str:  # noqa: ANN401
    """Returns a setting as text, e.g. "trainable=False" or "lr_mult=0.1"."""
    if key == "trainable":
        return f"trainable={value[0]}" + (f" for rows {value[1]}" if value[1] else "")
    if key == "lr":
        return f"{value[0]}={value[1]!r}"
    return f"{key}={value!r}"
