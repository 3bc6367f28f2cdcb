"""Law 5 in full: what is frozen is bit-identical from the moment it closes to the one it opens.

And what a transition in the middle of an accumulation window means: what closes does so at once,
what opens waits for the optimizer's next step.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optimizers import DENSE
from reference import ContradictionError, NoMatchError, Reference
from strategies import WIDTH, Case, DrawnRule, Item, Pattern, cases
from torch import nn

from freezekit import AppliedPlan, FreezePlan

pytestmark = pytest.mark.usefixtures("one_thread")

MOMENTS = 20
"""How many moments hold all that `cases` draws."""


@dataclass(frozen=True)
class Iteration:
    """One iteration of a training loop.

    Attributes:
        passes: backward passes before the step.
        forward: over how many changes of the plan the clock goes on.
        place: after how many passes `advance` is called; -1 before the gradients are cleared.
        overflows: whether a gradient is infinite, where a scaler looks for it.
    """

    passes: int
    forward: int
    place: int
    overflows: bool


@dataclass(frozen=True)
class Loop:
    """A training loop as data.

    Attributes:
        optimizer: a class of torch.optim.
        options: its arguments.
        scaled: whether a gradient scaler takes the steps.
        clears_first: whether gradients are cleared before the passes or after the step.
        to_none: how they are cleared.
        iterations: what happens.
    """

    optimizer: str
    options: dict[str, Any]
    scaled: bool
    clears_first: bool
    to_none: bool
    iterations: tuple[Iteration, ...]


@st.composite
def iterations(draw: st.DrawFn) -> Iteration:
    """Draws an iteration."""
    passes = draw(st.integers(1, 3))
    return Iteration(
        passes,
        draw(st.sampled_from([0, 1, 1, 1, 2])),
        draw(st.integers(-1, passes)),
        draw(st.integers(0, 4)) == 0,
    )


@st.composite
def loops(draw: st.DrawFn) -> Loop:
    """Draws a training loop."""
    name = draw(st.sampled_from(DENSE))
    known = inspect.signature(getattr(torch.optim, name)).parameters
    wanted = {"weight_decay": 0.1, "momentum": 0.9}
    return Loop(
        name,
        {key: value for key, value in wanted.items() if key in known and draw(st.booleans())},
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        tuple(draw(st.lists(iterations(), min_size=2, max_size=7))),
    )


@st.composite
def windowed(draw: st.DrawFn) -> Case:
    """Draws a model and a plan about it that closes a part of it for a while."""
    case = draw(cases(lenient=True))
    children = [
        name for name, child in case.tree.children if child.kind not in ("dropout", "depth")
    ]
    assume(children)
    names = draw(st.lists(st.sampled_from(children), min_size=1, max_size=2, unique=True))
    closes = draw(st.integers(0, 2))
    moments = {f"at_{case.clock}": closes, f"until_{case.clock}": draw(st.integers(closes + 1, 4))}
    window = DrawnRule("freeze", (Pattern((Item("name", tuple(names)),)),), moments)
    place = draw(st.integers(0, len(case.rules)))
    return Case(case.tree, (*case.rules[:place], window, *case.rules[place:]), case.totals)


@dataclass
class Run:
    """A loop carried out, with all that was frozen under watch.

    Attributes:
        model: what is trained.
        applied: its plan.
        optimizer: attached.
        expected: says what trains and what is held at a moment.
        closed: what is frozen now, with the value it had when it closed.
        opens: what waits for the next step.
    """

    case: Case
    loop: Loop
    model: nn.Module
    applied: AppliedPlan
    optimizer: torch.optim.Optimizer
    expected: Reference
    closed: dict[str, torch.Tensor] = field(default_factory=dict)
    opens: set[str] = field(default_factory=set)
    gathered: bool = False

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns all parameters and buffers by name."""
        return dict(self.model.named_parameters()) | dict(self.model.named_buffers())

    def look(self) -> None:
        """Checks that what is closed has not moved and has neither flag nor gradient."""
        self.compare()
        parameters = dict(self.model.named_parameters())
        frozen = [parameters[name] for name in self.closed if name in parameters]
        assert not any(each.requires_grad for each in frozen)
        assert all(each.grad is None for each in frozen)

    def compare(self) -> None:
        """Checks that what is closed has not moved."""
        tensors = self.tensors()
        assert [name for name, value in self.closed.items() if not same(tensors[name], value)] == []

    def advance(self, moment: int) -> None:
        """Goes to a moment; notes what closes there, forgets what opens."""
        self.look()
        waits = self.gathered and gradients_are_gathered(self.optimizer)
        warms = self.applied.resolved._cascade.time.warms
        self.applied.advance(**({"step": moment} if warms else self.case.at(moment)))
        states = self.expected.states(moment)
        frozen = {name for name, state in states.items() if not state.trainable}
        opening = self.closed.keys() & states.keys() - frozen
        self.opens = set(opening) if waits else set()
        buffers = {
            f"{path}.{name}".lstrip(".")
            for path in self.expected.held(moment)
            for name, _ in self.model.get_submodule(path).named_buffers(recurse=False)
        }
        tensors = self.tensors()
        self.closed = {
            name: self.closed.get(name, tensors[name].detach().clone())
            for name in frozen | buffers | self.opens
        }
        self.look()
        flags = {name for name, each in self.model.named_parameters() if each.requires_grad}
        assert flags == states.keys() - frozen - self.opens

    def backward(self) -> None:
        """Runs a forward and a backward pass on a random batch, in train mode."""
        loss = self.model.train()(torch.randn(3, WIDTH)).square().mean()
        if loss.requires_grad:
            loss.backward()
            self.gathered = True
        self.look()

    def step(self, scaler: torch.amp.GradScaler | None, overflows: bool) -> None:
        """Takes a step, skipped where the scaler finds an infinite gradient."""
        gradients = [each.grad for each in parameters_of(self.optimizer) if each.grad is not None]
        if scaler is None or not gradients:
            self.optimizer.step()
        else:
            scaler.scale(torch.zeros(()))
            if overflows:
                gradients[0].view(-1)[0] = torch.inf
            scaler.step(self.optimizer)
            scaler.update()
        self.compare()
        if scaler is None or not gradients or not overflows:
            self.gathered = False
            for name in self.opens:
                del self.closed[name]
            self.opens = set()
        self.look()
        parameters = dict(self.model.named_parameters())
        flags = {name for name, each in parameters.items() if each.requires_grad}
        assert flags == parameters.keys() - self.closed.keys()

    def clear(self) -> None:
        """Clears the gradients, which ends a window as a step does."""
        self.optimizer.zero_grad(set_to_none=self.loop.to_none)
        self.gathered = False
        for name in self.opens:
            del self.closed[name]
        self.opens = set()
        self.look()

    def go(self) -> None:
        """Carries the loop out."""
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0) if self.loop.scaled else None
        changes = changes_of(self.expected)
        moment = 0
        self.advance(0)
        for each in self.loop.iterations:
            for _ in range(each.forward):
                moment = next((at for at in changes if at > moment), moment + 1)
            if each.place == -1:
                self.advance(moment)
            if self.loop.clears_first:
                self.clear()
            for number in range(each.passes):
                if each.place == number:
                    self.advance(moment)
                self.backward()
            if each.place == each.passes:
                self.advance(moment)
            self.step(scaler, each.overflows)
            if not self.loop.clears_first:
                self.clear()
        self.look()


def changes_of(expected: Reference) -> list[int]:
    """Returns the moments at which something begins or ceases to train."""
    trains = [
        {name for name, state in expected.states(moment).items() if state.trainable}
        for moment in range(MOMENTS)
    ]
    return [at for at in range(1, MOMENTS) if trains[at] != trains[at - 1]]


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Returns whether two tensors hold the same bits."""
    return first.detach().numpy().tobytes() == second.numpy().tobytes()


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Returns all parameters of an optimizer."""
    return [each for group in optimizer.param_groups for each in group["params"]]


def gradients_are_gathered(optimizer: torch.optim.Optimizer) -> bool:
    """Returns whether there are gradients that are not all zero, and all are finite."""
    gradients = [each.grad for each in parameters_of(optimizer) if each.grad is not None]
    return any(each.any() for each in gradients) and all(
        each.isfinite().all() for each in gradients
    )


@settings(max_examples=150)
@given(windowed(), loops())
def test_law_5_from_closing_to_opening_nothing_moves(case: Case, loop: Loop) -> None:
    """Any model, plan with windows, optimizer, accumulation, scaler and way to clear gradients.

    The clock goes on between two backward passes, or between a backward pass and the step.
    """
    model = case.tree.build()
    try:
        expected = Reference(case, case.tree.build())
        assume(changes_of(expected))
    except (NoMatchError, ContradictionError):
        assume(False)
    keys = {key for rule in case.rules for key in rule.properties}
    in_epochs = any("_epoch" in key or "_fraction" in key for key in keys)
    assume("warmup_steps" not in keys or case.clock == "step" or not in_epochs)
    if "options" in keys:
        loop = Loop("AdamW", {"weight_decay": 0.1}, *list(vars(loop).values())[2:])
    applied = case.plan.apply(model, **case.totals)
    cls = getattr(torch.optim, loop.optimizer)
    optimizer = applied.optimizer(cls, lr=0.01, **loop.options)
    with applied.guard():
        Run(case, loop, model, applied, optimizer, expected).go()


class Net(nn.Module):
    """Two branches, one with a norm and dropout, whose outputs are added."""

    def __init__(self) -> None:
        """Builds them."""
        super().__init__()
        self.low = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.high = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum."""
        return self.low(x) + self.high(x)


def net() -> Net:
    """Returns the same network each time, in train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


OPENS = FreezePlan().freeze("low", until_step=1)
CLOSES = FreezePlan().freeze("low", at_step=1)


def passed(model: nn.Module, number: int = 0) -> None:
    """Runs a backward pass on a batch that depends on a number alone."""
    generator = torch.Generator().manual_seed(number)
    model(torch.randn(4, 3, generator=generator)).square().sum().backward()


def state_of(model: Net) -> tuple[bool, bool, bool]:
    """Returns whether the low branch requires grad, has gradients and is in train mode."""
    parameters = list(model.low.parameters())
    return (
        all(each.requires_grad for each in parameters),
        any(each.grad is not None for each in parameters),
        all(each.training for each in model.low.modules()),
    )


CLOSED, OPEN, OPEN_WITH_GRADIENTS = (False, False, False), (True, False, True), (True, True, True)


def sgd(applied: AppliedPlan, **options: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    """Returns an attached optimizer with momentum and decay."""
    return applied.optimizer(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, **options)


def test_what_closes_in_a_window_does_so_at_once_and_loses_its_gradient() -> None:
    """What stays open keeps what it gathered, and the step uses all of it."""
    model = net()
    applied = CLOSES.apply(model)
    optimizer = sgd(applied)
    passed(model, 0)
    applied.advance(step=1)
    assert state_of(model) == CLOSED
    first = model.high.weight.grad.clone()
    alone = copy.deepcopy(model)
    alone.zero_grad()
    passed(alone, 1)
    passed(model, 1)
    assert state_of(model) == CLOSED
    assert torch.allclose(model.high.weight.grad, first + alone.high.weight.grad)
    before = [each.clone() for each in (*model.low.parameters(), *model.low.buffers())]
    optimizer.step()
    after = [*model.low.parameters(), *model.low.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_opens_in_a_window_waits_for_the_step() -> None:
    """Parameters, norms and dropout stay as they are until then, and are open right after it."""
    model = net()
    applied = OPENS.apply(model)
    optimizer = sgd(applied)
    passed(model, 0)
    applied.advance(step=1)
    assert state_of(model) == CLOSED
    model.train()
    passed(model, 1)
    assert state_of(model) == CLOSED
    assert model.low[1].num_batches_tracked == 0
    optimizer.step()
    assert state_of(model) == OPEN
    assert not any(each in optimizer.state for each in model.low.parameters())
    passed(model, 2)
    assert state_of(model) == OPEN_WITH_GRADIENTS
    assert model.low[1].num_batches_tracked == 1


@pytest.mark.parametrize("where", ["foreign", "undecided"])
def test_a_gradient_beside_what_is_frozen_is_waited_for(where: str) -> None:
    """Groups that a rule freezes are passed over; not those with a tensor that no rule is about."""
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])
    model[1].requires_grad_(False)
    applied = FreezePlan().freeze("[0]", until_step=1).apply(model)
    foreign = nn.Parameter(torch.ones(2))
    groups = [{"params": [*each.parameters()]} for each in model]
    groups[0]["params"].append(foreign)
    optimizer = torch.optim.SGD(groups, 0.1)
    applied.attach(optimizer)
    gathers = foreign if where == "foreign" else model[1].weight
    gathers.requires_grad_(True)
    gathers.grad = torch.ones_like(gathers)
    applied.advance(step=1)
    assert not model[0].weight.requires_grad
    optimizer.step()
    optimizer.zero_grad()
    applied.advance(step=1)
    assert model[0].weight.requires_grad


@pytest.mark.parametrize("accumulated", [1, 2, 4])
def test_a_run_that_advances_in_windows_is_one_that_advances_at_their_end(accumulated: int) -> None:
    """Bit for bit, for what opens."""
    runs = []
    for early in (True, False):
        model = net()
        applied = OPENS.apply(model)
        optimizer = sgd(applied)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for step in range(4):
                if not early:
                    applied.advance(step=step)
                for number in range(accumulated):
                    passed(model, 10 * step + number)
                    if early and number == 0:
                        applied.advance(step=step + 1)
                optimizer.step()
                optimizer.zero_grad()
        runs.append([*model.parameters(), *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def gathered(model: Net, optimizer: torch.optim.Optimizer) -> None:
    passed(model)


def stepped(model: Net, optimizer: torch.optim.Optimizer) -> None:
    passed(model)
    optimizer.step()


def cleared(model: Net, optimizer: torch.optim.Optimizer) -> None:
    passed(model)
    optimizer.zero_grad()


def zeroed(model: Net, optimizer: torch.optim.Optimizer) -> None:
    passed(model)
    optimizer.zero_grad(set_to_none=False)


def stepped_and_zeroed(model: Net, optimizer: torch.optim.Optimizer) -> None:
    stepped(model, optimizer)
    optimizer.zero_grad(set_to_none=False)


def clipped_and_stepped(model: Net, optimizer: torch.optim.Optimizer) -> None:
    passed(model)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()


def skipped(model: Net, optimizer: torch.optim.Optimizer) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    passed(model)
    scaler.scale(torch.zeros(()))
    model.high.weight.grad[0, 0] = torch.nan
    before = model.high.weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.high.weight, before)


def stepped_and_passed(model: Net, optimizer: torch.optim.Optimizer) -> None:
    stepped(model, optimizer)
    passed(model)


def stepped_zeroed_and_passed(model: Net, optimizer: torch.optim.Optimizer) -> None:
    stepped_and_zeroed(model, optimizer)
    passed(model)


Doing = Callable[[Net, torch.optim.Optimizer], None]
BETWEEN: list[Doing] = [stepped, cleared, zeroed, stepped_and_zeroed, clipped_and_stepped, skipped]
WITHIN: list[Doing] = [gathered, stepped_and_passed, stepped_zeroed_and_passed]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("doing", [*BETWEEN, *WITHIN], ids=lambda doing: doing.__name__)
def test_where_a_window_begins_and_ends(doing: Doing, fused: bool) -> None:
    """A step ends it; used gradients, zeros, and those of a skipped step are no window."""
    model = net()
    applied = OPENS.apply(model)
    optimizer = sgd(applied, fused=fused)
    doing(model, optimizer)
    applied.advance(step=1)
    assert state_of(model) == (OPEN if doing in BETWEEN else CLOSED)
    passed(model)
    optimizer.step()
    assert model.low[0].weight.requires_grad
    assert model.low[1].training


def test_a_skipped_step_does_not_end_the_waiting_for_good() -> None:
    """What waits while a scaler skips a step opens when the gradients are cleared."""
    model = net()
    applied = OPENS.apply(model)
    optimizer = sgd(applied)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for number in range(3):
        scaler.scale(torch.zeros(()))
        passed(model)
        if number == 0:
            applied.advance(step=1)
            model.high.weight.grad[0, 0] = torch.inf
        assert state_of(model) == (CLOSED if number == 0 else OPEN_WITH_GRADIENTS)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert state_of(model) == OPEN


def test_gradients_that_nobody_steps_are_no_window_once_they_are_cleared() -> None:
    """The generator's pass leaves gradients in the discriminator, which clears them unused."""
    model = nn.ModuleDict(
        {"d": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), "g": nn.Linear(3, 3)}
    )
    applied = FreezePlan().freeze("d[0]", until_step=2).apply(model)
    d = applied.optimizer(torch.optim.SGD, "d", lr=0.1)
    g = applied.optimizer(torch.optim.SGD, "g", lr=0.1)
    noise = torch.randn(4, 3)
    opened = []
    for step in range(4):
        applied.advance(step=step)
        d.zero_grad()
        opened.append(model["d"][0].weight.requires_grad)
        model["d"](model["g"](noise).detach()).sum().backward()
        d.step()
        g.zero_grad()
        model["d"](model["g"](noise)).sum().backward()
        g.step()
    assert opened == [False, False, True, True]


def test_what_is_left_of_a_window_is_none_once_it_is_cleared() -> None:
    """An epoch that ends in the middle of a window, and a loop that clears and goes on."""
    model = net()
    applied = OPENS.apply(model)
    optimizer = sgd(applied)
    passed(model)
    applied.advance(step=1)
    assert state_of(model) == CLOSED
    optimizer.zero_grad()
    assert state_of(model) == OPEN
    assert "zero_grad" not in vars(optimizer)


def test_what_is_wrapped_around_zero_grad_meanwhile_stays() -> None:
    """And is called once each time, in this window, in the next one, and after release."""
    model = net()
    applied = OPENS.apply(model)
    optimizer = sgd(applied)
    calls = 0

    def counted(inner: Callable[[], None]) -> None:
        nonlocal calls
        calls += 1
        inner()

    passed(model)
    applied.advance(step=1)
    optimizer.zero_grad = partial(counted, optimizer.zero_grad)
    for clock in (1, 0, 1):
        passed(model)
        applied.advance(step=clock)
        optimizer.zero_grad()
        assert state_of(model) == (OPEN if clock else CLOSED)
    applied.release()
    optimizer.zero_grad()
    assert calls == 4


def test_what_closes_again_in_the_same_window_never_opened() -> None:
    """The last moment counts; the step opens nothing."""
    model = net()
    applied = FreezePlan().freeze("low").unfreeze("low", at_step=1, until_step=2).apply(model)
    optimizer = sgd(applied)
    passed(model)
    applied.advance(step=1)
    applied.advance(step=2)
    optimizer.step()
    assert state_of(model) == CLOSED


def test_several_moments_in_one_window_are_carried_out_at_its_end() -> None:
    """What each of them opens waits for the same step."""
    model = net()
    plan = FreezePlan().freeze("low[0]", until_step=1).freeze("low[1]", until_step=2)
    applied = plan.apply(model)
    optimizer = sgd(applied)
    passed(model)
    for moment in (1, 2, 1, 2):
        applied.advance(step=moment)
    assert not any(each.requires_grad for each in model.low.parameters())
    optimizer.step()
    assert all(each.requires_grad for each in model.low.parameters())


def test_one_transition_in_a_window_may_close_and_open() -> None:
    """What closes does not wait for what opens."""
    model = net()
    applied = FreezePlan().freeze("low", until_step=1).freeze("high", at_step=1).apply(model)
    optimizer = sgd(applied)
    passed(model)
    before = model.high.weight.detach().clone()
    applied.advance(step=1)
    assert not any(each.requires_grad for each in model.parameters())
    assert all(each.grad is None for each in model.parameters())
    optimizer.step()
    assert state_of(model) == OPEN
    assert torch.equal(model.high.weight, before)


@pytest.mark.parametrize("leftover", [False, True], ids=["cleared", "used"])
def test_going_back_opens_what_was_open_then(leftover: bool) -> None:
    """An earlier moment is as any other: between windows what it opens is open at once."""
    model = net()
    applied = CLOSES.apply(model)
    optimizer = sgd(applied)
    applied.advance(step=5)
    passed(model)
    optimizer.step()
    if not leftover:
        optimizer.zero_grad()
    applied.advance(step=0)
    assert state_of(model) == OPEN


def test_release_in_a_window_opens_at_once() -> None:
    """What waited has the flag and the mode it had before the plan."""
    model = net()
    applied = OPENS.apply(model)
    optimizer = sgd(applied)
    passed(model)
    applied.advance(step=1)
    applied.release()
    assert state_of(model) == OPEN
    optimizer.step()
    assert state_of(model) == OPEN


def test_the_rate_of_what_waits_is_that_of_what_is_frozen() -> None:
    """`lrs` says what the next step does; it does not move what opens only after it."""
    model = net()
    applied = OPENS.apply(model)
    optimizer = sgd(applied)
    passed(model)
    applied.advance(step=1)
    assert sorted(applied.lrs().values()) == [0.0, 0.1]
    optimizer.step()
    assert sorted(applied.lrs().values()) == [0.1, 0.1]


def test_windows_of_several_optimizers_all_end_first() -> None:
    """What opens waits while any attached optimizer has gathered gradients."""
    model = net()
    applied = OPENS.apply(model)
    low = applied.optimizer(torch.optim.SGD, "low", lr=0.1)
    high = applied.optimizer(torch.optim.SGD, "high", lr=0.1)
    passed(model)
    applied.advance(step=1)
    low.step()
    assert state_of(model) == CLOSED
    high.step()
    assert state_of(model) == OPEN


def test_without_an_attached_optimizer_nothing_waits() -> None:
    """Nobody would say when the window ends."""
    model = net()
    applied = OPENS.apply(model)
    passed(model)
    applied.advance(step=1)
    assert model.low[0].weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("to_none", [True, False], ids=["to_none", "to_zero"])
@pytest.mark.parametrize("optimizer", DENSE)
def test_every_optimizer_keeps_what_closes_and_opens_again(
    optimizer: str, to_none: bool, dtype: torch.dtype
) -> None:
    """Two frozen stretches with training between: not one bit moves in them, and not else."""
    model = net().to(dtype)
    plan = FreezePlan().freeze("low", until_step=2).freeze("low", at_step=4, until_step=6)
    applied = plan.apply(model)
    known = inspect.signature(getattr(torch.optim, optimizer)).parameters
    wanted = {"weight_decay": 0.1, "momentum": 0.9}
    options = {key: value for key, value in wanted.items() if key in known}
    run = applied.optimizer(getattr(torch.optim, optimizer), lr=0.1, **options)
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        before = [each.detach().clone() for each in (*model.low.parameters(), *model.low.buffers())]
        applied.advance(step=step)
        model.train()
        for _ in range(2):
            batch = torch.randn(4, 3, generator=generator).to(dtype)
            model(batch).square().sum().backward()
        run.step()
        run.zero_grad(set_to_none=to_none)
        after = [*model.low.parameters(), *model.low.buffers()]
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert any(moved) == (step in (2, 3, 6, 7))
