"""Parsed patterns -> one lazily built automaton over the segments of dotted names. No torch.

The states of the automaton are sets of positions in the items of all patterns, made when a walk
first reaches them, so matching costs one dictionary lookup per name however many patterns there
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ._glob import AnyDepth, Index, Item, Name, Pattern, TypeIs, is_number, matcher, runs_of
from .errors import PatternError

Reached = tuple[int, ...]
"""Positions that a child reaches through an index, empty for most."""


class State:
    """One state of the automaton: where in which patterns a path of names has arrived.

    Attributes:
        accept: id of the set of patterns that cover this module's own tensors.
        children: next states by class, then name, or `(name, index)` with indices.
        parameters: accept ids by name, or `(name, index)` with indices.
        indices: positions that wait for a numbered child, with their index.
        others: next states by class for all names that no pattern tells apart.
        other_parameter: the accept id for such names.
    """

    __slots__ = (
        "accept",
        "always",
        "children",
        "cover",
        "globs",
        "indices",
        "literals",
        "other_parameter",
        "others",
        "own",
        "parameters",
        "positions",
    )

    def __init__(
        self, positions: frozenset[int], cover: frozenset[int], own: frozenset[int], accept: int
    ) -> None:
        self.positions = positions
        self.cover = cover
        self.own = own
        self.accept = accept
        self.always: tuple[int, ...] = ()
        self.literals: dict[str, list[int]] = {}
        self.globs: list[tuple[Callable[[str], object], int]] = []
        self.indices: list[tuple[int, Index]] = []
        self.children: dict[type, dict[object, State]] = {}
        self.parameters: dict[object, int] = {}
        self.others: dict[type, State] = {}
        self.other_parameter: int | None = None

    def is_plain(self, name: str, reached: Reached) -> bool:
        """Returns whether a child's name makes no difference to where it leads."""
        return not (self.globs or reached or name in self.literals)


class Automaton:
    """All patterns of a plan as one machine over segments.

    Pattern `i` of the given sequence has id `i`. The ids after those are the alternatives in
    braces, each of which must match something: `alternatives[id - len(patterns)]` is
    `(pattern id, alternative, narrowed pattern)`.
    """

    def __init__(self, patterns: Sequence[Pattern], labels: Sequence[str]) -> None:
        """Lays the items of all patterns out as positions.

        Args:
            patterns: the parsed patterns.
            labels: for each pattern, how messages name where it was written.
        """
        self.patterns = tuple(patterns)
        self.labels = tuple(labels)
        self.alternatives: list[tuple[int, str, Pattern]] = []
        self.regexes: list[tuple[int, Callable[[str], object]]] = []
        self.accepts: list[frozenset[int]] = []
        self._accept_ids: dict[frozenset[int], int] = {}
        self._states: dict[object, State] = {}
        self._closures: dict[object, State] = {}
        self._items: list[Item | None] = []
        self._owner: list[int] = []
        self._starts: list[int] = []
        for identifier, pattern in enumerate(self.patterns):
            if pattern.regex is not None:
                self.regexes.append((identifier, pattern.regex.fullmatch))
                continue
            self._lay(identifier, pattern)
            for option, narrowed in pattern.alternatives():
                self.alternatives.append((identifier, option, narrowed))
        for offset, (_, _, narrowed) in enumerate(self.alternatives):
            self._lay(len(self.patterns) + offset, narrowed)

    def start(self, cls: type) -> State:
        """Returns the state at a root module of class `cls`."""
        return self._enter(tuple(self._starts), frozenset(), cls)

    def child(self, state: State, name: str, cls: type, reached: Reached = ()) -> State:
        """Returns the state at the child module `name` of class `cls`.

        Args:
            state: the state at the parent.
            name: the child's segment.
            cls: the child's class.
            reached: what `numbered` gave for this name.
        """
        key = (name, reached) if state.indices else name
        known = state.children.setdefault(cls, {})
        found = known.get(key)
        if found is None:
            if state.is_plain(name, reached):
                found = state.others.get(cls)
                if found is None:
                    found = state.others[cls] = self._enter(state.always, state.cover, cls)
            else:
                found = self._enter(self._targets(state, name, reached), state.cover, cls)
            known[key] = found
        return found

    def parameter(self, state: State, name: str, reached: Reached = ()) -> int:
        """Returns the accept id of the parameter `name` of the module at `state`."""
        key = (name, reached) if state.indices else name
        found = state.parameters.get(key)
        if found is None:
            plain = state.is_plain(name, reached)
            if plain and state.other_parameter is not None:
                found = state.other_parameter
            else:
                at = self._enter(self._targets(state, name, reached), state.cover, None)
                found = self._intern(at.cover | state.own)
                if plain:
                    state.other_parameter = found
            state.parameters[key] = found
        return found

    def covered(self, state: State, accept: int) -> State:
        """Returns `state` with the patterns of an accept id covering everything below."""
        cover = state.cover | self.accepts[accept]
        live = frozenset(p for p in state.positions if self._owner[p] not in cover)
        return self._state(live, cover, state.own)

    def with_regexes(self, accept: int, *names: str) -> int:
        """Returns the accept id joined by the `re:` patterns that match one of the names."""
        hits = {i for i, match in self.regexes if any(match(name) for name in names)}
        return self._intern(self.accepts[accept] | hits) if hits else accept

    def numbered(self, state: State, path: str, names: Iterable[str]) -> dict[str, Reached]:
        """Returns, for each child that an index reaches, the positions it reaches.

        Args:
            state: the state at the parent; only one with `indices` reaches anything.
            path: the parent's path, for the message.
            names: the names of all children, parameters included.

        Raises:
            PatternError: an index reaches children that are numbered with gaps.
        """
        numbers = sorted({int(name) for name in names if is_number(name)})
        reached: dict[str, Reached] = {}
        for position, index in state.indices:
            chosen = index.chosen(len(numbers))
            if chosen and numbers[-1] != len(numbers) - 1:
                raise PatternError(self._gap_message(self._owner[position], index, path, numbers))
            for number in map(str, chosen):
                reached[number] = (*reached.get(number, ()), position + 1)
        return reached

    def _lay(self, identifier: int, pattern: Pattern) -> None:
        self._starts.append(len(self._items))
        items = [*pattern.items(), None]
        self._items.extend(items)
        self._owner.extend([identifier] * len(items))

    def _targets(self, state: State, name: str, reached: Reached) -> tuple[int, ...]:
        targets = [*state.always, *state.literals.get(name, ()), *reached]
        targets.extend(target for match, target in state.globs if match(name))
        return tuple(targets)

    def _enter(self, targets: tuple[int, ...], cover: frozenset[int], cls: type | None) -> State:
        key = (targets, cover, cls)
        found = self._closures.get(key)
        if found is None:
            found = self._closures[key] = self._closure(targets, cover, cls)
        return found

    def _closure(self, targets: tuple[int, ...], cover: frozenset[int], cls: type | None) -> State:
        """Follows what consumes no segment: `**` skipped, class tests, ends of patterns."""
        waiting, seen = list(targets), set(targets)
        positions: set[int] = set()
        covers, own = set(cover), set[int]()
        while waiting:
            position = waiting.pop()
            item = self._items[position]
            passed = isinstance(item, AnyDepth) or (
                isinstance(item, TypeIs) and cls is not None and item.holds(cls)
            )
            if item is None:
                tested = isinstance(self._items[position - 1], TypeIs)
                (own if tested else covers).add(self._owner[position])
            elif not isinstance(item, TypeIs):
                positions.add(position)
            if passed and position + 1 not in seen:
                seen.add(position + 1)
                waiting.append(position + 1)
        live = frozenset(p for p in positions if self._owner[p] not in covers)
        return self._state(live, frozenset(covers), frozenset(own))

    def _state(
        self, positions: frozenset[int], cover: frozenset[int], own: frozenset[int]
    ) -> State:
        key = (positions, cover, own)
        found = self._states.get(key)
        if found is None:
            found = self._states[key] = State(positions, cover, own, self._intern(cover | own))
            for position in sorted(positions):
                self._expect(found, position)
        return found

    def _expect(self, state: State, position: int) -> None:
        match self._items[position]:
            case AnyDepth():
                state.always += (position,)
            case Index() as index:
                state.indices.append((position, index))
            case Name(literals, globs):
                for literal in literals:
                    state.literals.setdefault(literal, []).append(position + 1)
                for glob in globs:
                    if glob == "*":
                        state.always += (position + 1,)
                    else:
                        state.globs.append((matcher(glob), position + 1))

    def _intern(self, accept: frozenset[int]) -> int:
        found = self._accept_ids.get(accept)
        if found is None:
            found = self._accept_ids[accept] = len(self.accepts)
            self.accepts.append(accept)
        return found

    def _gap_message(self, identifier: int, index: Index, path: str, numbers: Sequence[int]) -> str:
        if identifier >= len(self.patterns):
            identifier = self.alternatives[identifier - len(self.patterns)][0]
        runs = " and ".join(f"{{{a}..{b}}}" if a != b else str(a) for a, b in runs_of(numbers))
        return (
            f"{self.labels[identifier]}: pattern {self.patterns[identifier].text!r}: "
            f"{index.text} counts children by position, and those of {path or 'the model'!r} are "
            f"numbered with gaps: {', '.join(map(str, numbers))}; name them instead, as in {runs}"
        )
