"""Resume: the state is a function of the moment, and a stopped run goes on as if it never had."""

import copy
import io
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import training_run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import trace
from strategies import MOMENTS, WIDTH, Case, cases
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim import lr_scheduler

from freezekit import AppliedPlan, FreezekitError, FreezePlan, PlanError, Rule

Optimizer = torch.optim.Optimizer


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a state after a trip through `torch.save`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def leaves(state: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yields what a nested state holds, each with its place; the order of keys does not count."""
    match state:
        case dict():
            inner = [*state.items(), ("keys", ", ".join(sorted(map(str, state))))]
        case list() | tuple():
            inner = [*enumerate(state), ("length", len(state))]
        case _:
            yield path, state
            return
    for key, value in inner:
        yield from leaves(value, f"{path}/{key}")


SAME = 0.0, ""


def furthest(first: object, second: object) -> tuple[float, str]:
    """Returns the greatest difference between two states and where it is, or `SAME`."""
    ours, theirs = dict(leaves(first)), dict(leaves(second))
    if ours.keys() != theirs.keys():
        return float("inf"), min(ours.keys() ^ theirs.keys())
    far, path = max((distance(ours[path], theirs[path]), path) for path in ours)
    return (far, path) if far else SAME


def distance(first: object, second: object) -> float:
    """Returns by how much two values differ."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return float("inf")
        if torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0)):
            return 0.0
        return (first.double() - second.double()).abs().max().item()
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second)
    return 0.0 if first == second else float("inf")


# The state is a function of the moment.


def clocks(moment: int) -> dict[str, int]:
    """Returns a moment on both clocks; a plan takes the one that it counts in."""
    return {"epoch": moment, "step": moment}


def apply_drawn(plan: FreezePlan, case: Case, **options: Any) -> tuple[nn.Module, AppliedPlan]:  # noqa: ANN401
    """Returns a new model with a drawn plan; passes over those that must be refused."""
    model = case.tree.build()
    try:
        applied = plan.apply(model, **case.totals, **options)
    except PlanError:
        assume(False)
    return model, applied


def adamw(applied: AppliedPlan) -> Optimizer | None:
    """Returns an optimizer for a plan, if something ever trains under it."""
    if not any(phase.trainable for phase in applied.resolved.phases):
        return None
    return applied.optimizer(torch.optim.AdamW, lr=0.3, weight_decay=0.2)


class Seen(NamedTuple):
    """What there is to see of an applied plan."""

    model: dict[str, Any]
    phase: int
    lrs: dict[str, float]
    stepped: list[dict[str, Any]]


def seen(model: nn.Module, applied: AppliedPlan, optimizer: Optimizer | None) -> Seen:
    """Returns flags, modes and holds, the learning rates, and what a step sees of the groups."""
    shape = {key: each for key, each in trace(model).items() if key not in ("objects", "hooks")}
    stepped: list[dict[str, Any]] = []
    if optimizer is not None:
        spy = optimizer.register_step_pre_hook(
            lambda *_: stepped.extend(
                {key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            )
        )
        optimizer.step()
        spy.remove()
    return Seen(shape, applied.phase.index, applied.lrs(), stepped)


@settings(max_examples=100)
@given(cases(lenient=True), st.lists(MOMENTS, max_size=5), MOMENTS)
def test_law_6_a_moment_gives_one_state_whatever_came_before(
    case: Case, detour: list[int], moment: int
) -> None:
    """At once, through every moment before it, in any order, and from a saved state."""
    found = []
    for path in ([moment], range(moment + 1), [*detour, moment], [moment, *detour, moment]):
        model, applied = apply_drawn(case.plan, case)
        optimizer = adamw(applied)
        for each in path:
            applied.advance(**clocks(each))
        found.append(seen(model, applied, optimizer))
    model, resumed = apply_drawn(case.plan, case)
    optimizer = adamw(resumed)
    resumed.load_state_dict(saved(applied.state_dict()))
    found.append(seen(model, resumed, optimizer))
    assert found == [found[0]] * 5


@st.composite
def metric_plans(draw: st.DrawFn, case: Case) -> FreezePlan:
    """Draws a plan some of whose rules wait for a metric instead of a moment."""
    rules = []
    for rule in case.plan.rules:
        opening = [f"at_{unit}" for unit in ("epoch", "step", "fraction")]
        metric = {
            "monitor": draw(st.sampled_from(["loss", "score"])),
            "mode": draw(st.sampled_from(["min", "max"])),
            "patience": draw(st.integers(0, 2)),
            "min_delta": draw(st.sampled_from([0.0, 1.0])),
        }
        if draw(st.booleans()):
            rule = replace(rule, **dict.fromkeys(opening), at_metric=metric)
        rules.append(rule)
    return FreezePlan(rules, allow_all_frozen=True)


@settings(max_examples=40)
@given(
    st.data(),
    cases(lenient=True, joined=False),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=8, max_size=20),
)
def test_law_6_rules_that_wait_for_a_metric_add_only_when_they_opened(
    data: st.DataObject, case: Case, measured: list[tuple[int, int]]
) -> None:
    """A run resumed anywhere opens them when the whole run does; going back gives what was."""
    plan = data.draw(metric_plans(case))
    assume(any(rule.at_metric for rule in plan.rules))
    metrics = [{"loss": loss, "score": torch.tensor(score)} for loss, score in measured]
    stop = data.draw(st.integers(0, len(metrics) - 1))
    model, applied = apply_drawn(plan, case)
    optimizer = adamw(applied)
    whole, states = [], []
    for moment, values in enumerate(metrics):
        applied.advance(**clocks(moment), metrics=values)
        states.append(saved(applied.state_dict()))
        whole.append(seen(model, applied, optimizer))
    for moment in data.draw(st.permutations(range(len(metrics)))):
        applied.advance(**clocks(moment))
        assert seen(model, applied, optimizer) == whole[moment]
    model, resumed = apply_drawn(plan, case)
    optimizer = adamw(resumed)
    resumed.load_state_dict(states[stop])
    assert seen(model, resumed, optimizer) == whole[stop]
    for moment in range(stop, len(metrics)):
        resumed.advance(**clocks(moment), metrics=metrics[moment])
        assert seen(model, resumed, optimizer) == whole[moment]
        assert resumed.state_dict() == states[moment]


# A run that is stopped and resumed.

RATES: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "AdamW": {"weight_decay": 0.3, "amsgrad": True},
    "NAdam": {"weight_decay": 0.1},
    "Adagrad": {},
}
SCHEDULERS: dict[str, Callable[[Optimizer], lr_scheduler.LRScheduler]] = {
    "constant": lambda optimizer: lr_scheduler.ConstantLR(optimizer, 0.5, 3),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, [2 * group["lr"] for group in optimizer.param_groups], total_steps=8
    ),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
}
PARTS = ("model", "optimizer", "scheduler", "applied")


class Training:
    """A training run with everything a checkpoint is made of."""

    def __init__(
        self,
        model: nn.Module,
        applied: AppliedPlan,
        cls: type[Optimizer] = torch.optim.AdamW,
        scheduler: str = "one cycle",
        *,
        attach: bool = True,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Builds optimizer and scheduler."""
        self.model = model
        self.applied = applied
        self.optimizer = cls(applied.param_groups(lr=0.01), lr=0.01, **options)
        if attach:
            applied.attach(self.optimizer)
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)

    def train(self, moments: Sequence[int], *, parts: int = 1, set_to_none: bool = True) -> None:
        """Takes an optimizer step at each of the moments."""
        for moment in moments:
            self.applied.advance(**clocks(moment))
            for _ in range(parts):
                loss = self.model.train()(torch.randn(3, WIDTH)).square().mean()
                if loss.requires_grad:
                    loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad(set_to_none=set_to_none)

    def state(self) -> dict[str, Any]:
        """Returns a checkpoint."""
        parts = {part: getattr(self, part).state_dict() for part in PARTS}
        return parts | {"rng": torch.get_rng_state(), "lrs": self.applied.lrs()}

    def load(self, state: dict[str, Any], order: Sequence[str] = PARTS) -> None:
        """Takes a checkpoint back, part by part."""
        state = saved(state)  # an optimizer trains on the very tensors that it loads
        for part in order:
            getattr(self, part).load_state_dict(state[part])
        torch.set_rng_state(state["rng"])


@st.composite
def windows(draw: st.DrawFn, case: Case) -> list[Rule]:
    """Draws rules that freeze and unfreeze single parameters for some moments of a short run."""
    names = [name for name, _ in case.tree.build().named_parameters()]
    assume(names)
    rules = []
    for _ in range(draw(st.integers(1, 3))):
        first, length = draw(st.integers(0, 6)), draw(st.integers(1, 6))
        moments = {f"at_{case.clock}": first, f"until_{case.clock}": first + length}
        picked = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
        rules.append(Rule(draw(st.sampled_from(["freeze", "unfreeze"])), tuple(picked), **moments))
    return rules


@settings(max_examples=40)
@given(st.data(), cases(lenient=True))
def test_law_6_resume_after_any_step_equals_never_stopped(data: st.DataObject, case: Case) -> None:
    """Drawn model, plan, optimizer, scheduler, accumulation and order of loading: bit for bit."""
    betas = any("options" in rule.properties for rule in case.rules)
    name = data.draw(st.sampled_from(["AdamW", "NAdam"] if betas else sorted(RATES)))
    scheduler = data.draw(st.sampled_from(sorted(SCHEDULERS)))
    assume((name, scheduler) != ("Adagrad", "one cycle"))
    on_freeze = data.draw(st.sampled_from(["keep", "drop"]))
    loop = {"parts": data.draw(st.integers(1, 2)), "set_to_none": data.draw(st.booleans())}
    moments = range(data.draw(st.integers(0, 3)), 19, data.draw(st.integers(1, 2)))[:7]
    stop = data.draw(st.integers(1, 6))
    plan = FreezePlan((*case.plan.rules, *data.draw(windows(case))), allow_all_frozen=True)

    def training() -> Training:
        model, applied = apply_drawn(plan, case, on_freeze=on_freeze)
        assume(any(phase.trainable for phase in applied.resolved.phases))
        return Training(model, applied, getattr(torch.optim, name), scheduler, **RATES[name])

    torch.default_generator.manual_seed(0)
    whole = training()
    whole.train(moments[:stop], **loop)
    state = saved(whole.state())
    whole.train(moments[stop:], **loop)
    end = whole.state()
    torch.default_generator.manual_seed(1)
    resumed = training()
    resumed.load(state, data.draw(st.permutations(PARTS)))
    assert furthest(saved(resumed.state()), state) == SAME
    resumed.train(moments[stop:], **loop)
    assert furthest(resumed.state(), end) == SAME


KILLS = [f"{step}:{training_run.PLACES[step % 4]}" for step in range(1, 21)]
CHAINS = {
    "never": "end",
    **{f"single {kill.replace(':', ' ')}": f"{kill},end" for kill in KILLS},
    "all 20": ",".join([*KILLS, "end"]),
    "another interpreter": "6:backward",
}
THEN = {"another interpreter": "11:saving,17:saved,end"}


def run_chains(folder: Path, chains: dict[str, str], hash_seed: int) -> None:
    """Trains every scenario through chains of processes; see `training_run.main`."""
    names = training_run.SCENARIOS
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    environment.pop("COVERAGE_PROCESS_START", None)  # the same steps, many times
    done = subprocess.run(
        [sys.executable, training_run.__file__, str(folder)]
        + [f"{name}/{place}={links}" for name in names for place, links in chains.items()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the last checkpoints of runs that nothing stopped and of runs killed.

    The runs are: killed once, at each of 20 steps; killed at all of them, one after the other; and
    killed at three, the processes after the first being children of another interpreter.
    """
    folder = tmp_path_factory.mktemp("killed")
    run_chains(folder, CHAINS, 1)
    run_chains(folder, THEN, 2)
    return folder


def last_checkpoint(*place: str | Path) -> dict[str, Any]:
    """Returns the checkpoint that a run left."""
    return torch.load(Path(*place, "checkpoint.pt"), weights_only=True)


@pytest.mark.parametrize("place", [place for place in CHAINS if place != "never"])
@pytest.mark.parametrize("name", sorted(training_run.SCENARIOS))
def test_law_6_a_killed_run_ends_like_one_that_nothing_stopped(
    killed: Path, name: str, place: str
) -> None:
    """Weights, buffers, states of optimizer and scheduler, generator, and the rates of each step.

    Each was ended by SIGKILL, in the middle of a step or of writing a checkpoint among them.
    """
    never, resumed = (last_checkpoint(killed, name, each) for each in ("never", place))
    assert furthest(resumed, never) == SAME


@pytest.mark.parametrize("name", sorted(training_run.SCENARIOS))
def test_the_runs_that_are_killed_have_something_to_lose(killed: Path, name: str) -> None:
    """Phases, holds and what trains change, and so does the lr of one group against another's."""
    never = last_checkpoint(killed, name, "never")
    steps = never["trace"]
    assert never["done"] == len(steps) == training_run.STEPS
    for key, least in (("phase", 5), ("trains", 3), ("held", 3)):
        assert len({str(step[key]) for step in steps}) >= least
    rates = [{group: each["lr"] for group, each in step["groups"].items()} for step in steps]
    ratios = [
        {group: rate / rates[0][group] for group, rate in each.items()} for each in rates[:-1]
    ]
    assert sum(max(each.values()) > 1.5 * min(each.values()) for each in ratios) >= 5
    for step, used in zip(steps, rates, strict=True):
        assert {g: rate for g, rate in step["lrs"].items() if rate not in (0, used[g])} == {}
    assert never["applied"]["metrics"]["fired"] == ([8, 12] if name == "metrics" else [])


# Any order of loading.

MIXED = (
    FreezePlan()
    .freeze("[0]", at_step=4, until_step=6)
    .freeze("[1]", until_step=2)
    .unfreeze("[1]", warmup_steps=4, at_step=2)
    .group("[3]", lr_mult=0.5, weight_decay=0.3, at_step=3)
)


def mlp() -> nn.Sequential:
    """Returns layers of equal shape with dropout."""
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
    return nn.Sequential(layers[0], layers[1], nn.Dropout(), layers[2], layers[3])


@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("on_freeze", ["keep", "drop"])
def test_every_order_of_loading_gives_the_same(on_freeze: Any, attach: str) -> None:  # noqa: ANN401
    """All 24 orders of the four parts, the optimizer attached before or after."""

    def training(*, attach: bool) -> Training:
        model = mlp()
        return Training(model, MIXED.apply(model, on_freeze=on_freeze), attach=attach)

    whole = training(attach=True)
    whole.train(range(5))
    state = saved(whole.state())
    whole.train(range(5, 8))
    end = whole.state()
    wrong = []
    for order in itertools.permutations(PARTS):
        resumed = training(attach=attach == "before")
        resumed.load(state, order)
        if attach == "after":
            resumed.applied.attach(resumed.optimizer)
        resumed.train(range(5, 8))
        if furthest(resumed.state(), end) != SAME:
            wrong.append(order)
    assert wrong == []


def test_loading_puts_the_model_into_its_phase_whatever_gradients_there_are() -> None:
    """A checkpoint taken back in the middle of an accumulation window waits for no step."""
    run = Training(model := mlp(), FreezePlan().freeze("[0]", until_step=2).apply(model))
    run.train(range(4))
    state = saved(run.state())
    run.applied.advance(step=0)
    model(torch.randn(3, WIDTH)).sum().backward()
    run.load(state)
    assert model[0].weight.requires_grad


# Optimizer state by name.

CLASSES: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adagrad": {},
    "Adadelta": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "ASGD": {},
    "Rprop": {},
    "Adafactor": {},
}


class Twins(nn.Module):
    """Two layers of one shape, used in one order and registered in another."""

    def __init__(self, names: Sequence[str] = "ab") -> None:
        """Registers them; extra names make further layers of that shape."""
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(WIDTH, WIDTH, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns features of the shape of `x`."""
        for name in sorted(self._modules):
            x = self.get_submodule(name)(x).tanh()
        return x


def state_by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Returns what an optimizer holds for each parameter of a model."""
    return {
        name: saved(dict(optimizer.state[each]))
        for name, each in sorted(model.named_parameters())
        if each in optimizer.state
    }


def steps(model: nn.Module, optimizer: Optimizer, count: int = 3) -> None:
    """Takes some optimizer steps on fixed batches."""
    for number in range(count):
        batch = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(number))
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("groups", ["one", "each its own"])
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_layers_of_equal_shape_keep_their_own_state(name: str, groups: str) -> None:
    """Though the class registers them in another order, and so are their groups."""
    plan = FreezePlan() if groups == "one" else FreezePlan().group("a", lr_mult=0.5)
    first, second = Twins("ab"), Twins("ba")
    made = [
        plan.apply(model).optimizer(getattr(torch.optim, name), lr=0.01, **CLASSES[name])
        for model in (first, second)
    ]
    steps(first, made[0])
    second.load_state_dict(first.state_dict())
    made[1].load_state_dict(saved(made[0].state_dict()))
    assert furthest(state_by_name(second, made[1]), state_by_name(first, made[0])) == SAME
    held = [{n: g["lr"] for g in each.param_groups for n in g["param_names"]} for each in made]
    assert held[0] == held[1]
    names = {id(each): name for name, each in second.named_parameters()}
    for group in made[1].param_groups:
        assert [names[id(each)] for each in group["params"]] == group["param_names"]
    for model, optimizer in zip((first, second), made, strict=True):
        steps(model, optimizer)
    assert furthest(dict(sorted(second.state_dict().items())), dict(first.state_dict())) == SAME


def test_groups_that_come_in_another_order_keep_their_own_rates() -> None:
    """State, rates and names of groups go by what a group holds, not by where it stands."""
    plan = FreezePlan().group("a", lr=0.5, weight_decay=0.1).group("b", lr=0.25)
    first, second = Twins(), Twins()
    applied = [plan.apply(model) for model in (first, second)]
    made = [
        torch.optim.AdamW([*each.param_groups(one, lr=1.0), *each.param_groups(other, lr=1.0)])
        for each, one, other in zip(applied, "ab", "ba", strict=True)
    ]
    for each, optimizer in zip(applied, made, strict=True):
        each.attach(optimizer)
    steps(first, made[0])
    made[0].param_groups[0]["lr"] = 0.125
    made[1].load_state_dict(saved(made[0].state_dict()))
    assert [(g["name"], g["lr"], g["param_names"]) for g in made[1].param_groups] == [
        ("b.weight", 0.25, ["b.weight"]),
        ("a.weight", 0.125, ["a.weight"]),
    ]
    assert [g["weight_decay"] for g in made[1].param_groups] == [0.01, 0.1]
    assert furthest(state_by_name(second, made[1]), state_by_name(first, made[0])) == SAME


def test_several_optimizers_each_load_by_name() -> None:
    """Two optimizers of one model find their own state among layers of equal shape."""
    kinds = {"{a,b}": torch.optim.Adam, "{c,d}": torch.optim.SGD}
    models = Twins("abcd"), Twins("dcba")
    made = []
    for model in models:
        applied = FreezePlan().apply(model)
        made.append([applied.optimizer(cls, part, lr=0.1) for part, cls in kinds.items()])
    for model, optimizer in zip(models[:1] * 2, made[0], strict=True):
        steps(model, optimizer)
    for ours, theirs in zip(made[1], made[0], strict=True):
        ours.load_state_dict(saved(theirs.state_dict()))
        assert furthest(state_by_name(models[1], ours), state_by_name(models[0], theirs)) == SAME


def test_an_optimizer_attached_after_it_was_loaded_does_not_keep_anothers_state() -> None:
    """By then torch has matched by position: what went astray is put right or refused."""
    first, second = Twins("ab"), Twins("ba")
    optimizer = FreezePlan().apply(first).optimizer(torch.optim.Adam, lr=0.1)
    steps(first, optimizer)
    applied = FreezePlan().apply(second)
    late = torch.optim.Adam(applied.param_groups(lr=0.1))
    late.load_state_dict(saved(optimizer.state_dict()))
    try:
        applied.attach(late)
    except FreezekitError as error:
        assert "a.weight" in str(error)  # noqa: PT017
    else:
        assert furthest(state_by_name(second, late), state_by_name(first, optimizer)) == SAME


def by_hand(names: str, *, named: bool) -> tuple[Twins, AppliedPlan, Optimizer]:
    """Returns a model with an optimizer whose groups have names or not."""
    model = Twins(names)
    applied = FreezePlan().apply(model)
    bare = [{"params": list(model.parameters())}]
    optimizer = torch.optim.Adam(applied.param_groups(lr=0.1) if named else bare, lr=0.1)
    applied.attach(optimizer)
    return model, applied, optimizer


@pytest.mark.parametrize(("before", "after"), [(False, False), (True, False), (False, True)])
def test_groups_without_names_are_matched_by_position_as_torch_does(
    before: bool, after: bool
) -> None:
    """Where one side has no names, in the order they stand in."""
    first, one, optimizer = by_hand("ab", named=before)
    second, other, loaded = by_hand("ab", named=after)
    steps(first, optimizer)
    loaded.load_state_dict(saved(optimizer.state_dict()))
    other.load_state_dict(saved(one.state_dict()))
    assert furthest(state_by_name(second, loaded), state_by_name(first, optimizer)) == SAME


@pytest.mark.parametrize("plan_first", [False, True])
@pytest.mark.parametrize(("before", "after"), [(False, False), (True, False), (False, True)])
def test_groups_without_names_in_another_order_do_not_take_each_others_state(
    before: bool, after: bool, plan_first: bool
) -> None:
    """The plan knows what they hold: it is put right, or refused."""
    first, one, optimizer = by_hand("ab", named=before)
    second, other, loaded = by_hand("ba", named=after)
    steps(first, optimizer)
    parts = [(loaded, saved(optimizer.state_dict())), (other, saved(one.state_dict()))]
    try:
        for part, state in reversed(parts) if plan_first else parts:
            part.load_state_dict(state)
    except FreezekitError as error:
        assert "another order" in str(error)  # noqa: PT017
    else:
        assert furthest(state_by_name(second, loaded), state_by_name(first, optimizer)) == SAME


OTHER_GROUPS = """\
the optimizer's saved param groups hold other parameters than those of this run:
  saved: 2 parameters: a.weight, b.weight
  now: 1 parameter: a.weight
  now: 2 parameters: b.weight, c.weight
apply the plan it was saved with, or first call load_state_dict(..., strict=False) on the applied \
plan to match by parameter name"""


def regrouped() -> tuple[Twins, AppliedPlan, Optimizer, Twins, AppliedPlan, Optimizer]:
    """Returns a run that trained two layers of three, and one that groups all three otherwise."""
    first, second = Twins("abc"), Twins("cba")
    before = FreezePlan().freeze("c").apply(first)
    after = FreezePlan().group("a", lr=0.5).apply(second)
    made = [each.optimizer(torch.optim.Adam, lr=0.1) for each in (before, after)]
    steps(first, made[0])
    return first, before, made[0], second, after, made[1]


def test_groups_that_hold_other_parameters_are_refused() -> None:
    """The message says what each group held and holds, and the way out; nothing is loaded."""
    _, _, optimizer, _, _, other = regrouped()
    rates = [group["lr"] for group in other.param_groups]
    with pytest.raises(FreezekitError) as caught:
        other.load_state_dict(optimizer.state_dict())
    assert str(caught.value) == OTHER_GROUPS
    assert not other.state
    assert [group["lr"] for group in other.param_groups] == rates


def test_not_strict_takes_for_each_parameter_what_was_saved_under_its_name() -> None:
    """What is new starts afresh, what is no more is left out, and training goes on."""
    first, before, optimizer, second, after, other = regrouped()
    with pytest.warns(UserWarning, match="going on under another plan"):
        after.load_state_dict(saved(before.state_dict()), strict=False)
    other.load_state_dict(saved(optimizer.state_dict()))
    assert furthest(state_by_name(second, other), state_by_name(first, optimizer)) == SAME
    assert {n: g["name"] for g in other.param_groups for n in g["param_names"]} == {
        "a.weight": "a.weight",
        "b.weight": "c+b",
        "c.weight": "c+b",
    }
    steps(second, other)
    assert [key for key, each in state_by_name(second, other).items() if each["step"] == 6] == [
        "a.weight",
        "b.weight",
    ]
    smaller = FreezePlan().freeze("{b,c}").apply(third := Twins("abc"))
    last = smaller.optimizer(torch.optim.Adam, lr=0.1)
    with pytest.warns(UserWarning, match="going on under another plan"):
        smaller.load_state_dict(saved(before.state_dict()), strict=False)
    last.load_state_dict(saved(optimizer.state_dict()))
    assert list(state_by_name(third, last)) == ["a.weight"]
    assert list(last.state) == [third.a.weight]


# A plan that is another, and one that only reads so.


def norms() -> nn.Module:
    """Returns a model with a hand-frozen part and a norm that has no parameters."""
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH),
        nn.BatchNorm1d(WIDTH, affine=False),
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout()),
        nn.Linear(WIDTH, WIDTH),
    )
    model[2].requires_grad_(False)
    return model


STALLS = {"monitor": "val_loss", "patience": 2}
PLAN = FreezePlan()
CHANGED: dict[str, tuple[FreezePlan, FreezePlan, str]] = {
    "the moment": (
        PLAN.freeze("[0]").unfreeze("[0]", at_epoch=1),
        PLAN.freeze("[0]").unfreeze("[0]", at_epoch=3),
        "from epoch 1: trainable: True -> False for 2 parameters: 0.weight, 0.bias\n"
        "from epoch 3: trainable: True in both for 2 parameters: 0.weight, 0.bias",
    ),
    "what trains": (
        PLAN.freeze("[0]"),
        PLAN.freeze("[3]"),
        "trainable: False -> True for 2 parameters: 0.weight, 0.bias\n"
        "trainable: True -> False for 2 parameters: 3.weight, 3.bias",
    ),
    "the rate": (
        PLAN.group("[0]", lr=0.1),
        PLAN.group("[0]", lr=0.2, weight_decay=0.0),
        "lr: 0.1 -> 0.2 for 2 parameters: 0.weight, 0.bias\n"
        "weight_decay: None -> 0.0 for 2 parameters: 0.weight, 0.bias",
    ),
    "the warm-up": (
        PLAN.group("[0]", warmup_steps=4),
        PLAN.group("[0]", warmup_steps=5),
        "warmup_steps: 4 -> 5 for 2 parameters: 0.weight, 0.bias",
    ),
    "the options": (
        PLAN.group("[0]", options={"betas": [0.9, 0.99]}),
        PLAN.group("[0]", options={"betas": [0.8, 0.99]}),
        "betas: (0.9, 0.99) -> (0.8, 0.99) for 2 parameters: 0.weight, 0.bias",
    ),
    "the rows": (
        PLAN.unfreeze("[0].weight", rows="2:"),
        PLAN.unfreeze("[0].weight", rows="1:"),
        "rows: '2:' -> '1:' for 1 parameter: 0.weight",
    ),
    "the metric": (
        PLAN.freeze("[0]").unfreeze("[0]", at_metric=STALLS),
        PLAN.freeze("[0]").unfreeze("[0]", at_metric=STALLS | {"patience": 3}),
        "at_metric: {'monitor': 'val_loss', 'mode': 'min', 'patience': 2, 'min_delta': 0.0} -> "
        "{'monitor': 'val_loss', 'mode': 'min', 'patience': 3, 'min_delta': 0.0}",
    ),
    "a metric more": (
        PLAN.freeze("[0]"),
        PLAN.freeze("[0]").unfreeze("[0]", at_metric={"monitor": "loss"}),
        "once 1 metric-driven rule has opened, trainable: False -> True for 2 parameters: "
        "0.weight, 0.bias\nat_metric: none -> "
        "{'monitor': 'loss', 'mode': 'min', 'patience': 0, 'min_delta': 0.0}",
    ),
    "the clock": (
        PLAN.freeze("[0]").unfreeze("[0]", at_epoch=1),
        PLAN.freeze("[0]").unfreeze("[0]", at_step=1),
        "one plan counts in epochs and the other in steps",
    ),
    "where a warm-up starts": (
        PLAN.group("**", warmup_steps=4),
        PLAN.group("**", warmup_steps=4).group("[0]", warmup_steps=4, at_step=9),
        "0.weight",
    ),
    "what is held": (PLAN, PLAN.freeze("[2]"), "2"),
    "which norm without parameters is held": (PLAN, PLAN.freeze("[1]"), "1"),
    "when such a norm is held": (
        PLAN.freeze("[1]", until_epoch=2),
        PLAN.freeze("[1]", until_epoch=3),
        "from epoch 2",
    ),
}


def refused(applied: AppliedPlan, state: dict[str, Any]) -> str:
    """Returns the difference that the refusal of a state names."""
    with pytest.raises(FreezekitError) as caught:
        applied.load_state_dict(state)
    first, *lines, last = str(caught.value).split("\n")
    assert first == "the state was saved under another plan (saved -> now):"
    assert last == ("apply the plan it was saved with, or pass strict=False to go on with this one")
    return "\n".join(lines)


@pytest.mark.parametrize("what", sorted(CHANGED))
def test_a_changed_plan_is_refused_with_the_difference(what: str) -> None:
    """Nothing is written; told not to be strict, it warns of the same and goes on."""
    before, after, difference = CHANGED[what]
    first = before.apply(norms())
    first.optimizer(torch.optim.AdamW, lr=0.1)
    first.advance(**clocks(2), metrics={"val_loss": 1.0})
    state = saved(first.state_dict())
    applied = after.apply(model := norms())
    applied.optimizer(torch.optim.AdamW, lr=0.1)
    untouched, was = applied.state_dict(), trace(model)
    said = refused(applied, state)
    assert [line for line in difference.split("\n") if line not in said] == []
    assert applied.state_dict() == untouched
    assert trace(model) == was
    with pytest.warns(UserWarning, match="going on under another plan") as warned:
        applied.load_state_dict(state, strict=False)
    assert str(warned[0].message).startswith(
        f"going on under another plan (saved -> now):\n{said}\n"
    )
    assert warned[0].filename == __file__
    fresh = after.apply(other := norms())
    fresh.optimizer(torch.optim.AdamW, lr=0.1)
    for each in (applied, fresh):
        each.advance(**clocks(4), metrics={"val_loss": 1.0, "loss": 1.0})
    assert trace(model)["flags"] == trace(other)["flags"]
    assert trace(model)["modes"] == trace(other)["modes"]


def test_not_strict_goes_on_with_a_plan_on_another_clock() -> None:
    """The saved moment says nothing there; the next call of advance does."""
    before = PLAN.freeze("[0]").unfreeze("[0]", at_epoch=1).apply(norms())
    before.advance(epoch=3)
    after = PLAN.freeze("[0]").unfreeze("[0]", at_step=10).apply(model := norms())
    with pytest.warns(UserWarning, match="epochs"):
        after.load_state_dict(saved(before.state_dict()), strict=False)
    for step, trains in ((9, False), (10, True)):
        after.advance(step=step)
        assert model[0].weight.requires_grad is trains


MEANS_THE_SAME: dict[str, tuple[FreezePlan, FreezePlan]] = {
    "patterns apart": (
        PLAN.freeze("[0]", "3.bias"),
        PLAN.freeze("3.bias").freeze("[0]"),
    ),
    "another spelling": (PLAN.freeze("[0]"), PLAN.freeze("0.{weight,bias}")),
    "an overridden rule": (PLAN.freeze("[0]"), PLAN.unfreeze("[0]").freeze("[0]")),
    "a rule that may miss": (PLAN.freeze("[0]"), PLAN.freeze("[0]", "nowhere", missing_ok=True)),
    "a builder": (
        PLAN.lr_range("{0,3}", low=0.1, high=0.1),
        PLAN.group("{0,3}", lr=0.1),
    ),
    "a window cut in two": (
        PLAN.freeze("[0]", until_epoch=4),
        PLAN.freeze("[0]", until_epoch=2).freeze("[0]", at_epoch=2, until_epoch=4),
    ),
    "lists and tuples": (
        PLAN.group("[0]", options={"betas": [0.9, 0.99]}).freeze("3.bias"),
        PLAN.freeze("3.bias").group("[0]", options={"betas": (0.9, 0.99)}),
    ),
}


@pytest.mark.parametrize("what", sorted(MEANS_THE_SAME))
def test_a_plan_that_means_the_same_is_accepted(what: str) -> None:
    """However it is written."""
    before, after = (plan.apply(norms()) for plan in MEANS_THE_SAME[what])
    before.advance(**clocks(3))
    after.load_state_dict(saved(before.state_dict()))
    assert after.state_dict()["clock"] == clocks(3)
    assert str(after.phase) == str(before.phase)


def test_a_model_that_registers_its_layers_otherwise_is_accepted() -> None:
    """The names count, not their order."""
    plan = FreezePlan().freeze("a", until_step=2)
    before, after = (plan.apply(Twins(names)) for names in ("ab", "ba"))
    before.advance(step=5)
    after.load_state_dict(saved(before.state_dict()))
    assert after.phase.trainable == {"a.weight", "b.weight"}


@pytest.mark.parametrize(("before", "after"), [("ab", "abc"), ("abc", "ab")])
def test_another_model_is_refused(before: str, after: str) -> None:
    """One with a layer more or less, though the plan is the same."""
    first, second = (FreezePlan().freeze("a").apply(Twins(names)) for names in (before, after))
    first.optimizer(torch.optim.Adam, lr=0.1)
    second.optimizer(torch.optim.Adam, lr=0.1)
    assert "the model has other parameters" in refused(second, saved(first.state_dict()))


def test_another_way_with_optimizer_state_is_refused() -> None:
    """A run that dropped the state of what is frozen does not go on as one that keeps it."""
    first, second = (MIXED.apply(mlp(), on_freeze=each) for each in ("drop", "keep"))
    for each in (first, second):
        each.optimizer(torch.optim.Adam, lr=0.1)
    assert refused(second, saved(first.state_dict())) == "on_freeze: drop -> keep"


HALF = FreezePlan().freeze("[0]").unfreeze("[0]", at_fraction=0.5)
CONSTANT = FreezePlan().freeze("[0]").unfreeze("[0]", at_step=5)


@pytest.mark.parametrize(
    ("plan", "before", "after"),
    [
        (HALF, {"total_steps": 10}, {"total_steps": 20}),
        (HALF, {"total_epochs": 10}, {"total_epochs": 14}),
        (HALF, {"total_steps": 10}, {"total_steps": 5, "steps_per_epoch": 5}),
    ],
)
def test_totals_that_move_a_moment_are_refused(
    plan: FreezePlan, before: dict[str, int], after: dict[str, int]
) -> None:
    """The message says when what trains differs."""
    first, second = plan.apply(mlp(), **before), plan.apply(mlp(), **after)
    said = refused(second, saved(first.state_dict()))
    starts = sorted(each.resolved.phases[1].start for each in (first, second))
    unit = first.resolved.phases[1].unit
    assert f"from {unit} {starts[0]}: trainable" in said
    assert f"from {unit} {starts[1]}: trainable: True in both" in said


@pytest.mark.parametrize(
    ("plan", "before", "after"),
    [
        (CONSTANT, {"total_steps": 10}, {"total_steps": 20}),
        (CONSTANT, {}, {"steps_per_epoch": 7, "total_epochs": 3}),
        (HALF, {"total_steps": 10}, {"steps_per_epoch": 5, "total_epochs": 2}),
        (HALF, {"total_epochs": 10}, {"total_epochs": 9}),
        (FreezePlan().freeze("[0]"), {}, {"total_epochs": 9}),
    ],
)
def test_totals_that_move_nothing_are_accepted(
    plan: FreezePlan, before: dict[str, int], after: dict[str, int]
) -> None:
    """A longer training is resumed from a shorter one's checkpoint."""
    first, second = plan.apply(mlp(), **before), plan.apply(mlp(), **after)
    first.advance(**clocks(6))
    second.load_state_dict(saved(first.state_dict()))
    assert second.phase.trainable == first.phase.trainable


@pytest.mark.parametrize(
    "state", [{}, {"version": 1}, {"version": 2}, {"model": {}, "optimizer": {}}]
)
def test_what_is_no_state_of_a_plan_is_refused(state: dict[str, Any]) -> None:
    """Another part of the checkpoint, say, or one of a later version."""
    applied = FreezePlan().freeze("[0]").apply(mlp())
    with pytest.raises(FreezekitError, match="no state of an applied plan that this version reads"):
        applied.load_state_dict(state)
    later = applied.state_dict() | {"version": 99}
    with pytest.raises(FreezekitError, match="99"):
        applied.load_state_dict(later)


# Formats.

WAITING = (
    FreezePlan()
    .freeze("[0]", "[1]")
    .unfreeze("[0]", at_metric={"monitor": "loss", "patience": 1})
    .unfreeze("[1]", at_metric={"monitor": "loss", "patience": 1}, warmup_steps=3)
)
LOSSES = [3.0, 2.0, 2.0, 1.0, 1.0, 0.5]


def waiting(steps: int) -> tuple[nn.Module, AppliedPlan]:
    """Returns a model that was trained for some steps while a plan waits for a metric."""
    model = mlp()
    applied = WAITING.apply(model)
    applied.optimizer(torch.optim.Adam, lr=0.1)
    for step in range(steps):
        applied.advance(step=np.int64(step), metrics={"loss": torch.tensor(LOSSES[step])})
    return model, applied


def skeleton(state: object) -> object:
    """Returns the nested keys of a state."""
    return {k: skeleton(v) for k, v in state.items()} if isinstance(state, dict) else None


@pytest.mark.parametrize("steps", range(len(LOSSES) + 1))
@pytest.mark.parametrize("form", ["torch.save", "dcp"])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_state_survives_its_file(form: str, steps: int, tmp_path: Path) -> None:
    """At the start, while waiting, when one metric and when all have fired; the keys are fixed."""
    _, applied = waiting(steps)
    model, fresh = waiting(0)
    assert skeleton(applied.state_dict()) == skeleton(fresh.state_dict())
    if form == "dcp":
        dcp.save({"app": applied}, checkpoint_id=tmp_path)
        dcp.load({"app": fresh}, checkpoint_id=tmp_path)
    else:
        fresh.load_state_dict(saved(applied.state_dict()))
    assert fresh.state_dict() == applied.state_dict()
    assert fresh.phase.index == applied.phase.index
    assert fresh.lrs() == applied.lrs()
    assert len(fresh.state_dict()["metrics"]["fired"]) == {3: 1, 4: 1, 5: 2, 6: 2}.get(steps, 0)
    assert model[0].weight.requires_grad == (steps >= 3)


def test_a_state_replaces_another_one_of_the_same_phase() -> None:
    """A warm-up counts from where the metric fired in the state that is loaded."""
    runs = []
    for losses in (LOSSES, [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]):
        applied = WAITING.apply(mlp())
        applied.optimizer(torch.optim.Adam, lr=0.1)
        for step, loss in enumerate(losses):
            applied.advance(step=step, metrics={"loss": loss})
        runs.append(applied)
    assert runs[0].phase.index == runs[1].phase.index
    assert runs[0].lrs() != runs[1].lrs()
    runs[1].load_state_dict(saved(runs[0].state_dict()))
    assert runs[0].lrs() == runs[1].lrs()


@pytest.mark.parametrize("clock", [{"step": np.int64(7)}, {"step": 7, "epoch": torch.tensor(3)}])
def test_a_clock_is_saved_as_plain_numbers(clock: dict[str, Any]) -> None:
    """Whole numbers of other types are taken, one that the plan does not count in among them."""
    applied = CONSTANT.apply(mlp())
    applied.advance(**clock)
    state = saved(applied.state_dict())
    assert state["clock"] == {"epoch": None} | {key: int(value) for key, value in clock.items()}
    assert {type(each) for each in state["clock"].values()} <= {int, type(None)}


def test_an_applied_plan_is_stateful() -> None:
    """As `torch.distributed.checkpoint` asks."""
    assert isinstance(FreezePlan().apply(mlp()), Stateful)


def dcp_round_trip(whole: Training, resumed: Training, folder: Path) -> None:
    """Saves one run and loads another through the state dicts of `torch.distributed`."""
    model, optimizer = get_state_dict(whole.model, whole.optimizer)
    parts = {"model": model, "optimizer": optimizer, "scheduler": whole.scheduler.state_dict()}
    dcp.save(parts | {"app": whole.applied}, checkpoint_id=folder)
    dcp.load({"app": resumed.applied}, checkpoint_id=folder)
    model, optimizer = get_state_dict(resumed.model, resumed.optimizer)
    parts = {"model": model, "optimizer": optimizer, "scheduler": resumed.scheduler.state_dict()}
    dcp.load(parts, checkpoint_id=folder)
    resumed.scheduler.load_state_dict(parts["scheduler"])
    set_state_dict(
        resumed.model,
        resumed.optimizer,
        model_state_dict=parts["model"],
        optim_state_dict=parts["optimizer"],
    )


@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize(
    ("steps", "on_freeze"), [(4, "keep"), (5, "drop"), (6, "drop"), (8, "keep"), (8, "drop")]
)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_run_is_resumed_from_a_distributed_checkpoint(
    steps: int,
    on_freeze: Any,  # noqa: ANN401
    attach: str,
    tmp_path: Path,
) -> None:
    """Through `get_state_dict` and `set_state_dict`, the plan loaded first.

    They leave out the optimizer state of what is frozen at that moment: with on_freeze="drop" there
    is none, so these resume exactly in every phase.
    """

    def training(*, attach: bool) -> Training:
        model = mlp()
        applied = MIXED.apply(model, on_freeze=on_freeze)
        return Training(model, applied, scheduler="exponential", attach=attach)

    whole = training(attach=True)
    whole.train(range(steps))
    resumed = training(attach=attach == "before")
    random = torch.get_rng_state()
    dcp_round_trip(whole, resumed, tmp_path)
    if attach == "after":
        resumed.applied.attach(resumed.optimizer)
    torch.set_rng_state(random)
    assert furthest(resumed.state(), whole.state()) == SAME
    whole.train(range(steps, steps + 3))
    torch.set_rng_state(random)
    resumed.train(range(steps, steps + 3))
    assert furthest(resumed.state(), whole.state()) == SAME


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_keeps_the_state_of_all_that_trains(tmp_path: Path) -> None:
    """With on_freeze="keep", what torch leaves out of it is at most the state of what is frozen."""
    runs = []
    for _ in range(2):
        model = mlp()
        runs.append(Training(model, MIXED.apply(model), scheduler="exponential"))
    runs[0].train(range(5))
    dcp_round_trip(*runs, tmp_path)
    assert frozen_state(runs[0]) == {"0.weight", "0.bias"}
    before, after = (state_by_name(run.model, run.optimizer) for run in runs)
    assert set(before) - set(after) <= runs[1].applied.phase.frozen
    assert furthest({name: before[name] for name in after}, after) == SAME


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_making_a_distributed_state_moves_no_weight() -> None:
    """It steps a new optimizer at lr 0: in a warm-up, after lr and decay changed."""
    run = Training(model := mlp(), MIXED.apply(model), attach=True)
    run.applied.advance(step=3)
    before = copy.deepcopy(model.state_dict())
    rates = run.applied.lrs()
    get_state_dict(model, run.optimizer)
    assert furthest(model.state_dict(), before) == SAME
    assert run.applied.lrs() == rates


# on_freeze.


def frozen_state(run: Training) -> set[str]:
    """Returns the frozen parameters that have optimizer state."""
    return set(state_by_name(run.model, run.optimizer)) & run.applied.phase.frozen


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad"])
def test_keep_keeps_the_state_of_what_is_frozen_and_drop_drops_it(name: str) -> None:
    """The state of [0], frozen for two steps, and of nothing else."""
    for on_freeze, expected in (("keep", {"0.weight", "0.bias"}), ("drop", set())):
        model = mlp()
        applied = MIXED.apply(model, on_freeze=on_freeze)
        cls = getattr(torch.optim, name)
        run = Training(model, applied, cls, "exponential", **RATES[name])
        run.train(range(4))
        assert {"0.weight", "0.bias"} <= set(state_by_name(model, run.optimizer))
        for moment in (4, 4, 5, 4):
            before = state_by_name(model, run.optimizer)
            run.applied.advance(step=moment)
            assert frozen_state(run) == expected
        assert furthest(state_by_name(model, run.optimizer), before) == SAME
        run.train([5])
        assert frozen_state(run) == expected
        assert run.applied.phase.trainable <= set(state_by_name(model, run.optimizer))


def test_drop_depends_on_the_moment_alone() -> None:
    """State that comes from elsewhere for what is frozen goes at the next call, in any order."""
    models = mlp(), mlp()
    keeping = Training(models[0], MIXED.apply(models[0], on_freeze="keep"))
    keeping.train(range(5))
    dropping = Training(models[1], MIXED.apply(models[1], on_freeze="drop"))
    dropping.applied.advance(step=7)
    dropping.optimizer.load_state_dict(saved(keeping.optimizer.state_dict()))
    for moment, gone in ((7, ""), (5, "0"), (5, "0"), (0, "01"), (6, "01")):
        dropping.applied.advance(step=moment)
        have = {name[0] for name in state_by_name(dropping.model, dropping.optimizer)}
        assert have == set("0134") - set(gone)


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_run_that_drops_resumes_exactly(stop: int) -> None:
    """Before, in and after the window in which a trained layer is frozen."""
    runs = []
    for _ in range(2):
        model = mlp()
        runs.append(Training(model, MIXED.apply(model, on_freeze="drop")))
    runs[0].train(range(stop))
    state = saved(runs[0].state())
    runs[0].train(range(stop, 8))
    end = runs[0].state()
    runs[1].load(state)
    runs[1].train(range(stop, 8))
    assert furthest(runs[1].state(), end) == SAME
