"""Drawn graphs of modules: with a cache as without one, or refused; never wrong."""

from typing import Any, NamedTuple

import pytest
import torch
from cache_trials import Run, UnfitError, trial
from hypothesis import HealthCheck, event, given, reject, settings
from hypothesis import strategies as st
from torch import nn

from freezekit import FreezePlan

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the frozen part cannot be cached:UserWarning"),
    pytest.mark.filterwarnings("ignore:the cache:UserWarning"),
]

WIDTH, ROWS = 4, 9


class Pair(nn.Module):
    """Returns two tensors, the second a view of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.linear(x).tanh()
        return y, y.flip(-1)


class Named(nn.Module):
    """Returns a dict: a tensor, a constant, a number, nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"y": self.linear(x), "scale": self.scale * 2, "width": x.shape[-1], "more": None}


class Join(nn.Module):
    """Takes two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        joined: torch.Tensor = self.linear(torch.cat([x, y], -1))
        return joined


class Keeper(nn.Module):
    """Stores what it computes on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = self.linear(x)
        return self.kept.sigmoid()


class Turn(nn.Module):
    """Has no parameters and looks at the mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if self.training else x.abs()


def block(last: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), last)


MODULES = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "other": lambda: nn.Linear(WIDTH, WIDTH),
    "relu": lambda: block(nn.ReLU(inplace=True)),
    "drop": lambda: block(nn.Dropout(0.3)),
    "norm": lambda: block(nn.BatchNorm1d(WIDTH)),
    "layer": lambda: nn.LayerNorm(WIDTH),
    "pair": Pair,
    "named": Named,
    "join": Join,
    "keeper": Keeper,
    "turn": Turn,
    "free": lambda: nn.Dropout(0.2),
    "in_place": lambda: nn.ReLU(inplace=True),
}
WEIGHTY = ("linear", "other", "relu", "drop", "norm", "layer", "pair", "named", "join", "keeper")
FUNCTIONS = (
    "add", "mul", "relu_", "add_", "detach", "half", "view", "expand", "tanh", "where", "mean",
    "write", "constant", "clone", "kept", "center", "no_grad",
)  # fmt: skip

Step = tuple[str, int, int]


class Graph(nn.Module):
    """Goes through drawn steps: each takes one or two of the tensors so far and adds one."""

    def __init__(self, steps: tuple[Step, ...], *, towers: bool) -> None:
        super().__init__()
        self.steps = steps
        for name in dict.fromkeys(name for name, _, _ in steps if name in MODULES):
            self.add_module(name, MODULES[name]())
        self.table = nn.Parameter(torch.linspace(-1, 1, WIDTH))
        self.head = nn.Linear(WIDTH, 2)
        self.towers = towers

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> dict[str, object]:
        pool = [x * 1, z.tanh()] if self.towers else [x * 1]
        for name, first, second in self.steps:
            one, two = pool[-1 - first % len(pool)], pool[-1 - second % len(pool)]
            pool.append(
                self.module(name, one, two) if name in MODULES else self.function(name, one, two)
            )
        return {"scores": self.head(pool[-1]), "seen": (pool[-1 - len(self.steps) % len(pool)],)}

    def module(self, name: str, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        found = getattr(self, name)(one, two) if name == "join" else getattr(self, name)(one)
        if isinstance(found, dict):
            return found["y"] * found["scale"] / found["width"]
        return found[0] + found[1] if isinstance(found, tuple) else found

    def function(self, name: str, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        match name:
            case "add":
                return one + two
            case "mul":
                return one * two.sigmoid()
            case "relu_":
                return one.relu_()
            case "add_":
                return one.add_(two.detach())
            case "detach":
                return one.detach()
            case "half":
                left, right = one.chunk(2, -1)
                return torch.cat([right, left], -1)
            case "view":
                return one.view(-1, 2, WIDTH // 2).transpose(1, 2).reshape(one.shape)
            case "expand":
                return one[:, :1].expand_as(one) + two
            case "where":
                return torch.where(one > 0, two, -two)
            case "mean":
                return one - one.mean(-1, keepdim=True)
            case "write":
                one[:, 0] = two[:, 1].detach()
                return one
            case "constant":
                return one * self.table.detach() + torch.arange(WIDTH)
            case "clone":
                return one.clone()
            case "kept":
                kept = getattr(getattr(self, "keeper", None), "kept", None)
                return one if kept is None or kept.shape != one.shape else one + kept.detach()
            case "center":
                return one - one.mean(0)
            case "no_grad":
                with torch.no_grad():
                    return self.head(one).sum(-1, keepdim=True) + one
            case _:
                return one.tanh()


class Course(NamedTuple):
    """A graph, what is frozen in it and when, and over which rows it goes."""

    steps: tuple[Step, ...]
    towers: bool
    frozen: tuple[str, ...]
    opened: tuple[str, ...]
    closes: bool
    batches: tuple[tuple[int, ...], ...]


@st.composite
def courses(draw: st.DrawFn) -> Course:
    number = st.integers(0, 3)
    names = st.sampled_from((*WEIGHTY, *WEIGHTY, *MODULES, *FUNCTIONS))
    steps = draw(st.lists(st.tuples(names, number, number), min_size=1, max_size=9))
    first = draw(st.sampled_from(WEIGHTY))
    steps = [(first, 0, draw(number)), *steps]
    there = [name for name in WEIGHTY if any(name == step[0] for step in steps)]
    kept = draw(st.sets(st.sampled_from(there)))  # Most are frozen, so that there is a prefix.
    frozen = tuple(name for name in there if name not in kept or name == first)
    opened = draw(st.sets(st.sampled_from(frozen))) if frozen else set()
    row = st.integers(0, ROWS - 1)
    batches = draw(st.lists(st.lists(row, min_size=1, max_size=7), min_size=1, max_size=2))
    return Course(
        tuple(steps),
        draw(st.booleans()),
        frozen,
        tuple(sorted(opened)),
        draw(st.booleans()),
        ((*range(ROWS),), *map(tuple, batches)),
    )


def plan_of(course: Course) -> FreezePlan:
    plan = FreezePlan().freeze(*course.frozen) if course.frozen else FreezePlan()
    if course.opened:
        plan = plan.unfreeze(*course.opened, at_epoch=1)
        if course.closes:
            plan = plan.freeze(*course.opened, at_epoch=2)
    return plan


def drive_of(course: Course, run: Run) -> None:
    """Trains in every phase, evaluates between, and goes over all rows again."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64)
    data = (rows, rows.flip(0) * 2)
    for epoch in range(1 + bool(course.opened) * (1 + course.closes)):
        if course.opened:
            run.applied.advance(epoch=epoch)
        for batch in (*course.batches, course.batches[0][::-1]):
            if len(batch) > 1:  # batch norm cannot train on one row
                run.step(tuple(each[list(batch)] for each in data))
        run.model.eval()
        with torch.no_grad():
            for batch in course.batches[-1:]:
                run.call(tuple(each[list(batch)] for each in data))
        run.model.train()
    run.step(data)


def is_right(course: Course) -> int:
    """Asserts that a course is right, and returns how many rows were answered."""
    try:
        verdict = trial(
            lambda: Graph(course.steps, towers=course.towers).double(),
            plan_of(course),
            lambda run: drive_of(course, run),
        )
    except UnfitError:  # Without a cache too: most write in place what autograd needs.
        reject()
    event(verdict.refused or ("answered" if verdict.hits else "computed"))
    assert verdict.refused or verdict.difference < 1e-8, verdict
    return verdict.hits


def test_drawn_graphs_are_right_or_refused() -> None:
    """Outputs, gradients, parameters and buffers over all phases; and many rows are answered."""
    hits: list[int] = []

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(courses())
    def law(course: Course) -> None:
        hits.append(is_right(course))

    law()
    assert sum(each > 0 for each in hits) >= len(hits) // 5
