"""A frozen convolutional net with batch norms: its running statistics stand still, too.

Setting `requires_grad = False` is half of freezing. A batch norm in train mode goes on to average
the images that it sees, so a "frozen" backbone drifts towards the new data, and whoever else uses
it gets other features than before. Here a net has learned to tell horizontal from vertical stripes;
then a second head learns something else on brighter images, once with a backbone that was frozen
by hand and once with a plan. The old head is asked before and after.
"""

import copy

import torch
from torch import Tensor, nn

from freezekit import FreezePlan


def stripes(count: int, angles: Tensor, brightness: float) -> tuple[Tensor, Tensor]:
    """Returns noisy images of 16 x 16 with stripes of random phase, and which angle each has."""
    labels = torch.randint(len(angles), (count,))
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    angle, phase = angles[labels].view(-1, 1, 1), 6.3 * torch.rand(count, 1, 1)
    images = (1.2 * (x * angle.cos() + y * angle.sin()) + phase).sin()
    return (images + torch.randn(count, 16, 16) + brightness).unsqueeze(1), labels


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor]) -> None:
    """Trains for ten epochs in batches of 32; as in most loops, it says `model.train()` first."""
    model.train()
    for images, labels in 10 * list(zip(*(part.split(32) for part in data), strict=True)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Returns the share of images that the model tells apart."""
    model.eval()
    with torch.no_grad():
        return (model(data[0]).argmax(1) == data[1]).float().mean().item()


torch.manual_seed(0)
old_task = stripes(256, torch.tensor([0.0, 1.57]), brightness=0.0)
new_task = stripes(256, torch.tensor([0.79, 2.36]), brightness=5.0)

layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)]
backbone = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
old_head = nn.Linear(16, 2)
model = nn.Sequential(backbone, old_head)
train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), old_task)
print(f"before:  the old head is right in {accuracy(model, old_task):.0%}")

by_hand = nn.Sequential(copy.deepcopy(backbone), nn.Linear(16, 2))
by_hand[0].requires_grad_(False)
train(by_hand, torch.optim.AdamW(by_hand[1].parameters(), lr=1e-2), new_task)
share = accuracy(nn.Sequential(by_hand[0], old_head), old_task)
print(f"by hand: the old head is right in {share:.0%}")

planned = nn.Sequential(copy.deepcopy(backbone), nn.Linear(16, 2))
applied = FreezePlan().freeze("0").apply(planned)
with applied.guard():  # compares parameters and running statistics bit by bit
    train(planned, applied.optimizer(torch.optim.AdamW, lr=1e-2), new_task)
share = accuracy(nn.Sequential(planned[0], old_head), old_task)
print(f"a plan:  the old head is right in {share:.0%}")
for name, before in backbone.named_buffers():
    hand, plan = by_hand[0].get_buffer(name), planned[0].get_buffer(name)
    print(f"{name:22} by hand same: {torch.equal(hand, before)}, plan: {torch.equal(plan, before)}")
