"""Two processes, and a layer that opens in the second epoch: both ranks stay the same model.

DistributedDataParallel asks once, when it is built, which parameters train. What is unfrozen later
is never averaged: each rank trains a layer of its own, and nothing says so. `ddp` builds it so that
all phases of the plan are averaged. Both ways are shown here, on two processes of this machine.
"""

from datetime import timedelta

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from freezekit import FreezePlan
from freezekit.integrations.distributed import ddp

MINUTE = timedelta(minutes=1)


def build() -> nn.Module:
    """Returns the same small model on each rank."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Trains for one epoch, on data that differ from rank to rank."""
    for inputs in torch.randn(4, 16, 8):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def by_hand(rank: int) -> nn.Module:
    """Freezes and opens the first layer as one would without DDP."""
    model = build()
    model[0].requires_grad_(False)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    train(wrapped, optimizer)
    model[0].requires_grad_(True)  # too late for DDP
    train(wrapped, optimizer)
    return model


def with_a_plan(rank: int) -> nn.Module:
    """Does the same with a plan."""
    model = build()
    applied = FreezePlan().freeze("[0]", until_epoch=1).apply(model)
    wrapped = ddp(applied, model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    torch.manual_seed(rank)
    for epoch in range(2):
        applied.advance(epoch=epoch)
        train(wrapped, optimizer)
    applied.release()
    return model


def run(rank: int, port: int) -> None:
    """Is one of two ranks, and hands in the layer that was opened."""
    store = dist.TCPStore("127.0.0.1", port, timeout=MINUTE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=MINUTE)
    for way in (by_hand, with_a_plan):
        store.set(f"{way.__name__} {rank}", str(way(rank)[0].weight.tolist()))
    dist.destroy_process_group()  # no DDP is left that would outlive it


if __name__ == "__main__":
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # any free port
    torch.multiprocessing.spawn(run, args=(store.port,), nprocs=2)
    for way in ("by_hand", "with_a_plan"):
        agree = store.get(f"{way} 0") == store.get(f"{way} 1")
        print(f"{way}: the ranks agree on the layer: {agree}")
