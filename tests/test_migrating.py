"""The page "Coming from ...": each row of its tables is carried out on both sides."""

import os
import re

import pytest
import torch
from migration_page import PAGE, covered, rendered
from migrations import PEERS, Row
from peer_models import MODELS, ConvNet, shared
from peer_outcomes import DECAY, LR, Outcome, Trained
from peer_rules import outcomes

from freezekit import FreezePlan, PatternError, PlanError, ResolvedPlan
from freezekit._rules import parse_rows

OVERWRITE = "FREEZEKIT_OVERWRITE_GOLDEN"

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [
    pytest.param(peer, row, id=f"{peer} {number}")
    for peer, section in PEERS.items()
    for number, row in enumerate(section.rows, start=1)
]


def plan_of(ours: str) -> FreezePlan:
    """The plan that a cell of the page spells."""
    text = ours if ours.startswith("FreezePlan(") else f"FreezePlan().{ours}"
    plan: FreezePlan = eval(text, {"FreezePlan": FreezePlan})
    return plan


def by_plan(resolved: ResolvedPlan, epoch: int) -> Outcome:
    """What trains under a plan in an epoch, with the rates that the optimizer is built with."""
    phase = resolved.at(epoch=epoch)
    found = {}
    for row in resolved.rows:
        decision = row.decisions[phase.index]
        if decision.trainable:
            decay = DECAY if decision.weight_decay is None else decision.weight_decay
            rows = decision.rows and range(row.shape[0])[parse_rows(decision.rows)]
            found[row.name] = Trained(phase.lr(row.name, base=LR), decay, rows)
    return found


def same_rates(theirs: Trained, ours: Trained) -> bool:
    """Whether a parameter trains alike, as far as the peer's spelling says."""
    pairs = [(theirs.lr, ours.lr), (theirs.decay, ours.decay)]
    return theirs.rows == ours.rows and all(
        one is None or one == pytest.approx(other, rel=1e-9) for one, other in pairs
    )


@pytest.mark.parametrize(("peer", "row"), ROWS)
def test_a_row_selects_on_both_sides_what_it_says(peer: str, row: Row) -> None:
    """Both sides train the same in every epoch, but for exactly what the row says."""
    model = MODELS[row.model]()
    resolved = plan_of(row.ours).resolve(model)
    assert resolved.warnings == ()
    named = {each: covered(model, getattr(row, each)) for each in ("more", "less", "other")}
    theirs = outcomes(peer, row.theirs, model, row.epochs)
    assert len(theirs) == row.epochs
    seen: dict[str, set[str]] = {each: set() for each in named}
    for their_epoch, epoch in row.moments or [(each, each) for each in range(row.epochs)]:
        one, other = theirs[their_epoch], by_plan(resolved, epoch)
        assert one.keys() <= other.keys() | named["more"]
        seen["more"] |= one.keys() - other.keys()
        seen["less"] |= other.keys() - one.keys()
        seen["other"] |= {
            name for name in one.keys() & other.keys() if not same_rates(one[name], other[name])
        }
    assert seen == named


def test_a_row_tells_of_each_difference_that_it_has() -> None:
    """The last column speaks of exactly the patterns that the row lists as differences."""
    for peer in PEERS.values():
        for row in peer.rows:
            told = set(re.findall(r"\{(\w+)\}", row.takes))
            listed = {each for each in ("more", "less", "other") if getattr(row, each)}
            assert told <= listed
            assert told or not listed or row.takes == "the same", row


def test_the_page_shows_the_rows() -> None:
    """Between its markers the page of the documentation is what the rows make."""
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get(OVERWRITE):
        PAGE.write_text(rendered(text), encoding="utf-8")
    assert rendered(text) == text


def statistics(model: torch.nn.Module) -> torch.Tensor:
    """The running means of the backbone, after a batch in train mode."""
    model.train()
    model(torch.randn(4, 3, 8, 8) + 1)
    return torch.cat([each for name, each in model.named_buffers() if name.endswith("_mean")])


def test_batch_norm_that_lightning_freezes_goes_by_the_batch() -> None:
    """With `train_bn=False` a frozen backbone answers otherwise in training; ours does not."""
    from lightning.pytorch.callbacks import BaseFinetuning

    theirs, ours = ConvNet().eval(), ConvNet().eval()
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(4, 3, 8, 8) + 1
    expected = theirs(inputs)
    BaseFinetuning.freeze(theirs.backbone, train_bn=False)
    applied = FreezePlan().freeze("backbone").apply(ours)
    assert not torch.allclose(theirs.train()(inputs), expected, atol=1e-3)
    torch.testing.assert_close(ours.train()(inputs), expected)
    assert not statistics(ours).any()
    applied.release()
    assert statistics(ours).any()


def test_a_rate_of_zero_is_lifted_by_an_absolute_floor() -> None:
    """What MMEngine's `lr_mult=0` leaves in the optimizer trains under `eta_min`."""
    frozen, head = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [frozen], "lr": LR * 0.0}, {"params": [head]}]
    optimizer = torch.optim.SGD(groups, lr=LR)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4, eta_min=1e-4)
    for _ in range(4):
        (frozen.sum() + head.sum()).backward()
        optimizer.step()
        scheduler.step()
    assert (frozen < 1).all()
    with pytest.raises(PlanError, match="freeze"):
        FreezePlan().group("backbone", lr=0)


def test_rows_without_gradients_decay() -> None:
    """A hook that clears the gradients of rows, as axolotl's, leaves them to weight decay."""
    moved = {}
    for side in ("theirs", "ours"):
        model = torch.nn.Sequential(torch.nn.Embedding(4, 2))
        before = model[0].weight.detach().clone()
        if side == "ours":
            applied = FreezePlan().unfreeze("0.weight", rows="2:").apply(model)
            optimizer = applied.optimizer(torch.optim.AdamW, lr=0.1, weight_decay=0.1)
        else:
            model[0].weight.register_hook(lambda grad: grad.index_fill(0, torch.arange(2), 0.0))
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        model(torch.arange(4)).sum().backward()
        optimizer.step()
        moved[side] = (model[0].weight != before).any(1).tolist()
    assert moved == {"theirs": [True] * 4, "ours": [False, False, True, True]}


def test_a_name_that_does_not_exist_is_silent_or_an_error() -> None:
    """A misspelt text is an error of freezekit; most peers go on with what is left of it."""
    with pytest.raises(PatternError, match="did you mean"):
        FreezePlan().freeze("model.layer.1").resolve(shared("Llama"))
    for peer, text in (
        ("skorch", 'callbacks=[Freezer("model.layer.1.*")]'),
        ("ms-swift", "--freeze_parameters model.layer.1"),
        ("MMEngine", 'paramwise_cfg=dict(custom_keys={"model.layer.1.": dict(lr_mult=0.0)})'),
    ):
        assert len(outcomes(peer, text, MODELS["Llama"]())[0]) == 111
    text = "finetuning_type: freeze\nfreeze_trainable_modules: attention"
    with pytest.raises(ValueError, match="choose from"):
        outcomes("LLaMA-Factory", text, MODELS["Llama"]())
