"""The rule of thumb: which strategy for how many samples and how far a task; fitted and judged.

How it is fitted and judged was settled before there were results. A group is one case, distance
and size; a strategy's score there is its mean accuracy over the seeds. Groups are divided as the
squares of a chessboard, by distance and size: the even ones fit the rule, the odd ones judge it.
For few samples of each class (up to 16) or more, and for each distance, the rule names the strategy
that in the groups it is fitted on stays behind the best by the least on average; if two do, the one
that costs less. It is right in a group where it is within one point of the best strategy.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import NamedTuple

from cells import DISTANCES

FEW = 16  # samples of each class
POINT = 0.01
ROUNDING = 1e-9


class Group(NamedTuple):
    """The cells that differ only by strategy and seed."""

    case: str
    distance: str
    size: int


Scores = Mapping[Group, Mapping[str, float]]
Rule = Mapping[tuple[str, str], str]


class Verdict(NamedTuple):
    """In how many groups a choice is within one point of the best strategy, and of how many."""

    within: int
    groups: int
    mean_regret: float


def amount(size: int) -> str:
    """Returns "few" or "more"."""
    return "few" if size <= FEW else "more"


def divide(groups: Iterable[Group]) -> tuple[list[Group], list[Group]]:
    """Returns the groups that fit a rule, and those that judge it."""
    sizes = defaultdict(set)
    listed = sorted(groups)
    for group in listed:
        sizes[group.case].add(group.size)
    parts: tuple[list[Group], list[Group]] = ([], [])
    for group in listed:
        column = sorted(sizes[group.case]).index(group.size)
        parts[(DISTANCES.index(group.distance) + column) % 2].append(group)
    return parts


def is_close(behind: float) -> bool:
    """Returns whether a strategy that stays so far behind the best is as good: within a point."""
    return behind <= POINT + ROUNDING


def regret(scores: Scores, group: Group, strategy: str) -> float:
    """Returns how far a strategy stays behind the best one of a group."""
    return max(scores[group].values()) - scores[group][strategy]


def fit(scores: Scores, groups: Iterable[Group], cost: Mapping[str, float]) -> Rule:
    """Returns the strategy for each distance and amount that the groups have.

    Args:
        scores: the mean accuracy of each strategy in each group.
        groups: those that the rule is fitted on.
        cost: what each strategy costs; decides between equals.
    """
    alike = defaultdict(list)
    for group in groups:
        alike[group.distance, amount(group.size)].append(group)
    rule = {}
    for key, members in alike.items():
        behind = {name: mean(regret(scores, group, name) for group in members) for name in cost}
        least = min(behind.values())
        equals = [name for name, value in behind.items() if value <= least + ROUNDING]
        rule[key] = min(equals, key=cost.__getitem__)
    return rule


def judge(rule: Rule, scores: Scores, groups: Iterable[Group]) -> Verdict:
    """Returns how a rule does in groups."""
    behind = [regret(scores, each, rule[each.distance, amount(each.size)]) for each in groups]
    within = sum(map(is_close, behind))
    return Verdict(within, len(behind), mean(behind))


def always(strategy: str, groups: Iterable[Group]) -> Rule:
    """Returns the rule that says the same whatever the task."""
    return {(group.distance, amount(group.size)): strategy for group in groups}
