"""The shared training under DeepSpeed's ZeRO, in one of several ranks."""

from collections.abc import Callable
from typing import Any

import engines_page
import sharded
import torch
from engines import (
    EPOCHS,
    LR,
    PLAN,
    WEIGHT_DECAY,
    Net,
    Step,
    batches,
    check_same_course,
    decay,
    furthest,
)

from freezekit import AppliedPlan, FreezekitError, FreezePlan
from freezekit.integrations.deepspeed import initialize
from freezekit.integrations.distributed import ddp, register

CHANGING = FreezePlan().freeze("stem", until_epoch=1).group("head", lr_mult=0.1, at_epoch=2)
"""A group's rate changes while it trains."""


def start() -> None:
    """Makes DeepSpeed ready to train on CPUs without compiling anything."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")


def settings(stage: int, windows: int = 1) -> dict[str, Any]:
    """Returns DeepSpeed's configuration."""
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": windows,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def train(stage: int, plan: FreezePlan) -> list[Step]:
    """Trains through all phases with the guard on."""
    from deepspeed import zero

    applied = plan.apply(model := Net())
    optimizer = applied.optimizer(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY)
    groups = [(group["name"], group["param_names"]) for group in optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, decay)
    engine, *_ = initialize(applied, model=model, optimizer=optimizer, config=settings(stage))
    steps = []
    with applied.guard():
        for epoch in range(EPOCHS):
            applied.advance(epoch=epoch)
            for batch in batches(torch.distributed.get_rank(), 2):
                engine.backward(engine(**batch)["loss"])
                engine.step()
                rates = applied.lrs()
                with zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
                    weights = {n: each.detach().clone() for n, each in model.named_parameters()}
                trainable = frozenset(n for n, p in model.named_parameters() if p.requires_grad)
                lrs = {name: rates[group] for group, names in groups for name in names}
                steps.append(Step(trainable, lrs, weights))
                scheduler.step()
    return steps


def trained_and_asked(folder: str) -> tuple[Any, ...]:
    """Trains at every stage; returns its course and how far that is from DDP's, and the rest."""
    start()
    found = {}
    for name, plan in (("opening", PLAN), ("changing", CHANGING)):
        applied = plan.apply(bare := Net())
        whole = sharded.train(bare, applied, ddp(applied, bare))
        for stage in range(4):
            steps = train(stage, plan)
            check_same_course(steps, whole)
            found[f"{name}, stage {stage}"] = (steps, furthest(steps, whole))
    return found, asked(), resumed(folder)


def resumed(folder: str) -> dict[str, bool]:
    """Returns whether a resumed run equals one that went on: the plan's state first, then all."""
    from deepspeed import zero

    def on(run: tuple[AppliedPlan, Net, Any], epochs: range) -> list[torch.Tensor]:
        applied, model, engine = run
        for epoch in epochs:
            applied.advance(epoch=epoch)
            for batch in batches(torch.distributed.get_rank(), 2):
                engine.backward(engine(**batch)["loss"])
                engine.step()
        stage = engine.zero_optimization_stage()
        with zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
            return [each.detach().clone() for each in model.parameters()]

    def fresh(stage: int) -> tuple[AppliedPlan, Net, Any]:
        applied = sharded.REOPENING.apply(model := Net())
        optimizer = applied.optimizer(torch.optim.AdamW, lr=LR)
        made = initialize(applied, model=model, optimizer=optimizer, config=settings(stage))
        return applied, model, made[0]

    found = {}
    for stage in (1, 2, 3):
        run = fresh(stage)
        on(run, range(3))
        run[2].save_checkpoint(folder, tag=f"stage {stage}")
        state = run[0].state_dict()
        whole = on(run, range(3, EPOCHS))
        run = fresh(stage)
        run[0].load_state_dict(state)
        run[2].load_checkpoint(folder, tag=f"stage {stage}")
        rest = on(run, range(3, EPOCHS))
        found[f"stage {stage}"] = all(map(torch.equal, whole, rest))
    return found


def asked() -> dict[str, object]:
    """Returns what is said where it cannot be right, and where it must ask."""
    import deepspeed

    said: dict[str, object] = {}

    def attempt(name: str, act: Callable[[], object]) -> None:
        try:
            said[name] = act()
        except FreezekitError as error:
            said[name] = str(error)

    applied = PLAN.apply(model := Net())
    optimizer = torch.optim.AdamW(model.parameters())
    engine, made, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings(1), model_parameters=model.parameters()
    )
    attempt("register", lambda: register(applied, engine))
    attempt("attach", lambda: applied.attach(made))
    attempt("advance", lambda: applied.advance(epoch=1))
    kept = FreezePlan().unfreeze("stem.weight", rows="2:4")
    attempt("rows", lambda: _made(kept.apply(Net())))
    attempt("drop", lambda: _made(PLAN.apply(Net(), on_freeze="drop")))
    for stage in (1, 3):
        attempt(f"window, stage {stage}", lambda stage=stage: _in_a_window(stage))
    attempt("guard", _changed)
    with deepspeed.zero.Init(config_dict_or_path=settings(3)):
        empty = Net()
    rows = PLAN.resolve(Net()).rows
    attempt("decided alike", lambda: all(
        one.decisions == other.decisions and one.shape == other.shape
        for one, other in zip(PLAN.resolve(empty).rows, rows, strict=True)
    ))  # fmt: skip
    return said


def _made(applied: AppliedPlan) -> object:
    """Returns the engine of a plan."""
    optimizer = applied.optimizer(torch.optim.AdamW, lr=LR)
    model = applied._modules[0]
    return initialize(applied, model=model, optimizer=optimizer, config=settings(1))[0]


def _changed() -> None:
    """Changes what a rank keeps of a frozen parameter, which is not in the parameter itself."""
    applied = PLAN.apply(model := Net())
    optimizer = applied.optimizer(torch.optim.AdamW, lr=LR)
    initialize(applied, model=model, optimizer=optimizer, config=settings(3))
    with applied.guard(), torch.no_grad():
        model.stem.weight.ds_tensor.add_(1)


def _in_a_window(stage: int) -> tuple[bool, ...]:
    """Returns whether a block trains: before and after the end of a window in which it opens."""
    applied = PLAN.apply(model := Net())
    optimizer = applied.optimizer(torch.optim.AdamW, lr=LR)
    made = initialize(applied, model=model, optimizer=optimizer, config=settings(stage, windows=2))
    engine, batch = made[0], next(batches(torch.distributed.get_rank(), 2))
    seen = []
    for epoch in (0, 1):
        applied.advance(epoch=epoch)
        seen.append(model.blocks[1].linear.weight.requires_grad)
        engine.backward(engine(**batch)["loss"])
        engine.step()
        seen.append(model.blocks[1].linear.weight.requires_grad)
    return tuple(seen)


def page(folder: str) -> list[str]:
    """Runs what the page on engines shows of DeepSpeed, and returns the names that it made."""
    start()
    names = engines_page.given(folder) | {"config": settings(1)}
    exec(compile(engines_page.blocks()["DeepSpeed"], "engines.md", "exec"), names)
    return [type(names[name]).__name__ for name in ("engine", "applied")]
