"""Pattern text -> a lazily built automaton over the segments of dotted names.

A pattern is parsed once into items (a name, any depth, an index, a class test). All patterns of
a plan share one automaton: its states are sets of positions in those items, made when a walk
first reaches them, so matching costs one dictionary lookup per name however many patterns there
are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from .errors import PatternError

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_DASHED = re.compile(r"(\d+)-(\d+)")
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(-?\d+)?)?")
_MAX_RANGE = 10_000

Piece = str | tuple[str, ...]
"""Literal text, or the alternatives of one pair of braces."""


@dataclass(frozen=True, slots=True)
class Name:
    """Consumes one segment whose text matches."""

    literals: frozenset[str]
    globs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnyDepth:
    """`**`: consumes any number of segments, also none."""


@dataclass(frozen=True, slots=True)
class Index:
    """`[...]`: consumes one numbered child, chosen by position."""

    text: str
    position: int | slice

    def chosen(self, count: int) -> range:
        """Returns the positions among `count` children that the index reaches."""
        if isinstance(self.position, slice):
            return range(count)[self.position]
        position = self.position + count if self.position < 0 else self.position
        return range(position, position + 1) if 0 <= position < count else range(0)


@dataclass(frozen=True, slots=True)
class TypeIs:
    """`@Class`: consumes nothing; holds where the module reached is of that class."""

    literals: frozenset[str]
    globs: tuple[str, ...]

    def holds(self, cls: type) -> bool:
        """Returns whether a base of `cls` has a literal name, or its own name matches a glob."""
        if self.literals and any(base.__name__ in self.literals for base in cls.__mro__):
            return True
        return any(matcher(glob)(cls.__name__) for glob in self.globs)


Item = Name | AnyDepth | Index | TypeIs


class Segment(NamedTuple):
    """One dotted segment: pieces of its name, indices, pieces of its class test."""

    name: tuple[Piece, ...]
    indices: tuple[Index, ...]
    type_name: tuple[Piece, ...]

    def items(self) -> list[Item]:
        """Returns the items this segment stands for, in order."""
        items: list[Item] = []
        if self.name == ("**",):
            items.append(AnyDepth())
        elif self.name:
            items.append(Name(*_texts(self.name)))
        items.extend(self.indices)
        if self.type_name:
            items.append(TypeIs(*_texts(self.type_name)))
        return items


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern; `regex` is set instead of `segments` for `re:` patterns."""

    text: str
    negated: bool = False
    segments: tuple[Segment, ...] = ()
    regex: re.Pattern[str] | None = None

    def items(self) -> list[Item]:
        """Returns the items of all segments, in order."""
        return [item for segment in self.segments for item in segment.items()]

    def alternatives(self) -> list[tuple[str, Pattern]]:
        """Returns each alternative in braces with the pattern narrowed to it alone."""
        found: list[tuple[str, Pattern]] = []
        for at, segment in enumerate(self.segments):
            narrowed = [(o, segment._replace(name=p)) for o, p in _narrowed(segment.name)]
            narrowed += [
                (o, segment._replace(type_name=p)) for o, p in _narrowed(segment.type_name)
            ]
            for option, replaced in narrowed:
                parts = (*self.segments[:at], replaced, *self.segments[at + 1 :])
                found.append((option, Pattern(self.text, self.negated, parts)))
        return found


def parse(text: str) -> Pattern:
    """Parses one pattern.

    Args:
        text: the pattern as the user wrote it.

    Returns:
        The parsed pattern.

    Raises:
        PatternError: the text is not a pattern; the message quotes it and offers a spelling.
    """
    body = text.removeprefix("!")
    negated = body != text
    try:
        if body.startswith("!"):
            raise PatternError("one '!' takes away, two mean nothing")
        if body.startswith("re:"):
            return Pattern(text, negated, regex=_compile_regex(body[3:]))
        if not body:
            raise PatternError("it is empty; '**' selects everything")
        segments = tuple(_segment(part, body) for part in _split(body))
    except PatternError as error:
        raise PatternError(f"pattern {text!r}: {error}") from None
    return Pattern(text, negated, segments)


@lru_cache(maxsize=4096)
def matcher(glob: str) -> Callable[[str], object]:
    """Returns the full-match function of a glob over one segment."""
    return re.compile(translate(glob)).fullmatch


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
        numbers = sorted({int(name) for name in names if _is_number(name)})
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


def runs_of(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the maximal runs of consecutive numbers, as (first, last).

    Args:
        numbers: ascending, distinct.
    """
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and (name == "0" or name[0] != "0")


def _narrowed(pieces: tuple[Piece, ...]) -> list[tuple[str, tuple[Piece, ...]]]:
    """Returns each of several alternatives with the pieces narrowed to it alone."""
    return [
        (option, (*pieces[:at], (option,), *pieces[at + 1 :]))
        for at, piece in enumerate(pieces)
        if not isinstance(piece, str) and len(piece) > 1
        for option in piece
    ]


def _texts(pieces: Sequence[Piece]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Returns the literal texts and the globs that the pieces spell."""
    spelled = product(*((piece,) if isinstance(piece, str) else piece for piece in pieces))
    texts = dict.fromkeys("".join(parts) for parts in spelled)
    globs = tuple(text for text in texts if "*" in text or "?" in text)
    return frozenset(texts).difference(globs), globs


def _compile_regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise PatternError(f"not a regular expression: {error}") from None


def _split(body: str) -> list[str]:
    """Splits at the dots that stand outside braces and brackets."""
    parts, depth, current = [], 0, ""
    for char in body:
        depth += (char in "{[") - (char in "}]")
        if char == "." and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    return [*parts, current]


def _segment(part: str, body: str) -> Segment:
    if not part:
        raise PatternError("a segment between two dots, or beside one, is empty")
    selector, at, type_text = part.partition("@")
    name_text, bracket, rest = selector.partition("[")
    indices = _indices(bracket + rest, name_text)
    if at and not type_text:
        raise PatternError("a class name is missing after '@'")
    if at and not name_text and not indices:
        raise PatternError(f"'@' needs a name before it: '*{part}' or '**{part}'")
    for stray in "[]@":
        if stray in type_text:
            raise PatternError(f"{stray!r} cannot stand in a class name")
    if "]" in name_text:
        raise PatternError("']' without '['")
    name = _pieces(name_text)
    if "**" in name_text and name != ("**",):
        raise PatternError("'**' stands alone between dots; inside a segment write '*'")
    return Segment(name, indices, _pieces(type_text))


def _indices(text: str, before: str) -> tuple[Index, ...]:
    indices = []
    while text:
        content, closed, rest = text[1:].partition("]")
        if text[0] != "[" or "[" in content:
            raise PatternError(f"{text!r} follows an index; write a dot before a name")
        if not closed:
            raise PatternError(f"'[{content}' has no closing ']'")
        indices.append(Index(f"[{content}]", _position(content, before)))
        text = rest
    return tuple(indices)


def _position(content: str, before: str) -> int | slice:
    if re.fullmatch(r"-?\d+", content):
        return int(content)
    numbers = _SLICE.fullmatch(content)
    if numbers:
        start, stop, step = (None if n is None else int(n) for n in numbers.groups())
        if step == 0:
            raise PatternError(f"the step of [{content}] is zero")
        return slice(start, stop, step)
    dashed = _DASHED.fullmatch(content)
    if dashed:
        hint = f"{{{dashed[1]}..{dashed[2]}}}"
    else:
        letters = content.split(",") if "," in content else list(content)
        hint = "{" + ",".join(part.strip() for part in letters) + "}"
    spelled = f"{before}.{hint}" if before and hint[1].isdecimal() else f"{before}{hint}"
    raise PatternError(
        f"[{content}] is not an index; brackets count children by position, as in [0], [-1], "
        f"[-2:]; for alternatives write {spelled}"
    )


def _pieces(text: str) -> tuple[Piece, ...]:
    """Splits at braces into literal text and alternatives."""
    pieces: list[Piece] = []
    while text:
        literal, opened, rest = text.partition("{")
        if "}" in literal:
            raise PatternError("'}' without '{'")
        if literal:
            pieces.append(literal)
        if opened:
            content, closed, rest = rest.partition("}")
            if not closed:
                raise PatternError(f"'{{{content}' has no closing '}}'")
            pieces.append(_alternatives(content))
        text = rest
    return tuple(pieces)


def _alternatives(content: str) -> tuple[str, ...]:
    numbers = _RANGE.fullmatch(content)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if first > last:
            raise PatternError(f"{{{content}}} runs backwards; write {{{last}..{first}}}")
        if last - first >= _MAX_RANGE:
            raise PatternError(f"{{{content}}} spells more than {_MAX_RANGE} names; write '*'")
        return tuple(map(str, range(first, last + 1)))
    options = tuple(content.split(","))
    if "" in options:
        raise PatternError(f"{{{content}}} has an empty alternative")
    for stray, why in {".": "dots", "{": "braces", "[": "brackets"}.items():
        if stray in content:
            raise PatternError(f"{{{content}}} holds {why}; write two patterns instead")
    return options
