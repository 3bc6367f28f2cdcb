"""One training in four phases, and what each engine that runs it must agree on.

Every engine trains the same model under the same plan on the same batches, and keeps a record of
each step. The model has no dropout and no batch statistics, so that two ranks with half a batch
each must agree with one process that has all of it.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from freezekit import AppliedPlan, FreezekitError, FreezePlan
from freezekit.integrations.distributed import ddp, register

EPOCHS, STEPS_PER_EPOCH, BATCH, WIDTH = 5, 3, 8, 8
LR, WEIGHT_DECAY = 1e-2, 0.1

PLAN = (
    FreezePlan()
    .freeze("**")
    .unfreeze("head")
    .unfreeze("blocks[-1]", lr_mult=0.5, at_epoch=1)
    .unfreeze("blocks", at_epoch=2)
    .unfreeze("stem", lr_mult=0.1, at_epoch=3)
    .freeze("blocks[0]", at_epoch=4)
    .no_decay()
)
"""Opens from the head down over four phases; in the fifth a block closes again."""


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        """Builds its layers."""
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, width) to the same."""
        return x + functional.gelu(self.linear(self.norm(x)))


class Net(nn.Module):
    """A stem, two blocks and a head."""

    def __init__(self) -> None:
        """Builds the layers, the same each time."""
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.stem = nn.Linear(WIDTH, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(2))
            self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps (batch, width) and (batch,) to `loss`, a mean over the batch."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return {"loss": functional.mse_loss(self.head(x).squeeze(1), labels)}


class Samples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The samples of one epoch, the same in each."""

    def __init__(self) -> None:
        """Draws them."""
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randn(STEPS_PER_EPOCH * BATCH, WIDTH, generator=generator)
        self.labels = torch.randn(STEPS_PER_EPOCH * BATCH, generator=generator)

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns one, as the arguments of the model."""
        return {"x": self.x[index], "labels": self.labels[index]}


def batches(rank: int = 0, ranks: int = 1) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the batches of one epoch in order; of several ranks each gets every so many."""
    samples = Samples()
    for start in range(0, len(samples), BATCH):
        rows = slice(start + rank, start + BATCH, ranks)
        yield {"x": samples.x[rows], "labels": samples.labels[rows]}


class Step(NamedTuple):
    """What is seen right after one step of the optimizer.

    Attributes:
        trainable: the parameters with `requires_grad`.
        lrs: the learning rate that the step used, by parameter; 0 where it is frozen.
        weights: the parameters after it.
    """

    trainable: frozenset[str]
    lrs: dict[str, float]
    weights: dict[str, torch.Tensor]


def seen(model: nn.Module, applied: AppliedPlan, optimizer: torch.optim.Optimizer) -> Step:
    """Returns the record of a step that was just taken, before the LR scheduler's.

    Args:
        model: the bare model.
        applied: its plan.
        optimizer: torch's own, whose groups name their parameters.
    """
    rates = applied.lrs()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    lrs = {
        names[id(parameter)]: rates[group["name"]]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return Step(
        frozenset(name for name, each in model.named_parameters() if each.requires_grad),
        lrs,
        {name: each.detach().clone() for name, each in model.named_parameters()},
    )


def bare(applied: AppliedPlan, model: nn.Module) -> nn.Module:
    """Returns the model, with nothing around it."""
    return model


def decay(step: int) -> float:
    """Returns the factor of the LR scheduler that all engines share."""
    return 1 - step / (2 * EPOCHS * STEPS_PER_EPOCH)


def plain(
    rank: int = 0, ranks: int = 1, wrap: Callable[[AppliedPlan, nn.Module], nn.Module] = bare
) -> list[Step]:
    """Trains in an ordinary loop.

    Args:
        rank: of several ranks, the number of this one.
        ranks: how many there are.
        wrap: returns what to call instead of the model.
    """
    model = Net()
    applied = PLAN.apply(model)
    wrapped = wrap(applied, model)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, decay)
    steps = []
    with applied.guard():
        for epoch in range(EPOCHS):
            applied.advance(epoch=epoch)
            for batch in batches(rank, ranks):
                wrapped(**batch)["loss"].backward()
                optimizer.step()
                steps.append(seen(model, applied, optimizer))
                scheduler.step()
                optimizer.zero_grad()
    return steps


def in_ranks() -> tuple[list[Step], dict[str, str]]:
    """Trains under DDP, in one of several processes; also what is refused there."""
    torch.distributed.init_process_group("gloo")
    steps = plain(torch.distributed.get_rank(), torch.distributed.get_world_size(), ddp)
    return steps, refused()


def furthest(one: list[Step], other: list[Step]) -> float:
    """Returns the largest difference between the weights of two runs, over all steps."""
    assert len(one) == len(other) == EPOCHS * STEPS_PER_EPOCH
    return max(
        float((a.weights[name] - b.weights[name]).abs().max())
        for a, b in zip(one, other, strict=True)
        for name in a.weights
    )


def check_frozen_stays(steps: list[Step]) -> None:
    """Checks that no step changed what is frozen in it by a single bit."""
    fixed = [
        torch.equal(before.weights[name], after.weights[name])
        for before, after in pairwise(steps)
        for name in after.weights.keys() - after.trainable
    ]
    assert fixed
    assert all(fixed)


def check_same_course(one: list[Step], other: list[Step]) -> None:
    """Checks that two runs trained the same parameters at the same rates, and nothing else."""
    check_frozen_stays(one)
    check_frozen_stays(other)
    assert [step.trainable for step in one] == [step.trainable for step in other]
    for a, b in zip(one, other, strict=True):
        assert a.lrs == b.lrs


def refused() -> dict[str, str]:
    """Returns what is said, in one of several processes, where ranks would drift apart."""
    ddp_class = nn.parallel.DistributedDataParallel
    said = {}

    def attempt(name: str, action: Callable[[], object]) -> None:
        try:
            action()
            said[name] = ""
        except FreezekitError as error:
            said[name] = str(error)

    applied = PLAN.apply(model := Net())
    flags = [each.requires_grad for each in model.parameters()]
    attempt("nothing known", lambda: applied.advance(epoch=1))
    said["unchanged"] = str(flags == [each.requires_grad for each in model.parameters()])
    frozen_at_wrap = ddp_class(model, find_unused_parameters=True)
    attempt("frozen at wrap", lambda: register(applied, frozen_at_wrap))
    attempt("another model", lambda: register(applied, Net()))
    attempt("trusted", lambda: (register(applied, model), applied.advance(epoch=1)))
    applied.release()
    attempt("applied to the wrapper", lambda: PLAN.apply(frozen_at_wrap))
    all_known = ddp_class(Net())
    attempt("waits in vain", lambda: PLAN.apply(all_known))
    static = ddp_class(Net(), static_graph=True)
    attempt("static", lambda: PLAN.apply(static))
    applied = PLAN.apply(model := Net())
    attempt("asked for static", lambda: ddp(applied, model, static_graph=True))
    attempt("asked to wait", lambda: ddp(applied, model, find_unused_parameters=False))
    known = ddp(applied, model.head)
    attempt("outside of what is known", lambda: applied.advance(epoch=1))
    del known
    resumed = PLAN.apply(model := Net())
    attempt("loaded before the wrap", lambda: resumed.load_state_dict(_late_state()))
    attempt("never wrapped", lambda: resumed.advance(epoch=2))
    wrapped = ddp(resumed, model)
    attempt("wrapped after loading", lambda: resumed.advance(epoch=3))
    said["known"] = str(len(list(wrapped.parameters())))
    return said


def _late_state() -> dict[str, object]:
    """Returns the state of a plan in its third phase."""
    applied = PLAN.apply(model := Net())
    register(applied, model)
    applied.advance(epoch=2)
    return applied.state_dict()
