"""Rules and plans as values: what they refuse, how they compare, print and copy."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from drawn_plans import plans
from hypothesis import given

from freezekit import FreezePlan, PatternError, PlanError, Rule
from freezekit._rules import parse_rows
from freezekit._verbs import VERBS

PLAN = (
    FreezePlan(allow_all_frozen=True)
    .freeze("backbone", "!backbone.pooler", frozen_mode="train")
    .unfreeze("backbone.layer[-2:]", lr=2e-5, at_epoch=1, until_epoch=4)
    .group("*_head", lr_mult=10, weight_decay=0, options={"betas": [0.9, 0.99], "amsgrad": True})
    .unfreeze("emb.weight", rows="30522:", at_metric={"monitor": "val_loss"}, missing_ok=True)
    .no_decay()
    .unfreeze_layerwise(every_epochs=2, start_epoch=0, order="bottom_up")
    .layer_decay("backbone", decay=1, top="selection", lr=1, min_mult=0)
    .lr_range("a", "!b", low=1, high=2, until_fraction=0.5)
)
KNOWN = (
    "known: at_epoch, at_step, at_fraction, at_metric, until_epoch, until_step, until_fraction, "
)


def message(act: Callable[[], object]) -> str:
    """Returns the message of the `PlanError` that `act` raises."""
    with pytest.raises(PlanError) as caught:
        act()
    return str(caught.value)


@pytest.mark.parametrize(
    ("properties", "problem"),
    [
        ({"lr": 0}, "lr must be a positive finite number, got 0; "
         "to stop training use freeze('a') instead"),
        ({"lr": -1e-3}, "lr must be a positive finite number, got -0.001; "
         "to stop training use freeze('a') instead"),
        ({"lr": float("nan")}, "lr must be a positive finite number, got nan; "
         "to stop training use freeze('a') instead"),
        ({"lr": "1e-3"}, "lr must be a positive finite number, got '1e-3'; "
         "write it without quotes"),
        ({"lr": ".5"}, "lr must be a positive finite number, got '.5'; write it without quotes"),
        ({"lr": "5x"}, "lr must be a positive finite number, got '5x'; "
         "to stop training use freeze('a') instead"),
        ({"lr": "fast"}, "lr must be a positive finite number, got 'fast'; "
         "to stop training use freeze('a') instead"),
        ({"lr": True}, "lr must be a positive finite number, got True; "
         "to stop training use freeze('a') instead"),
        ({"lr_mult": 0.0}, "lr_mult must be a positive finite number, got 0.0; "
         "to stop training use freeze('a') instead"),
        ({"lr": 1.0, "lr_mult": 2.0},
         "lr and lr_mult are one property in two units; give one of them"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number >= 0, got -0.1"),
        ({"weight_decay": float("inf")}, "weight_decay must be a finite number >= 0, got inf"),
        ({"warmup_steps": 0}, "warmup_steps must be a whole number >= 1, got 0"),
        ({"warmup_steps": 1.5}, "warmup_steps must be a whole number >= 1, got 1.5"),
        ({"frozen_mode": "evaluate"}, "frozen_mode must be 'eval' or 'train', got 'evaluate'"),
        ({"rows": "3"}, "rows must be a slice such as '30522:' or ':100', got '3'"),
        ({"rows": "a:"}, "rows must be a slice such as '30522:' or ':100', got 'a:'"),
        ({"rows": 3}, "rows must be a slice such as '30522:' or ':100', got 3"),
        ({"at_epoch": -1}, "at_epoch must be a whole number >= 0, got -1"),
        ({"at_epoch": 1.0}, "at_epoch must be a whole number >= 0, got 1.0"),
        ({"at_step": True}, "at_step must be a whole number >= 0, got True"),
        ({"until_step": "9"}, "until_step must be a whole number >= 0, got '9'"),
        ({"at_fraction": 1.5}, "at_fraction must lie between 0 and 1, got 1.5"),
        ({"until_fraction": -0.5}, "until_fraction must lie between 0 and 1, got -0.5"),
        ({"at_epoch": 1, "at_step": 9}, "at_epoch and at_step exclude each other; "
         "give one of them"),
        ({"at_epoch": 1, "at_metric": {"monitor": "loss"}}, "at_epoch and at_metric exclude each "
         "other; give one of them"),
        ({"until_epoch": 1, "until_fraction": 0.5}, "until_epoch and until_fraction exclude each "
         "other; give one of them"),
        ({"until_epoch": 0}, "until_epoch=0 closes the rule before it opens"),
        ({"at_epoch": 3, "until_epoch": 3}, "until_epoch=3 closes the rule before at_epoch=3 "
         "opens it"),
        ({"at_metric": {"monitr": "loss"}}, "at_metric has no key 'monitr'; did you mean "
         "'monitor'? (known: monitor, mode, patience, min_delta)"),
        ({"at_metric": {"mode": "min"}}, "at_metric needs 'monitor', the name of a metric, "
         "e.g. 'val_loss'"),
        ({"at_metric": {"monitor": "loss", "mode": "low"}}, "at_metric: mode must be 'min' or "
         "'max', got 'low'"),
        ({"at_metric": {"monitor": "loss", "patience": -1}}, "at_metric: patience must be a whole "
         "number >= 0, got -1"),
        ({"at_metric": {"monitor": "loss", "min_delta": "x"}}, "at_metric: min_delta must be a "
         "number >= 0, got 'x'"),
        ({"at_metric": 5}, "at_metric must be a mapping, got 5"),
        ({"options": 5}, "options must be a mapping, got 5"),
        ({"options": {1: 2}}, "options: keys must be strings, got 1"),
        ({"options": {"lr": 2}}, "options: 'lr' is not an option; it has a property of its own"),
        ({"options": {"a": {"b": 1}}}, "options: values must be plain data (numbers, strings, "
         "lists), got {'b': 1}"),
        ({"options": {"a": [float("inf")]}}, "options: values must be plain data (numbers, "
         "strings, lists), got inf"),
        ({"missing_ok": None}, "missing_ok must be true or false, got None"),
    ],
)  # fmt: skip
def test_bad_value_is_quoted_with_the_rule(properties: dict[str, Any], problem: str) -> None:
    """A value out of its range is an error that repeats the rule, the value and what is allowed."""
    text = message(lambda: FreezePlan().freeze("a", **properties))
    given = {name: value for name, value in properties.items() if value is not None}
    assert text.startswith("freeze('a'")
    assert all(f"{name}=" in text for name in given)
    assert text.endswith(f"): {problem}")


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda: FreezePlan().freeze(), "freeze(): no pattern is given; '**' selects everything"),
        (lambda: FreezePlan().freeze(["a"]), "freeze(['a']): patterns must be strings, got "
         "(['a'],)"),
        (lambda: FreezePlan().freeze("a", lrr=1), "freeze has no property 'lrr'; did you mean "
         "'lr'? (" + KNOWN + "lr, lr_mult, weight_decay, warmup_steps, options, frozen_mode, "
         "missing_ok, rows)"),
        (lambda: FreezePlan().group("a", rows="1:"), "group has no property 'rows' (" + KNOWN
         + "lr, lr_mult, weight_decay, warmup_steps, options, frozen_mode, missing_ok)"),
        (lambda: FreezePlan().no_decay("a", at_epochs=1), "no_decay has no property 'at_epochs'; "
         "did you mean 'at_epoch'? (" + KNOWN + "missing_ok)"),
        (lambda: FreezePlan().layer_decay("a", decay=1, lr_mult=2), "layer_decay has no property "
         "'lr_mult'; did you mean 'min_mult'? (" + KNOWN + "missing_ok, decay, top, count, lr, "
         "min_mult)"),
        (lambda: FreezePlan().lr_range("a", lo=1, high=2), "lr_range has no property 'lo'; did you "
         "mean 'low'? (" + KNOWN + "missing_ok, low, high)"),
        (lambda: FreezePlan().lr_range(low=1, high=2), "lr_range(low=1, high=2): no pattern is "
         "given; '**' selects everything"),
        (lambda: Rule("unfreeze_layerwise", ("a",), at_step=1), "unfreeze_layerwise('a', "
         "at_step=1): unfreeze_layerwise has no property 'at_step', it opens its layers one after "
         "another: say when with start_epoch and every_epochs or start_step and every_steps; a "
         "later freeze can close them"),
        (lambda: FreezePlan().group("a"), "group('a'): the rule sets nothing; give it lr, lr_mult, "
         "weight_decay, options, ..."),
        (lambda: FreezePlan().group("a", at_epoch=1, missing_ok=True), "group('a', at_epoch=1, "
         "missing_ok=True): the rule sets nothing; give it lr, lr_mult, weight_decay, options, "
         "..."),
        (lambda: Rule("freez", ("a",)), "freez('a'): unknown verb 'freez'; did you mean 'freeze'? "
         "(known: freeze, unfreeze, group, no_decay, unfreeze_layerwise, layer_decay, lr_range)"),
        (lambda: Rule("group", ("a",), lr=1.0, rows="1:"), "group('a', lr=1.0, rows='1:'): group "
         "has no property 'rows' (" + KNOWN
         + "lr, lr_mult, weight_decay, warmup_steps, options, frozen_mode, missing_ok)"),
        (lambda: FreezePlan(["freeze"]), "rule 1 is 'freeze'; expected a Rule"),
        (lambda: FreezePlan(allow_all_frozen=1), "allow_all_frozen must be true or false, got 1"),
    ],
)  # fmt: skip
def test_bad_rule_says_what_is_known(act: Callable[[], object], expected: str) -> None:
    """What is no rule at all is an error that names what exists and the closest of it."""
    assert message(act) == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("a", "b..c"), "freeze('a', 'b..c'): pattern 'b..c': a segment between two dots, or "
         "beside one, is empty"),
        (("!a",), "freeze('!a'): pattern '!a': '!' takes away from the patterns before it and "
         "there are none; write '**', '!a'"),
        (("!a", "b"), "freeze('!a', 'b'): pattern '!a': '!' takes away from the patterns before "
         "it and there are none; write '**', '!a', 'b'"),
    ],
)  # fmt: skip
def test_bad_pattern_is_found_when_the_rule_is_written(
    patterns: tuple[str, ...], expected: str
) -> None:
    """A pattern with a syntax error is a `PatternError` of the verb, before any model."""
    with pytest.raises(PatternError) as caught:
        FreezePlan().freeze(*patterns)
    assert str(caught.value) == expected


def test_plan_and_rule_are_immutable() -> None:
    """Neither a rule nor a plan can be changed, also not through what it was made of."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.rules = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.rules[0].lr = 1.0
    betas = [0.9, 0.99]
    options, rules = {"betas": betas}, [Rule("freeze", ["a"])]
    plan = FreezePlan(rules).group("b", options=options)
    before = repr(plan)
    betas.append(1.0)
    options["eps"] = 1e-6
    rules.append(Rule("freeze", ("c",)))
    plan.to_dict()["rules"].clear()
    plan.rules[1].properties["options"].clear()
    assert repr(plan) == before


def test_each_verb_returns_a_new_plan() -> None:
    """A verb leaves its plan alone and keeps everything but the rules."""
    plan = FreezePlan(allow_all_frozen=True)
    longer = plan.freeze("a").unfreeze("b").group("c", lr=1).no_decay()
    longer = longer.unfreeze_layerwise("d").layer_decay("e", decay=0.5).lr_range("f", low=1, high=2)
    assert plan.rules == ()
    assert [rule.verb for rule in longer.rules] == list(VERBS)
    assert longer.allow_all_frozen


def test_verbs_keep_a_subclass() -> None:
    """The verbs and `from_dict` of a subclass return the subclass."""

    class Mine(FreezePlan):
        pass

    assert type(Mine().freeze("a")) is Mine
    assert type(Mine.from_dict(PLAN.to_dict())) is Mine


def test_equal_rules_are_equal_however_written() -> None:
    """Lists and tuples, 1 and 1.0, any order of options: one rule, one hash."""
    one = Rule("group", ["a"], lr=1, options={"b": [1, [2]], "a": 0})
    two = Rule("group", ("a",), lr=1.0, options={"a": 0, "b": (1, (2,))})
    assert one == two
    assert hash(one) == hash(two)
    assert repr(one) == repr(two)
    assert one != Rule("group", ("a",), lr=2, options={"a": 0, "b": (1, (2,))})


def test_plan_compares_by_rules_order_and_flag() -> None:
    """Plans are equal with equal rules in the same order and the same flag."""
    a, b = Rule("freeze", ("a",)), Rule("unfreeze", ("b",))
    assert FreezePlan([a, b]) == FreezePlan((a, b))
    assert hash(FreezePlan([a, b])) == hash(FreezePlan((a, b)))
    assert FreezePlan((a, b)) != FreezePlan((b, a))
    assert FreezePlan((a,)) != FreezePlan((a,), allow_all_frozen=True)
    assert len({FreezePlan((a,)), FreezePlan([a]), FreezePlan()}) == 2


def test_metric_moment_is_stored_whole() -> None:
    """Defaults of `at_metric` are written out, so that leaving one out changes nothing."""
    short = Rule("freeze", ("a",), at_metric={"monitor": "loss"})
    full = {"monitor": "loss", "mode": "min", "patience": 0, "min_delta": 0.0}
    assert short == Rule("freeze", ("a",), at_metric=full)
    assert short.properties["at_metric"] == full


def test_rule_tells_its_moments() -> None:
    """`opening` and `closing` give unit and value, None where the rule names none."""
    rule = Rule("freeze", ("a",), at_step=3, until_fraction=1)
    assert (rule.opening, rule.closing) == (("step", 3), ("fraction", 1.0))
    assert Rule("freeze", ("a",)).opening is None
    assert Rule("freeze", ("a",), at_epoch=0).opening == ("epoch", 0)


def test_repr_is_the_call_that_builds_it() -> None:
    """The repr of a plan is the chain of verbs, that of a rule its constructor."""
    assert repr(FreezePlan().freeze("a", "!a.b", at_epoch=2).no_decay()) == (
        "FreezePlan().freeze('a', '!a.b', at_epoch=2).no_decay('**')"
    )
    assert repr(FreezePlan(allow_all_frozen=True)) == "FreezePlan(allow_all_frozen=True)"
    assert repr(PLAN.rules[2]) == (
        "Rule('group', ('*_head',), lr_mult=10.0, weight_decay=0.0, "
        "options={'amsgrad': True, 'betas': (0.9, 0.99)})"
    )


@given(plans())
def test_plan_survives_repr_pickle_and_copy(plan: FreezePlan) -> None:
    """Evaluating the repr, pickling and copying give an equal plan, rule by rule."""
    again = [eval(repr(plan)), pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)]
    assert again == [plan] * 3
    assert [eval(repr(rule)) for rule in plan.rules] == list(plan.rules)
    assert {repr(each) for each in again} == {repr(plan)}
    assert {hash(each) for each in again} == {hash(plan)}


def test_pickle_leaves_the_compiled_patterns_behind() -> None:
    """What a plan caches is no part of it: not in the pickle, not in comparisons."""
    fresh = pickle.dumps(PLAN)
    assert PLAN._automaton is PLAN._automaton
    assert pickle.dumps(PLAN) == fresh
    assert pickle.loads(fresh) == PLAN


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30522:", slice(30522, None)),
        (":100", slice(None, 100)),
        ("-2:", slice(-2, None)),
        ("1:9:2", slice(1, 9, 2)),
        (" 1 : 2 ", slice(1, 2)),
    ],
)
def test_rows_spell_a_slice(text: str, expected: slice) -> None:
    """A `rows` text means what it means between brackets in Python."""
    assert parse_rows(text) == expected


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: Rule("freeze", "abc"), "freeze: patterns must be several strings, got 'abc'"),
        (lambda: Rule("freeze", 5), "freeze: patterns must be several strings, got 5"),
        (lambda: Rule(["x"], ("a",)), "unknown verb ['x']"),
        (lambda: FreezePlan(5), "rules must be several Rules, got 5"),
        (lambda: FreezePlan().group("a", options=["ab"]), "options must be a mapping, got ['ab']"),
        (lambda: FreezePlan().group("a", options={}), "the rule sets nothing"),
        (lambda: FreezePlan().group("a", lr=10**400), "lr must be a positive finite number"),
        (lambda: FreezePlan().unfreeze("a", rows="::-1"), "rows must be a slice"),
    ],
)
def test_arguments_of_a_wrong_kind_are_plan_errors(
    build: Callable[[], object], expected: str
) -> None:
    """Whatever is passed for a pattern, a rule or a property, the error is a PlanError."""
    with pytest.raises(PlanError) as caught:
        build()
    assert expected in str(caught.value)


def test_a_rule_takes_its_patterns_from_any_iterable() -> None:
    """Patterns may come from a generator, and no_decay may name several places."""
    assert Rule("freeze", (name for name in "ab")).patterns == ("a", "b")
    assert FreezePlan().no_decay("a", "b").rules[0].patterns == ("a", "b")
    assert FreezePlan().no_decay().rules[0].patterns == ("**",)
    assert FreezePlan().layer_decay("a", "b", decay=1).rules[0].patterns == ("a", "b")
    assert FreezePlan().layer_decay(decay=1).rules[0].patterns == ("**",)
    assert FreezePlan().unfreeze_layerwise().rules[0].patterns == ("**",)
