"""The shared training with a cache, in each engine: in one process and in several."""

from pathlib import Path
from tempfile import TemporaryDirectory

import engines
import torch
from engines import Step
from torch import nn

from freezekit import AppliedPlan
from freezekit.cache import ActivationCache, Stats
from freezekit.integrations.distributed import ddp

Course = tuple[list[Step], Stats]


def plain(rank: int = 0, ranks: int = 1, *, wrapped: bool = False) -> Course:
    """Trains in an ordinary loop, under DDP if asked."""
    caches = []

    def wrap(applied: AppliedPlan, model: nn.Module) -> nn.Module:
        caches.append(ActivationCache(applied))
        return ddp(applied, model) if wrapped else model

    steps = engines.plain(rank, ranks, wrap)
    (cache,) = caches
    stats = cache.stats()
    cache.close()
    return steps, stats


def in_ranks() -> dict[str, Course]:
    """Trains with Trainer and in a loop under DDP, in one of several processes."""
    trained = by_trainer_in_ranks()  # which begins to talk to the other ranks
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return {"trainer": trained, "loop": plain(rank, ranks, wrapped=True)}


def by_trainer(folder: Path | str) -> Course:
    """Trains with the Trainer of transformers."""
    from trainer_runs import Recorder, Rows, trainer

    from freezekit.integrations.transformers import FreezeCallback

    freeze = FreezeCallback(engines.PLAN, guard=True)
    recorder = Recorder(freeze)
    made = trainer(freeze, folder, recorder, more={"train_dataset": Rows(1)})
    with ActivationCache(freeze.applied) as cache:
        made.train()
        return recorder.steps, cache.stats()


def by_trainer_in_ranks() -> Course:
    """Trains with the Trainer of transformers, in one of several processes."""
    from trainer_runs import Recorder, Rows, trainer

    from freezekit.integrations.transformers import FreezeCallback

    freeze = FreezeCallback(engines.PLAN, guard=True)
    recorder = Recorder(freeze)
    with TemporaryDirectory() as folder:
        options = {"per_device_train_batch_size": engines.BATCH // 2}
        made = trainer(freeze, folder, recorder, more={"train_dataset": Rows(2)}, **options)
        with ActivationCache(freeze.applied) as cache:
            made.train()
            return recorder.steps, cache.stats()
