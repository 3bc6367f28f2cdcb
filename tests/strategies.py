"""What the laws are tried on: model trees, plans about their real names, moments of training.

A model is drawn as data (`Tree`) and built anew wherever it is needed, so that an example prints
in a line and nothing leaks from one use to the next. Patterns are drawn as data too: the text goes
to freezekit, the data to the reference, which therefore needs no parser.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import is_parametrized

from freezekit import FreezePlan, Rule

WIDTH = 4


class Block(nn.Module):
    """Runs its children in order and scales the result by a parameter of its own."""

    def __init__(self) -> None:
        """Starts without children."""
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns features of the shape of `x`."""
        return run_children(self, x) * self.scale


class Tally(nn.Module):
    """Holds a buffer and no parameter; counts the batches it sees in train mode."""

    def __init__(self) -> None:
        """Starts at zero."""
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x`."""
        if self.training:
            self.seen.add_(1)
        return x


class StochasticDepth(nn.Module):
    """Drops its whole input at random in train mode, as residual networks do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x`, or zeros half of the time."""
        return x * (torch.rand(()) < 0.5) if self.training else x


def run_children(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Returns `x` after all children of `module`, those of lists one by one."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            x = run_children(child, x)
        elif isinstance(child, nn.ParameterList):
            x = x + sum(child.parameters())
        elif isinstance(child, nn.RNNBase):
            x = child(x)[0]
        else:
            x = child(x)
    return x


LEAVES = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "batch_norm": lambda: nn.BatchNorm1d(WIDTH),
    "batch_norm_bare": lambda: nn.BatchNorm1d(WIDTH, affine=False),
    "layer_norm": lambda: nn.LayerNorm(WIDTH),
    "dropout": nn.Dropout,
    "depth": StochasticDepth,
    "tally": Tally,
    "weight_norm": lambda: weight_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral_norm": lambda: spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "shifts": lambda: nn.ParameterList([torch.zeros(WIDTH) for _ in range(2)]),
    "gru": lambda: nn.GRU(WIDTH, WIDTH, num_layers=2, dropout=0.5),
}
PARAMETRIZED = ("weight_norm", "spectral_norm")
CONTAINERS = {"block": Block, "sequential": nn.Sequential, "list": nn.ModuleList}
NAMES = ("a", "b", "enc", "head", "norm", "l1", "l10")


@dataclass(frozen=True)
class Tree:
    """A model as data.

    Attributes:
        kind: a key of `LEAVES` or `CONTAINERS`.
        children: by name.
        ties: pairs of paths of linear layers; the second takes the first one's weight.
        shares: `(host, target)` paths; the host gets the target as a further child, "again".
        frozen: places, in the order of `parameters()`, of those frozen by hand.
    """

    kind: str
    children: tuple[tuple[str, "Tree"], ...] = ()
    ties: tuple[tuple[str, str], ...] = ()
    shares: tuple[tuple[str, str], ...] = ()
    frozen: tuple[int, ...] = ()

    def build(self) -> nn.Module:
        """Returns the model, with the same values each time."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # `torch.manual_seed` formats the stack
            model = self._built()
        for first, second in self.ties:
            model.get_submodule(second).weight = model.get_submodule(first).weight
        for host, target in self.shares:
            model.get_submodule(host).add_module("again", model.get_submodule(target))
        parameters = list(model.parameters())
        for place in self.frozen:
            parameters[place % len(parameters)].requires_grad = False
        return model

    def paths(self, prefix: str = "") -> Iterator[tuple[str, "Tree"]]:
        """Yields the path of each node, "" for the root, with the node."""
        yield prefix, self
        for name, child in self.children:
            yield from child.paths(f"{prefix}.{name}" if prefix else name)

    def has(self, *kinds: str) -> bool:
        """Returns whether a node of one of these kinds is in the tree."""
        return any(node.kind in kinds for _, node in self.paths())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ANN401
        printer.text(self.text)

    @property
    def text(self) -> str:
        """The tree in a line, for failing examples."""
        inner = ", ".join(f"{name}: {child.text}" for name, child in self.children)
        rest = {key: getattr(self, key) for key in ("ties", "shares", "frozen")}
        joins = "".join(f" {key}={value}" for key, value in rest.items() if value)
        return self.kind + (f"({inner})" if inner else "") + joins

    def _built(self) -> nn.Module:
        if self.kind in LEAVES:
            return LEAVES[self.kind]()
        module = CONTAINERS[self.kind]()
        for name, child in self.children:
            module.add_module(name, child._built())
        return module


@st.composite
def trees(draw: st.DrawFn, *, without: tuple[str, ...] = (), joined: bool = True) -> Tree:
    """Draws a model: a block of blocks, sequences, lists and layers.

    Args:
        draw: given by Hypothesis.
        without: kinds of leaves to leave out.
        joined: whether tensors may be tied and modules shared.
    """
    root = draw(_containers(3, "block", tuple(kind for kind in LEAVES if kind not in without)))
    frozen = tuple(draw(st.lists(st.integers(0, 30), max_size=3))) if draw(st.booleans()) else ()
    if not joined:
        return Tree(root.kind, root.children, frozen=frozen)
    nodes = dict(root.paths())
    linears = [path for path, node in nodes.items() if node.kind == "linear"]
    ties, shares = (), ()
    if len(linears) > 1 and draw(st.booleans()):
        ties = (tuple(draw(st.permutations(linears))[:2]),)
    hosts = [path for path, node in nodes.items() if node.kind == "block"]
    targets = [path for path in nodes if path]
    if targets and draw(st.booleans()):
        target = draw(st.sampled_from(targets))
        host = draw(st.sampled_from([h for h in hosts if not f"{h}.".startswith(f"{target}.")]))
        shares = ((host, target),)
    return Tree(root.kind, root.children, ties, shares, frozen)


@st.composite
def _containers(draw: st.DrawFn, depth: int, kind: str, leaves: tuple[str, ...]) -> Tree:
    if kind == "block":
        names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    elif draw(st.integers(0, 7)) == 0:
        return Tree(kind, tuple((str(i), Tree("layer_norm")) for i in range(11)))
    else:
        names = list(map(str, range(draw(st.integers(1, 3)))))
        if kind == "list" and draw(st.integers(0, 2)) == 0:
            names = [str(2 * int(name) + 1) for name in names]
    inner = ["block", "sequential", *(["list"] if kind != "sequential" else [])]
    fitting = [each for each in leaves if kind != "sequential" or each not in ("shifts", "gru")]
    children = []
    for name in names:
        if depth > 1 and draw(st.integers(0, 2)) == 0:
            child = draw(_containers(depth - 1, draw(st.sampled_from(inner)), leaves))
        else:
            child = Tree(draw(st.sampled_from(fitting)))
        children.append((name, child))
    return Tree(kind, tuple(children))


@dataclass(frozen=True)
class Item:
    """One step of a pattern.

    Attributes:
        kind: what it consumes; "depth" is `**`, "class" consumes nothing.
        texts: for "name" and "class", the alternatives, each a glob.
        index: for "index".
    """

    kind: Literal["name", "depth", "index", "class"]
    texts: tuple[str, ...] = ()
    index: int | slice | None = None

    @property
    def spelled(self) -> str:
        """The item as it stands in a pattern."""
        if self.kind == "depth":
            return "**"
        if self.kind == "index":
            at = self.index
            if not isinstance(at, slice):
                return f"[{at}]"
            parts = ["" if part is None else str(part) for part in (at.start, at.stop)]
            return f"[{':'.join([*parts, *([] if at.step is None else [str(at.step)])])}]"
        body = self.texts[0] if len(self.texts) == 1 else f"{{{','.join(self.texts)}}}"
        return f"@{body}" if self.kind == "class" else body


@dataclass(frozen=True)
class Pattern:
    """A pattern as data; `regex` is set instead of `items` for `re:` patterns."""

    items: tuple[Item, ...] = ()
    regex: str | None = None
    negated: bool = False

    @property
    def text(self) -> str:
        """The pattern as the user writes it."""
        text = f"re:{self.regex}" if self.regex is not None else ""
        for item in self.items:
            dot = "." if text and item.kind in ("name", "depth") else ""
            text += dot + item.spelled
        return ("!" if self.negated else "") + text


@dataclass(frozen=True)
class DrawnRule:
    """A rule with its patterns as data."""

    verb: str
    patterns: tuple[Pattern, ...]
    properties: dict[str, Any] = field(default_factory=dict)

    @property
    def rule(self) -> Rule:
        """The rule itself."""
        return Rule(self.verb, tuple(each.text for each in self.patterns), **self.properties)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ANN401
        printer.text(self.rule.call)


@dataclass(frozen=True)
class Case:
    """A model, a plan about it, and how long training is."""

    tree: Tree
    rules: tuple[DrawnRule, ...]
    totals: dict[str, int] = field(default_factory=dict)

    @property
    def plan(self) -> FreezePlan:
        """The plan; phases in which nothing trains are allowed."""
        return FreezePlan(tuple(each.rule for each in self.rules), allow_all_frozen=True)

    @cached_property
    def clock(self) -> Literal["epoch", "step"]:
        """A clock that the plan uses, if it uses one."""
        edges = {name.partition("_")[2] for rule in self.rules for name in rule.properties}
        in_steps = {"total_steps", "steps_per_epoch"} & set(self.totals)
        by_fraction = "fraction" in edges and in_steps
        warms = any("warmup_steps" in rule.properties for rule in self.rules)
        by_warmup = warms and "steps_per_epoch" in self.totals
        return "step" if "step" in edges or by_fraction or by_warmup else "epoch"

    def at(self, moment: int) -> dict[str, int]:
        """Returns the arguments of `at` or `advance` for a moment."""
        return {self.clock: moment}


def spelled_names(model: nn.Module) -> dict[str, list[str]]:
    """Returns all names of tensors, with the `weight` that spells a parametrized one."""
    names: dict[str, list[str]] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        head, found, tail = name.rpartition("parametrizations.")
        names[name] = [name, head + tail.partition(".")[0]] if found else [name]
    return names


@st.composite
def patterns(draw: st.DrawFn, model: nn.Module, *, negated: bool = False) -> Pattern:
    """Draws a pattern about names that the model has: some as they are, some blurred."""
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = list(dict.fromkeys(s for names in spelled_names(model).values() for s in names))
    if draw(st.integers(0, 11)) == 0:
        name = draw(st.sampled_from(tensors))
        regex = draw(st.sampled_from([re.escape(name), rf"(.*\.)?{name.rpartition('.')[2]}"]))
        return Pattern((), regex, negated)
    named = dict(model.named_parameters(remove_duplicate=False))
    counts = Counter(map(id, named.values()))
    several = [name for name in tensors if name in named and counts[id(named[name])] > 1]
    often = several if several and draw(st.integers(0, 2)) == 0 else []
    path = draw(st.sampled_from(often or [*modules, *tensors]))
    segments = path.split(".") if path else []
    items = [draw(_items(segment, segments)) for segment in segments]
    if draw(st.integers(0, 3)) == 0:
        start = draw(st.integers(0, len(items)))
        items[start : draw(st.integers(start, len(items)))] = [Item("depth")]
    if path in modules and draw(st.integers(0, 2)) == 0:
        items = items or [Item("depth")]
        names = [base.__name__ for base in type(modules[path]).__mro__[:-1]]
        glob = names[0][:2] + "*"
        items.append(Item("class", (draw(st.sampled_from([*names, glob, "*Norm*"])),)))
        if draw(st.integers(0, 3)) == 0:
            items.append(Item("depth"))
    return Pattern(tuple(items) or (Item("depth"),), None, negated)


@st.composite
def _items(draw: st.DrawFn, segment: str, segments: list[str]) -> Item:
    numbered = ["position"] * 4 if segment.isdecimal() else []
    shape = draw(st.sampled_from(["as_is"] * 5 + ["star", "start", "either"] + numbered))
    if shape == "star":
        return Item("name", ("*",))
    if shape == "start":
        return Item("name", (segment[0] + draw(st.sampled_from(["*", "?"])),))
    if shape == "either":
        others = draw(st.lists(st.sampled_from([*segments, *NAMES, "0", "w*"]), max_size=2))
        return Item("name", tuple(dict.fromkeys([segment, *others])))
    if shape == "position":
        at = st.integers(-3, 3)
        slices = st.builds(slice, st.none() | at, st.none() | at, st.sampled_from([None, 1, 2, -1]))
        return Item("index", index=draw(at | slices))
    return Item("name", (segment,))


@st.composite
def rules(
    draw: st.DrawFn,
    model: nn.Module,
    moments: tuple[str, ...] = (),
    *,
    plain: bool = False,
    lenient: bool = False,
) -> DrawnRule:
    """Draws a rule.

    Args:
        draw: given by Hypothesis.
        model: whose names it is about.
        moments: units it may count in; empty for a rule that is always in the list.
        plain: whether it must be one that can be carried out: no learning rate that changes.
        lenient: whether its patterns may always match nothing.
    """
    verb = draw(st.sampled_from(["freeze"] * 4 + ["unfreeze"] * 4 + ["group", "no_decay"]))
    picked = [draw(patterns(model))]
    if verb != "no_decay":
        negations = draw(st.lists(st.booleans(), max_size=2))
        picked += [draw(patterns(model, negated=each)) for each in negations]
    properties: dict[str, Any] = {"missing_ok": True} if lenient or draw(st.integers(0, 3)) else {}
    if moments and draw(st.booleans()) and not (plain and verb in ("group", "no_decay")):
        properties |= draw(_moments(moments))
    timed = any(name.startswith(("at_", "until_")) for name in properties)
    if verb != "no_decay" and draw(st.integers(0, 4)) == 0:
        properties["frozen_mode"] = draw(st.sampled_from(["eval", "train"]))
    if verb != "no_decay" and not (plain and timed) and (verb == "group" or draw(st.booleans())):
        properties |= draw(_values(warmup=not plain))
    return DrawnRule(verb, tuple(picked), properties)


@st.composite
def _moments(draw: st.DrawFn, units: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    unit = draw(st.sampled_from(units))
    first = draw(st.integers(0, 4))
    last = draw(st.integers(first + 1, 6))
    edges = draw(st.sampled_from([("at",), ("until",), ("at", "until")]))
    for edge in edges:
        value = first if edge == "at" else last
        found[f"{edge}_{unit}"] = value / 7 if unit == "fraction" else value
    return found


def _values(*, warmup: bool) -> st.SearchStrategy[dict[str, Any]]:
    optional: dict[str, st.SearchStrategy[Any]] = {
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "options": st.fixed_dictionaries({"betas": st.sampled_from([(0.5, 0.9), (0.9, 0.99)])}),
    }
    if warmup:
        optional["warmup_steps"] = st.integers(1, 3)
    rates = st.fixed_dictionaries({"lr": st.sampled_from([0.1, 0.2])}) | st.fixed_dictionaries(
        {"lr_mult": st.sampled_from([0.5, 2.0])}
    )
    rest = st.fixed_dictionaries({}, optional=optional)
    return st.builds(lambda rate, more: rate | more, rates, rest)


TOTALS: dict[tuple[str, ...], dict[str, int]] = {
    (): {},
    ("epoch",): {},
    ("step",): {},
    ("epoch", "step"): {"steps_per_epoch": 3},
    ("fraction",): {"total_epochs": 9},
    ("epoch", "fraction"): {"total_epochs": 11},
    ("step", "fraction"): {"total_steps": 13},
    ("epoch", "step", "fraction"): {"steps_per_epoch": 2, "total_epochs": 10},
}
"""The units a plan may mix, with the totals it needs then."""


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    plain: bool = False,
    lenient: bool = False,
    without: tuple[str, ...] = (),
    joined: bool = True,
) -> Case:
    """Draws a model and a plan about it; see `trees` and `rules`."""
    tree = draw(trees(without=without, joined=joined))
    units = draw(st.sampled_from(sorted(TOTALS)))
    model = tree.build()
    one = rules(model, units, plain=plain, lenient=lenient)
    drawn = tuple(draw(st.lists(one, min_size=1, max_size=5)))
    return Case(tree, drawn, TOTALS[units])


MOMENTS = st.integers(0, 19)
"""Moments within and after all that `cases` draws."""


def is_picklable(model: nn.Module) -> bool:
    """Returns whether torch can pickle the model: it refuses parametrized modules."""
    return not any(is_parametrized(module) for module in model.modules())
