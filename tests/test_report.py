"""The report without a browser: its data say what the plan does, and it loads nothing."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from strategies import Case, cases
from torch import nn

from freezekit import FreezePlan, PlanError, ResolvedPlan
from freezekit._grid import grid
from freezekit._report._data import report_data
from freezekit.errors import FreezekitError

BASE = 0.5
NAMES = (
    "<script>alert(1)</script>",
    "</script>",
    "<!--",
    "]]>",
    "&amp;",
    "'quoted\"",
    "\u2028line\u2029",
    "{{data}}",
    "été\ud800",
)


def resolve(case: Case, rules: tuple[Any, ...] | None = None) -> ResolvedPlan:
    """A drawn plan on its model; plans that do not fit it are not drawn."""
    plan = case.plan if rules is None else FreezePlan(rules, allow_all_frozen=True)
    try:
        return plan.resolve(case.tree.build(), **case.totals)
    except FreezekitError:
        assume(False)
        raise


def data_of(resolved: ResolvedPlan, other: ResolvedPlan | None = None) -> dict[str, Any]:
    """The data as they come out of the file."""
    data = report_data(resolved, other, BASE, "AdamW")
    return json.loads(json.dumps(data, allow_nan=False))


def module_paths(data: dict[str, Any]) -> list[str]:
    """The paths of the modules, put together as the page does."""
    paths = [""]
    modules, texts = data["modules"], data["texts"]
    for name, parent in list(zip(modules["names"], modules["parents"], strict=True))[1:]:
        paths.append(".".join(filter(None, [paths[parent], texts[name]])))
    return paths


def parameter_names(data: dict[str, Any]) -> list[str]:
    """The names of the parameters, put together as the page does."""
    paths, columns = module_paths(data), data["parameters"]
    return [
        ".".join(filter(None, [paths[owner], data["texts"][name]]))
        for owner, name in zip(columns["owners"], columns["names"], strict=True)
    ]


def rate(data: dict[str, Any], reason: list[Any]) -> float:
    """The learning rate under some reasons, as the page computes it."""
    _, lr, mult, _ = reason
    if lr is not None:
        return float(lr)
    return float(data["rate"]["base"] * (1 if mult is None else mult))


def rows_of(runs: list[int]) -> set[int]:
    """The numbers that runs stand for."""
    firsts_and_lasts = zip(runs[::2], runs[1::2], strict=True)
    return {row for first, last in firsts_and_lasts for row in range(first, last + 1)}


def cells_of(data: dict[str, Any], row: dict[str, Any]) -> list[list[Any]]:
    """The cells of a row of the timeline, one for each phase."""
    pairs = zip(row["cells"][::2], row["cells"][1::2], strict=True)
    return [list(data["cells"][number]) for times, number in pairs for _ in range(times)]


def page_of(resolved: ResolvedPlan, folder: Path, **options: Any) -> str:  # noqa: ANN401
    """The text of a report."""
    resolved.save_html(folder / "plan.html", **options)
    return (folder / "plan.html").read_text(encoding="utf-8")


def small() -> ResolvedPlan:
    """Two layers, two phases."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    return FreezePlan().freeze("[0]", until_epoch=2).group("[0]", lr_mult=0.1).resolve(model)


def awkward(names: Sequence[str] = NAMES) -> nn.Module:
    """A model whose names try to leave the place where they stand."""
    model = nn.ModuleDict({"head": nn.Linear(2, 2)})
    for name in names:
        class_name = name.encode("utf-8", "ignore").decode()
        model.add_module(name, type(class_name, (nn.Linear,), {})(2, 2))
    return model


def ten_thousand() -> ResolvedPlan:
    """A model with 10,000 parameters in 40 layers, and a plan with eleven phases."""

    def linears(names: str) -> nn.ModuleDict:
        return nn.ModuleDict({name: nn.Linear(8, 8) for name in names})

    def block() -> nn.ModuleDict:
        experts = nn.ModuleList(linears("abcd") for _ in range(30))
        parts = {"attention": linears("qkvo"), "norm": nn.LayerNorm(8), "experts": experts}
        return nn.ModuleDict(parts)

    with torch.device("meta"):
        model = nn.ModuleList(block() for _ in range(40))
    plan = FreezePlan(allow_all_frozen=True).freeze("**").no_decay()
    plan = plan.unfreeze_layerwise("[-10:]", start_epoch=1).lr_range("**", low=1e-5, high=1e-3)
    return plan.resolve(model)


def none_alike() -> ResolvedPlan:
    """8,002 parameters in 2,001 layers, each with a rate of its own, and 60 phases."""
    with torch.device("meta"):
        blocks = (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)) for _ in range(2_000))
        model = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "head": nn.Linear(3, 2)})
    plan = FreezePlan().freeze("blocks")
    plan = plan.unfreeze_layerwise("blocks", start_epoch=1, layers_per_phase=34)
    return plan.lr_range("blocks", low=1e-5, high=1e-3).resolve(model)


@given(cases())
def test_data_say_what_the_plan_does(case: Case) -> None:
    """For every parameter and phase: whether it trains, its rate, and why, as the plan says."""
    resolved = resolve(case)
    data = data_of(resolved)
    columns, outcomes = data["parameters"], data["outcomes"]
    names = parameter_names(data)
    assert names == [row.name for row in resolved.rows]
    assert [each["text"] for each in data["phases"]] == list(map(str, resolved.phases))
    for row, name in enumerate(names):
        explanation = resolved.explain(name)
        numbers = outcomes["phases"][columns["outcomes"][row]]
        said = [outcomes["reasons"][number] for number in numbers]
        for phase, reason in zip(resolved.phases, said, strict=True):
            assert reason[0] == (name in phase.trainable)
            if data["rate"]["unit"] == "lr":
                assert rate(data, reason) == phase.lr(name, BASE)
        assert [(at, *each) for at, reason in enumerate(said) for each in reason[3]] == [
            (each.phase, each.key, str(each.value), each.rule, list(each.overridden))
            for each in explanation.reasons
        ]
        spans = outcomes["stretches"][columns["outcomes"][row]]
        assert [(first, outcomes["spans"][text]) for first, text in spans] == [*explanation.phases]
        shape = columns["shape"][columns["shapes"][row]]
        assert shape == list(explanation.shape or ())
    numbers = zip(names, columns["outcomes"], strict=True)
    silent = {name for name, number in numbers if number in outcomes["silent"]}
    assert silent == set(resolved.unmentioned)


@given(cases())
def test_modules_and_further_names_are_those_of_the_model(case: Case) -> None:
    """Paths, classes and held modes are those of the module rows, in every phase."""
    resolved = resolve(case)
    data = data_of(resolved)
    modules, paths = data["modules"], module_paths(data)
    for phase in resolved.phases:
        rows = resolved._module_rows(phase)
        assert paths == [row.path for row in rows]
        assert [data["texts"][each] for each in modules["classes"]] == [r.class_name for r in rows]
        held = [modules["held"][each][phase.index] == "1" for each in modules["modes"]]
        assert held == [row.held for row in rows]
    further = [
        (".".join(filter(None, [paths[owner], data["texts"][name]])), row)
        for owner, name, row in data["parameters"]["aliases"]
    ]
    assert sorted(further) == sorted(
        (name, at) for at, row in enumerate(resolved.rows) for name in row.aliases
    )


@given(cases(plain=True), cases(plain=True))
@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_differences_are_those_of_the_moments_of_a_phase(case: Case, more: Case) -> None:
    """A parameter differs in a phase where the plans differ about it at one of its moments."""
    rules = tuple(each.rule for each in (*case.rules[1:], *case.rules[:1]))
    before, after = resolve(case), resolve(case, rules)
    data = data_of(before, after)
    expected: list[set[int]] = [set() for _ in before.phases]
    for moment in range(20):
        clocks = {"epoch": moment, "step": moment}
        phases = before.at(**clocks), after.at(**clocks)
        for row, name in enumerate(parameter_names(data)):
            pair = [
                {(r.key, str(r.value)) for r in plan.explain(name).reasons if r.phase == at.index}
                for plan, at in zip((before, after), phases, strict=True)
            ]
            if pair[0] != pair[1]:
                expected[phases[0].index].add(row)
    assert [rows_of(runs) for runs in data["diff"]["phases"]] == expected


def test_changes_are_those_of_the_difference() -> None:
    """Property, moment, values and parameters are those that `diff` gives."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    before = FreezePlan().freeze("[0]", until_epoch=2).resolve(model)
    after = FreezePlan().freeze("[0]", until_epoch=5).resolve(nn.Sequential(nn.Linear(4, 4)))
    found = data_of(before, after)["diff"]
    (ends, starts) = found["groups"][::-1]
    assert (starts["start"], starts["key"], starts["values"]) == (
        2,
        "trainable",
        ["True", "False", True],
    )
    assert (ends["start"], ends["values"]) == (5, ["True", "True", False])
    assert rows_of(starts["runs"]) == rows_of(ends["runs"]) == {0, 1}
    assert starts["phase"] == ends["phase"] == 1
    assert found["only"] == [[2, 3], []]
    assert [rows_of(runs) for runs in found["phases"]] == [{2, 3}, {0, 1, 2, 3}]


def test_layers_that_are_alike_share_a_row() -> None:
    """Of many layers, neighbours with the same cells are one row; nothing is lost in the sums."""
    resolved = ten_thousand()
    bands = grid(resolved, base_lr=BASE).bands
    data = data_of(resolved)
    rows = data["layers"]
    assert (len(rows), len(bands)) == (11, 40)
    assert sum(row["numel"] for row in rows) == sum(band.numel for band in bands)
    for row in rows:
        group = bands[row["first"] : row["first"] + row["count"]]
        assert (row["name"], row["last"]) == (group[0].name, group[-1].name)
        for phase, (state, live, low, high, *unknown) in enumerate(cells_of(data, row)):
            cells = [band.cells[phase] for band in group]
            assert {(cell.state, cell.low, cell.high) for cell in cells} == {(state, low, high)}
            assert live == sum(cell.trainable for cell in cells)
            assert unknown == [None, None]


@given(cases())
def test_layers_have_the_rates_of_what_trains_in_them(case: Case) -> None:
    """Without a base, a cell has the learning rates that rules set, and multipliers of the rest."""
    resolved = resolve(case)
    data = report_data(resolved, None, None, "AdamW")
    sets_lr = data["rate"]["unit"] == "lr"
    assume(len(data["layers"]) == len(resolved.layers))
    for layer, row in zip(resolved.layers, data["layers"], strict=True):
        for phase, (_, _, *ends) in zip(resolved.phases, cells_of(data, row), strict=True):
            rates: list[float] = []
            factors: list[float] = []
            for name in phase.trainable.intersection(layer.parameter_names):
                said = resolved._outcomes[resolved._outcome_ids[resolved._row(name)]]
                decision = said.decisions[phase.index]
                if decision.lr is not None:
                    rates.append(decision.lr)
                else:
                    factors.append(1.0 if decision.lr_mult is None else decision.lr_mult)
            if not sets_lr:
                rates, factors = factors, rates
            assert ends == [
                end(listed, default=None) for listed in (rates, factors) for end in (min, max)
            ]


def test_costs_are_those_of_the_plan() -> None:
    """The rows of the cost are those of `cost`, with full fine-tuning last."""
    resolved = small()
    cost = resolved.cost("SGD")
    data = report_data(resolved, None, None, "SGD")["cost"]
    assert data["optimizer"] == cost.optimizer
    assert [(row[0], row[1], row[5]) for row in data["rows"]] == [
        (row.phase, row.trainable, row.total_bytes) for row in (*cost.phases, cost.full)
    ]


def test_report_loads_nothing(tmp_path: Path) -> None:
    """No address stands in the file, and its policy lets nothing be loaded or run but itself."""
    page = page_of(small(), tmp_path)
    assert re.findall(r"https?:|\bsrc\s*=|url\(|@import|<link|<iframe|<img", page) == []
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    for kind, text in (("style", style), ("script", script)):
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")


def test_names_stay_text(tmp_path: Path) -> None:
    """Names with markup, quotes, line separators and half a surrogate come back as they were."""
    resolved = FreezePlan().freeze("head").resolve(awkward())
    page = page_of(resolved, tmp_path, other=resolved)
    assert page.count("<script") == page.count("</script") == 2
    assert "alert(1)</script>" not in page
    (text,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert not set("<>&\u2028\u2029") & set(text)
    data = json.loads(text)
    assert set(NAMES) <= set(data["texts"])
    assert parameter_names(data) == [row.name for row in resolved.rows]


def test_summary_is_there_without_scripts(tmp_path: Path) -> None:
    """Where scripts do not run, the page shows the text of the summary."""
    resolved = small()
    (text,) = re.findall(r"<noscript>.*?<pre>(.*?)</pre>", page_of(resolved, tmp_path), re.DOTALL)
    assert unescape(text) == str(resolved.summary())


def test_ten_thousand_parameters_stay_small(tmp_path: Path) -> None:
    """A report on 10,000 parameters takes less than a megabyte."""
    resolved = ten_thousand()
    assert (len(resolved.rows), len(resolved.phases)) == (10_000, 11)
    assert len(page_of(resolved, tmp_path, other=resolved).encode()) < 1_000_000


def test_layers_that_all_differ_stay_small(tmp_path: Path) -> None:
    """A report on 2,000 layers, none like the next, in 60 phases takes less than five megabytes."""
    resolved = none_alike()
    assert (len(resolved.rows), len(resolved.phases)) == (8_002, 60)
    page = page_of(resolved, tmp_path, base_lr=1e-3)
    assert len(page.encode()) < 5_000_000
    assert page.count('"first":') == 2_001


@pytest.mark.parametrize(
    ("model", "plan"),
    [
        (nn.ReLU(), FreezePlan(allow_all_frozen=True)),
        (nn.Sequential(nn.LazyLinear(2)), FreezePlan().group("**", lr=0.1)),
        (nn.Linear(2, 2), FreezePlan(allow_all_frozen=True).freeze("**")),
    ],
    ids=["empty", "lazy", "frozen"],
)
def test_every_model_has_a_report(model: nn.Module, plan: FreezePlan, tmp_path: Path) -> None:
    """So have models without parameters or shapes, and plans under which nothing trains."""
    assert "</html>" in page_of(plan.resolve(model), tmp_path)


def test_unusable_arguments_are_refused(tmp_path: Path) -> None:
    """What cannot be compared, multiplied or written is named, and no file is left."""
    resolved, path = small(), tmp_path / "plan.html"
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(PlanError, match=r"^other must be a resolved plan, got FreezePlan; pass "):
        resolved.save_html(path, other=FreezePlan())  # type: ignore[arg-type]
    steps = FreezePlan().freeze("[0]", until_step=2).resolve(model)
    with pytest.raises(PlanError, match=r"^one plan counts in epochs and the other in steps"):
        resolved.save_html(path, other=steps)
    with pytest.raises(PlanError, match=r"^base_lr must be a positive finite number, got 0$"):
        resolved.save_html(path, base_lr=0)
    with pytest.raises(PlanError, match="Adamw"):
        resolved.save_html(path, optimizer="Adamwe")
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        resolved.save_html(tmp_path / "missing" / "plan.html")
