"""DeepSpeed: ZeRO of any stage goes through a plan's phases as DDP does."""

from pathlib import Path
from typing import Any

import pytest
from engines import check_frozen_stays, furthest
from ranks import run_ranks

pytest.importorskip("deepspeed")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Returns the courses, the answers and how it went on, from each of two ranks."""
    return run_ranks("zero:trained_and_asked", str(tmp_path_factory.mktemp("checkpoints")))


def test_zero_trains_all_phases_exactly_as_ddp_does(ranks: list[Any]) -> None:
    """What is frozen stays, with its moments; what opens trains; rates change: to the last bit."""
    (first, *_), (second, *_) = ranks
    assert len(first) == 8
    for name, (steps, apart) in first.items():
        assert furthest(steps, second[name][0]) == 0.0, name
        assert apart == 0.0, name
        check_frozen_stays(steps)


def test_what_zero_cannot_do_is_refused(ranks: list[Any]) -> None:
    """Each refusal says the way out, and what opens in the middle of a window waits for its end."""
    (_, first, _), (_, second, _) = ranks
    assert first == second
    for name in ("register", "attach"):
        assert "freezekit.integrations.deepspeed.initialize" in first[name]
    assert first["register"].startswith("register: a DeepSpeedEngine knows only what trained")
    assert first["attach"].startswith("attach: a DeepSpeedZeroOptimizer steps copies")
    assert first["advance"].startswith("no wrapper is known to average")
    assert first["rows"].endswith("unfreeze whole tensors")
    assert 'on_freeze="drop" cannot; leave it out' in first["drop"]
    for stage in (1, 3):
        assert first[f"window, stage {stage}"] == (False, False, False, True)
    assert first["decided alike"] is True
    assert first["guard"].startswith("1 frozen tensor changed:\n  'stem.weight': ")


def test_a_run_resumed_under_zero_equals_one_that_never_stopped(ranks: list[Any]) -> None:
    """A block that closes and opens again has its moments back; what never trained has none."""
    for *_, resumed in ranks:
        assert resumed == {"stage 1": True, "stage 2": True, "stage 3": True}


def test_what_the_page_on_engines_shows_runs(tmp_path: Path) -> None:
    """An engine of DeepSpeed comes out of it."""
    made = run_ranks("zero:page", str(tmp_path), count=1)
    assert made == [["DeepSpeedEngine", "AppliedPlan"]]
