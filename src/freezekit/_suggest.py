"""Why a pattern selects nothing, and what was probably meant. Runs only after a failure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import NamedTuple

from ._glob import (
    AnyDepth,
    Index,
    Item,
    Name,
    Pattern,
    TypeIs,
    is_number,
    literal,
    matcher,
    parse,
    runs_of,
)
from ._verbs import listing, offered
from .errors import PatternError

_TRIED = 2_000


class Node(NamedTuple):
    """One module or parameter, as a tree of names.

    Attributes:
        path: dotted path, "" for the root.
        bases: names of a module's class and its bases; empty for a parameter.
        children: by name.
        selectable: a parameter, or a module with buffers of its own.
    """

    path: str
    bases: tuple[str, ...]
    children: dict[str, Node]
    selectable: bool

    def below(self) -> Iterator[Node]:
        """Yields this node and all below it, parents first."""
        yield self
        for child in self.children.values():
            yield from child.below()

    def selects(self, *, own: bool = False) -> bool:
        """Returns whether something at or below this node, or its own, can be selected."""
        if own:
            parameters = (child for child in self.children.values() if not child.bases)
            return self.selectable or any(child.selectable for child in parameters)
        return any(node.selectable for node in self.below())


def no_match(label: str, pattern: Pattern, narrowed: str | None, root: Node) -> PatternError:
    """Returns the error for a pattern, or one of its alternatives, that selects nothing.

    Args:
        label: where the pattern was written.
        pattern: the pattern, narrowed to the alternative if it is one.
        narrowed: the alternative's text.
        root: the model's names.
    """
    head = f"{label}: pattern {pattern.text!r} selects nothing"
    if narrowed is not None:
        head = f"{label}: in pattern {pattern.text!r}, the alternative {narrowed!r} selects nothing"
    if pattern.regex is not None:
        names = [node.path for node in root.below() if not node.bases]
        return PatternError(
            f"{head}: no parameter name matches it in full; names look like {listing(names)}"
        )
    items = pattern.items()
    at, stopped = _furthest(items, root)
    if at == len(items):
        own, whole = "", [*items, AnyDepth()]
        if isinstance(items[-1], TypeIs) and _selects(whole, root):
            own = f" of its own; with all below it: {spell(whole)!r}"
        return PatternError(
            f"{head}: {listing([_shown(node) for node in stopped])} has neither parameters nor "
            f"buffers{own}"
        )
    offers = _offers(items, at, stopped, root)
    return PatternError(f"{head}: {_where(items[at], stopped)}{offered(offers)}")


def _furthest(items: Sequence[Item], root: Node) -> tuple[int, list[Node]]:
    """Returns the first item that nothing passes, and the nodes where that happens."""
    at, here = 0, [root]
    while at < len(items):
        nodes = _step(items[at], here)
        if not nodes:
            break
        at, here = at + 1, nodes
    return at, here


def _step(item: Item, here: Iterable[Node]) -> list[Node]:
    found: dict[int, Node] = {}
    for node in here:
        match item:
            case AnyDepth():
                reached: Iterable[Node] = node.below()
            case TypeIs():
                reached = [node] if _is_type(item, node) else []
            case Index():
                numbered = _numbers(node.children)
                chosen = item.chosen(len(numbered))
                reached = [node.children[str(numbered[i])] for i in chosen]
            case Name():
                reached = [child for name, child in node.children.items() if _names(item, name)]
        found.update((id(each), each) for each in reached)
    return list(found.values())


def _names(item: Name, name: str) -> bool:
    return name in item.literals or any(matcher(glob)(name) for glob in item.globs)


def _is_type(item: TypeIs, node: Node) -> bool:
    return bool(node.bases) and (
        any(base in item.literals for base in node.bases)
        or any(matcher(glob)(node.bases[0]) for glob in item.globs)
    )


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted({int(name) for name in names if is_number(name)})


def _where(item: Item, stopped: Sequence[Node]) -> str:
    """Says where matching stopped and what exists there."""
    place = _place(stopped)
    match item:
        case Index():
            counts = {len(_numbers(node.children)) for node in stopped}
            if counts == {0}:
                return f"{place} has no numbered children, only {_children(stopped)}"
            most = max(counts)
            reached = f"{item.text} reaches none of the {most} numbered children of {place}"
            return f"{reached}, [0] to [{most - 1}]" if most > 1 else reached
        case TypeIs():
            classes = dict.fromkeys(node.bases[0] for node in stopped if node.bases)
            return f"no module there is of that class; the classes are {listing(list(classes))}"
        case Name():
            if not any(node.children for node in stopped):
                return f"{place} has nothing below it"
            return f"{place} has {_children(stopped)}"
    raise AssertionError("'**' always matches")


def _place(nodes: Sequence[Node]) -> str:
    if len(nodes) == 1:
        return repr(nodes[0].path) if nodes[0].path else "the model"
    return f"each of {len(nodes)} places such as {next(n.path for n in nodes if n.path)!r}"


def _children(nodes: Sequence[Node]) -> str:
    names = dict.fromkeys(name for node in nodes for name in node.children)
    listed = [f"{a}..{b}" if a < b else str(a) for a, b in runs_of(_numbers(names))]
    return listing([name for name in names if not is_number(name)] + listed)


def _shown(node: Node) -> str:
    name = node.bases[0] if node.bases else "parameter"
    return f"{node.path or 'the model'} ({name})"


def _offers(items: Sequence[Item], at: int, stopped: Sequence[Node], root: Node) -> list[str]:
    """Returns up to three patterns close to this one that do select something."""
    if isinstance(items[at], Index) and any(_numbers(node.children) for node in stopped):
        return []  # The range says all: an index into something else is not what was meant.
    found: dict[str, None] = {}
    for replaced in _respelled(items[at], stopped):
        candidate = [*items[:at], replaced, *items[at + 1 :]]
        for each in (candidate, [*candidate, AnyDepth()]):
            if _selects(each, root):
                found.setdefault(spell(each))
                break
    deeper = [*items[:at], AnyDepth(), *items[at:]]
    if not found and at and _selects(deeper, root):
        found[spell(deeper)] = None
    if not found and not isinstance(items[0], AnyDepth):
        found.update(dict.fromkeys(_moved(items, root)))
    if not found:
        found.update(dict.fromkeys(_close_paths(spell(items), root)))
    return list(found)[:3]


def _respelled(item: Item, stopped: Sequence[Node]) -> Iterator[Item]:
    """Yields the item with its text replaced by close names that exist at that place."""
    if isinstance(item, Name | TypeIs):
        typed = isinstance(item, TypeIs)
        known = dict.fromkeys(
            name for node in stopped for name in (node.bases[:1] if typed else node.children)
        )
        by_folded = {name.lower(): name for name in known}
        for text in [*item.literals, *item.globs]:
            similar = [] if is_number(text) else get_close_matches(text.lower(), by_folded, 3, 0.6)
            for close in similar:
                yield type(item)(frozenset({by_folded[close]}), ())


def _moved(items: Sequence[Item], root: Node) -> Iterator[str]:
    """Yields where the pattern matches below the root, or with leading segments dropped."""
    for skipped in range(len(items)):
        rest = items[skipped:]
        if isinstance(rest[0], TypeIs):
            continue
        anchors = [root] if skipped else list(islice(root.below(), _TRIED))
        for anchor in anchors:
            if _selects(rest, anchor):
                dot = "" if not anchor.path or isinstance(rest[0], Index) else "."
                yield f"{anchor.path}{dot}{spell(rest)}"


def _selects(items: Sequence[Item], root: Node) -> bool:
    at, nodes = _furthest(items, root)
    own = isinstance(items[-1], TypeIs)
    return at == len(items) and any(node.selects(own=own) for node in nodes)


def _close_paths(text: str, root: Node) -> list[str]:
    paths = [node.path for node in root.below() if node.path and node.selects()]
    close = get_close_matches(text, paths[:_TRIED], 2, 0.75)
    return [literal(path) for path in close]


def spell(items: Sequence[Item]) -> str:
    """Returns the text of a pattern with these items."""
    text = ""
    for item in items:
        match item:
            case AnyDepth():
                text += ".**"
            case Index():
                text += item.text
            case TypeIs():
                text += "@" + _spell_texts(item.literals, item.globs)
            case Name():
                text += "." + _spell_texts(item.literals, item.globs)
    return parse(text.removeprefix(".")).text


def _spell_texts(literals: Iterable[str], globs: Iterable[str]) -> str:
    texts = [*sorted(literals), *globs]
    numbers = _numbers(texts)
    if len(numbers) == len(texts) > 1 and len(runs_of(numbers)) == 1:
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return texts[0] if len(texts) == 1 else "{" + ",".join(texts) + "}"
