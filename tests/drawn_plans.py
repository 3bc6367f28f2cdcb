"""Plans drawn without a model: every verb, every property, patterns with awkward text."""

from functools import cache
from typing import Any

from hypothesis import strategies as st

from freezekit import FreezePlan, PatternError, Rule
from freezekit._glob import parse
from freezekit._verbs import VERBS

UNITS = ("epoch", "step", "fraction")
TAKEN = {"params", "lr", "weight_decay", "name"}
COMMON = ("backbone", "**", "*_head", "**@LayerNorm", "layer[-2:]", "[0]", "{a,b}.x", "re:.*\\d'")
WORDS = ("yes", "no", "on", "null", "~", "true", "1", "1e-5", "0x10", "2020-01-01", "1:30", "<<")


def is_pattern(text: str) -> bool:
    """Returns whether the text can stand first in a rule."""
    try:
        return not parse(text).negated
    except PatternError:
        return False


positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False) | st.integers(1, 10)
texts = st.text(max_size=8) | st.sampled_from([*WORDS, *COMMON, "a: b", "a #b", "- a"])
plain_patterns = st.sampled_from(COMMON) | texts.filter(is_pattern)


def options(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draws optimizer options: single values and lists."""
    keys = texts.filter(lambda key: key not in TAKEN)
    return st.dictionaries(keys, values | st.lists(values | st.lists(values, max_size=2)))


@st.composite
def moments(draw: st.DrawFn) -> dict[str, Any]:
    """Draws when a rule opens, when it closes, both or neither."""
    found: dict[str, Any] = {}
    opening = draw(st.sampled_from([None, *UNITS, "metric"]))
    closing = draw(st.sampled_from([None, *UNITS]))
    if opening == "metric":
        optional = {
            "mode": st.sampled_from(["min", "max"]),
            "patience": st.integers(0, 5),
            "min_delta": positive,
        }
        metric = st.fixed_dictionaries({"monitor": texts.filter(len)}, optional=optional)
        found["at_metric"] = draw(metric)
    elif opening:
        found[f"at_{opening}"] = draw(
            st.floats(0, 0.5) if opening == "fraction" else st.integers(0, 9)
        )
    if closing:
        found[f"until_{closing}"] = draw(
            st.floats(0.5, 1, exclude_min=True) if closing == "fraction" else st.integers(10, 99)
        )
    return found


@cache
def _values(nulls: bool) -> dict[str, st.SearchStrategy[Any]]:
    """Returns what draws each property that any verb takes."""
    scalars = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    scalars |= texts | st.none() if nulls else texts
    return {
        "weight_decay": st.just(0) | positive,
        "warmup_steps": st.integers(1, 1000),
        "options": options(scalars),
        "frozen_mode": st.sampled_from(["eval", "train"]),
        "rows": st.sampled_from(["30522:", ":100", "-4:", "2:40:2"]),
        "missing_ok": st.booleans(),
        "layers_per_phase": st.integers(1, 5),
        "order": st.sampled_from(["top_down", "bottom_up"]),
        "decay": st.floats(0, 1, exclude_min=True) | st.just(1),
        "top": st.sampled_from(["head", "selection"]),
        "count": st.sampled_from(["all", "selection"]),
        "min_mult": st.floats(0, 1) | st.integers(0, 1),
        "low": st.floats(0, 1, exclude_min=True) | st.just(1),
        "high": st.floats(1, allow_infinity=False) | st.integers(1, 10),
    }


@st.composite
def rules(draw: st.DrawFn, *, nulls: bool = True) -> Rule:
    """Draws a rule.

    Args:
        draw: given by Hypothesis.
        nulls: whether None may stand among the options.
    """
    verb = draw(st.sampled_from(sorted(VERBS)))
    rest = [] if verb == "no_decay" else draw(st.lists(plain_patterns, max_size=3))
    patterns = [draw(plain_patterns), *(draw(st.sampled_from(["", "!"])) + text for text in rest)]
    values = _values(nulls) | {draw(st.sampled_from(["lr", "lr_mult"])): positive}
    clock = draw(st.sampled_from(["epoch", "step"]))
    values |= {f"start_{clock}": st.integers(0, 9), f"every_{clock}s": st.integers(1, 9)}
    needed = {
        "group": ["weight_decay"],
        "unfreeze_layerwise": ["every_steps"] if clock == "step" else [],
        "layer_decay": ["decay"],
        "lr_range": ["low", "high"],
    }.get(verb, [])
    known = VERBS[verb].__annotations__
    allowed = {name: values[name] for name in values if name in known}
    required = {name: allowed.pop(name) for name in needed}
    properties = draw(st.fixed_dictionaries(required, optional=allowed))
    if "at_epoch" in known:
        properties |= draw(moments())
    return Rule(verb, tuple(patterns), **properties)


def layerings() -> st.SearchStrategy[dict[str, Any]]:
    """Draws what a plan may say about layers."""
    first = plain_patterns
    several = first | st.tuples(first, first.map(lambda text: f"!{text}")).map(list)
    parts = {"stem": several, "head": several}
    norm = {"final_norm": st.sampled_from(["head", "last_block"])}
    staged = st.fixed_dictionaries(
        {}, optional=parts | norm | {"by": st.sampled_from(["block", "stage"])}
    )
    return staged | st.fixed_dictionaries({}, optional=parts | norm | {"blocks": several})


def plans(*, nulls: bool = True) -> st.SearchStrategy[FreezePlan]:
    """Draws a plan; see `rules`."""
    drawn = st.lists(rules(nulls=nulls), max_size=4)
    return st.builds(FreezePlan, drawn, allow_all_frozen=st.booleans(), layers=layerings())
