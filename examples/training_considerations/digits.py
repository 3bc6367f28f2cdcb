"""The vision case: a small network that knows the digits 0 to 4 learns the digits 5 to 9."""

from collections.abc import Callable
from functools import lru_cache

import torch
from cells import DISTANCES
from sklearn.datasets import load_digits
from strategy import Budget
from torch import Tensor, nn
from trial import Split, accuracy, draw, with_head

CLASSES = 5
HELD_OUT = 90  # images of each class
PRETRAINING = 400  # steps of 32 images, each batch moved by up to a pixel


class Block(nn.Module):
    """A convolution, a norm and ReLU; halves the image if it pools."""

    def __init__(self, channels: int, width: int, pool: bool) -> None:
        """Makes the layers."""
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.GroupNorm(4, width)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features of images (B, channels, height, width)."""
        return self.pool(self.norm(self.conv(images)).relu())


class DigitNet(nn.Module):
    """Four convolutional blocks and a linear head, 33 thousand parameters."""

    def __init__(self) -> None:
        """Makes an untrained network."""
        super().__init__()
        self.blocks = nn.ModuleList(
            [Block(1, 16, True), Block(16, 32, False), Block(32, 32, True), Block(32, 64, False)]
        )
        self.head = nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits (B, classes) of images (B, 1, 8, 8)."""
        for block in self.blocks:
            images = block(images)
        return self.head(images.mean((2, 3)))


def near(images: Tensor) -> Tensor:
    """The images as they are."""
    return images


def middle(images: Tensor) -> Tensor:
    """Black and white change places, and the image is turned by 90 degrees."""
    return (1 - images).rot90(1, (2, 3))


def far(images: Tensor) -> Tensor:
    """The pixels change places, in every image in the same way."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(64))
    return images.flatten(2)[:, :, order].view_as(images)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {"near": near, "middle": middle, "far": far}


class Digits:
    """The case for `trial.run_cell`.

    Args:
        source: The first of the five digits that the network is pre-trained on; it learns the
            other five. 5 exchanges the two, as it did where the learning rates were chosen.
    """

    name = "vision"
    distances = DISTANCES
    sizes = (8, 16, 32, 64)
    seeds = range(5)
    budget = Budget(steps=400, batch=32, head_lr=1e-1, lr=3e-3, top=1)

    def __init__(self, source: int = 0) -> None:
        """Pre-trains the network."""
        self.source, self.target = source, CLASSES - source
        self.pretrained = self._pretrain()

    def model(self, distance: str) -> DigitNet:
        """Returns the pre-trained network with a new head."""
        model = DigitNet()
        model.blocks.load_state_dict(self.pretrained.blocks.state_dict())
        return model

    def untrained(self, distance: str) -> DigitNet:
        """Returns a network that knows nothing."""
        return DigitNet()

    def data(self, distance: str, size: int, seed: int) -> Split:
        """Returns `size` images of each digit, drawn with the seed, and the held-out ones."""
        images, labels, test_images, test_labels = digits_from(self.target)
        rows, change = draw(labels, size, seed), CHANGES[distance]
        return Split(change(images[rows]), labels[rows], change(test_images), test_labels)

    def source_accuracy(self, model: nn.Module) -> float:
        """Returns the accuracy on held-out images of the source, with its head put back."""
        split = digits_from(self.source)
        model = with_head(model, self.pretrained.head)
        return accuracy(self, model, split.test_inputs, split.test_labels)

    def trim(self, inputs: Tensor) -> Tensor:
        """Returns the images: they have no padding."""
        return inputs

    def _pretrain(self) -> DigitNet:
        images, labels, *_ = digits_from(self.source)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.source)
            model = DigitNet()
            optimizer = torch.optim.AdamW(model.parameters(), 3e-3, fused=True)
            scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, PRETRAINING)
            for _ in range(PRETRAINING):
                rows = torch.randint(len(labels), (32,))
                moved = images[rows].roll(tuple(torch.randint(-1, 2, (2,)).tolist()), (2, 3))
                loss = nn.functional.cross_entropy(model(moved), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
        return model


@lru_cache
def digits_from(first: int) -> Split:
    """Returns the images (N, 1, 8, 8) of five digits, and of each the last 90 held out.

    Those are mostly by other people: the images come writer by writer.
    """
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target) - first
    of_each = [(labels == label).nonzero().flatten() for label in range(CLASSES)]
    train = torch.cat([rows[:-HELD_OUT] for rows in of_each])
    test = torch.cat([rows[-HELD_OUT:] for rows in of_each])
    return Split(images[train], labels[train], images[test], labels[test])
