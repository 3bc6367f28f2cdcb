"""The grid: what a plan does with the parts of a model over time, against a walk by hand."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from strategies import Case, cases
from torch import nn

from freezekit import FreezePlan, PlanError, infer_layers
from freezekit._grid import Cell, grid
from freezekit.errors import FreezekitError


def toy() -> nn.Module:
    layers = (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3))
    return nn.ModuleDict({"encoder": nn.ModuleList(layers), "head": nn.Linear(4, 2)})


def naive(case: Case, base: float, depth: int | None) -> dict[str, list[Cell]]:
    """Returns the cells of a case, parameter by parameter, through public names only."""
    model = case.tree.build()
    resolved = case.plan.resolve(model, **case.totals)
    named = dict(model.named_parameters())
    parts: dict[str, list[str]] = {}
    if depth is None:
        parts = {layer.name: list(layer.parameter_names) for layer in resolved.layers}
    else:
        for name in (name for layer in resolved.layers for name in layer.parameter_names):
            parts.setdefault(".".join(name.split(".")[:-1][:depth]), []).append(name)
    found: dict[str, list[Cell]] = {}
    for part, names in parts.items():
        for phase in resolved.phases:
            live = [name for name in names if name in phase.trainable]
            rates = [phase.lr(name, base) for name in live]
            state = "frozen" if not live else "trainable" if live == names else "partial"
            elements = sum(named[name].numel() for name in live)
            bounds = (min(rates), max(rates)) if rates else (None, None)
            found.setdefault(part, []).append(Cell(state, elements, *bounds))
    return found


@given(cases())
def test_cells_are_those_of_a_walk_by_hand(case: Case) -> None:
    """For layers and for modules, state, count and rates are what the phases say by name."""
    try:
        resolved = case.plan.resolve(case.tree.build(), **case.totals)
    except FreezekitError:
        assume(False)
    for depth in (None, 1, 2):
        bands = grid(resolved, base_lr=0.5, depth=depth).bands
        found = [(band.name, list(band.cells)) for band in bands]
        assert found == [*naive(case, 0.5, depth).items()]


def test_layers_of_a_resolved_plan_are_those_of_the_model() -> None:
    """`resolved.layers` is what `infer_layers` gives with the plan's own corrections."""
    model = toy()
    for given_layers in ({}, {"blocks": "encoder.*", "head": "head"}, {"by": "stage"}):
        resolved = FreezePlan(layers=given_layers).freeze("encoder").resolve(model)
        inferred = infer_layers(model, **given_layers)
        assert resolved.layers == inferred
        assert resolved.layers.notes == inferred.notes
        assert resolved.layers.blocks == inferred.blocks


def test_rates_are_multipliers_without_a_learning_rate() -> None:
    """Multipliers until a base is given; 1 where no rule says."""
    plan = FreezePlan().freeze("encoder.0").group("encoder.1", lr_mult=0.5)
    resolved = plan.resolve(toy())
    found = grid(resolved)
    assert found.unit == "lr_mult"
    assert [(cell.low, cell.high) for (cell,) in (band.cells for band in found.bands)] == [
        (None, None),
        (0.5, 0.5),
        (1.0, 1.0),
        (1.0, 1.0),
    ]
    based = grid(resolved, base_lr=0.1)
    assert based.unit == "lr"
    assert based.bands[1].cells[0].high == 0.05


def test_rates_beside_an_absolute_one_are_unknown_without_a_base() -> None:
    """A rule with `lr` makes rates learning rates; what only has a multiplier then has none."""
    found = grid(FreezePlan().group("head", lr=0.1).freeze("encoder.0").resolve(toy()))
    assert found.unit == "lr"
    assert [band.cells[0].high for band in found.bands] == [None, None, None, 0.1]
    idle = FreezePlan().group("encoder.0", lr=0.1).freeze("encoder.0").resolve(toy())
    assert grid(idle).unit == "lr_mult"


def test_the_frontier_is_the_first_part_that_trains() -> None:
    """In each phase, backward stops at the first part with a trainable parameter."""
    plan = FreezePlan(allow_all_frozen=True).freeze("**").unfreeze("head", at_epoch=1)
    plan = plan.unfreeze("encoder.1.1.bias", at_epoch=2)
    assert grid(plan.resolve(toy())).frontiers == (None, 3, 1)


def test_parts_stand_in_the_order_of_the_layers() -> None:
    """A head registered first stands last, by layers and by modules, where the plan says so."""
    model = nn.ModuleDict({"head": nn.Linear(4, 2), "body": nn.ModuleList([nn.Linear(4, 4)])})
    model["embed"] = nn.Embedding(9, 4)
    plan = FreezePlan(layers={"stem": "embed", "blocks": "body.*", "head": "head"})
    resolved = plan.freeze("**").unfreeze("head").resolve(model)
    for depth in (None, 1):
        found = grid(resolved, depth=depth)
        assert found.frontiers == (2,)
        assert found.notes == ()
    assert [band.name for band in found.bands] == ["embed", "body", "head"]


def test_what_is_not_known_of_the_order_is_noted() -> None:
    """Without an order of the layers the grid has the notes that `infer_layers` has."""
    model = nn.ModuleDict({"head": nn.Linear(4, 2), "body": nn.Linear(4, 4)})
    notes = grid(FreezePlan().resolve(model)).notes
    assert notes == infer_layers(model).notes
    assert len(notes) == 1


def test_rows_that_train_count_alone() -> None:
    """Of a tensor with `rows`, the elements of those rows train, and its part is partial."""
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    found = grid(FreezePlan().freeze("**").unfreeze("0.weight", rows="7:").resolve(model))
    assert found.bands[0].cells[0][:2] == ("partial", 12)


def test_unusable_arguments_are_refused() -> None:
    """A base that is no learning rate and a depth that tells nothing apart are named."""
    resolved = FreezePlan().resolve(toy())
    with pytest.raises(PlanError, match=r"^base_lr must be a positive finite number, got 0$"):
        grid(resolved, base_lr=0)
    with pytest.raises(ValueError, match=r"^depth=0: parts are told apart by 1 level"):
        grid(resolved, depth=0)


def test_a_lazy_parameter_counts_nothing_but_has_a_state() -> None:
    """A lazy parameter has no elements yet, and is frozen or trains all the same."""
    found = grid(FreezePlan().freeze("0").resolve(nn.Sequential(nn.LazyLinear(2), nn.ReLU())))
    assert [(band.numel, band.cells[0].state) for band in found.bands] == [(0, "frozen")]
