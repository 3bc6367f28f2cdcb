"""What patterns select in a model, and whether each of them selects something."""

from __future__ import annotations

from collections.abc import Container, Sequence

from ._automaton import Automaton
from ._glob import Pattern
from ._names import Walk
from .errors import PatternError


class Selection:
    """What lists of patterns select, each list read from its first pattern to its last."""

    def __init__(self, lists: Sequence[Sequence[str]], automaton: Automaton) -> None:
        """Lays the patterns out.

        Args:
            lists: the texts of the patterns, in the order in which the automaton has them.
            automaton: the patterns.
        """
        self._accepts = automaton.accepts
        self._patterns: list[list[tuple[int, bool]]] = []
        identifier = 0
        for patterns in lists:
            ids = range(identifier, identifier + len(patterns))
            self._patterns.append([(i, automaton.patterns[i].negated) for i in ids])
            identifier += len(patterns)

    def selects(self, source: int, accept: int) -> bool | None:
        """Returns whether a list selects, takes away (False) or does not reach (None)."""
        matched, selected = self._accepts[accept], None
        for identifier, negated in self._patterns[source]:
            if identifier in matched:
                selected = not negated
        return selected

    def first(self, source: int, accept: int) -> int:
        """Returns the first pattern of a list that matches what the list selects."""
        matched = self._accepts[accept]
        return next(i for i, negated in self._patterns[source] if i in matched and not negated)


def check_matches(
    automaton: Automaton,
    walked: Walk,
    required: Sequence[bool],
    whole: Container[int] = (),
) -> None:
    """Raises for the first pattern, or alternative in braces, that selects nothing.

    Args:
        automaton: the patterns.
        walked: a walk with that automaton.
        required: for each pattern, whether it must select something.
        whole: the patterns that name modules with all below them, so that to meet one is enough.
    """
    tree = walked.tree
    matched = frozenset().union(*(automaton.accepts[each] for each in tree.hits()))
    met = matched.union(*(automaton.accepts[each] for each in set(tree.module_accepts)))
    for identifier, pattern in enumerate(automaton.patterns):
        if required[identifier] and identifier not in (met if identifier in whole else matched):
            raise _no_match(walked, automaton.labels[identifier], pattern, None)
    for offset, (identifier, option, narrowed) in enumerate(automaton.alternatives):
        if required[identifier] and offset + len(automaton.patterns) not in met:
            raise _no_match(walked, automaton.labels[identifier], narrowed, option)


def _no_match(walked: Walk, label: str, pattern: Pattern, narrowed: str | None) -> PatternError:
    """Returns the error for a pattern that selects nothing.

    The model's names become a tree of nodes, further names and spellings included.
    """
    from ._suggest import Node, no_match

    tree = walked.tree
    nodes: list[Node] = []
    buffered = set(tree.buffered)
    for row, (prefix, parent) in enumerate(zip(tree.prefixes, tree.parents, strict=True)):
        bases = (tree.class_names[row], *(b.__name__ for b in type(walked.modules[row]).__mro__))
        node = Node(prefix[:-1], bases, {}, row in buffered)
        nodes.append(node)
        if parent >= 0:
            nodes[parent].children[prefix[:-1].rpartition(".")[2]] = node
    named = [*zip(tree.names, tree.owners, strict=True)]
    named += [(alias.name, alias.owner) for alias in tree.aliases]
    named += [(name, 0) for name in tree.spelled]
    for name, owner in named:
        below = name.removeprefix(tree.prefixes[owner]).split(".")
        node = nodes[owner]
        for depth, segment in enumerate(below):
            path = tree.prefixes[owner] + ".".join(below[: depth + 1])
            last = depth == len(below) - 1
            node = node.children.setdefault(segment, Node(path, () if last else ("",), {}, last))
    return no_match(label, pattern, narrowed, nodes[0])
