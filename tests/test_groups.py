"""Param groups: who is in which, what they set, what they are called, and every optimizer."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizers import DENSE
from torch import nn

from freezekit import AppliedPlan, FreezekitError, FreezePlan, PatternError, PlanError


class Net(nn.Module):
    """An embedding, four numbered layers with norms, and two heads."""

    def __init__(self, *, sparse: bool = False) -> None:
        """Builds it, with an embedding whose gradients are sparse if told to."""
        super().__init__()
        self.embed = nn.Embedding(16, 4, sparse=sparse)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(4)
        )
        self.topic_head = nn.Linear(4, 3)
        self.mood_head = nn.Linear(4, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns five features."""
        x = self.embed(tokens).mean(1)
        for layer in self.layers:
            x = layer(x)
        return torch.cat([self.topic_head(x), self.mood_head(x)], -1)


def step(model: nn.Module, *optimizers: torch.optim.Optimizer, to_none: bool = True) -> None:
    """Takes one training step on random tokens."""
    model.train()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=to_none)
    model(torch.randint(16, (8, 3))).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns a copy of every parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Returns the names of the parameters that are not bit-identical to a copy."""
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def keys(group: dict[str, Any]) -> set[str]:
    """Returns what a group sets, its parameters and name aside."""
    return set(group) - {"params", "name"}


def by_tensor(groups: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Returns the value of a key for each parameter; None where its group does not set it."""
    return {name: group.get(key) for group in groups for name, _ in group["params"]}


def test_every_ever_trainable_parameter_is_in_exactly_one_group() -> None:
    """What opens later has its group from the start, and what never opens has none."""
    plan = (
        FreezePlan()
        .freeze("**")
        .unfreeze("*_head")
        .unfreeze("layers[-1]", at_epoch=1)
        .unfreeze("layers[-2]", at_epoch=2, until_epoch=3)
    )
    model = Net()
    groups = plan.apply(model).param_groups(lr=0.1)
    pairs = [pair for group in groups for pair in group["params"]]
    opened = ("layers.3", "layers.2", "topic_head", "mood_head")
    expected = [name for name, _ in model.named_parameters() if name.startswith(opened)]
    assert sorted(name for name, _ in pairs) == sorted(expected)
    tensors = dict(model.named_parameters())
    assert all(tensor is tensors[name] for name, tensor in pairs)
    assert all(group["params"] for group in groups)


def test_parameters_share_a_group_when_treated_alike_in_every_phase() -> None:
    """Different openings part groups although the values are the same; few groups are made."""
    assert len(FreezePlan().apply(Net()).param_groups(lr=0.1)) == 1
    applied = FreezePlan().freeze("layers[0]", until_epoch=1).apply(Net())
    assert len(applied.param_groups(lr=0.1)) == 2
    plan = FreezePlan().freeze("layers[0]").unfreeze("layers[0]", at_epoch=1)
    assert len(plan.freeze("layers[1]", until_epoch=1).apply(Net()).param_groups(lr=0.1)) == 2


def test_groups_stand_in_the_order_of_the_model_whatever_the_rules_order() -> None:
    """Two plans that mean the same give the same groups in the same order, again and again."""
    first = FreezePlan().group("topic_head", lr=0.3).group("layers[0]", lr=0.2)
    second = FreezePlan().group("layers[0]", lr=0.2).group("topic_head", lr=0.3)
    listed = []
    for plan in (first, second, first):
        applied = plan.apply(Net())
        for _ in range(2):
            groups = applied.param_groups(lr=0.1)
            listed.append([(g["name"], g["lr"], [name for name, _ in g["params"]]) for g in groups])
    assert all(each == listed[0] for each in listed)
    order = [name for name, _ in Net().named_parameters()]
    firsts = [order.index(names[0]) for _, _, names in listed[0]]
    assert firsts == sorted(firsts)
    assert all([order.index(n) for n in names] == sorted(map(order.index, names))
               for _, _, names in listed[0])  # fmt: skip


def test_a_pattern_picks_the_part_for_one_optimizer() -> None:
    """Several optimizers through patterns hold every trainable parameter once."""
    plan = FreezePlan().freeze("embed").group("mood_head", lr=0.5)
    model = Net()
    applied = plan.apply(model)
    body = applied.optimizer(torch.optim.SGD, "layers", lr=0.1)
    heads = applied.optimizer(torch.optim.AdamW, "*_head", lr=0.01)
    assert applied.lrs() == {"layers.0-3": 0.1, "topic_head": 0.01, "mood_head": 0.5}
    held = [p for o in (body, heads) for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}
    before = copies(model)
    step(model, body, heads)
    assert moved(model, before) == set(before) - {"embed.weight"}


def test_a_pattern_reaches_tied_tensors_by_either_name() -> None:
    """The pair carries the canonical name."""
    model = Net()
    model.out = nn.Linear(4, 16, bias=False)
    model.out.weight = model.embed.weight
    applied = FreezePlan().apply(model)
    for pattern in ("out", "embed", "out.weight"):
        (group,) = applied.param_groups(pattern, lr=0.1)
        assert [name for name, _ in group["params"]] == ["embed.weight"]


def test_only_what_is_set_is_written() -> None:
    """The optimizer's own defaults survive: AdamW decays where nobody says otherwise."""
    applied = FreezePlan().group("embed", weight_decay=0.5).apply(Net())
    plain, decayed = sorted(applied.param_groups(lr=0.1), key=lambda g: "weight_decay" in g)
    assert keys(plain) == {"lr"}
    assert keys(decayed) == {"lr", "weight_decay"}
    optimizer = applied.optimizer(torch.optim.AdamW, lr=0.1)
    default = inspect.signature(torch.optim.AdamW).parameters["weight_decay"].default
    assert {g["name"]: g["weight_decay"] for g in optimizer.param_groups} == {
        "embed.weight": 0.5,
        plain["name"]: default,
    }


def test_the_calls_weight_decay_stands_where_the_plan_says_none() -> None:
    """By hand and through the optimizer, with `no_decay` on top."""
    applied = FreezePlan().group("embed", weight_decay=0.5).no_decay().apply(Net())
    found = by_tensor(applied.param_groups(lr=0.1, weight_decay=0.2), "weight_decay")
    assert found["embed.weight"] == 0.5
    assert found["layers.0.0.weight"] == 0.2
    assert found["layers.0.0.bias"] == found["layers.0.1.weight"] == 0.0
    optimizer = applied.optimizer(torch.optim.AdamW, lr=0.1, weight_decay=0.2)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.5, 0.2, 0.0}
    assert optimizer.defaults["lr"] == 0.1
    spared = by_tensor(applied.param_groups(lr=0.1, weight_decay=0.0), "weight_decay")
    assert spared["layers.0.0.weight"] == 0.0


def test_a_bias_of_any_rank_and_depth_does_not_decay() -> None:
    """A tensor is a bias by its own name, whatever stands before it."""
    model = nn.ModuleDict({"body": nn.ModuleDict({"table": nn.Linear(2, 2, bias=False)})})
    table = model["body"]["table"]
    table.bias = nn.Parameter(torch.zeros(2, 2))
    applied = FreezePlan().no_decay().apply(model)
    found = by_tensor(applied.param_groups(lr=0.1, weight_decay=0.2), "weight_decay")
    assert found == {"body.table.weight": 0.2, "body.table.bias": 0.0}


def test_lr_mult_is_multiplied_into_the_real_lr_once() -> None:
    """The later of lr and lr_mult wins, and factors never multiply with each other."""
    plan = (
        FreezePlan()
        .group("**", lr_mult=0.5)
        .group("layers", lr_mult=0.1)
        .group("topic_head", lr=0.7)
        .group("mood_head", lr=0.7)
        .group("mood_head", lr_mult=2)
    )
    groups = plan.apply(Net()).param_groups(lr=0.2)
    found = by_tensor(groups, "lr")
    assert found["embed.weight"] == 0.1
    assert found["layers.0.0.weight"] == 0.1 * 0.2
    assert found["topic_head.weight"] == 0.7
    assert found["mood_head.weight"] == 0.4
    assert all(keys(group) == {"lr"} for group in groups)


def test_a_rate_has_one_unit_and_how_something_was_frozen_makes_no_group() -> None:
    """A decision has `lr` or `lr_mult`; parameters that train alike share a group."""
    plan = FreezePlan().group("embed", lr_mult=0.5).group("embed", lr=0.3)
    (decision,) = plan.resolve(Net()).rows[0].decisions
    assert (decision.lr, decision.lr_mult) == (0.3, None)
    plan = FreezePlan().freeze("embed", frozen_mode="train").unfreeze("**")
    assert len(plan.apply(Net()).param_groups(lr=0.1)) == 1


def test_lr_and_weight_decay_are_independent_axes() -> None:
    """A rule about one never disturbs the other, in either order."""
    about_lr = FreezePlan().group("layers", lr=0.3)
    for plan in (about_lr.no_decay(), FreezePlan().no_decay().group("layers", lr=0.3)):
        groups = plan.apply(Net()).param_groups(lr=0.1, weight_decay=0.2)
        assert sorted((group["lr"], group["weight_decay"]) for group in groups) == [
            (0.1, 0.0), (0.1, 0.2), (0.3, 0.0), (0.3, 0.2),
        ]  # fmt: skip


def test_options_merge_key_by_key() -> None:
    """A later rule about one option leaves the others of an earlier rule in place."""
    plan = (
        FreezePlan()
        .group("layers", options={"betas": (0.5, 0.9), "eps": 1e-6})
        .group("layers[0]", options={"eps": 1e-4})
    )
    applied = plan.apply(Net())
    found = applied.param_groups(lr=0.1)
    assert by_tensor(found, "betas")["layers.0.0.weight"] == (0.5, 0.9)
    assert by_tensor(found, "eps")["layers.0.0.weight"] == 1e-4
    assert by_tensor(found, "eps")["layers.1.0.weight"] == 1e-6
    assert by_tensor(found, "eps")["embed.weight"] is None
    optimizer = applied.optimizer(torch.optim.Adam, lr=0.1)
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {
        ((0.9, 0.999), 1e-8),
        ((0.5, 0.9), 1e-4),
        ((0.5, 0.9), 1e-6),
    }


def test_group_values_are_those_of_the_first_trainable_phase() -> None:
    """What holds while a parameter is frozen is not what its group starts with."""
    plan = (
        FreezePlan()
        .group("layers", lr=0.9)
        .freeze("layers", until_step=10)
        .group("layers", lr=0.3, at_step=10)
    )
    assert {g["lr"] for g in plan.apply(Net()).param_groups("layers", lr=0.1)} == {0.3}


@pytest.mark.parametrize(
    ("plan", "names"),
    [
        (FreezePlan(), {"embed+layers+topic_head+1 more"}),
        (FreezePlan().freeze("**").unfreeze("topic_head"), {"topic_head"}),
        (FreezePlan().freeze("**").unfreeze("*_head"), {"topic_head+mood_head"}),
        (FreezePlan().freeze("**").unfreeze("topic_head.weight"), {"topic_head.weight"}),
        (FreezePlan().freeze("**").unfreeze("layers[-2:]"), {"layers.2-3"}),
        (FreezePlan().freeze("**").unfreeze("layers[::2]"), {"layers.0+2"}),
        (FreezePlan().freeze("**").unfreeze("layers.{0,2,3}"), {"layers.0+2-3"}),
        (FreezePlan().freeze("**").unfreeze("layers[1].**@LayerNorm"), {"layers.1.1"}),
        (
            FreezePlan().freeze("**").unfreeze("layers[-1]").no_decay(),
            {"layers.3.0.weight", "layers.3.0-1/no_decay"},
        ),
        (
            FreezePlan().freeze("embed").group("*_head", lr=1.0),
            {"layers.0-3", "topic_head+mood_head"},
        ),
        (
            FreezePlan().freeze("layers").group("mood_head", weight_decay=1.0),
            {"embed+topic_head", "mood_head"},
        ),
        (
            FreezePlan().freeze("layers").group("**", weight_decay=0.0),
            {"embed+topic_head+mood_head/no_decay"},
        ),
    ],
)
def test_group_names_say_where_their_parameters_stand(plan: FreezePlan, names: set[str]) -> None:
    """A path, the paths' common parent, or runs of numbered layers."""
    found = {group["name"] for group in plan.apply(Net()).param_groups(lr=0.1)}
    assert found == names


def test_group_names_are_unique() -> None:
    """Groups over the same part get names of their own, also across optimizers."""
    plan = FreezePlan().group("**.0.weight", lr=0.3).group("**.0.bias", lr=0.2)
    applied = plan.freeze("embed", "*_head").apply(Net())
    names = [group["name"] for group in applied.param_groups(lr=0.1)]
    assert names == ["layers.0-3", "layers.0-3-2", "layers.0-3-3"]


DECAYS = {
    name
    for name in DENSE
    if "weight_decay" in inspect.signature(getattr(torch.optim, name)).parameters
}


def test_the_optimizers_are_those_of_torch() -> None:
    """The table below is not empty by accident."""
    assert {"ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam",
            "RAdam", "RMSprop", "Rprop", "SGD"} <= set(DENSE)  # fmt: skip


@pytest.mark.parametrize("to_none", [True, False], ids=["to_none", "to_zero"])
@pytest.mark.parametrize("name", DENSE)
def test_every_optimizer_trains_and_leaves_frozen_parts_alone(name: str, to_none: bool) -> None:
    """Built through the plan, with decay where it has any: frozen parts are bit-identical."""
    model = Net()
    plan = FreezePlan().freeze("embed", "layers[0]").freeze("layers[1]", at_step=2)
    applied = plan.group("mood_head", lr_mult=0.5).apply(model)
    options = {"weight_decay": 0.1} if name in DECAYS else {}
    optimizer = applied.optimizer(getattr(torch.optim, name), lr=0.05, **options)
    start = copies(model)
    for now in range(5):
        applied.advance(step=now)
        if now == 2:
            assert moved(model, start) == {
                each for each in start if not each.startswith(("embed", "layers.0"))
            }
            closed = copies(model)
        step(model, optimizer, to_none=to_none)
    assert moved(model, closed) == {
        each for each in start if not each.startswith(("embed", "layers.0", "layers.1"))
    }
    assert not any(
        parameter in optimizer.state and optimizer.state[parameter].get("step")
        for parameter in model.embed.parameters()
    )


def test_sparse_adam_trains_a_sparse_embedding() -> None:
    """Through a pattern, beside a dense optimizer, and not while the embedding is frozen."""
    model = Net(sparse=True)
    applied = FreezePlan().freeze("embed", until_step=1).freeze("layers").apply(model)
    sparse = applied.optimizer(torch.optim.SparseAdam, "embed", lr=0.1)
    dense = applied.optimizer(torch.optim.AdamW, "*_head", lr=0.1)
    heads = {name for name, _ in model.named_parameters() if "head" in name}
    before = copies(model)
    step(model, sparse, dense)
    assert moved(model, before) == heads
    applied.advance(step=1)
    step(model, sparse, dense)
    assert moved(model, before) == {"embed.weight", *heads}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_trains_the_matrices_a_pattern_picks() -> None:
    """Muon takes matrices only; the rest goes to another optimizer."""
    model = Net()
    applied = FreezePlan().freeze("embed", "layers[0]").apply(model)
    matrices = applied.optimizer(torch.optim.Muon, "layers.*.0.weight", lr=0.1)
    before = copies(model)
    step(model, matrices)
    assert moved(model, before) == {f"layers.{i}.0.weight" for i in (1, 2, 3)}


def test_lbfgs_is_refused() -> None:
    """It takes one group and steps what is frozen; the error says to use another."""
    applied = FreezePlan().freeze("embed").apply(Net())
    with pytest.raises(FreezekitError) as caught:
        applied.optimizer(torch.optim.LBFGS, lr=0.1)
    assert str(caught.value) == (
        "LBFGS takes one param group and steps frozen parameters too; use another optimizer"
    )
    assert applied.lrs() == {}


def test_optimizer_state_carries_the_names_of_the_plan() -> None:
    """Pairs of name and tensor let torch store which state belongs to which parameter."""
    applied = FreezePlan().freeze("embed").group("mood_head", lr=0.5).apply(Net())
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    stored = [name for group in optimizer.state_dict()["param_groups"]
              for name in group["param_names"]]  # fmt: skip
    assert sorted(stored) == sorted(applied.phase.trainable)


def test_schedulers_see_every_group_from_the_start() -> None:
    """Opening what was frozen adds no group, so a scheduler made before still fits."""
    model = Net()
    applied = FreezePlan().freeze("layers", until_step=2).apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2], total_steps=5)
    for now in range(4):
        applied.advance(step=now)
        step(model, optimizer)
        scheduler.step()
    assert len(optimizer.param_groups) == len(scheduler.get_last_lr()) == 2


def test_lrs_are_those_of_the_groups_now() -> None:
    """A scheduler's change is seen; groups made by hand without names are numbered."""
    model = Net()
    applied = FreezePlan().freeze("embed", "layers").group("mood_head", lr=0.5).apply(model)
    assert applied.lrs() == {}
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    assert applied.lrs() == {"topic_head": 0.1, "mood_head": 0.5}
    optimizer.param_groups[0]["lr"] = 0.05
    assert applied.lrs() == {"topic_head": 0.05, "mood_head": 0.5}
    other = FreezePlan().apply(Net())
    other.attach(torch.optim.SGD(other.param_groups("embed", lr=0.2)[0]["params"], lr=0.2))
    assert other.lrs() == {"group 0": 0.2}


def test_lrs_of_several_optimizers_are_all_there() -> None:
    """Groups of two optimizers that stand for the same part are both listed."""
    applied = FreezePlan().apply(Net())
    applied.optimizer(torch.optim.SGD, "layers.*.0.weight", lr=0.1)
    applied.optimizer(torch.optim.SGD, "layers.*.0.bias", lr=0.2)
    assert sorted(applied.lrs().values()) == [0.1, 0.2]


def test_a_parameter_in_two_optimizers_is_refused() -> None:
    """By hand or through the plan, in one call or two, the tensor is named; once is enough."""
    model = Net()
    applied = FreezePlan().apply(model)
    twice = [torch.optim.SGD(model.mood_head.parameters(), lr=0.1) for _ in range(2)]
    message = "'mood_head.weight' is in two optimizers; build each from a param_groups(pattern)"
    with pytest.raises(FreezekitError) as caught:
        applied.attach(*twice)
    assert str(caught.value).startswith(message)
    assert applied.lrs() == {}
    applied.attach(twice[0])
    for again in (
        lambda: applied.attach(twice[1]),
        lambda: applied.optimizer(torch.optim.SGD, "mood_head", lr=0.1),
    ):
        with pytest.raises(FreezekitError) as caught:
            again()
        assert str(caught.value).startswith(message)
    applied.attach(twice[0])
    assert applied.lrs() == {"group 0": 0.1}


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (
            lambda a: a.param_groups("hed", lr=0.1),
            PatternError,
            "param_groups: pattern 'hed' selects nothing: the model has embed, layers, topic_head,",
        ),
        (
            lambda a: a.param_groups("topic_hed", lr=0.1),
            PatternError,
            "did you mean 'topic_head'?",
        ),
        (
            lambda a: a.param_groups("!embed", lr=0.1),
            PlanError,
            "param_groups: pattern '!embed' only takes away; name what to take",
        ),
        (
            lambda a: a.param_groups("layers[0-2]", lr=0.1),
            PatternError,
            "pattern 'layers[0-2]': [0-2] is not an index",
        ),
        (
            lambda a: a.optimizer(torch.optim.SGD, "embed", lr=0.1),
            FreezekitError,
            "param_groups('embed'): nothing it selects ever trains under this plan",
        ),
        (
            lambda a: a.param_groups(lr=0),
            PlanError,
            "param_groups: lr must be a positive finite number, got 0",
        ),
        (
            lambda a: a.param_groups(lr=-0.1),
            PlanError,
            "param_groups: lr must be a positive finite number, got -0.1",
        ),
        (
            lambda a: a.param_groups(lr=float("inf")),
            PlanError,
            "param_groups: lr must be a positive finite number, got inf",
        ),
        (
            lambda a: a.param_groups(lr=0.1, weight_decay=-1),
            PlanError,
            "param_groups: weight_decay must be a finite number >= 0, got -1",
        ),
        (
            lambda a: a.param_groups(lr="0.1"),
            PlanError,
            "param_groups: lr must be a positive finite number, got '0.1'",
        ),
    ],
)
def test_what_makes_no_groups_is_refused(
    ask: Callable[[AppliedPlan], object], error: type[Exception], message: str
) -> None:
    """The error quotes what was asked, and no optimizer is attached."""
    applied = FreezePlan().freeze("embed").apply(Net())
    with pytest.raises(error) as caught:
        ask(applied)
    assert message in str(caught.value)
    assert applied.lrs() == {}
