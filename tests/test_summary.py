"""The summary: lines that add up, patterns that mean what they show, text that pastes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from benchmarks.test_resolve_speed import best_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from freezekit import FreezePlan
from freezekit._blocks import Block, block_tree, shorten
from freezekit._modes import ModuleRow
from freezekit._summary import Summary, fit, trainable_line

GOLDEN = Path(__file__).parent / "golden"
OVERWRITE = "FREEZEKIT_OVERWRITE_GOLDEN"


def module(class_name: str, **parts: nn.Module | nn.Parameter) -> nn.Module:
    made = type(class_name, (nn.Module,), {})()
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def layer(width: int) -> nn.Module:
    return module(
        "Layer",
        attention=nn.ModuleDict({name: nn.Linear(width, width) for name in "qkvo"}),
        norm=nn.LayerNorm(width),
        mlp=nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
        dropout=nn.Dropout(0.1),
    )


def classifier(layers: int = 12, width: int = 16) -> nn.Module:
    backbone = module(
        "Encoder",
        word=nn.Embedding(1000, width),
        cls_token=nn.Parameter(torch.zeros(1, width)),
        layer=nn.ModuleList(layer(width) for _ in range(layers)),
    )
    head = nn.Linear(width, 3)
    return module("Classifier", backbone=backbone, dropout=nn.Dropout(0.1), head=head)


def tied() -> nn.Module:
    wte, lm_head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
    lm_head.weight = wte.weight
    body = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    return module("Tied", wte=wte, body=body, lm_head=lm_head)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.Flatten())


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(2))


CASES: dict[str, tuple[Callable[[], nn.Module], FreezePlan]] = {
    "mlp": (mlp, FreezePlan().freeze("{0,2}")),
    "untouched": (mlp, FreezePlan()),
    "top_layers": (
        classifier,
        FreezePlan().freeze("backbone").unfreeze("backbone.layer[-2:]"),
    ),
    "bias_only": (classifier, FreezePlan().freeze("**").unfreeze("**.bias")),
    "tied": (tied, FreezePlan().freeze("wte")),
    "batch_norm": (normed, FreezePlan().freeze("1")),
    "lazy": (lazy, FreezePlan().freeze("0")),
    "phases": (
        classifier,
        FreezePlan().freeze("backbone").unfreeze("backbone.layer[-1]", at_epoch=2),
    ),
}


def rows_of(model: nn.Module, plan: FreezePlan | None = None) -> list[ModuleRow]:
    return (plan or FreezePlan()).resolve(model).module_rows()


def summary_of(name: str) -> Summary:
    make, plan = CASES[name]
    clock = {"epoch": 0} if name == "phases" else {}
    return plan.resolve(make()).summary(**clock)


def every(block: Block) -> Iterator[Block]:
    yield block
    for child in block.children:
        yield from every(child)


@pytest.mark.parametrize("name", CASES)
def test_text_is_as_reviewed(name: str) -> None:
    """The text of each named case equals its golden file."""
    path, text = GOLDEN / f"summary_{name}.txt", f"{summary_of(name)}\n"
    if os.environ.get(OVERWRITE):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_text_is_plain_ascii() -> None:
    """A summary prints on every terminal and into every file."""
    assert all(str(summary_of(name)).isascii() for name in CASES)


def test_repr_is_the_text() -> None:
    """At the prompt the table shows without print."""
    summary = summary_of("mlp")
    assert repr(summary) == str(summary)


def test_pasted_line() -> None:
    """The totals have thousands separators and four decimals."""
    expected = "trainable params: 1,155 || all params: 22,714,371 || trainable%: 0.0051"
    assert trainable_line(1_155, 22_714_371) == expected


def test_pasted_line_of_nothing() -> None:
    """A model without parameters has a share of zero, not a division by it."""
    assert trainable_line(0, 0) == "trainable params: 0 || all params: 0 || trainable%: 0.0000"
    assert "all params: 0 ||" in str(FreezePlan().resolve(nn.Identity()).summary())


def test_equal_siblings_share_a_line() -> None:
    """Twelve equal layers are one line whose counts are theirs together."""
    root = block_tree(rows_of(classifier()))
    backbone = root.children[0]
    run = next(child for child in backbone.children if child.repeat > 1)
    one = sum(p.numel() for p in layer(16).parameters())
    assert (run.name, run.path, run.repeat) == ("layer.{0..11}", "backbone.layer.{0..11}", 12)
    assert run.numel == 12 * one


def test_state_keeps_siblings_apart() -> None:
    """Layers whose state differs are not joined, nor across one that stands between."""
    plan = FreezePlan().freeze("backbone").unfreeze("backbone.layer.5")
    backbone = block_tree(rows_of(classifier(), plan)).children[0]
    names = [child.name for child in backbone.children if child.name.startswith("layer")]
    assert names == ["layer.{0..4}", "layer.5", "layer.{6..11}"]


def test_size_keeps_siblings_apart() -> None:
    """Siblings of one class and different sizes stay apart."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 4))
    assert [child.name for child in block_tree(rows_of(model)).children] == ["{0..1}", "2", "3"]


def test_numbers_with_a_gap_stay_apart() -> None:
    """A range names only numbers that exist."""
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a0", "a1", "a3", "a04")})
    names = [child.name for child in block_tree(rows_of(model)).children]
    assert names == ["a{0..1}", "a3", "a04"]


def test_modules_left_out_keep_siblings_apart() -> None:
    """A range reaches over no module that it does not count."""
    assert [child.name for child in block_tree(rows_of(mlp())).children] == ["0", "2", "4"]


def test_without_collapse_each_module_has_a_line() -> None:
    """The same tree can be had with repeats apart."""
    backbone = block_tree(rows_of(classifier()), collapse=False).children[0]
    assert [child.name for child in backbone.children][-1] == "layer.11"


def test_modules_that_say_nothing_are_left_out() -> None:
    """Activations and dropout have no line while they share their parent's mode."""
    assert {block.class_name for block in every(block_tree(rows_of(classifier())))}.isdisjoint(
        {"Dropout", "GELU", "ModuleList"}
    )


def test_held_module_without_parameters_has_a_line() -> None:
    """An affine-free norm that is held in eval shows, beside parents that train."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU())
    children = block_tree(rows_of(model, FreezePlan().freeze("1"))).children
    assert [(child.name, child.state, child.mode) for child in children] == [
        ("0", "trainable", "train"),
        ("1", "none", "eval (held)"),
    ]


def test_parameters_beside_children_have_a_line() -> None:
    """A module's own parameters are one line, so that a `cls_token` is seen."""
    plan = FreezePlan().freeze("**").unfreeze("backbone.cls_token")
    own = block_tree(rows_of(classifier(), plan)).children[0].children[0]
    assert (own.name, own.numel, own.state) == ("(own)", 16, "trainable")


def test_depth_limits_nesting() -> None:
    """`depth` counts levels below the root, and 0 shows the root alone."""
    resolved = FreezePlan().resolve(classifier())
    assert resolved.summary(depth=0).root.children == ()
    first = resolved.summary(depth=1).root
    assert [child.name for child in first.children] == ["backbone", "head"]
    assert all(child.children == () for child in first.children)


def test_negative_depth_is_refused() -> None:
    """A negative depth names itself and what is allowed."""
    with pytest.raises(ValueError, match=r"^depth=-1: the number of levels below the root is 0 or"):
        FreezePlan().resolve(mlp()).summary(depth=-1)


def test_default_depth_fits_a_screen() -> None:
    """Without a depth, a model of any shape takes about 40 lines and shows its first level."""
    wide = nn.Sequential(*(nn.Linear(k, 2) for k in range(1, 300)))
    deep: nn.Module = nn.Linear(2, 2)
    for _ in range(100):
        deep = nn.Sequential(nn.Linear(2, 3), deep)
    for model in (wide, deep, nn.ModuleDict({"body": wide, "head": nn.Linear(2, 1)})):
        lines = sum(1 for _ in every(FreezePlan().resolve(model).summary().root))
        assert 2 < lines <= 41


def test_notes_follow_the_totals() -> None:
    """Phase, warnings and the first names of unmentioned parameters stand below the totals."""
    root = block_tree(rows_of(mlp()))
    names = tuple(f"a.{k}" for k in range(1234))
    text = str(Summary(root, phase="1 of 2 (x)", warnings=("rule 3 has no effect",)))
    assert text.endswith("\nphase: 1 of 2 (x)\nwarning: rule 3 has no effect")
    text = str(Summary(root, unmentioned=names))
    assert text.endswith("\nno rule mentions 1,234 parameters: a.0, a.1, a.2, a.3, ...")
    assert str(Summary(root, unmentioned=("b",))).endswith("\nno rule mentions 1 parameter: b")


def test_phase_shown_is_the_one_asked_for() -> None:
    """The counts and the phase line follow the epoch."""
    make, plan = CASES["phases"]
    resolved = plan.resolve(make())
    before, after = resolved.summary(epoch=1), resolved.summary(epoch=2)
    assert before.root.trainable < after.root.trainable
    assert before.phase.startswith("1 of 2 (")
    assert after.phase.startswith("2 of 2 (")


class _Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: set[str] = set()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.stack.append(tag)
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in {"span", "p"}:
            self.cells.append(data)


def parsed(html: str) -> _Collector:
    collector = _Collector()
    collector.feed(html)
    collector.close()
    return collector


@pytest.mark.parametrize("name", CASES)
def test_html_says_what_the_text_says(name: str) -> None:
    """Every cell and note of the text is in the HTML, whose tags close in order."""
    summary = summary_of(name)
    html = parsed(summary._repr_html_())
    assert html.stack == []
    words = set(" ".join(html.cells).split())
    text = {word for word in str(summary).split() if set(word) != {"-"}}
    assert text <= words


def test_html_runs_nothing_and_escapes_names() -> None:
    """A module named like markup stays text, and there is no script."""
    model = nn.Sequential()
    model.add_module("<script>alert(1)</script>&", nn.Linear(2, 2))
    html = FreezePlan().resolve(model).summary()._repr_html_()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in html
    assert parsed(html).tags <= {"div", "style", "span", "details", "summary", "p"}


@pytest.mark.timing
def test_twenty_thousand_modules_in_a_second() -> None:
    """Rows to text and HTML stays below a second at 20,000 modules, even when all differ."""
    with torch.device("meta"):
        model = nn.Sequential(
            *(nn.Sequential(*(nn.Linear(k, j) for j in range(1, 100))) for k in range(1, 201))
        )
    rows = rows_of(model)
    assert len(rows) == 20_001

    def seconds() -> float:
        start = time.process_time()
        summary = Summary(fit(block_tree(rows), None))
        text, html = str(summary), summary._repr_html_()
        spent = time.process_time() - start
        assert text
        assert html
        return spent

    assert best_of(seconds, 1.0, turns=3) < 1.0


def leaves() -> st.SearchStrategy[Callable[[], nn.Module]]:
    return st.sampled_from(
        [
            lambda: nn.Linear(2, 2),
            lambda: nn.Linear(2, 3),
            lambda: nn.LayerNorm(2),
            lambda: nn.ReLU(),
            lambda: nn.BatchNorm1d(2, affine=False),
        ]
    )


def containers(
    inner: st.SearchStrategy[Callable[[], nn.Module]],
) -> st.SearchStrategy[Callable[[], nn.Module]]:
    def build(kind: type[nn.Module], parts: list[Callable[[], nn.Module]]) -> nn.Module:
        modules = [part() for part in parts]
        return kind(*modules) if kind is nn.Sequential else nn.ModuleList(modules)

    kinds = st.sampled_from([nn.Sequential, nn.ModuleList])
    parts = st.lists(inner, min_size=1, max_size=4)
    return st.builds(lambda kind, items: lambda: build(kind, items), kinds, parts)


models = st.recursive(leaves(), containers, max_leaves=12)


@given(make=models, flags=st.lists(st.booleans(), min_size=1, max_size=8), collapse=st.booleans())
@settings(deadline=None)
def test_lines_add_up(make: Callable[[], nn.Module], flags: list[bool], collapse: bool) -> None:
    """The counts of the lines below a line add up to its own, whatever is collapsed."""
    model = make()
    for k, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(flags[k % len(flags)])
    root = block_tree(rows_of(model), collapse=collapse)
    assert root.numel == sum(p.numel() for p in model.parameters())
    assert root.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    for block in every(root):
        if block.children:
            assert block.numel == sum(child.numel for child in block.children)
            assert block.trainable == sum(child.trainable for child in block.children)


@given(make=models)
@settings(deadline=None)
def test_shown_patterns_select_what_they_count(make: Callable[[], nn.Module]) -> None:
    """A line's path, used as a pattern, freezes exactly the parameters it counted."""
    model = make()
    for block in every(block_tree(rows_of(model))):
        if block.path and block.state != "none":
            frozen = FreezePlan().freeze(block.path).resolve(model).module_rows()[0]
            assert frozen.numel - frozen.trainable == block.numel


def blocks() -> st.SearchStrategy[list[Block]]:
    counts = st.tuples(st.integers(1, 9), st.booleans())
    return st.lists(counts, min_size=1, max_size=60).map(
        lambda drawn: [
            Block(
                name=f"n.{k}",
                path=f"m.n.{k}",
                class_name="Linear",
                repeat=1,
                numel=numel,
                trainable=numel if on else 0,
                state="trainable" if on else "frozen",
                mode="train",
            )
            for k, (numel, on) in enumerate(drawn)
        ]
    )


@given(blocks=blocks(), limit=st.integers(1, 20))
def test_shortened_lines_keep_totals_and_changes(blocks: list[Block], limit: int) -> None:
    """Shortening keeps the totals and, where it can, every change of state."""
    short = shorten(blocks, limit)
    assert len(short) <= max(limit, 1)
    assert sum(block.numel for block in short) == sum(block.numel for block in blocks)
    assert sum(block.trainable for block in short) == sum(block.trainable for block in blocks)
    assert sum(block.repeat for block in short) == len(blocks)
    runs = 1 + sum(a.state != b.state for a, b in pairwise(blocks))
    if runs <= limit:
        shown = 1 + sum(a.state != b.state for a, b in pairwise(short))
        assert shown == runs
    else:
        assert any(block.state == "partial" for block in short)


def test_joined_lines_name_their_ends() -> None:
    """A stretch is named by its first and last line and keeps what they share."""
    model = nn.Sequential(*(nn.Linear(k, 2) for k in range(1, 11)))
    short = shorten(block_tree(rows_of(model)).children, 3)
    assert [(block.name, block.repeat, block.class_name) for block in short] == [
        ("0", 1, "Linear"),
        ("1 to 8", 8, "Linear"),
        ("9", 1, "Linear"),
    ]
