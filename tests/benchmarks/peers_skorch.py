"""skorch's Freezer and Unfreezer beside a plan in a callback of the same net."""

import copy
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from freezekit import FreezePlan

from .peers_setup import Tree
from .peers_timing import Show, Work, in_turn

CALLS, EPOCHS, ROWS, BATCH = 60, 10, 64, 16


class Classifier(nn.Module):
    """A small transformer, with dropout, and a head on the mean of its states."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(64, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        return self.head(self.body(inputs).mean(dim=1))


def _net(model: nn.Module, callbacks: list[Any], *, fused: bool = False) -> Any:  # noqa: ANN401
    """Returns skorch's net around a model."""
    made = import_module("skorch").NeuralNet(
        model, nn.CrossEntropyLoss, optimizer=torch.optim.AdamW, optimizer__fused=fused or None,
        lr=1e-3, max_epochs=1, batch_size=BATCH, train_split=None, callbacks=callbacks, verbose=0,
    )  # fmt: skip
    return made.initialize()


def _advancing(plan: FreezePlan, model: nn.Module) -> Any:  # noqa: ANN401
    """Returns a callback of skorch that carries a plan out, and the plan applied."""
    applied = plan.apply(model)

    class Advancing(import_module("skorch.callbacks").Callback):  # type: ignore[misc]
        def on_epoch_begin(self, net: Any, **_: Any) -> None:  # noqa: ANN401
            applied.advance(epoch=len(net.history) - 1)

    return Advancing(), applied


def calls(model: nn.Module, part: str, show: Show) -> dict[str, float]:
    """Returns what the callbacks take with nothing due, and to open a part and freeze it again."""
    made = import_module("skorch.callbacks")
    other = copy.deepcopy(model)
    never = [kind(f"{part}.*", at=99).initialize() for kind in (made.Freezer, made.Unfreezer)]
    due = [
        kind(f"{part}.*", at=lambda net: True).initialize()
        for kind in (made.Unfreezer, made.Freezer)
    ]
    net = _net(model, [])
    net.history.new_epoch()
    callback, applied = _advancing(FreezePlan().freeze(part, until_epoch=1), other)
    beside = _net(other, [])
    beside.history.new_epoch()
    due[1].on_epoch_begin(net)
    callback.on_epoch_begin(beside)

    def theirs(callbacks: list[Any]) -> None:
        for each in callbacks:
            each.on_epoch_begin(net)

    def there_and_back() -> None:
        applied.advance(epoch=1)
        applied.advance(epoch=0)

    works = {
        "nothing due, skorch": Work(partial(theirs, never)),
        "nothing due, plan": Work(partial(callback.on_epoch_begin, beside)),
        "due, skorch": Work(partial(theirs, due)),
        "due, plan": Work(there_and_back),
    }
    found = in_turn(works, CALLS, show, collects=False)
    applied.release()
    whats = ("nothing due", "due")
    return {what: found.ratio(f"{what}, plan", f"{what}, skorch") for what in whats}


def epochs(show: Show, *, fused: bool) -> dict[str, float]:
    """Returns what epochs take in skorch's loop, with dropout on as skorch leaves it, and held."""
    torch.manual_seed(0)
    model = Classifier()
    inputs, labels = torch.randn(ROWS, 16, 64), torch.randint(4, (ROWS,))
    freezer = import_module("skorch.callbacks").Freezer("body.*")
    nets, handles = {"skorch": _net(copy.deepcopy(model), [freezer], fused=fused)}, []
    for name, mode in (("plan, train", "train"), ("plan", "eval")):
        own = copy.deepcopy(model)
        callback, applied = _advancing(FreezePlan().freeze("body", frozen_mode=mode), own)
        handles.append(applied)
        nets[name] = _net(own, [callback], fused=fused)

    def epoch(net: Any) -> None:  # noqa: ANN401
        torch.manual_seed(len(net.history))
        net.partial_fit(inputs, labels)

    found = in_turn({n: Work(partial(epoch, each)) for n, each in nets.items()}, EPOCHS, show)
    losses = {name: net.history[:, "train_loss"] for name, net in nets.items()}
    torch.testing.assert_close(losses["plan, train"], losses["skorch"])
    for applied in handles:
        applied.release()
    return {name: found.ratio(name, "skorch") for name in ("plan, train", "plan")}


def units() -> int:
    """Returns how many rounds a measurement has."""
    return 2 * (CALLS + 1) + 2 * (EPOCHS + 1)


def measured(show: Show) -> dict[str, float]:
    """Returns all ratios."""
    found = {}
    for name, model, part in (("small", Classifier(), "body"), ("tree", Tree(), "layer")):
        found |= {f"{name}: {what}": x for what, x in calls(model, part, show).items()}
    for fused in (False, True):
        ratios = epochs(show, fused=fused)
        found |= {f"epoch: {what}{', fused' * fused}": x for what, x in ratios.items()}
    return found
