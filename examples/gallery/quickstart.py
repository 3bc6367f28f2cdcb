"""Freeze a backbone, open its last two layers, train a head: all there is to it.

Most of what is pre-trained stays as it is, its last layers move slowly, and only the new head
learns at full speed. The plan says that in one sentence; the model, the optimizer and the loop are
the ones that were there before.
"""

import torch

from freezekit import FreezePlan

torch.manual_seed(0)
block = torch.nn.TransformerEncoderLayer(d_model=64, nhead=4, batch_first=True)
encoder = torch.nn.TransformerEncoder(block, num_layers=6)
model = torch.nn.ModuleDict({"backbone": encoder, "cls_head": torch.nn.Linear(64, 4)})

plan = FreezePlan().freeze("backbone").unfreeze("backbone.layers[-2:]", lr=2e-5)
plan = plan.group("*_head", lr=1e-3).no_decay()
applied = plan.apply(model)
optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-4, weight_decay=0.01)
print(applied.resolved.summary(depth=2))

inputs, labels = torch.randn(32, 10, 64), torch.randint(4, (32,))
with applied.guard():  # raises if anything frozen changes by one bit
    for _ in range(5):
        logits = model["cls_head"](model["backbone"](inputs).mean(dim=1))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()

for name, lr in applied.lrs().items():
    print(f"{lr:.0e}  {name}")
