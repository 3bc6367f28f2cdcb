"""The Trainer of transformers trains as an ordinary loop does under the same plan."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from engines import check_same_course, furthest, plain
from ranks import run_ranks
from trainer_runs import course


def test_two_ranks_of_trainer_train_as_one_process_does() -> None:
    """Two ranks of Trainer stay bit-identical in all phases and agree with an ordinary loop."""
    first, second = run_ranks("trainer_runs:in_ranks")
    alone = plain()
    assert furthest(first, second) == 0.0
    assert furthest(first, alone) < 1e-5
    check_same_course(first, alone)


def test_one_process_of_trainer_trains_as_an_ordinary_loop_does() -> None:
    """Trainer and an ordinary loop give the same weights, trainable sets and rates, bit for bit."""
    steps, alone = course(), plain()
    assert furthest(steps, alone) == 0.0
    check_same_course(steps, alone)
