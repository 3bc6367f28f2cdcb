"""Plan x model -> ResolvedPlan. Reads names, classes, shapes and flags; writes nothing."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence

import torch

from ._builders import BUILDERS, expand
from ._cascade import FIXED, FLAG, SMALL, Cascade, Outcome
from ._layering import Layering
from ._layers import place_layers
from ._matches import Selection, check_matches
from ._names import MARK, Tree, Walk, is_bias, walk
from ._plan import FreezePlan
from ._resolved import Placement, ResolvedPlan
from ._rules import parse_rows
from ._sharding import problem
from ._timeline import Entry, timeline
from ._verbs import counted
from .errors import PlanError


def resolve(
    plan: FreezePlan,
    model: torch.nn.Module,
    *,
    steps_per_epoch: int | None = None,
    total_epochs: int | None = None,
    total_steps: int | None = None,
    example_inputs: object = None,
) -> ResolvedPlan:
    """Returns what `plan` means for `model`; see `FreezePlan.resolve`."""
    resolved, walked = bind(plan, model, steps_per_epoch, total_epochs, total_steps)
    rehearse(resolved, walked, example_inputs)
    return resolved


def rehearse(resolved: ResolvedPlan, walked: Walk, example_inputs: object) -> None:
    """Lets a resolved plan know what it computes on example inputs, if there are any.

    Raises:
        PlanError: a parameter is lazy and has no shape yet.
        FreezekitError: the model is sharded, or does not run on the inputs.
    """
    if example_inputs is not None:
        from ._compute import compute

        resolved.compute = compute(resolved, walked, example_inputs)


def bind(
    plan: FreezePlan,
    model: torch.nn.Module,
    steps_per_epoch: int | None,
    total_epochs: int | None,
    total_steps: int | None,
) -> tuple[ResolvedPlan, Walk]:
    """Returns what the plan means, with the walk that knows the modules."""
    if isinstance(model, torch.jit.ScriptModule):
        raise PlanError("the model is scripted, which fixes what trains; apply the plan before")
    if not isinstance(model, torch.nn.Module):
        raise PlanError(f"expected a torch.nn.Module, got {type(model).__name__}")
    automaton = plan._automaton
    walked = walk(model, automaton)
    tree = walked.tree
    if tree.cut:
        raise PlanError(problem(tree.cut[0]))
    required = [not rule.missing_ok for rule in plan.rules for _ in rule.patterns]
    check_matches(automaton, walked, required)
    _recall_flags(walked)
    selection = Selection([rule.patterns for rule in plan.rules], automaton)
    placement, goes_along = _placement(plan, walked)
    layers = placement[0].places if placement and goes_along else [0] * len(tree.names)
    entries = _entries(plan, tree, selection, layers)
    time = timeline(
        entries,
        steps_per_epoch=steps_per_epoch,
        total_epochs=total_epochs,
        total_steps=total_steps,
    )
    cascade = Cascade(entries, selection, time)
    traits = _traits(plan, tree)
    bare = tree.bare()
    keys = _keys(tree.accepts, traits, layers)
    at_buffers = [_layer_at(tree, layers, row) for row in bare]
    buffer_keys = _keys([tree.module_accepts[row] for row in bare], [0] * len(bare), at_buffers)
    ids = {key: number for number, key in enumerate(dict.fromkeys([*keys, *buffer_keys]))}
    outcomes = [cascade.outcome(*_unpacked(key)) for key in ids]
    outcome_ids = [ids[key] for key in keys]
    _tie(cascade, tree, traits, layers, outcomes, outcome_ids)
    buffer_ids = {row: ids[key] for row, key in zip(bare, buffer_keys, strict=True)}
    if tree.aliases:
        outcomes, outcome_ids, buffer_ids = _dense(outcomes, outcome_ids, buffer_ids)
    _check_rows(cascade, tree, outcomes, outcome_ids)
    warnings = (
        *_notes(plan, placement, goes_along),
        *_idle(plan, cascade, outcomes),
        *_fixed(cascade, tree, traits, outcomes, outcome_ids),
    )
    resolved = ResolvedPlan(
        plan, tree, cascade, outcomes, outcome_ids, buffer_ids, warnings, placement
    )
    return resolved, walked


def _keys(accepts: Sequence[int], traits: Sequence[int], layers: Sequence[int]) -> list[int]:
    """Returns what decides for each parameter, as one number: tuples would keep the collector busy.

    The layer has the lowest 32 bits, the traits have three bits above it.
    """
    columns = zip(accepts, traits, layers, strict=True)
    return [accept << 35 | trait << 32 | layer for accept, trait, layer in columns]


def _unpacked(key: int) -> tuple[int, int, int]:
    """Returns the accept id, the traits and the layer that a key stands for."""
    return key >> 35, key >> 32 & 7, key & 0xFFFFFFFF


def _placement(plan: FreezePlan, walked: Walk) -> tuple[Placement | None, bool]:
    """Returns where the parameters belong, if the plan says or asks it, and whether it asks.

    Raises:
        PlanError: what it says does not fit the model.
    """
    goes_along = any(rule.verb in BUILDERS for rule in plan.rules)
    layering = Layering.read(plan.layers)
    if not goes_along and layering == Layering():
        return None, False
    return place_layers(walked, layering), goes_along


def _notes(plan: FreezePlan, placement: Placement | None, goes_along: bool) -> Sequence[str]:
    """Returns what is to be noted about the layers, for a plan that goes along them."""
    if placement is None:
        return []
    said = Layering.read(plan.layers).to_dict()
    idle = f"layers={said} has no effect: no rule goes along the layers"
    return placement[1] if goes_along else [idle]


def _layer_at(tree: Tree, layers: Sequence[int], row: int) -> int:
    """Returns the layer of a module without parameters: that of the last one before it."""
    return layers[max(bisect(tree.owners, row) - 1, 0)] if layers else 0


def _entries(
    plan: FreezePlan, tree: Tree, selection: Selection, layers: Sequence[int]
) -> list[Entry]:
    """Returns the plan's rules, builders replaced by what they stand for."""
    reached = {*zip(tree.accepts, layers, strict=True)}
    reached |= {(alias.accept, layers[alias.row]) for alias in tree.aliases}
    entries = []
    for source, rule in enumerate(plan.rules):
        label = f"rule {source + 1}, {rule.call}"
        if rule.verb in BUILDERS:
            rungs = {layer for accept, layer in reached if selection.selects(source, accept)}
            entries += [
                Entry(plain, source, label, within)
                for within, plain in expand(rule, sorted(rungs), max(layers, default=0))
            ]
        else:
            entries.append(Entry(rule, source, label))
    return entries


def _recall_flags(walked: Walk) -> None:
    """Puts the flags that applied modules had before in place of those they have now."""
    tree = walked.tree
    marks = {row: walked.modules[row].__dict__[MARK].flags for row in tree.marked}
    if marks:
        for row, owner in enumerate(tree.owners):
            leaf = tree.names[row][len(tree.prefixes[owner]) :]
            tree.flags[row] = marks.get(owner, {}).get(leaf, tree.flags[row])


def _traits(plan: FreezePlan, tree: Tree) -> list[int]:
    """Returns what, beside its names, the cascade asks of each parameter."""
    traits: list[int] = [FLAG if flag else 0 for flag in tree.flags]
    fixed = {d for d in set(tree.dtypes) if not (d.is_floating_point or d.is_complex)}
    if fixed:
        traits = [t | FIXED * (d in fixed) for t, d in zip(traits, tree.dtypes, strict=True)]
    if any(rule.verb == "no_decay" for rule in plan.rules):
        small = map(_is_small, tree.names, tree.shapes)
        traits = [t | SMALL * s for t, s in zip(traits, small, strict=True)]
    return traits


def _is_small(name: str, shape: torch.Size | None) -> bool:
    """Returns whether a tensor is a bias by its name or of rank 1 or less."""
    if is_bias(name.rpartition(".")[2]):
        return True
    if shape is None:
        raise PlanError(
            f"no_decay needs the rank of {name!r}, which is lazy and has none yet; run one forward "
            "pass before resolving the plan"
        )
    return len(shape) <= 1


def _tie(
    cascade: Cascade,
    tree: Tree,
    traits: Sequence[int],
    layers: Sequence[int],
    outcomes: list[Outcome],
    outcome_ids: list[int],
) -> None:
    """Gives parameters that further names reach an outcome of their own where those say more."""
    others: dict[int, list[int]] = {}
    for at, alias in enumerate(tree.aliases):
        if alias.accept != tree.accepts[alias.row]:
            others.setdefault(alias.row, []).append(at)
    for row, aliases in others.items():
        own = outcomes[outcome_ids[row]]
        reached = [
            (tree.aliases[at], cascade.outcome(tree.aliases[at].accept, traits[row], layers[row]))
            for at in aliases
        ]
        outcome_ids[row] = len(outcomes)
        outcomes.append(cascade.tied(tree, row, own, reached, traits[row]))


def _dense(
    outcomes: Sequence[Outcome], outcome_ids: Sequence[int], buffer_ids: Mapping[int, int]
) -> tuple[list[Outcome], list[int], dict[int, int]]:
    """Drops the outcomes that nothing has any more."""
    used = dict.fromkeys([*outcome_ids, *buffer_ids.values()])
    ids = {old: new for new, old in enumerate(used)}
    return (
        [outcomes[old] for old in used],
        [ids[old] for old in outcome_ids],
        {row: ids[old] for row, old in buffer_ids.items()},
    )


def _check_rows(
    cascade: Cascade, tree: Tree, outcomes: Sequence[Outcome], outcome_ids: Sequence[int]
) -> None:
    """Raises where a rule with rows does not name exactly one tensor that has them."""
    for number, rule in enumerate(entry.rule for entry in cascade.entries):
        if rule.rows is None:
            continue
        deciding = {
            at for at, outcome in enumerate(outcomes)
            if any(number in history.get("trainable", ()) for history in outcome.histories)
        }  # fmt: skip
        named = [row for row, outcome in enumerate(outcome_ids) if outcome in deciding]
        if not named and rule.missing_ok:
            continue
        names = ", ".join(tree.names[row] for row in named[:3]) or "none"
        if len(named) != 1:
            raise PlanError(
                f"{cascade.label(number)}: rows needs exactly one parameter, got {len(named)}: "
                f"{names}; name the tensor, e.g. '...embeddings.weight'"
            )
        shape = tree.shapes[named[0]]
        if shape is None:
            raise PlanError(
                f"{cascade.label(number)}: {names!r} is lazy and has no rows yet; run one forward "
                "pass before resolving the plan"
            )
        count = shape[0] if shape else 0
        if not range(count)[parse_rows(rule.rows)]:
            raise PlanError(
                f"{cascade.label(number)}: rows {rule.rows!r} selects none of the {count} rows of "
                f"{names!r}"
            )


def _idle(plan: FreezePlan, cascade: Cascade, outcomes: Sequence[Outcome]) -> list[str]:
    """Returns a sentence for each rule that can never have an effect."""
    entries = cascade.entries
    effective = cascade.effective(outcomes)
    histories = [history for outcome in outcomes for history in outcome.histories]
    deciding = [numbers for history in histories for numbers in history.values()]
    reaching = {entries[number].source for numbers in deciding for number in numbers}
    winning = {entries[numbers[-1]].source for numbers in deciding}
    sentences = []
    for source, rule in enumerate(plan.rules):
        if source in effective:
            continue
        if source not in reaching:
            why = "it selects nothing"
        elif source not in winning:
            why = "later rules override all it says"
        else:
            why = "what it sets never comes to bear: nothing it decides for trains while it does"
        sentences.append(f"rule {source + 1}, {rule.call} has no effect: {why}")
    return sentences


def _fixed(
    cascade: Cascade,
    tree: Tree,
    traits: Sequence[int],
    outcomes: Sequence[Outcome],
    outcome_ids: Sequence[int],
) -> list[str]:
    """Returns a sentence for each rule that would unfreeze tensors that cannot train.

    Raises:
        PlanError: such a tensor is named outright.
    """
    asked: dict[int, list[int]] = {}
    if max(traits, default=0) < FIXED:
        return []
    for row in (row for row, trait in enumerate(traits) if trait & FIXED):
        histories = outcomes[outcome_ids[row]].histories
        winners = {history["trainable"][-1] for history in histories if "trainable" in history}
        for number in winners:
            if cascade.entries[number].rule.verb == "unfreeze":
                asked.setdefault(number, []).append(row)
    sentences = []
    for number, rows in asked.items():
        named = set(cascade.entries[number].rule.patterns)
        for row in rows:
            if tree.names[row] in named:
                raise PlanError(
                    f"{cascade.label(number)}: {tree.names[row]!r} is {tree.dtypes[row]} and "
                    "cannot train; only floating-point and complex tensors can"
                )
        sentences.append(
            f"{cascade.label(number)}: what is {tree.dtypes[rows[0]]} cannot train and stays "
            f"frozen: {counted([tree.names[row] for row in rows], 'parameter')}"
        )
    return sentences
