"""The laws, tried on drawn models, plans and moments."""

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import ContradictionError, NoMatchError, Reference, State, trace
from strategies import MOMENTS, WIDTH, Case, Tree, cases, is_picklable, rules, trees
from torch import nn

from freezekit import AppliedPlan, FreezekitError, FreezePlan, PatternError, PlanError, Rule

pytestmark = pytest.mark.untraced

EVERY_MOMENT = range(20)


def values(state: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Returns what a decision of freezekit and a state of the reference both say."""
    rates = ("lr", "lr_mult", "weight_decay", "warmup_steps", "warmup_from", "options")
    return tuple(getattr(state, key) for key in ("trainable", *rates, "frozen_mode"))


def consistent(case: Case, model: nn.Module) -> Reference:
    """Returns the reference of a case that freezekit must accept; passes over the others."""
    try:
        reference = Reference(case, model)
        for moment in EVERY_MOMENT:
            reference.states(moment)
    except (NoMatchError, ContradictionError):
        assume(False)
    return reference


def applied_case(case: Case) -> tuple[nn.Module, AppliedPlan, Reference]:
    """Returns a model, its plan applied, and what the reference says of it."""
    model = case.tree.build()
    reference = consistent(case, case.tree.build())
    return model, case.plan.apply(model, **case.totals), reference


@settings(max_examples=250)
@given(cases(), MOMENTS)
def test_law_2_resolve_agrees_with_names_and_rules_one_by_one(case: Case, moment: int) -> None:
    """What trains, with which values, what is held, and what is refused."""
    model = case.tree.build()
    try:
        reference = Reference(case, model)
    except NoMatchError:
        with pytest.raises(PatternError):
            case.plan.resolve(model, **case.totals)
        return
    try:
        states = [reference.states(each) for each in EVERY_MOMENT][moment]
    except ContradictionError:
        with pytest.raises(PlanError, match="name one tied tensor"):
            case.plan.resolve(model, **case.totals)
        return
    before = trace(model)
    resolved = case.plan.resolve(model, **case.totals)
    assert trace(model) == before
    phase = resolved.at(**case.at(moment))
    assert phase.trainable == {name for name, state in states.items() if state.trainable}
    assert phase.frozen == {name for name, state in states.items() if not state.trainable}
    assert [row.name for row in resolved.rows] == list(states)
    for row in resolved.rows:
        state = states[row.name]
        rate = state.lr if state.lr is not None else 0.3 * (state.lr_mult or 1.0)
        assert values(row.decisions[phase.index]) == values(state)
        assert phase.lr(row.name, base=0.3) == rate
        assert {phase.lr(alias, base=0.3) for alias in row.aliases} <= {rate}
        assert set(row.aliases) == set(reference.aliases[row.name])
    modules = resolved.module_rows(**case.at(moment))
    assert {row.path for row in modules if row.held} == reference.held(moment)


@given(cases())
def test_law_2_a_phase_is_a_maximal_stretch_without_change(case: Case) -> None:
    """Phases begin where a value, a frozen parameter's rule or a held module changes."""
    model = case.tree.build()
    reference = consistent(case, model)

    def seen(moment: int) -> tuple[object, ...]:
        states = reference.states(moment).values()
        said = [state._replace(by_rule=state.trainable or state.by_rule) for state in states]
        return said, reference.held(moment)

    changes = [at for at in EVERY_MOMENT[1:] if seen(at) != seen(at - 1)]
    phases = case.plan.resolve(model, **case.totals).phases
    assert [phase.start for phase in phases] == [0, *changes]
    assert [phase.end for phase in phases] == [*changes, None]


@pytest.mark.parametrize("affine", [True, False])
def test_law_2_a_rule_that_changes_nothing_makes_no_phase(affine: bool) -> None:
    """Unfreezing what trains anyway, a norm with its buffers among it, divides nothing."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=affine))
    (phase,) = FreezePlan().unfreeze("**", until_epoch=1).resolve(model).phases
    assert str(phase) == "from epoch 0"


@settings(max_examples=50)
@given(cases(lenient=True), trees(), MOMENTS)
def test_law_2_a_plan_keeps_nothing_of_the_models_it_has_met(
    case: Case, other: Tree, moment: int
) -> None:
    """What a plan means for a model does not depend on what it was resolved against before."""
    consistent(case, case.tree.build())
    used, fresh = case.plan, case.plan
    with contextlib.suppress(PlanError):
        used.resolve(other.build(), **case.totals)
    first, second = [plan.resolve(case.tree.build(), **case.totals) for plan in (used, fresh)]
    assert [row.decisions for row in first.rows] == [row.decisions for row in second.rows]
    assert first.module_rows(**case.at(moment)) == second.module_rows(**case.at(moment))


@given(st.data(), cases(lenient=True, joined=False), MOMENTS)
def test_law_3_a_later_rule_wins_per_property(data: st.DataObject, case: Case, moment: int) -> None:
    """A rule at the end sets what it says for what it selects, and changes nothing else."""
    model = case.tree.build()
    last = data.draw(rules(model, lenient=True))
    longer = Case(case.tree, (*case.rules, last), case.totals)
    reference = consistent(longer, model)
    before = case.plan.resolve(model, **case.totals)
    after = longer.plan.resolve(model, **case.totals)
    # With a warm-up the longer plan counts in steps, also where the shorter one counts in epochs.
    steps = moment * case.totals.get("steps_per_epoch", 1) if case.clock == "epoch" else moment
    clocks = {"epoch": moment, "step": steps}
    old, new = before.at(**clocks).index, after.at(**clocks).index
    for row, then in zip(before.rows, after.rows, strict=True):
        expected = row.decisions[old]._asdict()
        if reference.tensors[row.name].selected_by(last, model):
            expected |= said_by(last, small=len(row.shape) <= 1 or row.name.endswith("bias"))
            both = dict(row.decisions[old].options) | dict(last.properties.get("options", {}))
            expected["options"] = tuple(sorted(both.items()))
            if "warmup_steps" in last.properties:
                expected["warmup_from"] = (0, 0)
        expected["decided"] = then.decisions[new].decided
        assert then.decisions[new]._asdict() == expected


def said_by(rule: Any, *, small: bool) -> dict[str, Any]:  # noqa: ANN401
    """Returns the fields of a decision that a rule sets, options aside."""
    if rule.verb == "no_decay":
        return {"weight_decay": 0.0} if small else {}
    keys = ("weight_decay", "warmup_steps", "frozen_mode", "lr", "lr_mult")
    found = {key: value for key, value in rule.properties.items() if key in keys}
    if {"lr", "lr_mult"} & set(found):
        found = {"lr": None, "lr_mult": None} | found
    return found | ({} if rule.verb == "group" else {"trainable": rule.verb == "unfreeze"})


@given(cases(lenient=True), st.integers(0, 3), MOMENTS)
def test_law_3_rules_that_select_disjoint_parts_commute(
    case: Case, place: int, moment: int
) -> None:
    """Swapping two neighbours that select nothing in common changes no state."""
    assume(place + 1 < len(case.rules))
    model = case.tree.build()
    reference = consistent(case, model)
    first, second = case.rules[place : place + 2]
    assume(not (reference.selection(first) & reference.selection(second)))
    swapped = (*case.rules[:place], second, first, *case.rules[place + 2 :])
    resolved = [
        Case(case.tree, drawn, case.totals).plan.resolve(model, **case.totals)
        for drawn in (case.rules, swapped)
    ]
    rows = [[row.decisions for row in each.rows] for each in resolved]
    modules = [each.module_rows(**case.at(moment)) for each in resolved]
    assert rows[0] == rows[1]
    assert modules[0] == modules[1]


@given(cases(plain=True, lenient=True))
def test_law_4_every_parameter_that_ever_trains_is_in_one_group(case: Case) -> None:
    """Groups partition the ever-trainable, carry the values of the plan, and are named once."""
    model, applied, reference = applied_case(case)
    ever = {
        name: state
        for moment in reversed(EVERY_MOMENT)
        for name, state in reference.states(moment).items()
        if state.trainable
    }
    if not ever:
        with pytest.raises(FreezekitError, match="nothing it selects ever trains"):
            applied.param_groups(lr=0.3)
        return
    groups = applied.param_groups(lr=0.3)
    pairs = [pair for group in groups for pair in group["params"]]
    tensors = dict(model.named_parameters())
    assert sorted(name for name, _ in pairs) == sorted(ever)
    assert all(tensor is tensors[name] for name, tensor in pairs)
    assert len({group["name"] for group in groups}) == len(groups)
    assert all(group["params"] for group in groups)
    for group in groups:
        keys = {key: value for key, value in group.items() if key not in ("params", "name")}
        assert [keys] * len(group["params"]) == [keys_of(ever[name]) for name, _ in group["params"]]


def keys_of(state: State) -> dict[str, Any]:
    """Returns the keys of the group that a parameter in this state belongs in."""
    rate = state.lr if state.lr is not None else 0.3 * (state.lr_mult or 1.0)
    decay = {} if state.weight_decay is None else {"weight_decay": state.weight_decay}
    return {"lr": rate} | decay | dict(state.options)


OPTIMIZERS: dict[str, Callable[[AppliedPlan], torch.optim.Optimizer]] = {
    "sgd": lambda applied: applied.optimizer(
        torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1
    ),
    "adam": lambda applied: applied.optimizer(torch.optim.Adam, lr=0.1),
    "adamw": lambda applied: applied.optimizer(torch.optim.AdamW, lr=0.1, weight_decay=0.5),
}


@settings(max_examples=60)
@given(
    cases(plain=True, lenient=True),
    st.lists(MOMENTS, min_size=1, max_size=3),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.booleans(),
)
def test_law_5_what_is_frozen_is_bit_identical(
    case: Case, moments: list[int], optimizer_name: str, to_none: bool
) -> None:
    """Steps between two moments move no frozen parameter and no buffer of a held module.

    Each transition comes between a backward pass and its step, where stale gradients would tell.
    """
    model, applied, _ = applied_case(case)
    assume(any(phase.trainable for phase in applied.resolved.phases))
    betas = any("options" in rule.properties for rule in case.rules)
    optimizer = OPTIMIZERS["adamw" if betas else optimizer_name](applied)
    for moment in [0, *moments]:
        backward(model)
        applied.advance(**case.at(moment))
        held = {row.path for row in applied.resolved.module_rows(**case.at(moment)) if row.held}
        frozen = applied.phase.frozen | {
            f"{path}.{name}".lstrip(".")
            for path in held
            for name, _ in model.get_submodule(path).named_buffers(recurse=False)
        }
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        before = {name: tensors[name].clone() for name in frozen}
        optimizer.step()
        for _ in range(2):
            optimizer.zero_grad(set_to_none=to_none)
            backward(model)
            optimizer.step()
        assert [name for name in frozen if not torch.equal(before[name], tensors[name])] == []


def backward(model: nn.Module) -> None:
    """Runs a forward and a backward pass on a random batch, in train mode."""
    loss = model.train()(torch.randn(3, WIDTH)).square().mean()
    if loss.requires_grad:
        loss.backward()


@given(
    cases(plain=True, lenient=True),
    st.lists(MOMENTS, max_size=3),
    st.lists(st.integers(0, 20), max_size=3),
)
def test_law_7_apply_then_release_leaves_no_trace(
    case: Case, moments: list[int], switched_off: list[int]
) -> None:
    """Flags, modes, entries of every module, hooks, state keys and objects are as before."""
    model = case.tree.build()
    consistent(case, case.tree.build())
    modules = list(model.modules())
    for place in [] if moments else switched_off:
        modules[place % len(modules)].training = False
    before = trace(model)
    applied = case.plan.apply(model, **case.totals)
    for moment in moments:
        applied.advance(**case.at(moment))
    applied.release()
    assert trace(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    case.plan.apply(model, **case.totals).release()
    assert trace(model) == before


@given(
    st.data(),
    cases(plain=True, lenient=True),
    MOMENTS,
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=4),
)
def test_law_8_switching_modes_changes_nothing_that_is_held(
    data: st.DataObject, case: Case, moment: int, switches: list[tuple[int, bool]]
) -> None:
    """From whichever module the switch comes, also in copies and unpickled models."""
    model, applied, reference = applied_case(case)
    applied.advance(**case.at(moment))
    held = reference.held(moment)
    kinds = ["itself", "copy", *(["unpickled"] if is_picklable(model) else [])]
    other = {"itself": lambda m: m, "copy": copy.deepcopy, "unpickled": unpickled}[
        data.draw(st.sampled_from(kinds))
    ](model)
    modules = dict(other.named_modules())
    for place, mode in switches:
        list(modules.values())[place % len(modules)].train(mode)
        assert [path for path in held if modules[path].training] == []
    other.train()
    assert {path for path, module in modules.items() if not module.training} == held
    other.eval()
    assert trace(other)["flags"] == trace(model)["flags"]
    assert other.state_dict().keys() == case.tree.build().state_dict().keys()


def unpickled(model: nn.Module) -> nn.Module:
    """Returns the model after a trip through `torch.save`."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


BAD: dict[str, tuple[Rule, ...]] = {
    "unknown name": (Rule("freeze", ("nowhere",)),),
    "unknown alternative": (Rule("freeze", ("{scale,nowhere}",)),),
    "no index": (Rule("freeze", ("scale[0]",)),),
    "nothing trains": (Rule("freeze", ("**",)),),
    "no rows": (Rule("unfreeze", ("scale",), rows="900:"),),
    "no total": (Rule("unfreeze", ("**",), at_fraction=0.5, until_step=900),),
}


@given(cases(plain=True, lenient=True), st.sampled_from(sorted(BAD)), st.integers(0, 5))
def test_law_9_a_bad_plan_raises_before_anything_is_written(
    case: Case, bad: str, place: int
) -> None:
    """Whatever is wrong with a plan, the model is as it was, gradients included."""
    model = case.tree.build()
    consistent(case, case.tree.build())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    before = trace(model)
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    listed = [each.rule for each in case.rules]
    at = len(listed) if bad in ("nothing trains", "no rows") else place
    plan = FreezePlan((*listed[:at], *BAD[bad], *listed[at:]))
    with pytest.raises(FreezekitError):
        plan.apply(model)
    assert trace(model) == before
    assert all(parameter.grad is grads[name] for name, parameter in model.named_parameters())
