"""The calls of modules that one pass has made, and where among them backward stops."""

from collections.abc import Container, Iterator, Sequence
from typing import TypeAlias

from ._names import Tree

HERE = -1
"""In place of the number of a call: the one that is going on. In place of a row: no parameter."""


class Call:
    """One call of a module.

    Attributes:
        row: of the module.
        parent: number of the call around it, -1 if there is none.
        fed: an input requires gradients, so that backward goes on beyond it.
        crossed: backward has come to what it returned.
    """

    __slots__ = ("crossed", "fed", "parent", "row")

    def __init__(self, row: int, parent: int, fed: bool) -> None:
        """Begins a call."""
        self.row, self.parent, self.fed, self.crossed = row, parent, fed, False


Sources: TypeAlias = tuple[tuple[int, int], ...]
"""Rows of parameters, and in which call something was first made of each."""


class Entry:
    """An operation in which what trains comes in.

    Attributes:
        sources: the parameters it comes in by.
        crossed: backward has come to what it returned.
    """

    __slots__ = ("crossed", "sources")

    def __init__(self, sources: Sources) -> None:
        """Begins before backward."""
        self.sources, self.crossed = sources, False


def counted(tree: Tree, rows: Container[int]) -> list[int]:
    """Returns how often parameters of some rows stand at and below each module."""
    count = [0] * len(tree.prefixes)
    standing = [*zip(tree.owners, range(len(tree.names)), strict=True)]
    for owner, row in [*standing, *((each.owner, each.row) for each in tree.aliases)]:
        count[owner] += row in rows
    for row in range(len(tree.parents) - 1, 0, -1):
        count[tree.parents[row]] += count[row]
    return count


class Places:
    """Where in the tree of calls backward stops."""

    def __init__(
        self, tree: Tree, calls: Sequence[Call], reached: set[int], seen: set[int]
    ) -> None:
        """Knows what a pass was like.

        Args:
            tree: the model's structure.
            calls: the calls of modules.
            reached: rows of what got a gradient.
            seen: rows of what was seen to come in by an operation.
        """
        self._tree, self._calls, self._reached = tree, calls, reached
        self._unseen = sorted(reached - seen)
        able = (row for row, d in enumerate(tree.dtypes) if d.is_floating_point or d.is_complex)
        self._still = counted(tree, {*able} - reached)

    def stops(self, entries: Sequence[Entry]) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Returns where backward stops, with the rows of what trains there.

        Args:
            entries: the operations in which what trains comes in.
        """
        found: dict[int, dict[int, None]] = {}
        live = {HERE, *self._reached}
        crossed = [entry.sources for entry in entries if entry.crossed]
        places = [each for sources in crossed for each in sources if each[0] in live]
        for row, call in [*places, *self._hidden(places)]:
            at = self._lifted(call)
            rows = found.setdefault(self._calls[at].row if at >= 0 else 0, {})
            if row != HERE:
                rows[row] = None
        return tuple((place, tuple(rows)) for place, rows in found.items())

    def _lifted(self, at: int) -> int:
        """Returns the outermost call around one that trains as a whole, below the root."""
        calls = self._calls
        while at > 0 and calls[at].parent > 0:
            above = calls[calls[at].parent]
            if above.fed or self._still[above.row]:
                break
            at = calls[at].parent
        return at

    def _hidden(self, places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Yields what comes in where no operation was seen, as in a function of autograd's own."""
        calls, holding = self._calls, {HERE}
        for _, call in places:
            while call not in holding:
                holding.add(call)
                call = calls[call].parent
        first: dict[int, int] = {}
        for number, each in enumerate(calls):
            first.setdefault(each.row, number)
        for row in self._unseen:
            owner = self._tree.owners[row]
            while owner not in first and owner > 0:
                owner = self._tree.parents[owner]
            call = first.get(owner, HERE)
            if call not in holding and calls[call].crossed and not calls[call].fed:
                yield row, call
