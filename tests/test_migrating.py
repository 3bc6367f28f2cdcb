"""The page "Coming from ...": each row of its tables is carried out on both sides."""

import os
import re

import pytest
from migration_page import PAGE, covered, rendered
from migrations import PEERS, Row
from peer_models import MODELS
from peer_rules import DECAY, LR, Outcome, Trained, outcomes

from freezekit import FreezePlan, ResolvedPlan
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
