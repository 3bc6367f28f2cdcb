"""The summary of a resolved plan: a tree of lines as text and as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

from ._blocks import Block, block_tree, shorten

if TYPE_CHECKING:
    from ._modes import ModuleRow
    from ._resolved import Phase, ResolvedPlan

__all__ = ["Summary", "fit", "phase_text", "rows_in", "summarize", "trainable_line"]

_MAX_LINES = 40
_MAX_SIBLINGS = 24
_MAX_NAMES = 4
_TITLES = ("module", "class", "params", "trainable", "state", "mode", "")
_STYLE = """
.freezekit-summary {font-size: 13px; overflow-x: auto}
.freezekit-summary .fk-line {display: grid; gap: 0 1em; padding: 2px 0; min-width: 60em;
  grid-template-columns: minmax(18em, 3fr) minmax(9em, 2fr) 8em 8em 6em 6em minmax(0, 2fr);
  border-bottom: 1px solid rgba(128, 128, 128, .25)}
.freezekit-summary .fk-head {font-weight: 600}
.freezekit-summary .fk-line > :nth-child(3), .freezekit-summary .fk-line > :nth-child(4)
  {text-align: right; font-variant-numeric: tabular-nums}
.freezekit-summary summary {cursor: pointer}
.freezekit-summary summary > :first-child::before {content: "\\25b8\\00a0"}
.freezekit-summary [open] > summary > :first-child::before {content: "\\25be\\00a0"}
.freezekit-summary .fk-frozen {background: repeating-linear-gradient(45deg,
  rgba(110, 140, 170, .3) 0 2px, rgba(110, 140, 170, .12) 2px 6px)}
.freezekit-summary .fk-trainable {background: rgba(225, 130, 50, .35)}
.freezekit-summary .fk-partial {background: linear-gradient(90deg,
  rgba(110, 140, 170, .25) 50%, rgba(225, 130, 50, .35) 50%)}
.freezekit-summary p {margin: .4em 0}
"""


@dataclass(frozen=True, slots=True, repr=False)
class Summary:
    """What is trainable in a model: `str()` is a text tree, notebooks show a folding one.

    Attributes:
        root: the whole model; its `children` are the lines below it.
        phase: which part of training is shown, empty when the plan has one phase only.
        warnings: what the plan's author should look at.
        unmentioned: names of the parameters that no rule mentions.
        compute: where backward stops and what a step costs, empty without example inputs.
    """

    root: Block
    phase: str = ""
    warnings: tuple[str, ...] = ()
    unmentioned: tuple[str, ...] = ()
    compute: str = ""

    @property
    def line(self) -> str:
        """Returns the counts in the one line that people paste."""
        return trainable_line(self.root.trainable, self.root.numel)

    @property
    def notes(self) -> tuple[str, ...]:
        """The lines below the table, for phase, compute, warnings and unmentioned parameters."""
        notes = [f"phase: {self.phase}"] if self.phase else []
        notes += [self.compute] if self.compute else []
        notes += [f"warning: {warning}" for warning in self.warnings]
        if self.unmentioned:
            noun = "parameter" if len(self.unmentioned) == 1 else "parameters"
            names = ", ".join(self.unmentioned[:_MAX_NAMES])
            more = ", ..." if len(self.unmentioned) > _MAX_NAMES else ""
            notes.append(f"no rule mentions {len(self.unmentioned):,} {noun}: {names}{more}")
        return tuple(notes)

    def __str__(self) -> str:
        """Returns the text tree, its totals and its notes."""
        return "\n".join([*_table(self.root), "", self.line, *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in (self.line, *self.notes))
        head = " ".join(f"<span>{title}</span>" for title in _TITLES)
        body = _html(self.root, 0)
        return (
            f'<div class="freezekit-summary"><style>{_STYLE}</style>'
            f'<div class="fk-line fk-head">{head}</div>{body}{notes}</div>'
        )


def summarize(resolved: ResolvedPlan, phase: Phase, *, depth: int | None = None) -> Summary:
    """Summarizes a resolved plan in one of its phases.

    Args:
        resolved: the plan, resolved against a model.
        phase: the phase shown.
        depth: levels shown below the root; `None` chooses, see `fit`.

    Returns:
        The summary.

    Raises:
        ValueError: if `depth` is negative.
    """
    return Summary(
        root=fit(block_tree(rows_in(resolved, phase)), depth),
        phase=phase_text(resolved, phase),
        warnings=resolved.warnings,
        unmentioned=resolved.unmentioned if resolved.plan.rules else (),
        compute=compute_text(resolved, phase),
    )


def compute_text(resolved: ResolvedPlan, phase: Phase) -> str:
    """Returns where backward stops in a phase, or nothing where that is not known."""
    if resolved.compute is None:
        return ""
    blocks = [layer.parameter_names for layer in resolved.layers.blocks]
    return resolved.compute.summary(phase.index, blocks)


def rows_in(resolved: ResolvedPlan, phase: Phase) -> list[ModuleRow]:
    """Returns the modules as they are in one phase."""
    return resolved._module_rows(phase)


def phase_text(resolved: ResolvedPlan, phase: Phase) -> str:
    """Returns a phase in words, or nothing where it is the only one."""
    total = len(resolved.phases)
    return f"{phase.index + 1} of {total} ({phase})" if total > 1 else ""


def trainable_line(trainable: int, total: int) -> str:
    """Returns the totals in the form that issues and logs use.

    Args:
        trainable: number of elements that train.
        total: number of elements.

    Returns:
        The line.

    Example:
        >>> trainable_line(1_155, 22_714_371)
        'trainable params: 1,155 || all params: 22,714,371 || trainable%: 0.0051'
    """
    share = 100 * trainable / total if total else 0.0
    return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}"


def fit(root: Block, depth: int | None) -> Block:
    """Cuts a tree of lines to a depth.

    Args:
        root: the whole tree.
        depth: levels kept below the root. `None` first shortens long lists of siblings, then
            keeps as many levels as fit on a screen, at least one.

    Returns:
        The tree that is left.

    Raises:
        ValueError: if `depth` is negative.
    """
    if depth is not None:
        if depth < 0:
            raise ValueError(f"depth={depth}: the number of levels below the root is 0 or more")
        return _prune(root, depth)
    root = _shorten_all(root)
    widths = _widths(root)
    depth, lines = 1, sum(widths[:2])
    while depth + 1 < len(widths) and lines + widths[depth + 1] <= _MAX_LINES:
        depth += 1
        lines += widths[depth]
    return _prune(root, depth)


def _shorten_all(block: Block) -> Block:
    children = (_shorten_all(child) for child in shorten(block.children, _MAX_SIBLINGS))
    return replace(block, children=tuple(children))


def _prune(block: Block, depth: int) -> Block:
    below = block.children if depth else ()
    return replace(block, children=tuple(_prune(child, depth - 1) for child in below))


def _widths(root: Block) -> list[int]:
    """Counts the lines at each level."""
    widths: list[int] = []
    level: Sequence[Block] = [root]
    while level:
        widths.append(len(level))
        level = [child for block in level for child in block.children]
    return widths


def _walk(block: Block, level: int = 0) -> Iterator[tuple[int, Block]]:
    yield level, block
    for child in block.children:
        yield from _walk(child, level + 1)


def _cells(block: Block) -> tuple[str, ...]:
    times = f" x{block.repeat}" if block.repeat > 1 else ""
    params = f"{block.numel:,}"
    state = "-" if block.state == "none" else block.state
    trainable = f"{block.trainable:,}"
    return (block.name + times, block.class_name, params, trainable, state, block.mode, block.note)


def _table(root: Block) -> Iterator[str]:
    lines: list[tuple[str, ...]] = [_TITLES]
    for level, block in _walk(root):
        name, *cells = _cells(block)
        lines.append(("  " * level + name, *cells))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    for line in lines:
        padded = (
            cell.rjust(width) if column in (2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join(padded).rstrip()


def _html(block: Block, level: int) -> str:
    name, *cells = (escape(cell) for cell in _cells(block))
    name = f'<span style="padding-left: {1.2 * level:.1f}em">{name}</span>'
    spans = [f"<span>{cell}</span>" for cell in cells]
    spans[3] = f'<span class="fk-{block.state}">{cells[3]}</span>'
    line = " ".join([name, *spans])
    if not block.children:
        return f'<div class="fk-line">{line}</div>'
    below = "".join(_html(child, level + 1) for child in block.children)
    opened = " open" if level < 2 else ""
    return f'<details{opened}><summary class="fk-line">{line}</summary>{below}</details>'
