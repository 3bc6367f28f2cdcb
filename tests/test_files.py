"""Plan files: what is written comes back, what is strange is refused with its place."""

import json
import re
from collections import UserDict, UserList
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import jsonschema
import pytest
import yaml
from drawn_plans import plans
from hypothesis import given
from hypothesis import strategies as st

import freezekit
from freezekit import FreezePlan, PatternError, PlanError
from freezekit._verbs import PROPERTIES, VERBS

SCHEMA = json.loads((files(freezekit) / "plan.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

EXAMPLE = """\
version: 1
rules:
  - freeze: backbone
  - unfreeze: "backbone.encoder.layer[-2:]"
    lr: 2e-5
    at_epoch: 1
  - group: "*_head"
    lr: 1e-3
  - no_decay: "**"
"""
PLAN = (
    FreezePlan()
    .freeze("backbone")
    .unfreeze("backbone.encoder.layer[-2:]", lr=2e-5, at_epoch=1)
    .group("*_head", lr=1e-3)
    .no_decay()
)

NO_PLAN = (
    "plan: expected the keys version and rules, as in {'version': 1, 'rules': [{'freeze': "
    "'backbone'}]}, got "
)


def read(directory: Path, text: str, name: str = "plan.yaml") -> FreezePlan:
    """Returns the plan in a file with this text."""
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return FreezePlan.load(path)


def refusal(directory: Path, text: str, name: str = "plan.yaml") -> str:
    """Returns what `load` says about a file with this text, without the directory."""
    with pytest.raises(PlanError) as caught:
        read(directory, text, name)
    return str(caught.value).removeprefix(f"{directory}/")


def rule_text(*lines: str) -> str:
    """Returns a YAML plan of one rule, whose first line is line 3 of the file."""
    return "version: 1\nrules:\n  - " + "\n    ".join(lines) + "\n"


def toml_value(value: object) -> str:
    """Returns a value as TOML spells it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{toml_value(k)} = {toml_value(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_text(data: Mapping[str, Any]) -> str:
    """Returns a plan as a person would write it in TOML."""
    lines = [f"{key} = {toml_value(data[key])}" for key in data if key != "rules"]
    for rule in data["rules"]:
        lines += ["[[rules]]", *(f"{key} = {toml_value(value)}" for key, value in rule.items())]
    return "\n".join(lines if data["rules"] else [*lines, "rules = []"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for files that are written over and over."""
    return tmp_path_factory.mktemp("plans")


@given(plan=plans())
def test_plan_comes_back_from_every_form(folder: Path, plan: FreezePlan) -> None:
    """Law 1: through the dict and through each file that saves, exactly."""
    again = [FreezePlan.from_dict(plan.to_dict())]
    for name in ("plan.yaml", "plan.yml", "plan.json", "PLAN.JSON"):
        plan.save(folder / name)
        again.append(FreezePlan.load(str(folder / name)))
    assert again == [plan] * 5
    assert {repr(each) for each in again} == {repr(plan)}


@given(plan=plans())
def test_saved_yaml_means_the_same_to_other_readers(folder: Path, plan: FreezePlan) -> None:
    """A reader of YAML 1.1 finds the same data in a saved plan."""
    plan.save(folder / "plan.yaml")
    data = yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))
    assert repr(FreezePlan.from_dict(data)) == repr(plan)


@given(plan=plans(nulls=False))
def test_plan_comes_back_from_toml(folder: Path, plan: FreezePlan) -> None:
    """A plan written by hand in TOML is the plan."""
    assert repr(read(folder, toml_text(plan.to_dict()), "plan.toml")) == repr(plan)


@given(plan=plans(), moved=st.randoms(use_true_random=False))
def test_order_of_keys_means_nothing(plan: FreezePlan, moved: Random) -> None:
    """A rule is the same with its keys in any order."""
    data = plan.to_dict()
    for rule in data["rules"]:
        items = list(rule.items())
        moved.shuffle(items)
        rule.clear()
        rule.update(items)
    assert FreezePlan.from_dict(dict(reversed(data.items()))) == plan


def test_the_documented_file_is_the_documented_plan(tmp_path: Path) -> None:
    """The example of the documentation reads as the calls beside it."""
    assert read(tmp_path, EXAMPLE) == PLAN
    assert read(tmp_path, EXAMPLE, "plan.YML") == PLAN
    assert read(tmp_path, "\ufeff" + EXAMPLE.replace("\n", "\r\n")) == PLAN


def test_saved_yaml_is_written_to_be_read(tmp_path: Path) -> None:
    """Keys keep their order, quotes stand where they are needed, lists on a line if they fit."""
    names = [f"backbone.encoder.layer.{number}" for number in range(4)]
    plan = FreezePlan(PLAN.rules, allow_all_frozen=True).group(
        "a", "!a.b", options={"betas": [0.9, 0.999], "fused": True, "x y": None}, missing_ok=True
    )
    plan.freeze(*names).freeze("no", "0", 're:\\d"').save(tmp_path / "plan.yaml")
    assert (
        (tmp_path / "plan.yaml").read_text()
        == """\
version: 1
allow_all_frozen: true
rules:
  - freeze: backbone
  - unfreeze: "backbone.encoder.layer[-2:]"
    lr: 2.0e-5
    at_epoch: 1
  - group: "*_head"
    lr: 0.001
  - no_decay: "**"
  - group: [a, "!a.b"]
    options: {betas: [0.9, 0.999], fused: true, "x y": null}
    missing_ok: true
  - freeze:
      - backbone.encoder.layer.0
      - backbone.encoder.layer.1
      - backbone.encoder.layer.2
      - backbone.encoder.layer.3
  - freeze: ["no", "0", "re:\\\\d\\""]
"""
    )


def test_empty_plan_is_saved_as_an_empty_list(tmp_path: Path) -> None:
    """A plan without rules has a file too."""
    FreezePlan().save(tmp_path / "plan.yml")
    assert (tmp_path / "plan.yml").read_text() == "version: 1\nrules: []\n"


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("freeze: *.bias", 'freeze: "*.bias"'),
        ("freeze: *_head", 'freeze: "*_head"'),
        ("freeze: *", 'freeze: "*"'),
        ("freeze: **", 'freeze: "**"'),
        ("no_decay:   **   # all", 'no_decay: "**"'),
        ("group: **@LayerNorm", 'group: "**@LayerNorm"'),
        ("unfreeze_layerwise: **", 'unfreeze_layerwise: "**"'),
        ("layer_decay: *", 'layer_decay: "*"'),
        ("freeze: @LayerNorm", 'freeze: "@LayerNorm"'),
        ("freeze: !x", 'freeze: "!x"'),
        ("freeze: !!x", 'freeze: "!!x"'),
        ("freeze: !layer.{0..3}", 'freeze: "!layer.{0..3}"'),
        ("freeze: ?", 'freeze: "?"'),
        ("freeze: {a,b}", 'freeze: "{a,b}"'),
        ("freeze: {a,b}.x", 'freeze: "{a,b}.x"'),
        ("freeze: [0]", 'freeze: "[0]"'),
        ("freeze: [0].x", 'freeze: "[0].x"'),
        ("freeze: [0][1]", 'freeze: "[0][1]"'),
        ("freeze: [-2:]", 'freeze: "[-2:]"'),
        ("freeze: [:2]", 'freeze: "[:2]"'),
        ("freeze: [::2]", 'freeze: "[::2]"'),
        ("freeze: [0-11]", 'freeze: "[0-11]"'),
        ("freeze: 0", 'freeze: "0"'),
        ("freeze: 1.5", 'freeze: "1.5"'),
        ("freeze: true", 'freeze: "true"'),
        ("freeze: null", 'freeze: "null"'),
        ("freeze: re: x", 'freeze: "re: x"'),
        ("freeze: *.a'\"b", "freeze: '*.a''\"b'"),
        ("freeze: [**, !x]", 'freeze: ["**", "!x"]'),
        ('freeze: ["**", !x]', 'freeze: ["**", "!x"]'),
        ("freeze: [a, layer[-2:].{b,c}]", 'freeze: ["a", "layer[-2:].{b,c}"]'),
        ("freeze: [0, 1]", 'freeze: ["0", "1"]'),
        ("freeze: [*.bias,", 'freeze: ["*.bias",'),
        ("{freeze: *.bias, lr: 1e-3}", 'freeze: "*.bias"'),
        ("{lr: 1e-3, unfreeze: {a,b}.c}", 'unfreeze: "{a,b}.c"'),
    ],
)
def test_bare_pattern_is_shown_in_quotes(tmp_path: Path, line: str, advice: str) -> None:
    """What YAML takes for something else than text is refused with the line in quotes."""
    expected = f"plan.yaml, line 3: quote the pattern: {advice}"
    assert refusal(tmp_path, rule_text(line)) == expected
    assert refusal(tmp_path, rule_text(line, "lr: 1e-3")) == expected


@pytest.mark.parametrize(
    ("lines", "number", "advice"),
    [
        (("lr: 1", "freeze: *.bias"), 4, 'freeze: "*.bias"'),
        (("freeze:", "  - a", "  - *.bias"), 5, '- "*.bias"'),
        (("freeze:", "  - a", "  - !b  # not b"), 5, '- "!b"'),
        (("freeze:", "  - a", "  - 0"), 5, '- "0"'),
        (("freeze:", "  - {a,b}"), 4, '- "{a,b}"'),
        (("freeze: [", "  a,", "  *.bias,", "]"), 5, '"*.bias",'),
        (("freeze: [a,", "  *.bias]"), 4, '"*.bias"'),
    ],
)
def test_bare_pattern_is_found_on_its_line(
    tmp_path: Path, lines: tuple[str, ...], number: int, advice: str
) -> None:
    """In a list, or behind other keys, the message has the line of the pattern."""
    expected = f"plan.yaml, line {number}: quote the pattern: {advice}"
    assert refusal(tmp_path, rule_text(*lines)) == expected


def test_bare_pattern_after_good_rules_is_found_on_its_line(tmp_path: Path) -> None:
    """Good rules before a bad one, and after it, are not blamed."""
    good = '  - freeze: ["**", "!layer[-2:]"]\n    lr: 1\n'
    text = f"version: 1\nrules:\n{good * 2}  - group: *_head\n    lr: 1\n{good}"
    assert refusal(tmp_path, text) == 'plan.yaml, line 7: quote the pattern: group: "*_head"'


@pytest.mark.parametrize(
    "line", ["freeze: layer[-2:]", "freeze: layer.{0..3}", "freeze: a.*", "freeze: re:.*[ab]"]
)
def test_bare_pattern_that_yaml_reads_right_is_read(tmp_path: Path, line: str) -> None:
    """Quotes are asked for only where YAML needs them."""
    assert read(tmp_path, rule_text(line)) == FreezePlan().freeze(line.removeprefix("freeze: "))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rule_text("freeze: a", "lr: 1", "lr: 2"),
         "line 5: the key 'lr' is given twice, first on line 4"),
        (rule_text("freeze: a", "options: {b: 1, b: 2}"),
         "line 4: the key 'b' is given twice, first on line 4"),
        ("version: 1\nrules: []\nversion: 1",
         "line 3: the key 'version' is given twice, first on line 1"),
        (rule_text("freeze: a", "missing_ok: yes"),
         'line 4: yes is not a boolean here; write true, or "yes" for the text'),
        (rule_text("freeze: a", "options: {fused: Off}"),
         'line 4: Off is not a boolean here; write false, or "Off" for the text'),
        (rule_text('freeze: "re:\\d+"'), "line 3: a backslash in double quotes is an escape; "
         "use single ones: - freeze: 're:\\d+'"),
        (rule_text("freeze: a", " lr: 1"),
         "line 4: not valid YAML, mapping values are not allowed here: 'lr: 1'"),
        (rule_text("freeze: a", "lr: *base"),
         "line 4: not valid YAML, found undefined alias 'base': 'lr: *base'"),
        (rule_text("freeze: a", "lr: !!float 1"),
         "line 4: only text, numbers and booleans are read: 'lr: !!float 1'"),
        (rule_text("freeze: a", "options: &o {o: *o}"),
         "line 4: not valid YAML, found unconstructable recursive node: 'options: &o {o: *o}'"),
        (rule_text('freeze: "a', "lr: 1"), "line 4: not valid YAML, while scanning a quoted scalar "
         "since line 3, found unexpected end of stream: 'lr: 1'"),
        ("version: 1\n---\nrules: []", "line 2: not valid YAML, expected a single document in the "
         "stream since line 1, but found another document: '---'"),
        (rule_text("freeze: a\x00"), "line 3: '\\x00' cannot stand in YAML"),
        (rule_text("\tfreeze: a"), "line 3: not valid YAML, while scanning for the next token, "
         "found character '\\t' that cannot start any token: '- \\tfreeze: a'"),
    ],
)  # fmt: skip
def test_bad_yaml_is_refused_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    """What is wrong, on which line, and the line."""
    assert refusal(tmp_path, text) == f"plan.yaml, {expected}"


def test_yaml_values_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    """`1e-5` is a number; a date, a time of day or `0x10` is text; 010 is ten."""
    spelled = {
        "1e-5": 1e-5, "-1E+3": -1e3, ".5": 0.5, "5.": 5.0, "1_000": "1_000", "010": 10, "+7": 7,
        "0x10": "0x10", "0o17": "0o17", "1:30": "1:30", "2020-01-01": "2020-01-01", "True": True,
        "FALSE": False, "~": None, "Null": None, "y": "y", "n": "n", "'1'": "1", '"yes"': "yes",
    }  # fmt: skip
    lines = [f"  k{number}: {text}" for number, text in enumerate(spelled)]
    (rule,) = read(tmp_path, rule_text("freeze: a", "options:", *lines)).rules
    read_back = [rule.properties["options"][f"k{number}"] for number in range(len(spelled))]
    assert list(map(repr, read_back)) == list(map(repr, spelled.values()))


def test_yaml_anchors_are_read(tmp_path: Path) -> None:
    """A value can be named and used again."""
    text = rule_text('freeze: &list ["a", "b"]', "lr: &lr 1e-3") + "  - unfreeze: *list\n"
    assert read(tmp_path, f"{text}    lr: *lr\n") == FreezePlan().freeze(
        "a", "b", lr=1e-3
    ).unfreeze("a", "b", lr=1e-3)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("plan.json", '{"version": 1,\n "rules": [}', "plan.json, line 2, column 12: not valid "
         "JSON: Expecting value"),
        ("plan.json", '{"version": 1, "rules": [{"freeze": "a", "lr": 1, "lr": 2}]}', "plan.json: "
         "the key 'lr' is given twice in one object, with 1 and 2"),
        ("plan.json", '{"version": 1, "rules": [{"freeze": "a", "lr": NaN}]}', "plan.json, rule 1: "
         "freeze('a', lr=nan): lr must be a positive finite number, got nan; to stop training use "
         "freeze('a') instead"),
        ("plan.json", '{"version": 1, "rules": [{"freeze": "a", "options": {"b": -Infinity}}]}',
         "plan.json, rule 1: freeze('a', options={'b': -inf}): options: values must be plain data "
         "(numbers, strings, lists), got -inf"),
        ("plan.json", '{"version": 1, "rules": [{"freeze": 0}]}', "plan.json, rule 1: freeze: a "
         "pattern must be text, got 0; write '0'"),
        ("plan.json", '{"rules": []}', 'plan.json: the version is missing; add "version": 1'),
        ("plan.toml", 'rules = []\nversion = 1\nversion = 1\n', "plan.toml: not valid TOML: Cannot "
         "overwrite a value (at line 3, column 12)"),
        ("plan.toml", "rules = []", "plan.toml: the version is missing; add version = 1"),
        ("plan.yml", "rules: []", "plan.yml: the version is missing; add version: 1"),
        ("plan.yaml", "", NO_PLAN.replace("plan:", "plan.yaml:") + "None"),
        ("plan.json", "[]", NO_PLAN.replace("plan:", "plan.json:") + "[]"),
        ("plan.txt", EXAMPLE, "plan.txt: a plan file ends in .yaml, .yml, .toml, .json, not "
         "'.txt'"),
        ("plan", EXAMPLE, "plan: a plan file ends in .yaml, .yml, .toml, .json, not ''"),
    ],
)  # fmt: skip
def test_bad_file_is_refused_with_its_name(
    tmp_path: Path, name: str, text: str, expected: str
) -> None:
    """JSON and TOML are as strict as YAML, and another ending is not guessed at."""
    assert refusal(tmp_path, text, name) == expected


def test_file_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    """Text that is not UTF-8 has a line too."""
    path = tmp_path / "plan.yaml"
    path.write_bytes(EXAMPLE.replace("backbone", "r\u00fcckgrat").encode("latin-1"))
    with pytest.raises(PlanError) as caught:
        FreezePlan.load(path)
    assert str(caught.value) == f"{path}, line 3: 0xfc is not UTF-8 text"


def test_missing_file_is_the_system_error(tmp_path: Path) -> None:
    """A file that is not there is a `FileNotFoundError`, as everywhere."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        FreezePlan.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("name", ["plan.toml", "plan.txt", "plan"])
def test_save_refuses_other_endings(tmp_path: Path, name: str) -> None:
    """Only YAML and JSON are written; nothing is left behind otherwise."""
    with pytest.raises(PlanError) as caught:
        PLAN.save(tmp_path / name)
    suffix = Path(name).suffix
    assert str(caught.value) == (
        f"{tmp_path / name}: a plan is saved as .yaml, .yml or .json, not {suffix!r}"
    )
    assert list(tmp_path.iterdir()) == []


def one(**rule: object) -> dict[str, Any]:
    """Returns the data of a plan with one rule."""
    return {"version": 1, "rules": [rule]}


KNOWN = "(known: freeze, unfreeze, group, no_decay, unfreeze_layerwise, layer_decay, lr_range)"
MOMENTS = (
    "at_epoch, at_step, at_fraction, at_metric, until_epoch, until_step, until_fraction, missing_ok"
)
NO_RULES = "plan: rules must be a list of rules such as {'freeze': 'backbone'}, got "
NOT_IN_SCHEMA = [
    (one(freeze="a..b"), "plan, rule 1: freeze('a..b'): pattern 'a..b': a segment between two "
     "dots, or beside one, is empty"),
    (one(freeze="a", at_epoch=2, until_epoch=1), "plan, rule 1: freeze('a', at_epoch=2, "
     "until_epoch=1): until_epoch=1 closes the rule before at_epoch=2 opens it"),
    (one(lr_range="a", low=2, high=1.5), "plan, rule 1: lr_range('a', low=2, high=1.5): low=2 is "
     "above high=1.5; low is for the lowest layer, next to the input"),
]  # fmt: skip
BAD = [
    (None, f"{NO_PLAN}None"),
    ([], f"{NO_PLAN}[]"),
    ({"rules": []}, "plan: the version is missing; add version: 1"),
    ({"version": 2, "rules": []},
     "plan: version 2; this freezekit reads version 1: upgrade freezekit"),
    ({"version": 0, "rules": []}, "plan: version 0; this freezekit reads version 1: write 1"),
    ({"version": "1", "rules": []}, "plan: version must be the number 1, got '1'"),
    ({"version": True, "rules": []}, "plan: version must be the number 1, got True"),
    ({"version": 1}, f"{NO_RULES}None"),
    ({"version": 1, "rules": None}, f"{NO_RULES}None"),
    ({"version": 1, "rules": {"freeze": "a"}}, f"{NO_RULES}{{'freeze': 'a'}}"),
    ({"version": 1, "rules": "a"}, f"{NO_RULES}'a'"),
    ({"version": 1, "rule": []},
     "plan: unknown key 'rule'; did you mean 'rules'? (known: version, rules, allow_all_frozen, "
     "layers)"),
    ({"version": 1, "rules": [], "layers": {"block": "a"}}, "plan: layers has no key 'block'; did "
     "you mean 'blocks'? (known: by, final_norm, stem, blocks, head)"),
    ({"version": 1, "rules": [], "layers": None},
     "plan: layers has no value; give it one or leave it out"),
    ({"version": 1, "rules": [], "layers": {"blocks": []}},
     "plan: blocks takes a pattern or a list of patterns, got []"),
    ({"version": 1, "rules": [], "layers": {"by": "stage", "blocks": "a"}},
     "plan: by='stage' is about the blocks that are found, and blocks=('a',) names them; name the "
     "stages as blocks instead"),
    ({"version": 1, "rules": [], "layers": {"final_norm": "stem"}},
     "plan: final_norm must be 'head' or 'last_block', got 'stem'"),
    ({"version": 1, "rules": [], "x": 1},
     "plan: unknown key 'x' (known: version, rules, allow_all_frozen, layers)"),
    ({"version": 1, "rules": [], "allow_all_frozen": "yes"},
     "plan: allow_all_frozen must be true or false, got 'yes'"),
    ({"version": 1, "rules": [{"freeze": "a"}, "b"]},
     "plan, rule 2: expected a rule such as {'freeze': 'backbone'}, got 'b'"),
    (one(), f"plan, rule 1: it has no verb, it is empty {KNOWN}"),
    (one(lr=1, freze="a"), "plan, rule 1: it has no verb, its keys are 'lr', 'freze'; "
     f"did you mean 'freeze'? {KNOWN}"),
    (one(lr=1), f"plan, rule 1: it has no verb, its keys are 'lr' {KNOWN}"),
    (one(freeze="a", group="b"),
     "plan, rule 1: it has two verbs, freeze and group; make it two rules"),
    (one(freeze=None), "plan, rule 1: freeze takes a pattern or a list of patterns, got None"),
    (one(freeze={"a": 1}),
     "plan, rule 1: freeze takes a pattern or a list of patterns, got {'a': 1}"),
    (one(freeze=b"a"), "plan, rule 1: freeze takes a pattern or a list of patterns, got b'a'"),
    (one(freeze=0), "plan, rule 1: freeze: a pattern must be text, got 0; write '0'"),
    (one(freeze=["a", 1]), "plan, rule 1: freeze: a pattern must be text, got 1; write '1'"),
    (one(freeze=[]), "plan, rule 1: freeze(): no pattern is given; '**' selects everything"),
    (one(freeze=""), "plan, rule 1: freeze(''): pattern '': it is empty; '**' selects everything"),
    (one(freeze=["!a", "b"]), "plan, rule 1: freeze('!a', 'b'): pattern '!a': '!' takes away from "
     "the patterns before it and there are none; write '**', '!a', 'b'"),
    (one(no_decay="a", lr=1), "plan, rule 1: no_decay has no property 'lr' (known: at_epoch, "
     "at_step, at_fraction, at_metric, until_epoch, until_step, until_fraction, missing_ok)"),
    (one(no_decay="a", **{"<<": 1}), "plan, rule 1: no_decay has no property '<<' (known: "
     "at_epoch, at_step, at_fraction, at_metric, until_epoch, until_step, until_fraction, "
     "missing_ok)"),
    (one(group="a"), "plan, rule 1: group('a'): the rule sets nothing; give it lr, lr_mult, "
     "weight_decay, options, ..."),
    (one(freeze="a", lr=None), "plan, rule 1: lr has no value; give it one or leave it out"),
    (one(freeze="a", lr="2e-5"), "plan, rule 1: lr must be a number, got the text '2e-5'; write "
     "it without quotes, and as 2.0e-5 where a YAML reader takes 2e-5 for text"),
    (one(freeze="a", lr="fast"), "plan, rule 1: freeze('a', lr='fast'): lr must be a positive "
     "finite number, got 'fast'; to stop training use freeze('a') instead"),
    (one(freeze="a", lr=0), "plan, rule 1: freeze('a', lr=0): lr must be a positive finite "
     "number, got 0; to stop training use freeze('a') instead"),
    (one(freeze="a", lr=1, lr_mult=1), "plan, rule 1: freeze('a', lr=1, lr_mult=1): lr and "
     "lr_mult are one property in two units; give one of them"),
    (one(freeze="a", weight_decay=-1), "plan, rule 1: freeze('a', weight_decay=-1): weight_decay "
     "must be a finite number >= 0, got -1"),
    (one(freeze="a", warmup_steps=0), "plan, rule 1: freeze('a', warmup_steps=0): warmup_steps "
     "must be a whole number >= 1, got 0"),
    (one(freeze="a", options=[["b", 1]]), "plan, rule 1: options must be a mapping, got "
     "[['b', 1]]"),
    (one(freeze="a", options={"lr": 1}), "plan, rule 1: freeze('a', options={'lr': 1}): options: "
     "'lr' is not an option; it has a property of its own"),
    (one(freeze="a", options={"b": {}}), "plan, rule 1: freeze('a', options={'b': {}}): options: "
     "values must be plain data (numbers, strings, lists), got {}"),
    (one(freeze="a", frozen_mode="on"), "plan, rule 1: freeze('a', frozen_mode='on'): frozen_mode "
     "must be 'eval' or 'train', got 'on'"),
    (one(freeze="a", rows="3"), "plan, rule 1: freeze('a', rows='3'): rows must be a slice such "
     "as '30522:' or ':100', got '3'"),
    (one(freeze="a", at_epoch=-1), "plan, rule 1: freeze('a', at_epoch=-1): at_epoch must be a "
     "whole number >= 0, got -1"),
    (one(freeze="a", at_fraction=2), "plan, rule 1: freeze('a', at_fraction=2): at_fraction must "
     "lie between 0 and 1, got 2"),
    (one(freeze="a", at_epoch=1, at_step=1), "plan, rule 1: freeze('a', at_epoch=1, at_step=1): "
     "at_epoch and at_step exclude each other; give one of them"),
    (one(freeze="a", until_step=0), "plan, rule 1: freeze('a', until_step=0): until_step=0 closes "
     "the rule before it opens"),
    (one(freeze="a", at_metric="loss"), "plan, rule 1: at_metric must be a mapping, got 'loss'"),
    (one(freeze="a", at_metric={}), "plan, rule 1: freeze('a', at_metric={}): at_metric needs "
     "'monitor', the name of a metric, e.g. 'val_loss'"),
    (one(freeze="a", at_metric={"monitor": "x", "mode": "up"}), "plan, rule 1: freeze('a', "
     "at_metric={'mode': 'up', 'monitor': 'x'}): at_metric: mode must be 'min' or 'max', got "
     "'up'"),
    (one(freeze="a", missing_ok="true"), "plan, rule 1: freeze('a', missing_ok='true'): "
     "missing_ok must be true or false, got 'true'"),
    (one(layer_decy="a", decay=0.5), "plan, rule 1: it has no verb, its keys are 'layer_decy', "
     f"'decay'; did you mean 'layer_decay'? {KNOWN}"),
    (one(decay=0.5), f"plan, rule 1: it has no verb, its keys are 'decay' {KNOWN}"),
    (one(freeze="a", decay=0.5), "plan, rule 1: freeze has no property 'decay' (known: "
     f"{MOMENTS.removesuffix('missing_ok')}lr, lr_mult, weight_decay, warmup_steps, options, "
     "frozen_mode, missing_ok, rows)"),
    (one(layer_decay="a", decya=0.5), "plan, rule 1: layer_decay has no property 'decya'; did you "
     f"mean 'decay'? (known: {MOMENTS}, decay, top, count, lr, min_mult)"),
    (one(layer_decay="a"), "plan, rule 1: layer_decay('a'): decay is missing; give the factor "
     "from one layer to the next below, e.g. decay=0.8"),
    (one(layer_decay="a", decay=1.5), "plan, rule 1: layer_decay('a', decay=1.5): decay must be "
     "greater than 0 and at most 1, got 1.5"),
    (one(layer_decay="a", decay="0.5"), "plan, rule 1: decay must be a number, got the text "
     "'0.5'; write it without quotes, and as 2.0e-5 where a YAML reader takes 2e-5 for text"),
    (one(layer_decay="a", decay=1, top="body"), "plan, rule 1: layer_decay('a', decay=1, "
     "top='body'): top must be 'head' or 'selection', got 'body'"),
    (one(layer_decay="a", decay=1, min_mult=2), "plan, rule 1: layer_decay('a', decay=1, "
     "min_mult=2): min_mult must lie between 0 and 1, got 2"),
    (one(layer_decay="a", decay=1, lr=0), "plan, rule 1: layer_decay('a', lr=0, decay=1): lr must "
     "be a positive finite number, got 0; to stop training use freeze('a') instead"),
    (one(lr_range="a", low=1), "plan, rule 1: lr_range('a', low=1): high is missing; give the "
     "learning rate of the top layer, e.g. high=1e-3"),
    (one(lr_range="a", high=1), "plan, rule 1: lr_range('a', high=1): low is missing; give the "
     "learning rate of the lowest layer, e.g. low=1e-5"),
    (one(lr_range="a", low=0, high=1), "plan, rule 1: lr_range('a', low=0, high=1): low must be a "
     "positive finite number, got 0"),
    (one(lr_range="a", low=1, high=True), "plan, rule 1: lr_range('a', low=1, high=True): high "
     "must be a positive finite number, got True"),
    (one(unfreeze_layerwise="a", at_epoch=1), "plan, rule 1: unfreeze_layerwise has no property "
     "'at_epoch', it opens its layers one after another: say when with start_epoch and "
     "every_epochs or start_step and every_steps; a later freeze can close them"),
    (one(unfreeze_layerwise="a", every_epoch=1), "plan, rule 1: unfreeze_layerwise has no property "
     "'every_epoch'; did you mean 'every_epochs'? (known: start_epoch, every_epochs, start_step, "
     "every_steps, layers_per_phase, order, missing_ok)"),
    (one(unfreeze_layerwise="a", every_epochs=0), "plan, rule 1: unfreeze_layerwise('a', "
     "every_epochs=0): every_epochs must be a whole number >= 1, got 0"),
    (one(unfreeze_layerwise="a", start_epoch=-1), "plan, rule 1: unfreeze_layerwise('a', "
     "start_epoch=-1): start_epoch must be a whole number >= 0, got -1"),
    (one(unfreeze_layerwise="a", layers_per_phase=1.5), "plan, rule 1: unfreeze_layerwise('a', "
     "layers_per_phase=1.5): layers_per_phase must be a whole number >= 1, got 1.5"),
    (one(unfreeze_layerwise="a", order="up"), "plan, rule 1: unfreeze_layerwise('a', order='up'): "
     "order must be 'top_down' or 'bottom_up', got 'up'"),
    (one(unfreeze_layerwise="a", start_epoch=1, every_steps=9), "plan, rule 1: "
     "unfreeze_layerwise('a', start_epoch=1, every_steps=9): start_epoch and every_steps are of "
     "two clocks; give start_epoch and every_epochs, or start_step and every_steps"),
    (one(unfreeze_layerwise="a", start_step=9), "plan, rule 1: unfreeze_layerwise('a', "
     "start_step=9): start_step needs every_steps, the steps from one opening to the next"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), [*BAD, *NOT_IN_SCHEMA])
def test_bad_data_is_refused_with_the_rule(data: object, expected: str) -> None:
    """Whatever a plan file may not say is an error that names the rule and quotes it."""
    with pytest.raises(PlanError) as caught:
        FreezePlan.from_dict(data)
    assert str(caught.value) == expected
    assert isinstance(caught.value, PatternError) == ("): pattern " in expected)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a", "!a", "1", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=4,
)
verbs = st.dictionaries(st.sampled_from([*VERBS, "frese"]), st.just("a") | plain, max_size=2)
properties = st.dictionaries(st.sampled_from(sorted(PROPERTIES)), plain, max_size=2)
near_rules = st.builds(lambda verb, rest: verb | rest, verbs, properties)
near_plans = st.builds(lambda *rules: {"version": 1, "rules": rules}, near_rules, plain)
near_plans |= near_rules.map(lambda rule: {"version": 1, "rules": [rule]})


@given(data=near_plans | plain)
def test_no_data_breaks_the_reader(data: object) -> None:
    """Data is a plan that comes back, or a `PlanError`: nothing else is raised."""
    try:
        plan = FreezePlan.from_dict(data)
    except PlanError:
        assert data != {"version": 1, "rules": []}
    else:
        assert FreezePlan.from_dict(plan.to_dict()) == plan
        assert VALIDATOR.is_valid(plan.to_dict())


@given(text=st.text(alphabet="ab01 \n-:,.*!&@#?|>{}[]\"'%~\\\t", max_size=20))
def test_no_pattern_text_breaks_the_yaml_reader(folder: Path, text: str) -> None:
    """Whatever stands behind a verb is read or refused with a line or a rule."""
    path = folder / "drawn.yaml"
    path.write_text(rule_text(f"freeze: {text}"), encoding="utf-8")
    try:
        plan = FreezePlan.load(path)
    except PlanError as error:
        message = str(error)
    else:
        message = f"{path}, rule {len(plan.rules)}"
    assert re.match(re.escape(str(path)) + r"(, line \d+: |, rule 1|: )", message)


def test_messages_name_the_source_they_are_given(tmp_path: Path) -> None:
    """`load` names the file, `from_dict` what it is told."""
    text = EXAMPLE.replace("lr: 1e-3", "lr_multt: 2")
    assert refusal(tmp_path, text).startswith(
        "plan.yaml, rule 3: group has no property 'lr_multt'; did you mean 'lr_mult'? (known: "
    )
    with pytest.raises(PlanError, match=r"^config\.plan, rule 1: it has no verb"):
        FreezePlan.from_dict(one(), source="config.plan")


class Config(UserDict[str, object]):
    """A mapping that is no dict, as configuration libraries have them."""


class ConfigList(UserList[object]):
    """A sequence that is neither list nor tuple."""


def configured(value: object) -> object:
    """Returns plain data with its mappings and lists as `Config` and `ConfigList`."""
    if isinstance(value, dict):
        return Config({key: configured(entry) for key, entry in value.items()})
    return ConfigList(map(configured, value)) if isinstance(value, list) else value


@given(plan=plans())
def test_any_mapping_and_sequence_will_do(plan: FreezePlan) -> None:
    """Mappings and sequences are known by their abstract classes."""
    assert FreezePlan.from_dict(configured(plan.to_dict())) == plan
    assert FreezePlan.from_dict(MappingProxyType(plan.to_dict())) == plan


def test_reading_does_not_change_the_data() -> None:
    """`from_dict` leaves its argument as it was and keeps nothing of it."""
    data = one(freeze=["a", "!a.b"], options={"betas": [0.9, 0.99]})
    before = json.dumps(data)
    plan = FreezePlan.from_dict(data)
    assert json.dumps(data) == before
    data["rules"][0]["options"]["betas"].append(1)
    assert json.dumps(plan.to_dict()) == before


def test_schema_is_a_schema() -> None:
    """The schema is valid against the draft it names."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == VALIDATOR.META_SCHEMA["$id"]


def test_schema_knows_the_verbs_and_their_properties() -> None:
    """Schema and code list the same verbs, each with the same properties, all described."""
    branches = SCHEMA["$defs"]["rule"]["oneOf"]
    assert {branch["title"]: set(branch["properties"]) for branch in branches} == {
        verb: {verb, *properties.__annotations__} for verb, properties in VERBS.items()
    }
    used = set(re.findall(r"#/\$defs/(\w+)", json.dumps(SCHEMA)))
    assert used == set(SCHEMA["$defs"])
    assert [name for name in used if "description" not in SCHEMA["$defs"][name]] == []


@given(plan=plans())
def test_schema_accepts_every_plan(plan: FreezePlan) -> None:
    """What `to_dict` gives is valid."""
    VALIDATOR.validate(plan.to_dict())
    assert VALIDATOR.is_valid(json.loads(json.dumps(plan.to_dict())))


@pytest.mark.parametrize("data", [data for data, _ in BAD])
def test_schema_refuses_what_the_reader_refuses(data: object) -> None:
    """Bad data is invalid, except for what a schema cannot see."""
    assert not VALIDATOR.is_valid(data)


@pytest.mark.parametrize(("data", "_"), NOT_IN_SCHEMA)
def test_schema_cannot_see_everything(data: object, _: str) -> None:
    """The grammar of patterns and the order of moments are left to the reader."""
    assert VALIDATOR.is_valid(data)
