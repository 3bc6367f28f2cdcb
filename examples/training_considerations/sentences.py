"""The text case: MiniLM, which embeds sentences by their meaning, learns to classify them."""

import sys
from functools import cached_property
from pathlib import Path

import torch
from cells import DISTANCES
from strategy import Budget
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel
from trial import Split, draw

# The encoder and the sentences are those of the other example.
sys.path.append(str(Path(__file__).resolve().parent.parent / "multitask_minilm"))

from data import Row, load_rows
from model import load_backbone, pool
from weights import MINILM as NAME
from weights import find_weights

HERE = Path(__file__).resolve().parent
MINILM = HERE.parent / "multitask_minilm"
CLASSES = {"near": 4, "middle": 2, "far": 4}
PADDING = 0  # the id of the padding token
LONGEST = 14  # Sentences of more word pieces are left out, to save time.
SPECIAL = 1000  # Ids below it are special or unused tokens and single characters.


class SentenceClassifier(nn.Module):
    """An encoder, its mean over the tokens scaled to length 1, and a linear head."""

    def __init__(self, backbone: BertModel, classes: int) -> None:
        """Puts a new head on an encoder, and takes away the pooler that is not used."""
        super().__init__()
        self.backbone = backbone
        self.backbone.pooler = None
        self.head = nn.Linear(backbone.config.hidden_size, classes)

    def embed(self, ids: Tensor) -> Tensor:
        """Returns the embeddings (B, hidden) of sentences given as token ids (B, length)."""
        mask = (ids != PADDING).long()
        states = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        return nn.functional.normalize(pool(states, mask, "mean"), dim=1)

    def forward(self, ids: Tensor) -> Tensor:
        """Returns the logits (B, classes)."""
        return self.head(self.embed(ids))


class Sentences:
    """The case for `trial.run_cell`.

    - near: the topic of a sentence, which is what its embedding is about;
    - middle: its sentiment, which the embedding was not trained for;
    - far: its topic in a language the encoder has never seen: every word piece is replaced by
      another one, by a fixed permutation. Word pieces keep their places and their number, and lose
      their meaning. So here, and only here, the held-out sentences use the words of the training.

    Args:
        exchanged: Whether the sentences to train with and the held-out ones change places, as they
            did where the learning rates were chosen.
    """

    name = "text"
    distances = DISTANCES
    sizes = (8, 24)
    seeds = range(3)
    budget = Budget(steps=100, batch=8, head_lr=1e-1, lr=1e-4, top=2)

    def __init__(self, exchanged: bool = False) -> None:
        """Finds the weights and tokenizes all sentences."""
        self.folder = find_weights(NAME).folder
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        rows = [
            [row for row in load_rows(MINILM / "data" / f"{split}.jsonl") if self.is_short(row)]
            for split in ("train", "test")
        ]
        self.rows, self.exchanged = rows, exchanged
        self.encoder = load_backbone(self.folder)

    def model(self, distance: str) -> SentenceClassifier:
        """Returns the pre-trained encoder with a new head."""
        backbone = BertModel(self.encoder.config)
        backbone.load_state_dict(self.encoder.state_dict())
        return SentenceClassifier(backbone, CLASSES[distance])

    def untrained(self, distance: str) -> SentenceClassifier:
        """Returns the same network without its weights."""
        return SentenceClassifier(BertModel(self.encoder.config), CLASSES[distance])

    def data(self, distance: str, size: int, seed: int) -> Split:
        """Returns `size` sentences of each class, drawn with the seed, and the held-out ones."""
        train, test = mixed(*self.rows) if distance == "far" else self.rows
        if self.exchanged:
            train, test = test, train
        column = "sentiment" if distance == "middle" else "topic"
        names = sorted({getattr(row, column) for row in train})
        labels, test_labels = (
            torch.tensor([names.index(getattr(row, column)) for row in rows])
            for rows in (train, test)
        )
        change = self.foreign if distance == "far" else nn.Identity()
        chosen = draw(labels, size, seed)
        inputs, test_inputs = (
            change(self.encode([row.text for row in rows])) for rows in (train, test)
        )
        return Split(inputs[chosen], labels[chosen], test_inputs, test_labels)

    def source_accuracy(self, model: nn.Module) -> float:
        """Returns for how many sentences the nearest other one is the one that says the same."""
        ids = self.encode(paraphrases())
        model.eval()
        with torch.no_grad():
            embeddings = torch.cat([model.embed(self.trim(each)) for each in ids.split(40)])
        similarities = (embeddings @ embeddings.T).fill_diagonal_(-1)
        partners = torch.arange(len(ids)) ^ 1
        return (similarities.argmax(1) == partners).float().mean().item()

    def trim(self, inputs: Tensor) -> Tensor:
        """Returns a batch of ids without the columns that are padding in all rows."""
        return inputs[:, : int((inputs != PADDING).sum(1).max())]

    def is_short(self, row: Row) -> bool:
        """Returns whether a sentence has few word pieces."""
        return len(self.tokenizer(row.text)["input_ids"]) <= LONGEST

    def encode(self, texts: list[str]) -> Tensor:
        """Returns the token ids (N, length) of sentences."""
        return self.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]

    def foreign(self, ids: Tensor) -> Tensor:
        """Returns ids with every word piece replaced by another one."""
        return self.permutation[ids]

    @cached_property
    def permutation(self) -> Tensor:
        """What each id is replaced by; special tokens stay."""
        generator = torch.Generator().manual_seed(0)
        count = self.encoder.config.vocab_size
        order = torch.arange(count)
        order[SPECIAL:] = SPECIAL + torch.randperm(count - SPECIAL, generator=generator)
        return order


def mixed(train: list[Row], test: list[Row]) -> tuple[list[Row], list[Row]]:
    """Returns as many sentences for training and testing as before, of both in both."""
    rows = [*train, *test]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [rows[i] for i in order[: len(train)]], [rows[i] for i in order[len(train) :]]


def paraphrases() -> list[str]:
    """Returns sentences of which each two neighbours say the same."""
    return (HERE / "paraphrases.txt").read_text(encoding="utf-8").split("\n")[:-1]
