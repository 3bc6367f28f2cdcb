"""Module rows to the lines of a report: what says nothing is left out, repeats are joined."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._modes import ModuleRow

__all__ = ["Block", "block_tree", "shorten"]

_NUMBERED = re.compile(r"(|.*\D)(0|[1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Block:
    """One line of a report: a module, or several that are shown as one.

    Attributes:
        name: the pattern relative to the enclosing block, e.g. `layer.{0..9}`.
        path: the pattern from the root.
        class_name: class of the modules, empty where they differ.
        repeat: how many sibling modules the line stands for.
        numel: elements of all parameters under the pattern, tied ones counted once.
        trainable: those of `numel` that train.
        state: `trainable`, `frozen`, `partial`, or `none` where there is no parameter.
        mode: `train`, `eval`, `eval (held)`, or empty where the modules differ.
        note: what else is to be known: a tie, parameters without a shape yet.
        children: the lines below.
    """

    name: str
    path: str
    class_name: str
    repeat: int
    numel: int
    trainable: int
    state: str
    mode: str
    note: str = ""
    children: tuple[Block, ...] = ()


def block_tree(rows: Sequence[ModuleRow], *, collapse: bool = True) -> Block:
    """Builds the tree of lines: what says nothing is left out, repeats are joined.

    Left out are modules without a parameter whose mode is that of their parent. A `ModuleList`
    hands its children to its parent, as `layer.0`, `layer.1`, ...

    Args:
        rows: the modules in pre-order, the root first.
        collapse: whether runs of numbered siblings with equal subtrees become one line, whose
            counts and those below it are the totals of the run.

    Returns:
        The line of the root.
    """
    return _block(_index(rows), [0], "", 1, collapse)


def shorten(blocks: Sequence[Block], limit: int) -> tuple[Block, ...]:
    """Joins neighbours until at most `limit` lines are left, keeping changes of state visible.

    The middle of the longest stretches of one state and mode goes first. Only where the state
    changes more often than `limit` are neighbours of different states joined, into `partial`.

    Args:
        blocks: lines in order.
        limit: number of lines wanted, at least 1.

    Returns:
        The lines, their counts adding up to the same totals.
    """
    if len(blocks) <= limit:
        return tuple(blocks)
    runs = [list(run) for _, run in groupby(blocks, key=lambda block: (block.state, block.mode))]
    if len(runs) > limit:
        cuts = [round(k * len(blocks) / limit) for k in range(limit + 1)]
        return tuple(_join(blocks[a:b]) for a, b in pairwise(cuts))
    keep = max(k for k in range(1, limit + 1) if sum(min(len(run), k) for run in runs) <= limit)
    return tuple(block for run in runs for block in _elide(run, keep))


@dataclass(frozen=True, slots=True)
class _Index:
    """The rows with what a walk over the shown ones needs."""

    rows: Sequence[ModuleRow]
    names: list[str]
    numbers: list[tuple[str, int]]
    kids: list[list[int]]
    kinds: list[int]


def _index(rows: Sequence[ModuleRow]) -> _Index:
    home = list(range(len(rows)))
    names = [rows[0].class_name] * len(rows)
    kids: list[list[int]] = [[] for _ in rows]
    for i, row in enumerate(rows[1:], start=1):
        parent = home[row.parent]
        above = rows[parent].path
        names[i] = row.path[len(above) + 1 :] if above else row.path
        if row.class_name == "ModuleList" and row.own == 0:
            home[i] = parent
        else:
            kids[parent].append(i)
    shown = _shown(rows, home)
    kids = [[k for k in below if shown[k]] for below in kids]
    numbers = [_numbered(name) for name in names]
    return _Index(rows, names, numbers, kids, _kinds(rows, names, kids))


def _shown(rows: Sequence[ModuleRow], home: list[int]) -> list[bool]:
    shown = [i == 0 for i in range(len(rows))]
    for i in range(len(rows) - 1, 0, -1):
        row, above = rows[i], rows[home[rows[i].parent]]
        says = row.tensors or row.tied_to or row.uninitialized or _mode(row) != _mode(above)
        shown[i] = shown[i] or bool(says)
        shown[row.parent] = shown[row.parent] or shown[i]
    return shown


def _kinds(rows: Sequence[ModuleRow], names: list[str], kids: list[list[int]]) -> list[int]:
    """Numbers the shown subtrees so that equal ones get equal numbers."""
    seen: dict[tuple[object, ...], int] = {}
    kinds = [0] * len(rows)
    for i in range(len(rows) - 1, -1, -1):
        row = rows[i]
        below = tuple((names[k], kinds[k]) for k in kids[i])
        kind = (row.class_name, row.own, row.numel, row.tensors, row.trainable)
        flags = (row.trainable_tensors, row.state, _mode(row), row.tied_to, row.uninitialized)
        kinds[i] = seen.setdefault((kind, flags, below), len(seen))
    return kinds


def _runs(index: _Index, kids: Sequence[int], collapse: bool) -> Iterator[list[int]]:
    """Yields the children, those that become one line together."""
    run: list[int] = []
    for i in kids:
        if run:
            prefix, number = index.numbers[run[-1]]
            equal = index.kinds[i] == index.kinds[run[0]]
            if not (collapse and equal and index.numbers[i] == (prefix, number + 1)):
                yield run
                run = []
        run.append(i)
    if run:
        yield run


def _numbered(name: str) -> tuple[str, int]:
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, -2)


def _block(index: _Index, run: list[int], above: str, factor: int, collapse: bool) -> Block:
    row, name = index.rows[run[0]], index.names[run[0]]
    if len(run) > 1:
        prefix, first = index.numbers[run[0]]
        name = f"{prefix}{{{first}..{index.numbers[run[-1]][1]}}}"
    path = "" if run[0] == 0 else f"{above}.{name}" if above else name
    factor *= len(run)
    numel, trainable = row.numel * factor, row.trainable * factor
    children = [
        _block(index, below, path, factor, collapse)
        for below in _runs(index, index.kids[run[0]], collapse)
    ]
    if children:
        own = numel - sum(child.numel for child in children)
        live = trainable - sum(child.trainable for child in children)
        if own:
            line = f"{path} (own)".lstrip()
            children.insert(
                0, Block("(own)", line, "", 1, own, live, _state(own, live), _mode(row))
            )
    return Block(
        name=name,
        path=path,
        class_name=row.class_name,
        repeat=len(run),
        numel=numel,
        trainable=trainable,
        state=row.state,
        mode=_mode(row),
        note=_note(row),
        children=tuple(children),
    )


def _state(numel: int, trainable: int) -> str:
    if not trainable:
        return "frozen" if numel else "none"
    return "trainable" if trainable == numel else "partial"


def _mode(row: ModuleRow) -> str:
    return "eval (held)" if row.held else row.mode


def _note(row: ModuleRow) -> str:
    if row.tied_to:
        return f"tied to {row.tied_to}"
    return "uninitialized: a lower bound" if row.uninitialized else ""


def _join(blocks: Sequence[Block]) -> Block:
    first, last = blocks[0], blocks[-1]
    if len(blocks) == 1:
        return first
    numel = sum(block.numel for block in blocks)
    trainable = sum(block.trainable for block in blocks)
    return Block(
        name=_stretch(first.name, last.name),
        path=_stretch(first.path, last.path),
        class_name=_common(block.class_name for block in blocks),
        repeat=sum(block.repeat for block in blocks),
        numel=numel,
        trainable=trainable,
        state=_state(numel, trainable) if numel else first.state,
        mode=_common(block.mode for block in blocks),
    )


def _stretch(first: str, last: str) -> str:
    return f"{first} to {last.removeprefix(first[: first.rfind('.') + 1])}"


def _common(values: Iterable[str]) -> str:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else ""


def _elide(run: list[Block], keep: int) -> list[Block]:
    if len(run) <= keep:
        return run
    head, end = keep // 2, len(run) - (keep - 1 - keep // 2)
    return [*run[:head], _join(run[head:end]), *run[end:]]
