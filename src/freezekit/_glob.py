"""Pattern text -> items: the grammar of patterns. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from .errors import PatternError

SPECIAL = re.compile(r"[][{}@*?!]|^re:")
"""What a name may hold that would read as a pattern."""

_RANGE = r"(0|[1-9][0-9]*)\.\.(0|[1-9][0-9]*)"
_RANGE_LIKE = r"([0-9]+)(?:-|\.\.)([0-9]+)"
_INDEX = r"-?[0-9]+"
_SLICE = r"(-?[0-9]+)?:(-?[0-9]+)?(?::(-?[0-9]+)?)?"
_BRACES = r"\{[^{}]*\}"
_MAX_RANGE = 10_000
_MAX_DIGITS = 18
_GENERATED = ("Parametrized", "FSDP")

Piece = str | tuple[str, ...]
"""Literal text, or the alternatives of one pair of braces."""


class Name(NamedTuple):
    """Consumes one segment whose text matches."""

    literals: frozenset[str]
    globs: tuple[str, ...]


class AnyDepth(NamedTuple):
    """`**`: consumes any number of segments, also none."""


class Index(NamedTuple):
    """`[...]`: consumes one numbered child, chosen by position."""

    text: str
    position: int | slice

    def chosen(self, count: int) -> range:
        """Returns the positions among `count` children that the index reaches."""
        if isinstance(self.position, slice):
            return range(count)[self.position]
        position = self.position + count if self.position < 0 else self.position
        return range(position, position + 1) if 0 <= position < count else range(0)


class TypeIs(NamedTuple):
    """`@Class`: consumes nothing; holds where the module reached is of that class."""

    literals: frozenset[str]
    globs: tuple[str, ...]

    def holds(self, cls: type) -> bool:
        """Returns whether a base of `cls` has a literal name, or its own name matches a glob.

        A class that torch has generated goes by the name of the user's as well.
        """
        if self.literals and any(base.__name__ in self.literals for base in cls.__mro__):
            return True
        names = (cls.__name__, class_name(cls))
        return any(matcher(glob)(name) for glob in self.globs for name in names)


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


class Pattern(NamedTuple):
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
    if not isinstance(text, str):
        raise PatternError(f"a pattern is text, got {text!r}")
    body = text.removeprefix("!")
    negated = body != text
    try:
        if body.startswith("!"):
            raise PatternError("one '!' takes away, two mean nothing")
        if body.startswith("re:"):
            return Pattern(text, negated, regex=_compile_regex(body[3:]))
        if not body:
            raise PatternError("it is empty; '**' selects everything")
        segments = tuple(map(_segment, _split(body)))
    except PatternError as error:
        raise PatternError(f"pattern {text!r}: {error}") from None
    return Pattern(text, negated, segments)


def class_name(cls: type) -> str:
    """Returns the name of a class, without the prefix of a subclass that torch has generated.

    `torch.nn.utils.parametrize` makes a `ParametrizedLinear` of a `Linear`, `fully_shard` an
    `FSDPLinear`.
    """
    for prefix in _GENERATED:
        name = cls.__name__.removeprefix(prefix)
        if name != cls.__name__ and any(base.__name__ == name for base in cls.__mro__):
            return name
    return cls.__name__


@lru_cache(maxsize=4096)
def literal(path: str) -> str:
    """Returns a pattern that selects what has that path, whatever characters are in it."""
    if not path:
        return "**"
    return rf"re:{re.escape(path)}(\..*)?" if SPECIAL.search(path) else path


def matcher(glob: str) -> Callable[[str], object]:
    """Returns the full-match function of a glob over one segment."""
    return re.compile(translate(glob)).fullmatch


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


def is_number(name: str) -> bool:
    """Returns whether a child is numbered: ASCII digits without leading zeros."""
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
    except (re.error, OverflowError, RecursionError) as error:
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


def _segment(part: str) -> Segment:
    if not part:
        raise PatternError("a segment between two dots, or beside one, is empty")
    for braces in re.findall(_BRACES, part):
        if any(stray in braces for stray in "[]@"):
            raise PatternError(f"{braces} holds more than names; write two patterns instead")
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
    name, type_name = _pieces(name_text), _pieces(type_text)
    for pieces in (name, type_name):
        if prod(len(piece) for piece in pieces if not isinstance(piece, str)) > _MAX_RANGE:
            raise PatternError(f"{part!r} spells more than {_MAX_RANGE} names; write '*'")
    if "**" in name_text and name != ("**",):
        raise PatternError("'**' stands alone between dots; inside a segment write '*'")
    return Segment(name, indices, type_name)


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
    if len(content) > _MAX_DIGITS and not content.strip("-:0123456789"):
        raise PatternError(f"[{content[:_MAX_DIGITS]}...] counts too far")
    if re.fullmatch(_INDEX, content):
        return int(content)
    numbers = re.fullmatch(_SLICE, content)
    if numbers:
        start, stop, step = (None if n is None else int(n) for n in numbers.groups())
        if step == 0:
            raise PatternError(f"the step of [{content}] is zero")
        return slice(start, stop, step)
    raise PatternError(
        f"[{content}] is not an index; brackets count children by position, as in [0], [-1], "
        f"[-2:]{_alternatives_hint(content, before)}"
    )


def _alternatives_hint(content: str, before: str) -> str:
    """Returns how to write what other glob dialects mean by these brackets, if they mean that."""
    numbers = re.fullmatch(_RANGE_LIKE, content)
    items = [item.strip() for item in content.split(",")]
    if numbers:
        inner = f"{int(numbers[1])}..{int(numbers[2])}"
    elif len(items) > 1 and all(item.isalnum() for item in items):
        inner = ",".join(items)
    elif len(content) > 1 and content.isalnum():
        inner = ",".join(content)
    else:
        return ""
    dot = "." if before and inner[0].isdecimal() else ""
    return f"; for alternatives write {before}{dot}{{{inner}}}"


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
    numbers = re.fullmatch(_RANGE, content)
    if numbers is None and re.fullmatch(_RANGE_LIKE, content):
        raise PatternError(f"{{{content}}} is no range; write {{0..11}}, without leading zeros")
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
    for stray, why in {".": "dots", "{": "braces"}.items():
        if stray in content:
            raise PatternError(f"{{{content}}} holds {why}; write two patterns instead")
    return options
