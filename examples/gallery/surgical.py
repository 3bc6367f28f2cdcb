"""Surgical fine-tuning: ask the data which layers a shift needs to change, and train only those.

If the images look different, the first layers are wrong; if the labels mean something else, the
last ones are. The gradient of each layer, relative to its weights, tells which (Lee et al., 2023).
A net that reads the direction of stripes meets both shifts here, with 32 examples of each.
"""

import copy

import torch
from torch import Tensor, nn

from freezekit import FreezePlan
from freezekit.scoring import score_layers, to_plan

Batch = tuple[Tensor, Tensor]


def stripes(count: int) -> Batch:
    """Returns noisy images of 12 x 12 with stripes, and which of four directions each has."""
    labels = torch.randint(4, (count,))
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    angle, phase = 0.785 * labels.view(-1, 1, 1), 6.3 * torch.rand(count, 1, 1)
    images = (1.2 * (x * angle.cos() + y * angle.sin()) + phase).sin()
    return (images + 0.5 * torch.randn(count, 12, 12)).unsqueeze(1), labels


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the loss on a batch."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def accuracy_after(plan: FreezePlan, model: nn.Module, few: Batch, held_out: Batch) -> float:
    """Trains a copy of the model by a plan and returns its accuracy on held-out images."""
    model = copy.deepcopy(model)
    applied = plan.apply(model)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-2)
    with applied.guard():
        for _ in range(100):
            optimizer.zero_grad()
            loss_fn(model, few).backward()
            optimizer.step()
    return (model(held_out[0]).argmax(1) == held_out[1]).float().mean().item()


torch.manual_seed(0)
blocks = [nn.Sequential(nn.Conv2d(width, 16, 3, padding=1), nn.ReLU()) for width in (1, 16, 16)]
model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
images = stripes(256)
for _ in range(100):
    optimizer.zero_grad()
    loss_fn(model, images).backward()
    optimizer.step()

shifts = {
    "darker images": lambda images, labels: (images / 4 - 1, labels),
    "other labels": lambda images, labels: (images, (labels + 1) % 4),
}
for name, shift in shifts.items():
    few, held_out = shift(*stripes(32)), shift(*stripes(512))
    scores = score_layers(model, [few], loss_fn)
    print(f"{name}:", {row.name: round(row.value, 2) for row in scores.rows})
    chosen = to_plan(scores, train_at_most=0.04)
    head, stem = (FreezePlan().freeze("**").unfreeze(part) for part in ("5", "0"))
    for plan in (chosen, FreezePlan(), head, stem):
        print(f"  {accuracy_after(plan, model, few, held_out):4.0%}  {plan}")
