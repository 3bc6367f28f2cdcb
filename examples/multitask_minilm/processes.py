"""One run in several processes, as `torchrun` starts them: who is who, and whose rows are whose."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from freezekit import AppliedPlan
from freezekit.integrations.distributed import ddp


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them; by default it is alone.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        device: where it computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    @contextlib.contextmanager
    def join(cls) -> Iterator["Processes"]:
        """Joins the processes that torchrun started; without it, this one is alone.

        They talk by NCCL where there are GPUs, one for each, and else by gloo. Only the first one
        prints.
        """
        on_gpu = torch.cuda.is_available()
        number = int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cuda", number) if on_gpu else torch.device("cpu")
        if "WORLD_SIZE" not in os.environ:
            yield cls(device=device)
            return
        if on_gpu:
            torch.cuda.set_device(device)
        distributed = torch.distributed
        distributed.init_process_group("nccl" if on_gpu else "gloo")
        try:
            processes = cls(distributed.get_rank(), distributed.get_world_size(), device)
            with contextlib.ExitStack() as stack:
                if processes.rank:
                    silence = stack.enter_context(open(os.devnull, "w"))
                    stack.enter_context(contextlib.redirect_stdout(silence))
                yield processes
        finally:
            # A thread of gloo needs Python's lock to let go of its last work, and the end of the
            # group waits for it with that lock held: with a moment before, a hang is rare.
            time.sleep(0.1)
            distributed.destroy_process_group()

    def loader(
        self, data: TensorDataset, batch_size: int, order: torch.Generator
    ) -> DataLoader[tuple[Tensor, ...]]:
        """Returns the shuffled batches of an epoch, of each the rows of this process.

        Args:
            data: the rows.
            batch_size: rows of a batch, over all processes.
            order: what the order is drawn from, in the same state in all processes.
        """
        if self.count == 1:
            return DataLoader(data, batch_size, shuffle=True, generator=order)
        batches = BatchSampler(RandomSampler(data, generator=order), batch_size, drop_last=False)
        return DataLoader(data, batch_sampler=Shares(batches, self), generator=order)

    def wrap(self, applied: AppliedPlan, model: nn.Module) -> nn.Module:
        """Returns what to train: the model, or DDP around it."""
        return model if self.count == 1 else ddp(applied, model)

    def generator(self) -> torch.Generator:
        """Returns what dropout is drawn from."""
        if self.device.type == "cuda":
            return torch.cuda.default_generators[self.device.index]
        return torch.default_generator

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401 - whatever can be pickled
        """Returns the value of each process, in all of them."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            torch.distributed.all_gather_object(values, value)
        return values


class Shares:
    """The batches of an epoch, of each what one process trains on: every so many of its rows.

    A last batch with fewer rows than processes gives its last row to several.
    """

    def __init__(self, batches: BatchSampler, processes: Processes) -> None:
        """Takes the whole batches, in the same order in all processes."""
        self._batches = batches
        self._processes = processes

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the rows of each batch."""
        for batch in self._batches:
            yield batch[self._processes.rank :: self._processes.count] or batch[-1:]
