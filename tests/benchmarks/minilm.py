"""The example's MiniLM with two heads, in many ways to train it, all on the same batches."""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from freezekit import AppliedPlan, FreezePlan
from freezekit.cache import ActivationCache

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "multitask_minilm"
sys.path.insert(0, str(EXAMPLE))

from config import load_config  # noqa: E402
from model import MultiTaskMiniLM, pool  # noqa: E402
from train import load, losses_of  # noqa: E402

SHORTEST, LONGEST = 6, 119
BATCH = 16
OWN_BATCH = load_config(EXAMPLE / "config.yaml").training.batch_size
LAYERS = 6


class Batch(NamedTuple):
    """A batch, padded to its longest sentence, and the numbers of its rows."""

    rows: Tensor
    input_ids: Tensor
    mask: Tensor
    labels: tuple[Tensor, Tensor]


class Sentences(NamedTuple):
    """Sentences of 6 to 119 tokens, 29 in the mean, and two labels each."""

    tokens: list[Tensor]
    labels: tuple[Tensor, Tensor]

    def batch(self, rows: Tensor) -> Batch:
        """Returns some rows as a plain collate function makes a batch of them."""
        tokens = [self.tokens[row] for row in rows.tolist()]
        ids = pad_sequence(tokens, batch_first=True)
        mask = pad_sequence([torch.ones_like(each) for each in tokens], batch_first=True)
        topics, sentiments = self.labels
        return Batch(rows, ids, mask, (topics[rows], sentiments[rows]))

    def epoch(self, generator: torch.Generator, size: int = BATCH) -> list[Batch]:
        """Returns all rows in batches, in random order."""
        order = torch.randperm(len(self.tokens), generator=generator)
        return [self.batch(rows) for rows in order.split(size)]


class Task(NamedTuple):
    """Where every run starts: the model on pre-trained weights, and the data."""

    model: MultiTaskMiniLM
    data: Sentences


def load_task(count: int) -> Task:
    """Returns the example's model, and so many sentences made of those of its training data."""
    parts = load(load_config(EXAMPLE / "config.yaml"))
    generator = torch.Generator().manual_seed(0)
    words: list[int] = []
    for ids, mask, *_ in parts.train:
        words += ids[1 : int(mask.sum()) - 1].tolist()
    tokenizer = parts.tokenizer
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    tokens = []
    for number in range(count):
        share = number / max(1, count - 1)
        length = SHORTEST + round((LONGEST - SHORTEST) * share**3.83)
        start = int(torch.randint(len(words) - LONGEST, (), generator=generator))
        tokens.append(torch.tensor([first, *words[start : start + length - 2], last]))
    labels = tuple(
        torch.randint(many, (count,), generator=generator) for many in (len(parts.topics), 2)
    )
    return Task(parts.model, Sentences(tokens, (labels[0], labels[1])))


Answer = Callable[[Batch], tuple[Tensor, Tensor]]


class Runner:
    """One way to train: steps through batches, and draws from a generator state of its own.

    Attributes:
        cache: the cache, if there is one.
    """

    def __init__(
        self,
        model: nn.Module,
        answer: Answer,
        optimizer: torch.optim.Optimizer,
        applied: AppliedPlan | None = None,
    ) -> None:
        self.cache: ActivationCache | None = None
        self._model = model
        self._answer = answer
        self._optimizer = optimizer
        self._applied = applied
        self._random = torch.Generator().manual_seed(0).get_state()

    def step(self, batch: Batch) -> float:
        """Trains on a batch as the example's loop does, and returns the loss."""
        losses = losses_of(self._answer(batch), batch.labels)
        self._optimizer.zero_grad()
        total: Any = sum(losses)
        total.backward()
        self._optimizer.step()
        loss: float = total.item()
        return loss

    def begin(self, epoch: int) -> None:
        """Begins an epoch."""
        if self._applied is not None:
            self._applied.advance(epoch=epoch)
        self._model.train()

    def draws(self) -> None:
        """Goes on with the random numbers of this run."""
        torch.set_rng_state(self._random)

    def rests(self) -> None:
        """Remembers where the random numbers of this run are."""
        self._random = torch.get_rng_state()

    def answer_from_cache(self, folder: str | None = None) -> None:
        """Answers from a cache from now on."""
        assert self._applied is not None
        self.cache = ActivationCache(self._applied, folder=folder)

    def warm(self, batches: Sequence[Batch]) -> None:
        """Fills the cache."""
        assert self.cache is not None
        self.cache.warm(
            batches, lambda model, batch: model(batch.input_ids, batch.mask), progress=False
        )


HEADS = FreezePlan().freeze("backbone")
FULL = FreezePlan().freeze("backbone.pooler")
EPOCHS = 12


def top(layers: int) -> FreezePlan:
    """Returns the plan that trains the last layers of the backbone and the heads."""
    return HEADS.unfreeze(f"backbone.encoder.layer[-{layers}:]")


def gradual() -> FreezePlan:
    """Returns the plan of 12 epochs: heads, top layer, top 2, top 3, for three epochs each."""
    plan = HEADS
    for layers in (1, 2, 3):
        plan = plan.unfreeze(f"backbone.encoder.layer[-{layers}:]", at_epoch=3 * layers)
    return plan


def by_plan(
    task: Task,
    plan: FreezePlan,
    *,
    cached: bool = False,
    fused: bool = False,
    copies: bool = True,
) -> Runner:
    """Returns a run under a plan, of a copy of the model or of itself."""
    model = copy.deepcopy(task.model) if copies else task.model
    model.train()
    applied = plan.apply(model, total_epochs=EPOCHS)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-4, **({"fused": True} if fused else {}))
    runner = Runner(model, lambda batch: model(batch.input_ids, batch.mask), optimizer, applied)
    if cached:
        runner.answer_from_cache()
    return runner


def by_flags(task: Task) -> Runner:
    """Returns a run with the backbone frozen by `requires_grad` alone."""
    model = copy.deepcopy(task.model)
    model.backbone.requires_grad_(False)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    return Runner(model, lambda batch: model(batch.input_ids, batch.mask), optimizer)


def by_hand(task: Task, layers: int) -> Runner:
    """Returns a run over hidden states in a list, written for this model and these layers only."""
    model = copy.deepcopy(task.model)
    model.requires_grad_(False)
    kept = model.backbone.encoder.layer[LAYERS - layers :]
    trained = nn.ModuleList([*kept, model.cls_head, model.sent_head])
    trained.requires_grad_(True)
    model.eval()
    trained.train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4)
    stored = torch.stack([*_embeddings(model, task.data)]) if not layers else None
    states = [*_states(model, task.data, layers)] if layers else []

    def answer(batch: Batch) -> tuple[Tensor, Tensor]:
        if stored is not None:
            embedding = stored[batch.rows]
        else:
            hidden = pad_sequence([states[row] for row in batch.rows.tolist()], batch_first=True)
            length = hidden.shape[1]
            seen = batch.mask.bool()[:, None, None, :].expand(-1, 1, length, length)
            for layer in kept:
                hidden = layer(hidden, seen)
            embedding = nn.functional.normalize(pool(hidden, batch.mask, "mean"), dim=1)
        return model.cls_head(embedding), model.sent_head(embedding)

    return Runner(trained, answer, optimizer)


@torch.no_grad()
def _embeddings(model: MultiTaskMiniLM, data: Sentences) -> Iterator[Tensor]:
    for rows in torch.arange(len(data.tokens)).split(1):
        batch = data.batch(rows)
        yield model.embed(batch.input_ids, batch.mask)[0]


@torch.no_grad()
def _states(model: MultiTaskMiniLM, data: Sentences, layers: int) -> Iterator[Tensor]:
    for rows in torch.arange(len(data.tokens)).split(1):
        batch = data.batch(rows)
        output = model.backbone(batch.input_ids, batch.mask, output_hidden_states=True)
        yield output.hidden_states[LAYERS - layers][0]
