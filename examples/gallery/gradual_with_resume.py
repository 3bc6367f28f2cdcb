"""Gradual unfreezing in a plain loop, stopped in the middle and resumed bit for bit.

What trains follows from the plan and the clock; nothing has to have happened before. So the process
that goes on builds everything as before, loads what torch needs anyway, and calls
`advance(epoch=...)`. LR schedulers come along, as every param group is there from the start.
"""

from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from freezekit import diagnose, recipes


def build() -> dict[str, Any]:
    """Returns all that has a state: the model, the plan on it, the optimizer, the scheduler."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.1)) for _ in range(3)]
    model = nn.Sequential(OrderedDict(body=nn.Sequential(*blocks), head=nn.Linear(8, 2)))
    applied = recipes.gradual_unfreezing(model).apply(model)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    return {"model": model, "plan": applied, "optimizer": optimizer, "scheduler": scheduler}


def train(parts: dict[str, Any], epochs: range) -> None:
    """Trains for some epochs and prints what trained in each, and how fast."""
    for epoch in epochs:
        parts["plan"].advance(epoch=epoch)
        rates = {name: f"{lr:.4f}" for name, lr in parts["plan"].lrs().items() if lr}
        print(f"  epoch {epoch}:", rates)
        for inputs in torch.randn(4, 16, 8):
            loss = nn.functional.cross_entropy(parts["model"](inputs), (inputs[:, 0] > 0).long())
            parts["optimizer"].zero_grad()
            loss.backward()
            parts["optimizer"].step()
        parts["scheduler"].step()


whole = build()
print("diagnosis:", diagnose(whole["plan"], whole["scheduler"]))
print("a run of five epochs")
train(whole, range(5))

with TemporaryDirectory() as folder:
    checkpoint = Path(folder, "checkpoint.pt")
    print("the same, stopped after two")
    stopped = build()
    train(stopped, range(2))
    state = {name: part.state_dict() for name, part in stopped.items()}
    torch.save(state | {"epoch": 2, "random": torch.get_rng_state()}, checkpoint)

    print("and resumed")
    resumed = build()
    state = torch.load(checkpoint)
    for name, part in resumed.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    train(resumed, range(state["epoch"], 5))

pairs = zip(whole["model"].parameters(), resumed["model"].parameters(), strict=True)
print("same weights to the last bit:", all(torch.equal(one, other) for one, other in pairs))
