"""What a plan changes in the course of training, under every optimizer and every LR scheduler.

The closed form is always the same: the learning rate that a step uses is what the scheduler wrote
for the group, times the factor that the plan has for it now. Factors are powers of two (and 0.75 in
a warm-up), so that equal means equal.
"""

import copy
import inspect
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optimizers import OPTIMIZERS
from reference import ContradictionError, NoMatchError, Reference
from strategies import Case, cases
from torch import nn
from torch.optim import lr_scheduler

from freezekit import AppliedPlan, FreezekitError, FreezePlan, PlanError

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = 0.05
STEPS = 15
PARTS = ("low", "mid", "head")
PLAN = (
    FreezePlan()
    .group("low", lr_mult=0.25, warmup_steps=4)
    .group("mid", lr_mult=0.5)
    .group("mid", lr_mult=2.0, at_step=5, until_step=12)
    .group("head", lr=0.0125, at_step=6)
    .group("head", weight_decay=0.02, at_step=7)
    .freeze("low", until_step=3)
    .freeze("low", at_step=9, until_step=11)
)
MULTIPLES = {"low": 0.25, "mid": 0.5, "head": 1.0}
"""What the groups are given, over the base learning rate."""


def factor(part: str, step: int) -> float:
    """Returns what `PLAN` multiplies the lr of a group by at a step, 0 while it is frozen."""
    if part == "mid":
        return 4.0 if 5 <= step < 12 else 1.0
    if part == "head":
        return 1.0 if step < 6 else 0.25
    if step < 3 or step in (9, 10):
        return 0.0
    return min(1.0, (step - (3 if step < 9 else 11) + 1) / 4)


def options_of(name: str) -> dict[str, float]:
    """Returns weight decay and momentum for an optimizer that has them."""
    known = inspect.signature(getattr(torch.optim, name)).parameters
    wanted = {"weight_decay": 0.01, "momentum": 0.9}
    return {key: value for key, value in wanted.items() if key in known}


def parts(name: str) -> nn.ModuleDict:
    """Returns three layers side by side that an optimizer can train, the same ones each time."""
    make: Callable[[], nn.Module] = {
        "SparseAdam": lambda: nn.Embedding(6, 3, sparse=True),
        "Muon": lambda: nn.Linear(3, 3, bias=False),
    }.get(name, lambda: nn.Linear(3, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.ModuleDict({part: make() for part in PARTS})


def backward(model: nn.ModuleDict, step: int) -> None:
    """Runs a backward pass through all layers; the batch depends on the step alone."""
    generator = torch.Generator().manual_seed(step)
    sparse = isinstance(model["low"], nn.Embedding)
    batch = (
        torch.randint(6, (4,), generator=generator)
        if sparse
        else torch.randn(4, 3, generator=generator)
    )
    sum(layer(batch).square().sum() for layer in model.values()).backward()


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Returns what the groups have now."""
    return [group["lr"] for group in optimizer.param_groups]


def scaled(optimizer: torch.optim.Optimizer, by: float) -> list[float]:
    """Returns what the groups have now, times a number."""
    return [rate * by for rate in rates(optimizer)]


def cycles(optimizer: torch.optim.Optimizer) -> bool:
    """Returns whether the optimizer has a momentum that schedulers can cycle."""
    return "betas" in optimizer.defaults or "momentum" in optimizer.defaults


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda at: 0.9**at] * len(rates(o))),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda at: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 4, 0.3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 8], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, 6),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.3, total_iters=8),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.3, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 20)],
        milestones=[4],
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 40, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.3, 6), lr_scheduler.ExponentialLR(o, 0.9)], o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(
        o, patience=1, factor=0.3, min_lr=scaled(o, 0.1)
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, scaled(o, 0.1), rates(o), step_size_up=4, cycle_momentum=cycles(o)
    ),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o, rates(o), total_steps=STEPS + 1, cycle_momentum=cycles(o)
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, scaled(o, 0.1), anneal_epochs=8),
}


def scheduled(scheduler: Any) -> None:  # noqa: ANN401
    """Takes a step of a scheduler, with a loss that has stalled where it wants one."""
    plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
    scheduler.step(*([1.0] if plateau else []))


def test_the_tables_hold_all_that_torch_has() -> None:
    """A scheduler or optimizer that is new in torch is noticed here."""
    known = {
        name
        for name, cls in vars(lr_scheduler).items()
        if inspect.isclass(cls)
        and issubclass(cls, lr_scheduler.LRScheduler)
        and cls is not lr_scheduler.LRScheduler
        and not name.startswith("_")
    }
    assert known == set(SCHEDULERS) - {"SWALR"}
    assert {"Adafactor", "Adagrad", "AdamW", "Muon", "Rprop", "SGD", "SparseAdam"} < set(OPTIMIZERS)


class Trained:
    """A model, its optimizer and its scheduler, trained through `PLAN`."""

    def __init__(self, optimizer: str, scheduler: str, *, late: bool) -> None:
        """Applies the plan; attaches the optimizer after the scheduler is built if `late`."""
        self.model = parts(optimizer)
        self.applied = PLAN.apply(self.model)
        cls = getattr(torch.optim, optimizer)
        if late:
            groups = self.applied.param_groups(lr=BASE)
            self.optimizer = cls(groups, lr=BASE, **options_of(optimizer))
        else:
            self.optimizer = self.applied.optimizer(cls, lr=BASE, **options_of(optimizer))
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        if late:
            self.applied.attach(self.optimizer)
        self.used: dict[str, dict[str, Any]] = {}
        self.optimizer.register_step_pre_hook(self.look)

    def look(self, *_: object) -> None:
        """Notes what the groups have inside a step."""
        self.used = {part: dict(self.group(part)) for part in PARTS}

    def group(self, part: str) -> dict[str, Any]:
        """Returns the param group of a layer."""
        first = next(self.model[part].parameters())
        return next(
            group
            for group in self.optimizer.param_groups
            if any(each is first for each in group["params"])
        )


class ByHand:
    """The same training without freezekit: flags, factors and decay written by hand."""

    def __init__(self, optimizer: str, scheduler: str) -> None:
        """Builds the groups of the layers in order."""
        self.model = parts(optimizer)
        cls = getattr(torch.optim, optimizer)
        groups = [
            {"params": list(self.model[part].parameters()), "lr": BASE * MULTIPLES[part]}
            for part in PARTS
        ]
        self.optimizer = cls(groups, lr=BASE, **options_of(optimizer))
        self.groups = dict(zip(PARTS, self.optimizer.param_groups, strict=True))
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)

    def step(self, at: int) -> None:
        """Freezes what the plan freezes at a step, and takes it with the plan's factors."""
        for parameter in self.model["low"].parameters():
            parameter.requires_grad_(factor("low", at) > 0)
        self.optimizer.zero_grad()
        backward(self.model, at)
        written = rates(self.optimizer)
        for part, group in self.groups.items():
            group["lr"] *= factor(part, at)
        if "weight_decay" in self.groups["head"] and at >= 7:
            self.groups["head"]["weight_decay"] = 0.02
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, written, strict=True):
            group["lr"] = rate


@pytest.mark.parametrize("late", [False, True], ids=["attached_first", "scheduled_first"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_step_is_the_one_written_by_hand(optimizer: str, scheduler: str, late: bool) -> None:
    """Rates, decay, ratios and weights are those of the closed form; nothing is left behind."""
    run, hand = Trained(optimizer, scheduler, late=late), ByHand(optimizer, scheduler)
    for at in range(STEPS):
        run.applied.advance(step=at)
        run.optimizer.zero_grad()
        backward(run.model, at)
        factors = {part: factor(part, at) for part in PARTS}
        expected = {part: hand.groups[part]["lr"] * factors[part] for part in PARTS}
        before = [dict(group) for group in run.optimizer.param_groups]
        told = run.applied.lrs()
        assert {name.partition(".")[0]: rate for name, rate in told.items()} == expected
        run.optimizer.step()
        hand.step(at)
        live = [part for part in PARTS if factors[part]]
        assert {part: run.used[part]["lr"] for part in live} == {p: expected[p] for p in live}
        full = run.used["head"]["lr"] / factors["head"]
        assert [run.used[part]["lr"] for part in live] == [
            full * MULTIPLES[part] * factors[part] for part in live
        ]
        if "weight_decay" in options_of(optimizer):
            decays = [run.used[part]["weight_decay"] for part in PARTS]
            assert decays == [0.01, 0.01, 0.02 if at >= 7 else 0.01]
        for group, then in zip(run.optimizer.param_groups, before, strict=True):
            assert group.keys() == then.keys()
            assert all(group[key] is then[key] for key in group)
        assert has_state(run, "low") == (at >= 3)
        for part in PARTS:
            assert run.group(part)["lr"] == hand.groups[part]["lr"]
            pairs = zip(run.model[part].parameters(), hand.model[part].parameters(), strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
        scheduled(run.scheduler)
        scheduled(hand.scheduler)


def has_state(run: Trained, part: str) -> bool:
    """Returns whether an optimizer has state for a layer, other than what Adagrad begins with."""
    states = [run.optimizer.state.get(each, {}) for each in run.model[part].parameters()]
    if isinstance(run.optimizer, torch.optim.Adagrad):
        return any(each["step"] > 0 for each in states)
    return any(states)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dropped_state_begins_anew(optimizer: str) -> None:
    """With `on_freeze="drop"` what is frozen has no state, and what opens again trains on."""
    model = parts(optimizer)
    plan = FreezePlan().freeze("low", until_step=1).freeze("low", at_step=3, until_step=5)
    applied = plan.apply(model, on_freeze="drop")
    cls = getattr(torch.optim, optimizer)
    run = applied.optimizer(cls, lr=BASE, **options_of(optimizer))
    seen = []
    for at in range(7):
        applied.advance(step=at)
        run.zero_grad()
        backward(model, at)
        before = next(model["low"].parameters()).detach().clone()
        run.step()
        first = next(model["low"].parameters())
        seen.append((first in run.state, not torch.equal(first, before)))
    live, frozen = (True, True), (False, False)
    assert seen == [frozen, live, live, frozen, frozen, live, live]


@pytest.mark.parametrize("at", range(STEPS))
def test_the_rates_of_a_moment_need_no_history(at: int) -> None:
    """A fresh process that goes to a step at once has the factors of one that went through all."""
    applied = PLAN.apply(parts("SGD"))
    applied.optimizer(torch.optim.SGD, lr=BASE, weight_decay=0.01)
    applied.advance(step=at)
    expected = {part: BASE * MULTIPLES[part] * factor(part, at) for part in PARTS}
    assert applied.lrs() == expected
    for other in (STEPS, 0, 10, at):
        applied.advance(step=other)
    assert applied.lrs() == expected


@settings(max_examples=100)
@given(cases(lenient=True), st.lists(st.integers(0, 19), min_size=1, max_size=4))
def test_any_plan_has_the_rates_that_its_rules_say(case: Case, moments: list[int]) -> None:
    """At any moments, in any order: the rate of the phase, times the warm-up since the opening."""
    model = case.tree.build()
    try:
        reference = Reference(case, case.tree.build())
        states = [reference.states(each) for each in range(20)]
    except (NoMatchError, ContradictionError):
        assume(False)
    ever = {name for each in states for name, state in each.items() if state.trainable}
    warms = any("warmup_steps" in rule.properties for rule in case.rules)
    assume(ever and not (warms and case.clock == "epoch" and len(states[0]) and has_epochs(case)))
    clock = "step" if warms else case.clock
    applied = case.plan.apply(model, **case.totals)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=0.3)
    named = {id(tensor): name for name, tensor in model.named_parameters()}
    used: list[dict[str, Any]] = []
    optimizer.register_step_pre_hook(lambda o, *_: used.extend(map(dict, o.param_groups)))
    for moment in moments:
        applied.advance(**{clock: moment})
        told = applied.lrs()
        used.clear()
        optimizer.step()
        for group in used:
            for name in {named[id(each)] for each in group["params"]}:
                rate = expected_rate(states, name, moment)
                assert told[group["name"]] == pytest.approx(rate, rel=1e-12)
                if rate:
                    assert group["lr"] == pytest.approx(rate, rel=1e-12)
                    decay = states[moment][name].weight_decay
                    assert group["weight_decay"] == pytest.approx(0.01 if decay is None else decay)
                    options = {"betas": (0.9, 0.999)} | dict(states[moment][name].options)
                    assert group["betas"] == options["betas"]


def has_epochs(case: Case) -> bool:
    """Returns whether a case has moments, so that a warm-up cannot be counted beside them."""
    return any("_epoch" in key or "_fraction" in key for r in case.rules for key in r.properties)


def expected_rate(states: list[dict[str, Any]], name: str, moment: int) -> float:
    """Returns the effective rate of a parameter over a base of 0.3, 0 while it is frozen."""
    now = states[moment][name]
    if not now.trainable:
        return 0.0
    rate = now.lr if now.lr is not None else 0.3 * (now.lr_mult or 1.0)
    if now.warmup_steps is None:
        return rate
    start = moment
    while start and states[start - 1][name].trainable:
        start -= 1
    return rate * min(1.0, (moment - max(start, now.warmup_from[0]) + 1) / now.warmup_steps)


def warming(*, options: dict[str, Any] | None = None) -> tuple[nn.ModuleDict, AppliedPlan]:
    """Returns a model whose low layer warms up over steps 0 to 3 from a quarter."""
    model = parts("SGD")
    more = {"options": options} if options else {}
    return model, FreezePlan().group("low", warmup_steps=4, **more).apply(model)


class Wrapped(torch.optim.SGD):
    """Calls the step of its base class, and looks at its rate before and after."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Returns what the base class returns."""
        self.look(closure)
        found = super().step(closure)
        self.look(closure)
        return found

    def look(self, closure: Callable[[], Any] | None) -> None:
        """Calls a closure."""
        if closure is not None:
            closure()


class TwiceWrapped(Wrapped):
    """Steps twice in one step, as sharpness-aware and lookahead optimizers do."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Returns what the second step returns."""
        super().step(closure)
        self.look(closure)
        return super().step(closure)


@pytest.mark.parametrize(("cls", "looks"), [(torch.optim.SGD, 1), (Wrapped, 3), (TwiceWrapped, 7)])
@pytest.mark.parametrize("warmed_up_classes", [False, True], ids=["fresh", "known"])
def test_a_step_that_calls_the_step_of_its_base_multiplies_once(
    cls: type[torch.optim.SGD], looks: int, warmed_up_classes: bool
) -> None:
    """Torch runs the hooks of such a step once for each class; the factor acts all along."""
    if warmed_up_classes:
        for each in (torch.optim.SGD, Wrapped, TwiceWrapped):
            each([nn.Parameter(torch.ones(1))], lr=1.0).step()
    _, applied = warming()
    optimizer = applied.optimizer(cls, lr=BASE)
    written = rates(optimizer)
    seen: list[float] = []
    for at in range(6):
        applied.advance(step=at)
        optimizer.step(lambda: seen.append(optimizer.param_groups[0]["lr"]))
        assert all(a is b for a, b in zip(rates(optimizer), written, strict=True))
    assert seen == [BASE * min(1.0, (at + 1) / 4) for at in range(6) for _ in range(looks)]


class BrokenLossError(Exception):
    """What a closure raises."""


class Plain(torch.optim.SGD):
    """Only calls the step of its base class."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Returns what the base class returns."""
        return super().step(closure)


def broken() -> float:
    """A closure that raises."""
    raise BrokenLossError


@pytest.mark.parametrize("cls", [torch.optim.SGD, Plain])
@pytest.mark.parametrize("then", ["step", "advance", "lrs", "release", "attach"])
def test_a_step_that_raises_leaves_no_factor(cls: type[torch.optim.SGD], then: str) -> None:
    """Whatever is called next puts back what the step had changed, and goes on rightly."""
    _, applied = warming(options={"momentum": 0.5})
    optimizer = applied.optimizer(cls, lr=BASE)
    written = rates(optimizer)
    applied.advance(step=1)
    with pytest.raises(BrokenLossError):
        optimizer.step(broken)
    if then == "advance":
        applied.advance(step=1)
    elif then == "lrs":
        assert applied.lrs()["low"] == BASE / 2
    elif then == "release":
        applied.release()
    elif then == "attach":
        applied.attach(optimizer)
    if then in ("advance", "release"):
        assert all(a is b for a, b in zip(rates(optimizer), written, strict=True))
    seen: list[float] = []
    optimizer.step(lambda: seen.append(optimizer.param_groups[0]["lr"]))
    assert seen == [BASE if then == "release" else BASE / 2]
    assert all(a is b for a, b in zip(rates(optimizer), written, strict=True))


class Fussy(torch.optim.SGD):
    """Raises before or after the step of its base class, as told."""

    when = "never"

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Returns what the base class returns."""
        if self.when == "before":
            raise BrokenLossError
        super().step(closure)
        if self.when == "after":
            raise BrokenLossError


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_step_that_raises_around_that_of_its_base_leaves_no_factor(when: str, times: int) -> None:
    """However often it does, the next step has the factor once and puts it back."""
    _, applied = warming()
    optimizer = applied.optimizer(Fussy, lr=BASE)
    written = rates(optimizer)
    applied.advance(step=1)
    for _ in range(times):
        optimizer.when = when
        with pytest.raises(BrokenLossError):
            optimizer.step()
    optimizer.when = "never"
    seen: list[float] = []
    for _ in range(3):
        optimizer.step(lambda: seen.append(optimizer.param_groups[0]["lr"]))
        assert all(a is b for a, b in zip(rates(optimizer), written, strict=True))
    assert seen == [BASE / 2] * 3


def test_a_step_that_raised_keeps_nothing_alive() -> None:
    """Once put back, no trace of the step that raised is held."""
    _, applied = warming()
    optimizer = applied.optimizer(torch.optim.SGD, lr=BASE)

    class Held:
        pass

    def fail() -> float:
        held = Held()
        refs.append(weakref.ref(held))
        raise BrokenLossError

    refs: list[weakref.ref[Held]] = []
    applied.advance(step=0)
    with pytest.raises(BrokenLossError):
        optimizer.step(fail)
    applied.advance(step=1)
    assert refs[0]() is None


@pytest.mark.parametrize("fused", [False, True], ids=["skips_step", "fused"])
def test_a_scaler_that_finds_an_infinite_gradient(fused: bool) -> None:
    """Its step moves nothing and leaves no factor; the next one has the rate of its moment."""
    model, applied = warming()
    optimizer = applied.optimizer(torch.optim.SGD, lr=BASE, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    written = rates(optimizer)
    for at in range(5):
        applied.advance(step=at)
        optimizer.zero_grad()
        before = model["low"].weight.detach().clone()
        scaler.scale(model["low"](torch.ones(1, 3)).sum()).backward()
        if at == 1:
            model["low"].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        moved = (before - model["low"].weight.detach()) / BASE
        expected = 0.0 if at == 1 else min(1.0, (at + 1) / 4)
        assert torch.allclose(moved, torch.full_like(moved, expected), atol=1e-5)
        assert all(a is b for a, b in zip(rates(optimizer), written, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copied_optimizer_is_on_its_own(
    copied: Callable[[torch.optim.Optimizer], torch.optim.Optimizer],
) -> None:
    """A copy has the groups' own rates and no hooks; the original goes on as before."""
    model, applied = warming()
    optimizer = applied.optimizer(torch.optim.SGD, lr=BASE, momentum=0.9)
    applied.advance(step=0)
    backward(model, 0)
    optimizer.step()
    other = copied(optimizer)
    seen: list[float] = []
    for each in (other, optimizer):
        each.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
        each.step()
    assert seen == [BASE, BASE / 4]
    assert rates(other) == rates(optimizer) == [BASE, BASE]


@pytest.mark.parametrize("scheduler", ["LambdaLR", "StepLR", "OneCycleLR", "SequentialLR"])
def test_a_tensor_as_learning_rate_keeps_its_identity(scheduler: str) -> None:
    """Schedulers write into the tensor; steps multiply and put the same tensor back."""
    model, applied = warming()
    groups = applied.param_groups(lr=BASE)
    for group in groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    optimizer = torch.optim.SGD(groups, lr=BASE, momentum=0.9)
    schedule = SCHEDULERS[scheduler](optimizer)
    applied.attach(optimizer)
    seen: list[float] = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(float(o.param_groups[0]["lr"])))
    for at in range(6):
        applied.advance(step=at)
        optimizer.zero_grad()
        backward(model, at)
        written, value = optimizer.param_groups[0]["lr"], float(optimizer.param_groups[0]["lr"])
        told = applied.lrs()["low"]
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] is written
        assert float(written) == value
        assert seen[-1] == told == value * min(1.0, (at + 1) / 4)
        scheduled(schedule)


def used_in(optimizer: torch.optim.Optimizer, *keys: str) -> Iterator[list[tuple[Any, ...]]]:
    """Yields what the groups have in one step after the other."""
    seen: list[list[tuple[Any, ...]]] = []
    optimizer.register_step_pre_hook(
        lambda o, *_: seen.append([tuple(group.get(k) for k in keys) for group in o.param_groups])
    )
    while True:
        optimizer.step()
        yield seen[-1]


def test_decay_and_options_change_for_the_time_that_a_rule_says() -> None:
    """Inside steps they have the plan's values; the groups keep their own, or none."""
    plan = (
        FreezePlan()
        .group("low", weight_decay=0.3, options={"betas": (0.5, 0.75)}, at_step=2, until_step=4)
        .group("mid", weight_decay=0.0, at_step=1)
        .group("head", weight_decay=0.0, until_step=3)
    )
    applied = plan.apply(parts("AdamW"))
    optimizer = applied.optimizer(torch.optim.AdamW, lr=BASE, weight_decay=0.1)
    before = [dict(group) for group in optimizer.param_groups]
    steps = used_in(optimizer, "weight_decay", "betas")
    own, theirs = (0.9, 0.999), (0.5, 0.75)
    expected = [
        (0.1, 0.1, 0.0, own),
        (0.1, 0.0, 0.0, own),
        (0.3, 0.0, 0.0, theirs),
        (0.3, 0.0, 0.1, theirs),
        (0.1, 0.0, 0.1, own),
    ]
    for at, (low, mid, head, betas) in enumerate(expected):
        applied.advance(step=at)
        assert next(steps) == [
            (pytest.approx(low), betas),
            (pytest.approx(mid), own),
            (pytest.approx(head), own),
        ]
        assert [dict(group) for group in optimizer.param_groups] == before


def test_an_option_of_the_plan_stands_above_what_a_scheduler_cycles() -> None:
    """OneCycleLR writes betas; for the time that the plan sets them, steps use the plan's."""
    model = parts("Adam")
    plan = FreezePlan().group("low", options={"betas": (0.5, 0.75)}, at_step=2, until_step=4)
    applied = plan.apply(model)
    optimizer = applied.optimizer(torch.optim.Adam, lr=BASE)
    schedule = SCHEDULERS["OneCycleLR"](optimizer)
    steps = used_in(optimizer, "betas")
    for at in range(6):
        applied.advance(step=at)
        written = [group["betas"] for group in optimizer.param_groups]
        low, other = [betas for (betas,) in next(steps)]
        assert low == ((0.5, 0.75) if at in (2, 3) else written[0])
        assert other == written[1]
        assert [group["betas"] for group in optimizer.param_groups] == written
        schedule.step()
    assert written[0] != (0.9, 0.999)


def test_groups_built_by_hand_are_attached() -> None:
    """Factors act on the group that holds the parameters, named or not."""
    model = parts("SGD")
    applied = PLAN.apply(model)
    rules = [{"params": model[part].parameters(), "lr": BASE * MULTIPLES[part]} for part in PARTS]
    with pytest.raises(FreezekitError, match=r"base lr; build the groups with param_groups"):
        applied.attach(torch.optim.SGD(rules, lr=BASE))
    relative = FreezePlan(tuple(rule for rule in PLAN.rules if rule.lr is None))
    applied.release()
    applied = relative.apply(model)
    rules = [{"params": model[part].parameters(), "lr": BASE * MULTIPLES[part]} for part in PARTS]
    optimizer = torch.optim.SGD(rules, lr=BASE, weight_decay=0.01)
    applied.attach(optimizer)
    steps = used_in(optimizer, "lr", "weight_decay")
    for at in range(STEPS):
        applied.advance(step=at)
        (low, _), mid, head = next(steps)
        if factor("low", at):
            assert low == BASE * 0.25 * factor("low", at)
        assert mid == (BASE * 0.5 * factor("mid", at), 0.01)
        assert head == (BASE, 0.02 if at >= 7 else 0.01)


def test_a_decay_that_a_rule_sets_is_absolute_in_groups_built_by_hand() -> None:
    """`weight_decay=0.02` is 0.02 from its moment on, whatever the group was built with."""
    model = parts("SGD")
    applied = FreezePlan().group("low", weight_decay=0.02, at_step=1).apply(model)
    groups = [{"params": model["low"].parameters(), "weight_decay": 0.3}]
    groups.append({"params": [*model["mid"].parameters(), *model["head"].parameters()]})
    optimizer = torch.optim.SGD(groups, lr=BASE, weight_decay=0.01)
    applied.attach(optimizer)
    steps = used_in(optimizer, "weight_decay")
    seen = []
    for at in range(2):
        applied.advance(step=at)
        seen.append(next(steps))
    assert seen == [[(0.3,), (0.01,)], [(pytest.approx(0.02),), (0.01,)]]


def test_looking_at_groups_again_changes_no_rate() -> None:
    """`param_groups` builds groups; what an optimizer that is attached uses stays as it was."""
    applied = FreezePlan().group("head", lr=0.0125, at_step=2).apply(parts("SGD"))
    applied.optimizer(torch.optim.SGD, lr=BASE)
    applied.param_groups(lr=1.0)
    applied.advance(step=2)
    assert applied.lrs()["head"] == 0.0125


def test_a_group_that_mixes_what_changes_at_different_times_is_refused() -> None:
    """Nothing is attached, and the error names two of the parameters and the way out."""
    model = parts("SGD")
    applied = PLAN.apply(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=BASE)
    with pytest.raises(FreezekitError) as caught:
        applied.attach(optimizer)
    for text in ("'low.weight' and 'mid.weight' share a param group", "param_groups(lr=...)"):
        assert text in str(caught.value)
    assert not optimizer._optimizer_step_pre_hooks
    assert applied.lrs() == {}


def test_several_optimizers_have_the_factors_of_their_own_groups() -> None:
    """One model, two optimizers, two schedulers; each goes its own way."""
    model, hand = parts("SGD"), parts("SGD")
    applied = PLAN.apply(model)
    sgd = applied.optimizer(torch.optim.SGD, "{low,mid}", lr=BASE, weight_decay=0.01)
    adam = applied.optimizer(torch.optim.AdamW, "head", lr=BASE)
    schedules = [SCHEDULERS["StepLR"](sgd), SCHEDULERS["OneCycleLR"](adam)]
    plain = [torch.optim.SGD([{"params": hand[p].parameters()} for p in PARTS[:2]], lr=BASE)]
    plain.append(torch.optim.AdamW(hand["head"].parameters(), lr=BASE))
    plain[0].param_groups[0]["lr"] *= 0.25
    plain[0].param_groups[1]["lr"] *= 0.5
    references = [SCHEDULERS["StepLR"](plain[0]), SCHEDULERS["OneCycleLR"](plain[1])]
    steps = [used_in(sgd, "lr"), used_in(adam, "lr")]
    for at in range(STEPS):
        applied.advance(step=at)
        written = dict(zip(PARTS, [*rates(plain[0]), *rates(plain[1])], strict=True))
        expected = {part: written[part] * factor(part, at) for part in PARTS}
        assert applied.lrs() == expected
        used = [rate for each in steps for (rate,) in next(each)]
        assert used[1:] == [expected["mid"], expected["head"]]
        assert [*rates(sgd), *rates(adam)] == [written[part] for part in PARTS]
        for each in plain:
            each.step()
        for each in (*schedules, *references):
            each.step()


def test_lbfgs_is_refused_when_attached() -> None:
    """Built by hand it is refused as well, and nothing is hooked."""
    model = parts("SGD")
    applied = FreezePlan().freeze("low").apply(model)
    optimizer = torch.optim.LBFGS(model["mid"].parameters())
    with pytest.raises(FreezekitError, match="LBFGS takes one param group and steps frozen"):
        applied.attach(optimizer)
    assert not optimizer._optimizer_step_pre_hooks


NEEDS: dict[str, tuple[FreezePlan, dict[str, Any], str]] = {
    "lr": (FreezePlan().group("low", lr=0.1, at_step=1), {}, "lr, weight decay or options"),
    "lr_mult": (FreezePlan().group("low", lr_mult=2.0, at_step=1), {}, "lr, weight decay or"),
    "decay": (FreezePlan().group("low", weight_decay=0.1, at_step=1), {}, "lr, weight decay or"),
    "options": (
        FreezePlan().group("low", options={"momentum": 0.5}, at_step=1),
        {},
        "lr, weight decay or options",
    ),
    "warmup": (FreezePlan().group("low", warmup_steps=2), {}, "warms up"),
    "rows": (FreezePlan().freeze("low.weight", rows=":1", at_step=1), {}, "keeps rows"),
    "drop": (FreezePlan().freeze("low", at_step=1), {"on_freeze": "drop"}, "drops optimizer state"),
}


@pytest.mark.parametrize("need", NEEDS)
def test_a_plan_that_acts_in_steps_wants_an_optimizer(need: str) -> None:
    """Without one, or with one that lacks the parameter, `advance` raises and writes nothing."""
    plan, options, what = NEEDS[need]
    model = parts("SGD")
    applied = plan.freeze("mid", at_step=1).apply(model, **options)
    applied.attach(torch.optim.SGD(model["head"].parameters(), lr=BASE))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(FreezekitError) as caught:
        applied.advance(step=1)
    for text in (what, "'low.weight'", "inside optimizer.step()", "attach(optimizer)"):
        assert text in str(caught.value)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert applied.phase.index == 0
    assert applied.state_dict()["clock"] == {"epoch": None, "step": None}
    applied.optimizer(torch.optim.SGD, "{low,mid}", lr=BASE)
    applied.advance(step=1)
    assert applied.phase.frozen >= {"mid.weight", "mid.bias"}


def test_an_option_that_the_optimizer_lacks_is_refused() -> None:
    """At `attach`, with the options that it has."""
    applied = FreezePlan().group("low", options={"betta": 1}, at_step=1).apply(parts("SGD"))
    with pytest.raises(FreezekitError, match=r"SGD has no option 'betta'.*known: .*momentum"):
        applied.optimizer(torch.optim.SGD, lr=BASE)


def test_a_warm_up_counts_steps() -> None:
    """Beside moments in epochs it needs to know how long an epoch is."""
    plan = FreezePlan().freeze("low", until_epoch=1).group("low", warmup_steps=2)
    with pytest.raises(PlanError, match="steps_per_epoch"):
        plan.apply(parts("SGD"))
    applied = plan.apply(parts("SGD"), steps_per_epoch=3)
    applied.optimizer(torch.optim.SGD, lr=BASE)
    seen = []
    for at in range(6):
        applied.advance(step=at, epoch=at // 3)
        seen.append(applied.lrs()["low"])
    assert seen == [0, 0, 0, BASE / 2, BASE, BASE]
    for at, rate in ((3, BASE / 2), (5, BASE), (3, BASE / 2)):  # past its end at once, and back
        applied.advance(step=at)
        assert applied.lrs()["low"] == rate
    with pytest.raises(PlanError, match=r"pass step=\.\.\."):
        applied.advance(epoch=1)


COMPILE_IMPORTS = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"


@pytest.mark.filterwarnings(COMPILE_IMPORTS)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_compiled_step_has_the_factors(optimizer: str) -> None:
    """`torch.compile(optimizer.step)`, without a warning: rates and, but for rounding, weights."""
    compiled, plain = (Trained(optimizer, "StepLR", late=False) for _ in range(2))
    torch._dynamo.reset()
    step = torch.compile(compiled.optimizer.step, backend="eager")
    for at in range(STEPS):
        for run, take in ((compiled, step), (plain, plain.optimizer.step)):
            run.applied.advance(step=at)
            run.optimizer.zero_grad()
            backward(run.model, at)
            take()
            scheduled(run.scheduler)
        assert rates(compiled.optimizer) == rates(plain.optimizer)
        pairs = zip(compiled.model.parameters(), plain.model.parameters(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)


class OwnClearing(torch.optim.SGD):
    """Clears gradients in its own way, with arguments of its own."""

    def zero_grad(self, *, thoroughly: bool = False) -> str:
        """Returns what it did."""
        super().zero_grad()
        return "thoroughly" if thoroughly else "cleared"


def test_an_optimizer_that_clears_gradients_in_its_own_way_still_does() -> None:
    """Its arguments and what it returns are its own, and release leaves no trace."""
    model = parts("SGD")
    applied = FreezePlan().freeze("low", until_step=1).apply(model)
    optimizer = applied.optimizer(OwnClearing, lr=BASE)
    backward(model, 0)
    assert optimizer.zero_grad() == "cleared"
    assert model["mid"].weight.grad is None
    assert optimizer.zero_grad(thoroughly=True) == "thoroughly"
    applied.release()
    assert "zero_grad" not in vars(optimizer)
    assert optimizer.zero_grad(thoroughly=True) == "thoroughly"


def test_looking_at_rates_inside_a_step_changes_none() -> None:
    """`lrs` may be called by anything that runs inside a step, and says what acts there."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    applied = FreezePlan().group("weight", lr_mult=0.5, at_step=1).apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=1.0)
    applied.advance(step=1)
    seen: list[dict[str, float]] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(applied.lrs()))
    model.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert seen == [{"weight": 0.5}]
    assert model.weight.item() == -0.5
