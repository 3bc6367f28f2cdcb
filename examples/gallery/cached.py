"""Compute what is frozen once: from the second epoch on it is read from memory.

A frozen backbone gives the same output for the same input in every epoch, and computing it is most
of the work. `ActivationCache` finds where what is frozen ends, proves that nothing else is needed,
and answers from memory. The loop stays as it is, shuffling included, and so does the result.
"""

import copy
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from freezekit import FreezePlan
from freezekit.cache import ActivationCache


class Classifier(nn.Module):
    """An encoder of four layers and a head."""

    def __init__(self) -> None:
        """Builds both."""
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, nhead=4, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
        self.head = nn.Linear(128, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        return self.head(self.encoder(inputs).mean(dim=1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """Trains for four epochs in a shuffled order; returns how long each took, in seconds."""
    times = []
    torch.manual_seed(1)
    for _ in range(4):
        start = time.perf_counter()
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        times.append(time.perf_counter() - start)
    return times


torch.manual_seed(0)
samples = TensorDataset(torch.randn(128, 32, 128), torch.randint(2, (128,)))
loader = DataLoader(samples, batch_size=16, shuffle=True)
plain = Classifier()
cached = copy.deepcopy(plain)
plan = FreezePlan().freeze("encoder")

before = train(plain, plan.apply(plain).optimizer(torch.optim.AdamW, lr=1e-3))
applied = plan.apply(cached)
with ActivationCache(applied) as cache:
    after = train(cached, applied.optimizer(torch.optim.AdamW, lr=1e-3))
    stats = cache.stats()

print("epochs without the cache:", " ".join(f"{seconds:.2f} s" for seconds in before))
print("epochs with the cache:   ", " ".join(f"{seconds:.2f} s" for seconds in after))
print(f"from the second epoch on {sum(before[1:]) / sum(after[1:]):.0f} times as fast")
print(f"rows computed: {stats.misses}, rows read: {stats.hits}")
print("same head in the end:", torch.allclose(plain.head.weight, cached.head.weight, atol=1e-5))
