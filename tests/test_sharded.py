"""Sharded models: FSDP2 and FSDP1 go through a plan's phases as whole ones do."""

from typing import Any

import pytest
from engines import check_same_course, furthest, plain
from ranks import run_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns where the ranks keep their checkpoints."""
    return str(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def ranks(folder: str) -> list[Any]:
    """Returns the courses, the answers and what was saved, from each of two ranks."""
    return run_ranks("sharded:trained_and_asked", folder)


def test_sharded_models_train_all_phases_as_whole_ones_do(ranks: list[Any]) -> None:
    """Opening and closing what is sharded gives what DDP gives, under FSDP2 to the last bit."""
    (first, *_), (second, *_) = ranks
    alone = plain()
    assert len(first) == 9
    for name, (steps, apart) in first.items():
        assert furthest(steps, second[name][0]) == 0.0, name
        assert apart == 0.0 if "fsdp2" in name else apart < 1e-6, name
        assert furthest(steps, alone) < (1e-2 if "bfloat16" in name else 1e-5), name
        check_same_course(steps, alone)


def test_what_a_part_of_a_tensor_does_not_tell_is_refused_or_asked_for(ranks: list[Any]) -> None:
    """Rows, flat parameters and windows: the same on every rank, and no rank opens alone."""
    (_, first, _), (_, second, _) = ranks
    guards = {name for name in first if name.endswith("guard")}
    assert len(guards) == 4
    for name in guards:
        assert first[name] is None
        assert second[name].startswith("FrozenChangedError"), name
    for name in first.keys() - guards:
        assert first[name] == second[name], name
        if name.endswith("window"):
            assert first[name] == (False, True), name
        if name.endswith("release"):
            assert first[name] is True, name
        if name.endswith("rows"):
            assert "rows of 'stem.weight' cannot be kept" in first[name]
            assert "unfreeze the whole tensor instead" in first[name]
        if name.startswith("flat"):
            assert "into '_" in first[name]
            assert "wrap with use_orig_params=True" in first[name]
    assert first["inside: apply"].startswith("PlanError: 'stem.weight' is flattened by a Fully")
    assert "pass the wrapper" in first["inside: apply"]
    for name in ("fsdp1: save", "fsdp1: load"):
        assert "gathers optimizer state only of what has trained as a whole" in first[name]
        assert "shard with fully_shard, or keep" in first[name]
    assert len(first) == 20


def test_a_resumed_run_equals_one_that_never_stopped(ranks: list[Any], folder: str) -> None:
    """Through torch.distributed.checkpoint, in any phase, with the moments of what is closed."""
    for rank, found in enumerate(run_ranks("sharded:resumed", folder)):
        assert len(found) == 8
        for name, epochs in found.items():
            whole = ranks[rank][2][f"{name.partition(',')[0]}, never saved"][-len(epochs) :]
            for one, other in zip(epochs, whole, strict=True):
                assert one.keys() == other.keys()
                assert all(one[key].equal(other[key]) for key in one), name
