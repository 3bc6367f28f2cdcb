"""The cache where users really train: the same course with it, in each engine."""

from pathlib import Path

import cache_engines
import pytest
from cache_engines import Course
from engines import Step, check_same_course, furthest, plain
from ranks import run_ranks

OPEN = 3
"""The epoch in which the plan opens the stem, and with it all of the model."""


@pytest.fixture(scope="module")
def uncached() -> list[Step]:
    return plain()


def check(course: Course, uncached: list[Step], rows: int) -> None:
    """Asserts that a course is that without a cache, and that its rows were computed once."""
    steps, stats = course
    check_same_course(steps, uncached)
    assert furthest(steps, uncached) < 1e-6
    assert (stats.misses, stats.hits) == (rows, (OPEN - 1) * rows)


def test_an_ordinary_loop(uncached: list[Step]) -> None:
    """Three phases are answered from one epoch; from the fourth on nothing is frozen below."""
    check(cache_engines.plain(), uncached, 24)


def test_trainer(uncached: list[Step], tmp_path: Path) -> None:
    """Trainer's own loop, which never hears of the cache."""
    pytest.importorskip("transformers")
    check(cache_engines.by_trainer(tmp_path), uncached, 24)


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Course]]:
    """What each of two processes saw."""
    return run_ranks("cache_engines:in_ranks")


@pytest.mark.parametrize("how", ["loop", "trainer"])
def test_two_ranks_have_a_share_each(
    how: str, ranks: list[dict[str, Course]], uncached: list[Step]
) -> None:
    """Under DDP each rank stores its own rows, and both train as one process does."""
    courses = [each[how] for each in ranks]
    assert furthest(courses[0][0], courses[1][0]) == 0
    for steps, stats in courses:
        assert furthest(steps, uncached) < 1e-5
        assert (stats.misses, stats.hits) == (12, (OPEN - 1) * 12)
