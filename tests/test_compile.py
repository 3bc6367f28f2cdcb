"""torch.compile: an applied model is one graph in every phase, compiled once for each."""

from collections.abc import Callable, Iterator

import pytest
import torch
from engines import (
    EPOCHS,
    LR,
    PLAN,
    Net,
    Step,
    batches,
    check_same_course,
    furthest,
    plain,
)
from ranks import run_ranks
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from freezekit import AppliedPlan, FreezePlan
from freezekit.integrations.distributed import ddp

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    # Torch asks for it while it compiles, and hides the warning where it is not an error.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


class Regular(Net):
    """The shared model with what a phase also changes the mode of: dropout and batch statistics."""

    def __init__(self) -> None:
        """Builds the layers."""
        super().__init__()
        for block in self.blocks:
            block.norm = nn.Sequential(nn.BatchNorm1d(block.linear.in_features), nn.Dropout(0.1))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Compiles nothing before a test that another has compiled."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def wrapped(model: nn.Module, backend: object) -> nn.Module:
    """Returns a compiled wrapper of a model."""
    return torch.compile(model, backend=backend, fullgraph=True)


def in_place(model: nn.Module, backend: object) -> nn.Module:
    """Compiles a model in place."""
    model.compile(backend=backend, fullgraph=True)
    return model


def by_block(model: nn.Module, backend: object) -> nn.Module:
    """Compiles each block in place."""
    for block in model.blocks:
        block.compile(backend=backend, fullgraph=True)
    return model


def step(compiled: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Takes one step, in train mode as far as the plan lets it."""
    compiled.train()
    compiled(**next(batches()))["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("compile_", "counts"),
    [(wrapped, [1, 2, 3, 4, 5]), (in_place, [1, 2, 3, 4, 5]), (by_block, [1, 2, 3, 3, 4])],
)
def test_each_phase_compiles_once_and_whole(
    compile_: Callable[[nn.Module, object], nn.Module], counts: list[int]
) -> None:
    """No graph breaks, one compilation per new state, none on the way back through the phases."""
    applied = PLAN.apply(bare := Regular())
    counter = CompileCounterWithBackend("eager")
    compiled = compile_(bare, counter)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=LR)
    found = []
    for epoch in range(EPOCHS):
        applied.advance(epoch=epoch)
        step(compiled, optimizer)
        step(compiled, optimizer)
        found.append(counter.frame_count)
    assert found == counts
    for epoch in (*reversed(range(EPOCHS)), 2, 4):
        applied.advance(epoch=epoch)
        step(compiled, optimizer)
    assert counter.frame_count == counts[-1]
    assert not counters["graph_break"]


def test_a_compiled_training_takes_the_same_course() -> None:
    """The same trainable set and rates as in the plain loop, the same weights to rounding."""
    steps, alone = plain(wrap=compiled_alone), plain()
    assert furthest(steps, alone) < 1e-6
    check_same_course(steps, alone)


def compiled_alone(applied: AppliedPlan, model: nn.Module) -> nn.Module:
    """Returns a compiled model."""
    return wrapped(model, "aot_eager")


def compiled_inside(applied: AppliedPlan, model: nn.Module) -> nn.Module:
    """Returns a compiled model in DDP."""
    return ddp(applied, wrapped(model, "aot_eager"))


def compiled_outside(applied: AppliedPlan, model: nn.Module) -> nn.Module:
    """Returns DDP around a model, compiled."""
    return torch.compile(ddp(applied, model), backend="aot_eager")


def in_ranks() -> dict[str, list[Step]]:
    """Trains compiled under DDP, either inside the other, in one of several processes."""
    torch.distributed.init_process_group("gloo")
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ways = (compiled_inside, compiled_outside)
    return {wrap.__name__: plain(rank, ranks, wrap) for wrap in ways}


def test_compiled_models_train_under_ddp() -> None:
    """Two ranks stay bit-identical, whichever is wrapped around the other."""
    first, second = run_ranks("test_compile:in_ranks")
    alone = plain()
    for name, steps in first.items():
        assert furthest(steps, second[name]) == 0.0, name
        assert furthest(steps, alone) < 1e-5, name
        check_same_course(steps, alone)


def test_what_is_compiled_past_the_limit_still_trains_right() -> None:
    """Beyond torch's limit of compilations the model runs uncompiled, with the same gradients."""
    plan = FreezePlan().freeze("**").unfreeze("head")
    for at, name in enumerate(("blocks[1].linear", "blocks[1].norm", "blocks[0]", "stem")):
        plan = plan.unfreeze(name, at_epoch=at + 1)
    applied = plan.apply(model := Net())
    with torch._dynamo.config.patch(recompile_limit=2):
        compiled = torch.compile(model, backend="eager")
        for epoch in range(5):
            applied.advance(epoch=epoch)
            compiled(**next(batches()))["loss"].backward()
            trained = {name for name, each in model.named_parameters() if each.grad is not None}
            assert trained == applied.phase.trainable
            model.zero_grad()
