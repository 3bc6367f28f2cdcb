"""A plan to start from, as YAML whose comments say what the model has and what each rule does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from textwrap import wrap

import torch

from .._layers import Layer
from .._parts import Parts, block_patterns, find_head, parts_of, patterns_for
from .._plan import FreezePlan
from .._rules import Rule
from .._yaml import yaml_text
from ..errors import PlanError

_DOES = {
    "freeze": "freezes {}",
    "unfreeze": "trains {}",
    "group": "sets options for {}",
    "no_decay": "no weight decay for the vectors and biases among {}",
    "unfreeze_layerwise": "trains, one layer after another, {}",
    "layer_decay": "learning rates that fall from layer to layer for {}",
    "lr_range": "learning rates between two ends for {}",
}
_NO_HEAD = (
    "# No head for a task was found, so the last block trains. If your model has one, start from",
    "# that model, and let the head train.",
    "#",
)
_WIDTH = 96
_NARROWEST = 40  # characters of patterns beside a table


def starter_plan(model: torch.nn.Module) -> FreezePlan:
    """Returns the plan that trains the head, or the last block where no head is found.

    Raises:
        PlanError: the model has no parameters.
    """
    parts = parts_of(model)
    if len(parts.layers) == 1:
        return FreezePlan((Rule("unfreeze", ("**",)),))
    names = find_head(parts)
    patterns = patterns_for(parts, names) if names else _patterns(parts, parts.layers.blocks[-1:])
    return FreezePlan((Rule("freeze", ("**",)), Rule("unfreeze", patterns)))


def starter_text(plan: FreezePlan, model: torch.nn.Module, recipe: str | None, file: str) -> str:
    """Returns a plan as YAML with comments; the plan that it is read back as equals it.

    Args:
        plan: the plan.
        model: the model that it is for.
        recipe: the recipe that it comes from; None: it is `starter_plan`'s.
        file: where the plan will stand, for the commands that a comment names.
    """
    parts = parts_of(model)
    numel = sum(layer.numel for layer in parts.layers)
    origin = f"the recipe {recipe}" if recipe else "a plan to start from"
    lines = [
        f"# {parts.title}, {len(parts.tree.names)} parameters with {numel:,} elements: {origin}.",
        "# Edit it; then look at it and check it:",
        f"#   freezekit show MODEL --plan {file}",
        f"#   freezekit check MODEL --plan {file}",
        "#",
        "# The layers, from input to output, and the patterns that select them:",
        *(f"#   {line}" for line in _table(parts)),
        *(f"# {line}" for note in parts.layers.notes for line in wrap(f"note: {note}", _WIDTH)),
        "#",
        *(_NO_HEAD if recipe is None and not find_head(parts) else ()),
        "# Of two rules that say something about one parameter, the later one wins.",
        "",
    ]
    number = 0
    for line in yaml_text(plan.to_dict()).splitlines():
        if line.startswith("  - "):
            lines.append(f"  # {number + 1}: {_says(plan.rules[number], model)}")
            number += 1
        lines.append(line)
    if recipe is None:
        lines += _more(plan, parts)
    return "\n".join(lines) + "\n"


def _says(rule: Rule, model: torch.nn.Module) -> str:
    """Returns what a rule does on a model."""
    rows = FreezePlan().freeze(*rule.patterns, missing_ok=True).resolve(model)
    selected = rows.at().frozen
    numel = sum(row.shape.numel() for row in rows.rows if row.name in selected and row.shape)
    noun = "parameter" if len(selected) == 1 else "parameters"
    text = _DOES[rule.verb].format(f"{len(selected)} {noun} with {numel:,} elements")
    for word, edge in (("from", rule.opening), ("until", rule.closing)):
        if edge:
            unit, value = edge
            text += f", {word} {value:g} of training" if unit == "fraction" else ""
            text += "" if unit == "fraction" else f", {word} {unit} {value}"
    return text


def _table(parts: Parts) -> Iterator[str]:
    """Yields a line for each layer, one for neighbouring blocks of one size."""
    lines = [("", "layer", "elements", "pattern")]
    for _, group in groupby(parts.layers, lambda layer: _kind(layer, parts)):
        run = [*group]
        index, times = str(run[0].index), ""
        if len(run) > 1:
            index, times = f"{run[0].index}..{run[-1].index}", f"{len(run)} x "
        name = "block" if run[0] in parts.blocks else run[0].name
        patterns = _patterns(parts, run)
        lines.append((index, name, f"{times}{run[0].numel:,}", ", ".join(patterns)))
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for index, name, numel, pattern in lines:
        line = f"{index:<{wide[0]}}  {name:<{wide[1]}}  {numel:>{wide[2]}}  "
        below = " " * len(line)
        yield from wrap(
            pattern,
            max(_WIDTH, len(line) + _NARROWEST),
            initial_indent=line,
            subsequent_indent=below,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _kind(layer: Layer, parts: Parts) -> tuple[object, ...]:
    """Returns what neighbouring layers share that stand in one line."""
    if layer in parts.blocks:
        return ("block", layer.name.rstrip("0123456789"), layer.numel)
    return (layer.index,)


def _patterns(parts: Parts, run: Sequence[Layer]) -> tuple[str, ...]:
    """Returns patterns for some blocks, or for one other layer."""
    if run[0] in parts.blocks:
        return block_patterns(parts, run, None)
    return patterns_for(parts, run[0].parameter_names)


def _more(plan: FreezePlan, parts: Parts) -> Iterator[str]:
    """Yields further rules as comments: those that have an effect behind the plan's own."""
    head = plan.rules[-1].patterns
    below = ("**", *(f"!{pattern}" for pattern in head))
    last = _patterns(parts, parts.blocks[-2:])
    offered = {
        "train the last two blocks as well, at a tenth of the learning rate": Rule(
            "unfreeze", last, lr_mult=0.1
        ),
        "from epoch 1 on, open one more layer in each epoch, from the top down": Rule(
            "unfreeze_layerwise", below, start_epoch=1
        ),
        "let learning rates fall by a fifth from each layer to the next below": Rule(
            "layer_decay", ("**",), decay=0.8
        ),
        "no weight decay for norms and biases": Rule("no_decay", ("**",)),
    }
    yield "  # More to choose from: take the '# ' in front of a rule's lines away."
    for text, rule in offered.items():
        if _works(replace(plan, rules=(*plan.rules, rule)), parts.model):
            yield f"  # {text}:"
            listed = yaml_text({"rules": [rule.to_dict()]}).splitlines()[1:]
            yield from (f"  # {line.removeprefix('  ')}" for line in listed)


def _works(plan: FreezePlan, model: torch.nn.Module) -> bool:
    """Returns whether a plan resolves and each of its rules has an effect."""
    try:
        warnings = plan.resolve(model).warnings
    except PlanError:
        return False
    return not any(warning.startswith("rule ") for warning in warnings)
