"""Decisions -> param groups: few, merged, named, with the learning rate they really have."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from typing import Any, NamedTuple

from ._cascade import Decision
from ._glob import runs_of
from ._resolved import ResolvedPlan

_SPELLED = 3


class GroupRule(NamedTuple):
    """What one param group holds and sets.

    Attributes:
        name: unique and readable.
        rows: the parameters, in the order of the model.
        lr: learning rate; None: the base one.
        lr_mult: factor on the base learning rate.
        weight_decay: None: the optimizer's own.
        options: further keys.
    """

    name: str
    rows: tuple[int, ...]
    lr: float | None
    lr_mult: float | None
    weight_decay: float | None
    options: Mapping[str, Any]

    def settings(self, lr: float, weight_decay: float | None) -> dict[str, Any]:
        """Returns the group's keys beside its parameters.

        Args:
            lr: base learning rate.
            weight_decay: for parameters the plan sets none for; None writes no key.
        """
        rate = self.lr if self.lr is not None else lr * (self.lr_mult or 1.0)
        decay = weight_decay if self.weight_decay is None else self.weight_decay
        keys: dict[str, Any] = {"name": self.name, "lr": rate}
        return keys | ({} if decay is None else {"weight_decay": decay}) | dict(self.options)


def group_rules(
    resolved: ResolvedPlan,
    rows: Iterable[int],
    taken: Mapping[str, tuple[int, ...]],
    *,
    spared: bool = False,
) -> list[GroupRule]:
    """Returns the groups for the parameters among `rows` that ever train.

    Parameters share a group when the plan treats them alike in every phase in which they train.
    The values are those of the first such phase. No group is named as one of the `taken` with other
    rows. Where the plan sets no weight decay, it is 0 if they are `spared`, and named so.
    """
    members: dict[object, list[int]] = {}
    firsts: dict[object, Decision] = {}
    trajectories = [_trajectory(outcome.decisions) for outcome in resolved._outcomes]
    for row in rows:
        trajectory = trajectories[resolved._outcome_ids[row]]
        if any(trajectory):
            members.setdefault(trajectory, []).append(row)
            firsts.setdefault(trajectory, next(each for each in trajectory if each))
    none = None if spared else 0
    names = _unique(
        [
            _label([resolved._tree.names[row] for row in group])
            + ("/no_decay" if firsts[key].weight_decay in (0, none) else "")
            for key, group in members.items()
        ],
        [tuple(group) for group in members.values()],
        taken,
    )
    return [
        GroupRule(
            name, tuple(group), first.lr, first.lr_mult, first.weight_decay, dict(first.options)
        )
        for name, group, first in zip(names, members.values(), firsts.values(), strict=True)
    ]


def _trajectory(decisions: Sequence[Decision]) -> tuple[Decision | None, ...]:
    """Returns what an optimizer sees of a parameter, phase by phase; None: frozen."""
    return tuple(each.optimized() for each in decisions)


def _label(names: Sequence[str]) -> str:
    """Returns a readable name for a group: where its parameters stand."""
    split = [name.split(".") for name in names]
    common = 0
    while all(len(path) > common + 1 for path in split) and (
        len({path[common] for path in split}) == 1
    ):
        common += 1
    prefix = ".".join(split[0][:common])
    parts = list(dict.fromkeys(path[common] for path in split))
    if len(names) == 1:
        return names[0]
    numbers = sorted(int(part) for part in parts if part.isdecimal())
    runs = runs_of(numbers)
    if len(numbers) == len(parts) and len(runs) <= _SPELLED:
        inner = "+".join(f"{a}-{b}" if a < b else str(a) for a, b in runs)
        return ".".join(filter(None, [prefix, inner]))
    if prefix:
        return prefix
    more = f"+{len(parts) - _SPELLED} more" if len(parts) > _SPELLED else ""
    return "+".join(parts[:_SPELLED]) + more


def _unique(
    names: Sequence[str],
    members: Sequence[tuple[int, ...]],
    taken: Mapping[str, tuple[int, ...]],
) -> list[str]:
    """Returns the names with a number behind every one that stands for others already."""
    used = dict(taken)
    found = []
    for name, rows in zip(names, members, strict=True):
        numbered = (f"{name}-{number}" for number in count(2))
        unique = next(each for each in chain([name], numbered) if used.get(each, rows) == rows)
        used[unique] = rows
        found.append(unique)
    return found
