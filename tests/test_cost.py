"""What a plan costs, against what torch allocates when the plan is carried out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any, Literal

import pytest
import torch
from optimizers import DENSE
from torch import nn

from freezekit import FreezePlan, PlanError
from freezekit._cost import Cost, bytes_text


def toy(dtype: torch.dtype = torch.float32) -> nn.Module:
    layers = (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(3))
    return nn.Sequential(nn.Sequential(*layers), nn.Linear(8, 3)).to(dtype)


GRADUAL = (
    FreezePlan()
    .freeze("0")
    .unfreeze("0[-1]", at_epoch=1)
    .unfreeze("0", lr_mult=0.1, at_epoch=3)
    .freeze("0[-1]", at_epoch=4)
)


def allocated(tensors: list[Any]) -> int:
    """Returns the bytes of the storages behind tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if t.numel()}
    return sum(storage.nbytes() for storage in storages.values())


def measured(
    model: nn.Module,
    plan: FreezePlan,
    build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    on_freeze: Literal["keep", "drop"],
) -> list[tuple[int, int, int, int]]:
    """Trains through the phases and returns trainable elements and bytes for each."""
    applied = plan.apply(model, on_freeze=on_freeze)
    optimizer = build(applied.param_groups(lr=1e-3))
    applied.attach(optimizer)
    dtype = next(model.parameters()).dtype
    found = []
    for phase in applied.resolved.phases:
        applied.advance(epoch=phase.start)
        model(torch.ones(4, 8, dtype=dtype)).square().mean().backward()
        live = [p for p in model.parameters() if p.grad is not None]
        gradients = allocated([p.grad for p in live])
        optimizer.step()
        state = [v for each in optimizer.state.values() for v in each.values()]
        tensors = [value for value in state if isinstance(value, torch.Tensor)]
        found.append(
            (
                sum(p.numel() for p in live),
                allocated([*model.parameters()]),
                gradients,
                allocated(tensors),
            )
        )
        optimizer.zero_grad()
    return found


def said(cost: Cost) -> list[tuple[int, int, int, int]]:
    return [
        (each.trainable, each.weight_bytes, each.gradient_bytes, each.state_bytes)
        for each in cost.phases
    ]


@pytest.mark.parametrize("on_freeze", ["keep", "drop"])
@pytest.mark.parametrize("name", DENSE)
def test_bytes_are_those_that_torch_allocates(
    name: str, on_freeze: Literal["keep", "drop"]
) -> None:
    """For every optimizer of torch and every phase: weights, gradients and state, byte for byte."""
    predicted = said(GRADUAL.resolve(toy()).cost(name, on_freeze=on_freeze))
    assert predicted == measured(toy(), GRADUAL, getattr(torch.optim, name), on_freeze)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "build",
    [
        partial(torch.optim.SGD, momentum=0.9),
        partial(torch.optim.AdamW, amsgrad=True),
        partial(torch.optim.RMSprop, momentum=0.9, centered=True),
    ],
    ids=["SGD", "AdamW", "RMSprop"],
)
def test_other_dtypes_and_options_are_measured_too(
    dtype: torch.dtype, build: partial[torch.optim.Optimizer]
) -> None:
    """State depends on the dtype and on the optimizer's own options."""
    predicted = said(GRADUAL.resolve(toy(dtype)).cost(build))
    assert predicted == measured(toy(dtype), GRADUAL, build, "keep")


def test_options_of_the_plan_count() -> None:
    """Momentum that the plan sets for a part costs state in that part alone."""
    plan = FreezePlan().group("1", options={"momentum": 0.9})
    predicted = said(plan.resolve(toy()).cost("SGD"))
    assert predicted == measured(toy(), plan, torch.optim.SGD, "keep")
    assert predicted[0][3] == 4 * 27


def test_full_fine_tuning_is_the_plan_without_rules() -> None:
    """The line of comparison costs what a model costs when all of it trains."""
    cost = GRADUAL.resolve(toy()).cost()
    (everything,) = FreezePlan().resolve(toy()).cost().phases
    for key in ("trainable", "weight_bytes", "gradient_bytes", "state_bytes", "total_bytes"):
        assert getattr(cost.full, key) == getattr(everything, key)
    assert cost.full.phase is None


def test_what_can_never_train_costs_its_weights_alone() -> None:
    """A parameter of whole numbers is no part of full fine-tuning."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model.register_parameter("table", nn.Parameter(torch.ones(5).long(), requires_grad=False))
    cost = FreezePlan().resolve(model).cost("SGD")
    assert (cost.full.trainable, cost.full.weight_bytes, cost.full.gradient_bytes) == (4, 56, 16)


def test_a_tied_tensor_costs_once_and_rows_cost_their_whole_tensor() -> None:
    """A tied weight is one tensor; rows that train have a gradient as large as their tensor."""
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    plan = FreezePlan().freeze("**").unfreeze("0.weight", rows="8:")
    (phase,) = plan.resolve(model).cost("SGD").phases
    assert (phase.trainable, phase.weight_bytes, phase.gradient_bytes) == (8, 160, 160)


def test_a_model_on_the_meta_device_costs_nothing_to_ask() -> None:
    """A model of a thousand gigabytes is measured without allocating it."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(1_000_000, 250_000), nn.Linear(250_000, 2))
    cost = FreezePlan().freeze("0").resolve(model).cost()
    assert cost.phases[0].weight_bytes == 4 * (250_000_000_000 + 500_002)
    assert cost.full.state_bytes == 8 * (250_000_000_000 + 500_002) + 3 * 4
    assert "931.3 GiB" in str(cost)
    factored = FreezePlan().freeze("0").resolve(model).cost("Adafactor")
    assert factored.full.state_bytes < 10_000_000


def test_metric_driven_phases_keep_what_trained_before() -> None:
    """With state that is kept, all that may have trained by then has it."""
    stall = {"monitor": "loss", "mode": "min", "patience": 1}
    plan = FreezePlan().freeze("0").unfreeze("0[-1]", at_metric=stall)
    plan = plan.freeze("1", at_metric=stall)
    kept = plan.resolve(toy()).cost("adamw").phases
    dropped = plan.resolve(toy()).cost("AdamW", on_freeze="drop").phases
    head = 8 * 27 + 2 * 4
    assert [each.state_bytes for each in kept][-1] - head == dropped[-1].state_bytes
    assert kept[0] == dropped[0]


def test_mistakes_are_named() -> None:
    """A misspelt optimizer, one without a closure, one that cannot, and what is none."""
    resolved = FreezePlan().resolve(toy())
    with pytest.raises(PlanError, match=r"no optimizer 'AdmaW' .*did you mean 'AdamW'\?"):
        resolved.cost("AdmaW")
    with pytest.raises(PlanError, match=r"no optimizer 'LBFGS' that a plan"):
        resolved.cost("LBFGS")
    with pytest.raises(PlanError, match=r"'0.0.0.bias' of shape \[8\].*ValueError: Muon only"):
        resolved.cost("Muon")
    with pytest.raises(PlanError, match=r"'0.0.0.weight' of shape .*dense gradients"):
        resolved.cost("SparseAdam")
    with pytest.raises(PlanError, match=r"a function of param groups, got 3$"):
        resolved.cost(3)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"^on_freeze must be 'keep' or 'drop', got 'x'$"):
        resolved.cost(on_freeze="x")  # type: ignore[arg-type]


class Late(torch.optim.SGD):
    """Makes some of its state once it has read a number."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                self.state[p]["early"] = torch.zeros_like(p)
                self.state[p]["late"] = p * p.grad.norm().item()


def test_state_that_needs_data_is_measured_with_data() -> None:
    """What an optimizer makes after reading a number counts, or the tensor is too large to try."""
    assert said(GRADUAL.resolve(toy()).cost(Late)) == measured(toy(), GRADUAL, Late, "keep")
    with torch.device("meta"):
        huge = nn.Linear(1 << 14, 1 << 13, bias=False)
    with pytest.raises(PlanError, match=r"'weight' of shape \[8192, 16384\] is too large to try"):
        FreezePlan().resolve(huge).cost(Late)


def test_fused_optimizers_are_measured() -> None:
    """One that refuses the meta device is tried with data."""
    fused = partial(torch.optim.AdamW, fused=True)
    assert said(GRADUAL.resolve(toy()).cost(fused)) == measured(toy(), GRADUAL, fused, "keep")


def test_what_cannot_be_built_says_why() -> None:
    """A class that wants more than groups, and a function that makes no optimizer, are named."""

    class Demanding(torch.optim.SGD):
        def __init__(self, params: Any, lr: float) -> None:  # noqa: ANN401
            super().__init__(params, lr)

    resolved = FreezePlan().resolve(toy())
    with pytest.raises(PlanError, match=r"TypeError: .*argument: 'lr'; pass .* partial\(cls, lr"):
        resolved.cost(Demanding)
    with pytest.raises(PlanError, match=r"AttributeError: 'NoneType'"):
        resolved.cost(lambda groups: None)  # type: ignore[arg-type,return-value]


def test_groups_are_those_of_a_plan() -> None:
    """A function may look at its group as at one of `param_groups`, and choose by the tensor."""

    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        ((name, tensor),) = groups[0]["params"]
        assert groups[0]["name"] == name
        assert groups[0]["lr"] > 0
        return torch.optim.Muon(groups) if tensor.ndim == 2 else torch.optim.AdamW(groups)

    cost = FreezePlan().resolve(toy()).cost(build)
    matrices = 3 * 64 + 24
    vectors = 3 * (8 + 16) + 3
    assert cost.optimizer == "Muon and AdamW"
    assert cost.full.state_bytes == 4 * matrices + 8 * vectors + 4 * 10
    assert cost.notes == ()


def test_what_trains_need_not_be_all_that_could() -> None:
    """An optimizer for matrices alone has a cost under a plan that trains no vectors."""
    plan = FreezePlan().freeze("**").unfreeze("**@Linear").freeze("**.bias")
    cost = plan.resolve(toy()).cost("Muon")
    assert said(plan.resolve(toy()).cost("Muon")) == measured(toy(), plan, torch.optim.Muon, "keep")
    (note,) = cost.notes
    assert note.startswith("full fine-tuning is without optimizer state for what")
    assert "10 parameters" in note
    assert f"note: {note}" in str(cost)


def test_full_fine_tuning_has_the_options_of_the_plan() -> None:
    """A plan that trains all with options costs as much as full fine-tuning."""
    plan = FreezePlan().group("**", options={"momentum": 0.9})
    cost = plan.resolve(toy()).cost("SGD")
    assert cost.phases[0].total_bytes == cost.full.total_bytes


@pytest.mark.timing
def test_three_hundred_layers_in_three_hundred_phases_are_quick() -> None:
    """The cost of many layers over many phases takes a second or two of processor time."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(300)))
    resolved = FreezePlan().freeze("**").unfreeze_layerwise().resolve(model)
    start = process_time()
    cost = resolved.cost()
    assert process_time() - start < 3
    assert [each.trainable for each in cost.phases] == [6 * k for k in range(1, 301)]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1024**2 - 1, "1.0 MiB"), (1 << 60, "TiB")],
)
def test_bytes_are_rounded_to_the_unit_that_fits(count: int, text: str) -> None:
    """No number of four digits where the next unit has one."""
    assert bytes_text(count).endswith(text)


def test_the_table_is_readable() -> None:
    """A line for each phase, one for full fine-tuning, and the optimizer's name."""
    lines = str(GRADUAL.resolve(toy()).cost("SGD")).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "epoch 0",
        "epochs 1 to 2",
        "epoch 3",
        "from epoch 4",
        "full fine-tuning",
        "optimizer: SGD",
    ]
    assert lines[-2].endswith("100.0 %")


def test_a_model_without_parameters_has_a_cost() -> None:
    """Nothing to train costs nothing."""
    cost = FreezePlan().resolve(nn.ReLU()).cost()
    assert cost.full.total_bytes == 0
    assert "0 B" in str(cost)
    assert str(cost).endswith("optimizer: AdamW")


def test_measuring_warns_of_nothing() -> None:
    """No optimizer warns while it is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GRADUAL.resolve(toy()).cost("Adafactor").optimizer == "Adafactor"
