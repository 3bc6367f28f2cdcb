"""What every test runs under: no network, few threads, seeded generators, one profile."""

import os
import random
import sys
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
settings.register_profile(
    "freezekit", deadline=None, max_examples=100, derandomize="CI" in os.environ
)
settings.load_profile("freezekit")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seeds the generators of Python and torch for one test and restores them after it."""
    python_state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` formats the stack, thrice
        yield
    random.setstate(python_state)


@pytest.fixture(autouse=True, scope="module")
def traced(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measures no coverage in modules marked `untraced`, nor in the processes that they start."""
    coverage = sys.modules.get("coverage")
    running = coverage.Coverage.current() if coverage is not None else None
    if running is None or request.node.get_closest_marker("untraced") is None:
        yield
        return
    running.stop()
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.delenv("COVERAGE_PROCESS_START", raising=False)
            yield
    finally:
        running.start()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Gives torch one thread: what is small is done sooner by one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
