"""Values that get into or out of what is frozen by ways of their own: seen, or refused."""

import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from cache_trials import Batch, Run, steps, trial
from torch import nn

from freezekit import FreezePlan

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the frozen part cannot be cached:UserWarning"),
]

WIDTH = 6
DATA = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(3))
BOX: dict[str, float] = {"twice": False, "scale": 1.0}
"""What no cache knows of."""
MORE = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(4))


class Lower(nn.Module):
    """Frozen: computes a function of itself and what it is given."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.function = function
        self.scale = 1.0
        self.held: Any = None

    def forward(self, x: torch.Tensor, *more: object, **named: object) -> object:
        return self.function(self, x, *more, **named)


class Whole(nn.Module):
    """Two frozen modules below a head."""

    def __init__(self, lower: Callable[..., Any], forward: Callable[..., Any]) -> None:
        super().__init__()
        self.lower = Lower(lower)
        self.upper = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, WIDTH)
        self.settings = SimpleNamespace(scale=1.0)
        self.held: Any = None
        self.passes = forward

    def forward(self, *given: object) -> object:
        return self.passes(self, *given)


class Kind(enum.Enum):
    """A plain value that is no number."""

    ONE = 1
    TWO = 2


def linear(self: Lower, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = self.linear(x).tanh()
    return found


def ordinary(self: Whole, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = self.head(self.upper(self.lower(x)))
    return found


def lower_only(self: Whole, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = self.head(self.lower(x).float())
    return found


def repeated(*more: object) -> list[Batch]:
    """Returns batches over the same rows again and again, each time with other values beside."""
    given = [*more] * 2 if more else [None] * 4
    halves = (slice(0, 8), slice(8, 16))
    tail = [() if each is None else (each,) for each in given]
    return [(DATA[half], *each) for each in tail for half in halves]


def with_rows(*more: torch.Tensor) -> list[Batch]:
    return [(DATA[h], each[h]) for each in [*more] * 2 for h in (slice(0, 8), slice(8, 16))]


# --- into what is frozen -------------------------------------------------------------------------


def attached(self: Whole, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    self.lower.held = y
    return self.head(self.lower(x))


def listed(self: Whole, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    self.lower.held = [y]
    return self.head(self.lower(x))


def unseen(self: Whole, x: torch.Tensor) -> torch.Tensor:
    return self.head(self.lower(torch.func.vmap(lambda row: self.head(row).detach())(x)))


def swapped_data(self: Whole, x: torch.Tensor) -> torch.Tensor:
    other = x.clone()
    other.data = self.head(x).detach()
    return self.head(self.lower(other))


def stale(self: Whole, x: torch.Tensor) -> torch.Tensor:
    before = self.held
    if before is not None and before.shape == x.shape:
        x = x + before
    y = self.head(self.lower(x))
    self.held = y.detach()
    return y


def by_gradient(self: Whole, x: torch.Tensor) -> torch.Tensor:
    return self.head(self.lower(x * 2 if torch.is_grad_enabled() else x))


def by_mode(self: Whole, x: torch.Tensor) -> torch.Tensor:
    return self.head(self.lower(x * 2 if self.training else x))


def told(self: Whole, x: torch.Tensor, kind: object) -> torch.Tensor:
    scale = {Kind.ONE: 1.0, Kind.TWO: 3.0}[kind] if isinstance(kind, Kind) else float(kind)  # type: ignore[arg-type]
    self.lower.scale = 2.0 * scale if kind is True else scale
    return self.head(self.lower(x))


def with_settings(self: Whole, x: torch.Tensor) -> torch.Tensor:
    return self.head(self.lower(x * self.settings.scale))


def with_numbers(self: Whole, x: torch.Tensor) -> torch.Tensor:
    return self.head(self.lower(x, shift=3.0)) + 2 * self.head(self.lower(x, scale=3.0))


def with_halves(self: Whole, x: torch.Tensor) -> torch.Tensor:
    left, right = torch.cat([x, x * 2], -1).chunk(2, -1)
    return self.head(self.lower(left)) - 2 * self.head(self.lower(right))


def calls_differ(self: Whole, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    for _ in range(int(times[0])):
        x = self.lower(x)
    return self.head(x)


def turns_off(self: Whole, x: torch.Tensor) -> torch.Tensor:
    """Goes another way now and then, after a norm that keeps statistics."""
    y = self.lower(x)
    z = self.norm(self.head(x))
    return self.head(self.lower(y) if BOX["twice"] else y) + z


def told_elsewhere(self: Whole, x: torch.Tensor, scale: float) -> torch.Tensor:
    BOX["scale"] = scale
    return self.head(self.lower(x))


# --- out of it -----------------------------------------------------------------------------------


def shows(self: Whole, x: torch.Tensor) -> torch.Tensor:
    self.held = self.lower(x)
    return self.head(self.upper(self.held))


def shows_in_a_list(self: Whole, x: torch.Tensor) -> torch.Tensor:
    self.held = [self.lower(x)]
    return self.head(self.upper(self.held[0]))


def shows_what_it_made(self: Whole, x: torch.Tensor) -> torch.Tensor:
    y = self.lower(x)
    self.settings.held = y.detach().square().mean(-1)
    return self.head(self.upper(y))


def returns_an_object(self: Whole, x: torch.Tensor) -> object:
    y = self.lower(x)
    self.settings.result = SimpleNamespace(inner=y, scores=self.head(self.upper(y)))
    return self.settings.result.scores


def shown(run: Run) -> None:
    """Trains, and reads after each pass what it left on the model."""
    for batch in repeated():
        run.step(batch)
        held = [run.model.held, *vars(run.model.settings).values()]
        run.note([vars(each) if isinstance(each, SimpleNamespace) else each for each in held])


def modes(run: Run) -> None:
    for batch in repeated():
        run.step(batch)
        with torch.no_grad():
            run.call(batch)
            run.model.eval()
            run.call(batch)
            run.model.train()


def setting(run: Run) -> None:
    """Changes a value that modules hold, between passes."""
    for index, batch in enumerate(repeated()):
        run.model.settings.scale = 1.0 + index // 2 % 2
        run.step(batch)


class Way(NamedTuple):
    """A hidden way.

    Attributes:
        forward: what the model does.
        drive: how it is trained.
        lower: what the lower module computes.
        answers: whether the store answers; None where it may, and is right.
    """

    forward: Callable[..., Any]
    drive: Callable[[Run], None]
    lower: Callable[..., Any] = linear
    answers: bool | None = True


def held(self: Lower, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = self.linear(x) * self.held
    return found


def first_held(self: Lower, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = self.linear(x) * self.held[0]
    return found


def scaled(self: Lower, x: torch.Tensor, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    found: torch.Tensor = self.linear(x) * scale * self.scale + shift
    return found


def shifted(self: Lower, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = self.linear(x - x.roll(1, 0))
    return found


def from_elsewhere(self: Lower, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = self.linear(x) * BOX["scale"]
    return found


def normed(self: Lower, x: torch.Tensor) -> torch.Tensor:
    """Is float32 in autocast too."""
    return nn.functional.layer_norm(self.linear(x).float(), (WIDTH,)).float()


def turning(run: Run) -> None:
    BOX["twice"] = False
    for index, batch in enumerate(repeated()):
        BOX["twice"] = index in (3, 6)
        run.step(batch)


def casting(run: Run) -> None:
    for index, batch in enumerate(repeated()):
        with torch.autocast("cpu", torch.bfloat16, enabled=index // 2 % 2 == 0):
            run.call(batch)


def numbers(run: Run) -> None:
    for index, batch in enumerate(repeated()):
        times = torch.full((8,), 1 + index // 2 % 2)
        run.step((*batch, times))


WAYS = {
    "an input as an attribute": Way(attached, steps(*with_rows(DATA, MORE)), held, answers=None),
    "an input in a list": Way(listed, steps(*with_rows(DATA, MORE)), first_held),
    "what trains, through what is not seen": Way(unseen, steps(*repeated()), answers=False),
    "what trains, through .data": Way(swapped_data, steps(*repeated()), answers=False),
    "what the pass before left": Way(stale, steps(*repeated()), answers=False),
    "whether there are gradients": Way(by_gradient, modes),
    "the mode": Way(by_mode, modes),
    "an enumeration": Way(told, steps(*repeated(Kind.ONE, Kind.TWO)), scaled, answers=None),
    "a number": Way(told, steps(*repeated(1.0, 2.0)), scaled, answers=None),
    "true and one": Way(told, steps(*repeated(1, True)), scaled, answers=None),
    "a number, kept elsewhere": Way(told_elsewhere, steps(*repeated(1.0, 2.0)), from_elsewhere),
    "another precision": Way(lower_only, casting, normed),
    "a setting": Way(with_settings, setting, answers=None),
    "names of arguments": Way(with_numbers, steps(*repeated()), scaled),
    "parts of one result": Way(with_halves, steps(*repeated())),
    "a number of calls": Way(calls_differ, numbers, answers=False),
    "another way now and then": Way(turns_off, turning),
    "one row first": Way(ordinary, steps((DATA[:1],), *repeated()), shifted, answers=False),
    "equal rows first": Way(
        ordinary, steps((DATA[:1].repeat(8, 1),), *repeated()), shifted, answers=False
    ),
    "out, as an attribute": Way(shows, shown),
    "out, in a list": Way(shows_in_a_list, shown),
    "out, after a function": Way(shows_what_it_made, shown),
    "out, in an object": Way(returns_an_object, shown, answers=None),
}


@pytest.mark.parametrize("name", WAYS)
def test_hidden_ways_are_seen(name: str) -> None:
    """Outputs, gradients and what is left on the model are as without a cache, or it is refused."""
    way = WAYS[name]
    plan = FreezePlan().freeze("lower", "upper")
    verdict = trial(lambda: Whole(way.lower, way.forward), plan, way.drive)
    assert verdict.right, verdict
    answers = verdict.hits > 0 and not verdict.refused
    assert way.answers in (None, answers), verdict


def test_what_many_operations_lead_to_is_learned_in_no_time() -> None:
    """Forty doublings of an input have as many names as one."""

    def doubled(self: Whole, x: torch.Tensor) -> torch.Tensor:
        for _ in range(40):
            x = (x + x) * 0.5
        return self.head(self.lower(x))

    plan = FreezePlan().freeze("lower", "upper")
    verdict = trial(lambda: Whole(linear, doubled), plan, steps(*repeated()))
    assert verdict.difference < 1e-5
    assert verdict.hits > 0
