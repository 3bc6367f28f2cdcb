"""The shared training with the model sharded over the ranks, and what is asked about it there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engines import (
    EPOCHS,
    LR,
    PLAN,
    WEIGHT_DECAY,
    Net,
    Step,
    batches,
    decay,
    furthest,
    plain,
    seen,
)
from torch import nn
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from freezekit import AppliedPlan, FreezekitError, FreezePlan
from freezekit.integrations.distributed import (
    ddp,
    load_checkpoint,
    register,
    save_checkpoint,
)

HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def by_block(model: nn.Module, policy: MixedPrecisionPolicy | None = None) -> nn.Module:
    """Shards each block by itself, and the rest as the root's group."""
    for block in model.blocks:
        fully_shard(block, mp_policy=policy or MixedPrecisionPolicy())
    return fully_shard(model, mp_policy=policy or MixedPrecisionPolicy())


def flattened(model: nn.Module) -> nn.Module:
    """Returns a model in the first generation of sharding, blocks by themselves."""
    for index, block in enumerate(model.blocks):
        model.blocks[index] = flattened_whole(block)
    return flattened_whole(model)


def flattened_whole(model: nn.Module, original: bool = True) -> nn.Module:
    """Returns a model in the first generation of sharding, in one group."""
    return FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy of all of a tensor, of which this rank may hold a part."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def train(bare: nn.Module, applied: AppliedPlan, wrapped: nn.Module) -> list[Step]:
    """Trains through all phases with the guard on, in one of several ranks."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    optimizer = applied.optimizer(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, decay)
    steps = []
    with applied.guard():
        for epoch in range(EPOCHS):
            applied.advance(epoch=epoch)
            for batch in batches(rank, ranks):
                wrapped(**batch)["loss"].backward()
                optimizer.step()
                steps.append(_recorded(bare, applied, optimizer, wrapped))
                scheduler.step()
                optimizer.zero_grad()
            with torch.no_grad():
                wrapped(**batch)  # FSDP2 leaves the root's parameters whole after this.
    return steps


def _recorded(
    bare: nn.Module, applied: AppliedPlan, optimizer: torch.optim.Optimizer, wrapped: nn.Module
) -> Step:
    """Returns the record of a step with whole tensors under the names of the bare model."""
    if not isinstance(wrapped, FullyShardedDataParallel):
        step = seen(bare, applied, optimizer)
        return step._replace(weights={name: whole(each) for name, each in step.weights.items()})
    step = seen(wrapped, applied, optimizer)
    strip = "_fsdp_wrapped_module."
    with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False):
        weights = {n.replace(strip, ""): whole(each) for n, each in wrapped.named_parameters()}
    return Step(
        frozenset(name.replace(strip, "") for name in step.trainable),
        {name.replace(strip, ""): rate for name, rate in step.lrs.items()},
        weights,
    )


def by_hand(policy: MixedPrecisionPolicy) -> list[dict[str, torch.Tensor]]:
    """Trains a sharded model through the same phases without any of freezekit's hands on it."""
    model, resolved = Net(), PLAN.resolve(Net())
    by_block(model, policy)
    biases = {name for name, each in model.named_parameters() if each.ndim == 1}
    groups = []
    for name, each in model.named_parameters():
        first = next(phase for phase in resolved.phases if name in phase.trainable)
        rate, own = first.lr(name, LR), 0.0 if name in biases else WEIGHT_DECAY
        groups.append({"params": [each], "lr": rate, "weight_decay": own})
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, decay)
    weights = []
    model(**next(batches()))["loss"].backward()  # Sets up mixed precision for what trains in it.
    model.zero_grad()
    for epoch in range(EPOCHS):
        trainable = resolved.at(epoch=epoch).trainable
        for name, each in model.named_parameters():
            each.requires_grad_(name in trainable)
        for batch in batches(torch.distributed.get_rank(), 2):
            model(**batch)["loss"].backward()
            optimizer.step()
            weights.append({name: whole(each) for name, each in model.named_parameters()})
            scheduler.step()
            optimizer.zero_grad()
    return weights


LAYOUTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "fsdp2 by block": by_block,
    "fsdp2 in one group": fully_shard,
    "fsdp1 by block": flattened,
    "fsdp1 in one group": flattened_whole,
}


def trained_and_asked(folder: str) -> tuple[Any, ...]:
    """Returns all that is found out in one of several ranks: they take long to start."""
    torch.distributed.init_process_group("gloo")
    return all_layouts(), asked(), kept(folder)


def all_layouts() -> dict[str, tuple[list[Step], float]]:
    """Trains under every way of sharding, before the plan and after it.

    Returns, for each, its course and how far that is from the course under DDP.
    """
    whole_course = plain(torch.distributed.get_rank(), 2, ddp)
    courses = {}
    for layout, shard in LAYOUTS.items():
        applied = PLAN.apply(bare := Net())
        courses[f"{layout}, plan first"] = train(bare, applied, shard(bare))
        applied = PLAN.apply(wrapped := shard(bare := Net()))
        courses[f"{layout}, plan second"] = train(bare, applied, wrapped)
    apart = {name: furthest(steps, whole_course) for name, steps in courses.items()}
    applied = PLAN.apply(bare := Net())
    name = "fsdp2 in bfloat16, plan first"
    courses[name] = train(bare, applied, by_block(bare, HALF))
    apart[name] = max(
        float((step.weights[key] - weights[key]).abs().max())
        for step, weights in zip(courses[name], by_hand(HALF), strict=True)
        for key in weights
    )
    return {name: (steps, apart[name]) for name, steps in courses.items()}


def asked() -> dict[str, object]:
    """Returns what is said about sharded models."""
    said: dict[str, object] = {}

    def attempt(name: str, act: Callable[[], object]) -> None:
        try:
            said[name] = act()
        except FreezekitError as error:
            said[name] = f"{type(error).__name__}: {error}"

    _ask_about_rows(attempt)
    _ask_about_the_guard(attempt)
    _ask_about_flat_parameters(attempt)
    for layout, shard in LAYOUTS.items():
        attempt(f"{layout}: window", lambda shard=shard: _in_a_window(shard))
        attempt(f"{layout}: release", lambda shard=shard: _released(shard))
    return said


REOPENING = (
    FreezePlan()
    .freeze("**")
    .unfreeze("head")
    .unfreeze("blocks[-1]", lr_mult=0.5, at_epoch=1, until_epoch=2)
    .unfreeze("blocks[-1]", "stem", at_epoch=3)
)
"""A block closes and opens again, with its moments; what opens beside it has none yet."""

SAVED = {
    "before the first step of epoch 0": 0,
    "after epoch 1": 1,
    "after epoch 2": 2,
    "before the first step of epoch 3": 3,
}


def kept(folder: str) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Trains without a stop and saves on the way; returns the weights after each epoch."""
    found = {}
    for name, shard in RESUMED.items():
        found[name] = _through(_Run(shard), range(EPOCHS), Path(folder) / name)
        found[f"{name}, never saved"] = _through(_Run(shard), range(EPOCHS), None)
    return found


def resumed(folder: str) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Goes on from each checkpoint, in other processes than those that saved."""
    torch.distributed.init_process_group("gloo")
    found = {}
    for name, shard in RESUMED.items():
        for moment, epoch in SAVED.items():
            run = _Run(shard)
            path = Path(folder) / name / moment
            load_checkpoint(path, run.applied, run.wrapped, run.optimizer, run.others)
            rest = range(epoch + moment.startswith("after"), EPOCHS)
            found[f"{name}, {moment}"] = _through(run, rest, None)
    return found


RESUMED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "fsdp2": by_block,
    "ddp": nn.parallel.DistributedDataParallel,
}


class _Run:
    """What one training consists of."""

    def __init__(self, shard: Callable[[nn.Module], nn.Module]) -> None:
        """Builds it, the same each time."""
        self.applied = REOPENING.apply(model := Net())
        if shard is nn.parallel.DistributedDataParallel:
            self.wrapped: nn.Module = ddp(self.applied, model)
        else:
            self.wrapped = shard(model)
        self.optimizer = self.applied.optimizer(torch.optim.AdamW, lr=LR)
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, decay)
        self.others = {"scheduler": scheduler}

    def save(self, folder: Path | None, moment: str) -> None:
        """Saves it, if this is a moment to do so."""
        if folder is not None and moment in SAVED:
            path = folder / moment
            save_checkpoint(path, self.applied, self.wrapped, self.optimizer, self.others)


def _through(run: _Run, epochs: range, folder: Path | None) -> list[dict[str, torch.Tensor]]:
    """Trains through some epochs; returns the weights after each."""
    rank, weights = torch.distributed.get_rank(), []
    for epoch in epochs:
        run.applied.advance(epoch=epoch)
        run.save(folder, f"before the first step of epoch {epoch}")
        for batch in batches(rank, 2):
            run.wrapped(**batch)["loss"].backward()
            run.optimizer.step()
            run.others["scheduler"].step()
            run.optimizer.zero_grad()
        run.save(folder, f"after epoch {epoch}")
        weights.append({n: whole(each) for n, each in run.wrapped.named_parameters()})
    return weights


Attempt = Callable[[str, Callable[[], object]], None]


def _ask_about_rows(attempt: Attempt) -> None:
    plan = FreezePlan().freeze("**").unfreeze("stem.weight", rows="2:4").unfreeze("head")
    for layout in ("fsdp2 in one group", "fsdp1 in one group"):
        applied = plan.apply(LAYOUTS[layout](Net()))
        attempt(f"{layout}: rows", lambda it=applied: it.optimizer(torch.optim.SGD, lr=0.1))


def _ask_about_the_guard(attempt: Attempt) -> None:
    """Changes a frozen tensor on the last rank only."""
    for layout, shard in LAYOUTS.items():
        wrapped = shard(bare := Net())
        applied = PLAN.apply(wrapped)

        def change(bare: nn.Module = bare, applied: AppliedPlan = applied) -> None:
            with applied.guard(), torch.no_grad():
                for each in (*bare.stem.parameters(), *bare.blocks.parameters()):
                    local = each.to_local() if isinstance(each, DTensor) else each
                    if torch.distributed.get_rank() == 1 and local.numel():
                        local.view(-1)[0] += 1

        attempt(f"{layout}: guard", change)


def _ask_about_flat_parameters(attempt: Attempt) -> None:
    flat = flattened_whole(Net(), original=False)
    attempt("flat: resolve", lambda: PLAN.resolve(flat))
    attempt("flat: apply", lambda: PLAN.apply(flat))
    inner = Net()
    flattened_whole(inner)
    attempt("inside: apply", lambda: PLAN.apply(inner))
    model = Net()
    applied = FreezePlan().no_decay().apply(model)
    later = flattened_whole(model, original=False)
    attempt("flat: register", lambda: register(applied, later))
    attempt("fsdp1: save", lambda: save_checkpoint("", applied, later, []))
    attempt("fsdp1: load", lambda: load_checkpoint("", applied, later, []))


def _in_a_window(shard: Callable[[nn.Module], nn.Module]) -> tuple[bool, ...]:
    """Returns whether a block trains: in a window in which it opens, and after its step."""
    applied = PLAN.apply(wrapped := shard(Net()))
    optimizer = applied.optimizer(torch.optim.AdamW, lr=LR)
    batch = next(batches(torch.distributed.get_rank(), 2))
    applied.advance(epoch=0)
    wrapped(**batch)["loss"].backward()
    applied.advance(epoch=1)
    block = [p for n, p in wrapped.named_parameters() if n.endswith("linear.weight")][-1]
    before = block.requires_grad
    wrapped(**batch)["loss"].backward()
    optimizer.step()
    return before, block.requires_grad


def _released(shard: Callable[[nn.Module], nn.Module]) -> bool:
    """Returns whether all is as it was before the plan."""
    applied = PLAN.apply(wrapped := shard(Net()))
    applied.advance(epoch=1)
    applied.release()
    return all(each.requires_grad for each in wrapped.parameters()) and all(
        each.training and "train" not in vars(each) for each in wrapped.modules()
    )
