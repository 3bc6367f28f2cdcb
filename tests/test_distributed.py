"""Several ranks: what begins to train is averaged between them, or refused."""

import pytest
from engines import Step, check_same_course, furthest, plain
from ranks import run_ranks

Found = tuple[list[Step], dict[str, str]]


@pytest.fixture(scope="module")
def ranks() -> list[Found]:
    """What each of two processes saw: its training, and what is refused."""
    return run_ranks("engines:in_ranks")


def test_ddp_trains_all_phases_as_one_process_does(ranks: list[Found]) -> None:
    """Two ranks stay bit-identical through all phases, and agree with one on the whole batch."""
    (first, _), (second, _) = ranks
    alone = plain()
    assert furthest(first, second) == 0.0
    assert furthest(first, alone) < 1e-5
    check_same_course(first, alone)
    assert len({step.trainable for step in alone}) == 5


def test_what_would_drift_apart_is_refused(ranks: list[Found]) -> None:
    """Among several ranks nothing opens that is not averaged, and each refusal says the way out."""
    (_, first), (_, second) = ranks
    assert first == second
    allowed = {name for name, message in first.items() if not message}
    assert allowed == {"trusted", "loaded before the wrap", "wrapped after loading"}
    assert (first["unchanged"], first["known"]) == ("True", "12")
    assert first["nothing known"].startswith(
        "no wrapper is known to average, between the ranks, the gradients of 4 parameters: "
        "blocks.1.norm.weight, "
    )
    assert "integrations.distributed.register(applied, wrapper)" in first["nothing known"]
    assert first["another model"].startswith("register: nothing in this Net belongs to the model")
    for name in ("frozen at wrap", "applied to the wrapper"):
        assert first[name].startswith("DDP was built while these were frozen, ")
        assert "10 parameters: stem.weight, " in first[name]
        assert "integrations.distributed.ddp(applied, model)" in first[name]
    assert "find_unused_parameters=False waits" in first["waits in vain"]
    assert "static_graph=True expects" in first["static"]
    assert first["asked for static"].startswith("ddp: static_graph=True")
    assert first["asked to wait"].startswith("ddp: with find_unused_parameters=False")
    assert "does not average the gradients of 4 par" in first["outside of what is known"]
    assert "the gradients of 8 parameters" in first["never wrapped"]
