"""Surgical fine-tuning: ask the data which layer a shift needs to change, and train that alone.

Where images look different, the first layers are wrong; where labels mean something else, the last
ones are. The gradient of each layer relative to its weights tells which (Lee et al., 2023). A net
that reads the direction of stripes meets one shift of each kind here, with 16 examples of it.
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


def accuracy(model: nn.Module, batch: Batch) -> float:
    """Returns the share of images that the model gets right."""
    return (model(batch[0]).argmax(1) == batch[1]).float().mean().item()


def train(model: nn.Module, plan: FreezePlan, batch: Batch) -> None:
    """Trains for some steps what the plan leaves trainable."""
    with plan.apply(model) as applied, applied.guard():
        optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()


torch.manual_seed(0)
blocks = [nn.Sequential(nn.Conv2d(width, 16, 3, padding=1), nn.ReLU()) for width in (1, 16, 16)]
model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
train(model, FreezePlan(), stripes(128))

shifts = {
    "brighter images": lambda images, labels: (images + 2, labels),
    "other labels": lambda images, labels: (images, (labels + 1) % 4),
}
for name, shift in shifts.items():
    few, held_out = shift(*stripes(16)), shift(*stripes(512))
    scores = score_layers(model, [few], loss_fn)
    print(f"{name}:", {row.name: round(row.value, 1) for row in scores.rows})
    for plan in (to_plan(scores, train_at_most=0.04), FreezePlan()):
        tuned = copy.deepcopy(model)
        train(tuned, plan, few)
        print(f"  {accuracy(model, held_out):3.0%} -> {accuracy(tuned, held_out):.0%} with {plan}")
