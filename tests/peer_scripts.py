"""Peers whose spelling is a script: what it trains, by their own documented rules."""

import fnmatch
import re
import warnings
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from peer_outcomes import DECAY, LR, Outcome, Trained, flagged, stepped
from torch import nn

# --------------------------------------------------------------- plain PyTorch and Lightning


def torch_loop(text: str, model: nn.Module, epochs: int, **more: Any) -> list[Outcome]:  # noqa: ANN401
    """Runs the lines of a script: those that begin with `if epoch` in each epoch, others once.

    Without an optimizer of its own, one holds what is trainable at the beginning, which is what
    Lightning's documentation of `BaseFinetuning` asks for ("Make sure to filter").
    """
    lines = text.splitlines()
    scope = {"model": model, "nn": nn, "AdamW": AdamW, **more}
    exec("\n".join(line for line in lines if not line.startswith("if epoch")), scope)
    optimizer = scope.get("optimizer") or AdamW(
        [each for each in model.parameters() if each.requires_grad]
    )
    scope["optimizer"] = optimizer
    found = []
    for epoch in range(epochs):
        exec("\n".join(line for line in lines if line.startswith("if epoch")),
             scope | {"epoch": epoch})  # fmt: skip
        found.append(stepped(model, optimizer))
    return found


def AdamW(params: Iterable[Any], lr: float = LR) -> torch.optim.Optimizer:  # noqa: N802
    """The optimizer of the spellings."""
    return torch.optim.AdamW(params, lr=lr, weight_decay=DECAY)


def lightning(text: str, model: nn.Module, epochs: int) -> list[Outcome]:
    """Runs Lightning's callback, hook by hook, or a script with the functions of its base."""
    from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The provided params .* already exist", UserWarning)
        if text.startswith("BackboneFinetuning("):
            return by_hooks(eval(text, {"BackboneFinetuning": BackboneFinetuning}), model, epochs)
        return torch_loop(text, model, epochs, BaseFinetuning=BaseFinetuning)


def by_hooks(callback: Any, model: nn.Module, epochs: int) -> list[Outcome]:  # noqa: ANN401
    """Calls what a fit calls, with the optimizer that Lightning's documentation asks for."""
    callback.freeze_before_training(model)
    optimizer = AdamW(filter(lambda each: each.requires_grad, model.parameters()))
    found = []
    for epoch in range(epochs):
        callback.finetune_function(model, epoch, optimizer)
        found.append(stepped(model, optimizer))
    return found


# --------------------------------------------------------------- fastai


class Learner:
    """fastai's `Learner`, as far as what trains how fast.

    From the documentation of `Learner`, `Optimizer` and `fine_tune`: `splitter` gives the groups;
    `freeze_to(n)` freezes the groups before the n-th, but with `train_bn`, the default, never the
    norms in them; `slice(low, high)` gives the groups rates in geometric steps, `slice(high)` gives
    all but the last a tenth; `fine_tune` trains the last group for `freeze_epochs` at
    `slice(base_lr)`, and then all of them with half of that, the first at a `lr_mult`-th; weight
    decay is not for norms and biases unless `wd_bn_bias`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        splitter: Callable[[nn.Module], list[list[nn.Parameter]]],
        train_bn: bool = True,
        wd: float = DECAY,
    ) -> None:
        self.model, self.train_bn, self.wd = model, train_bn, wd
        names = {id(each): name for name, each in model.named_parameters()}
        self.groups = [[names[id(each)] for each in group] for group in splitter(model)]
        kinds = (
            nn.modules.batchnorm._BatchNorm,
            nn.LayerNorm,
            nn.modules.instancenorm._InstanceNorm,
        )
        self.norms = {
            f"{path}.{name}"
            for path, module in model.named_modules()
            if isinstance(module, kinds)
            for name, _ in module.named_parameters(recurse=False)
        }
        self.epochs: list[Outcome] = []
        self.unfreeze()

    def freeze_to(self, n: int) -> None:
        opened = {name for group in self.groups[n:] for name in group}
        self.trainable = opened | (self.norms if self.train_bn else set())

    def freeze(self) -> None:
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        self.freeze_to(0)

    def fit_one_cycle(self, n_epoch: int, lr_max: float | slice = LR) -> None:
        many = len(self.groups)
        if not isinstance(lr_max, slice):
            rates = [lr_max] * many
        elif lr_max.start is None:
            rates = [lr_max.stop / 10] * (many - 1) + [lr_max.stop]
        else:
            step = (lr_max.stop / lr_max.start) ** (1 / (many - 1))
            rates = [lr_max.start * step**index for index in range(many)]
        outcome = {
            name: Trained(rate, 0.0 if name in self.norms or name.endswith("bias") else self.wd)
            for rate, group in zip(rates, self.groups, strict=True)
            for name in group
            if name in self.trainable
        }
        self.epochs += [outcome] * n_epoch

    def fine_tune(
        self, epochs: int, base_lr: float = 2e-3, freeze_epochs: int = 1, lr_mult: int = 100
    ) -> None:
        self.freeze()
        self.fit_one_cycle(freeze_epochs, slice(base_lr))
        self.unfreeze()
        self.fit_one_cycle(epochs, slice(base_lr / 2 / lr_mult, base_lr / 2))


def split(model: nn.Module) -> list[list[nn.Parameter]]:
    """The splitter of the page: the lower and the upper half of the backbone, and the head."""
    lower = [part for name, part in model.backbone.named_children() if name < "layer3"]
    upper = [model.backbone.layer3, model.backbone.layer4]
    return [[p for part in parts for p in part.parameters()]
            for parts in (lower, upper, [model.head])]  # fmt: skip


def fastai(text: str, model: nn.Module, epochs: int) -> list[Outcome]:
    """Runs the calls of a learner; without one that fits, what is trainable after them counts."""
    scope: dict[str, Any] = {"model": model, "split": split, "Learner": Learner}
    scope["learn"] = Learner(model, splitter=split)
    exec(text, scope)
    learn = scope["learn"]
    return learn.epochs or [{name: Trained() for name in learn.trainable}] * epochs


# --------------------------------------------------------------- timm


def timm(text: str, model: nn.Module, epochs: int, peer: object = None) -> list[Outcome]:
    """Runs a call: one that freezes, or one that returns groups."""
    scope = {"model": model, "timm": peer or TIMM, "nn": nn}
    statements, _, last = text.rpartition("\n")
    exec(statements, scope)
    groups = eval(last, scope)
    if groups is None:
        return [flagged(model)] * epochs
    names = {id(each): name for name, each in model.named_parameters() if each.requires_grad}
    return [
        {
            names[id(each)]: Trained(LR * group.get("lr_scale", 1.0), group["weight_decay"])
            for group in groups
            for each in group["params"]
        }
    ] * epochs


def _timm_freeze(model: nn.Module, submodules: Iterable[str] = ()) -> None:
    """Freezes modules by their paths, as `timm.utils.freeze` documents; none means all."""
    for path in submodules or [""]:
        model.get_submodule(path).requires_grad_(False)


def _timm_layer_decay(
    model: nn.Module,
    weight_decay: float = 0.05,
    no_weight_decay_list: Iterable[str] = (),
    layer_decay: float = 0.75,
    no_opt_scale: float | None = None,
) -> list[dict[str, Any]]:
    """Makes a group per parameter, by `param_groups_layer_decay` and the matcher of its ViT.

    The stem with its tokens is layer 0, block i is layer i + 1, the norm goes with the last block
    and the head is the last layer; `lr_scale` is `layer_decay` to the distance from it. A tensor
    of rank 1 or less and what is listed has no weight decay; below `no_opt_scale` it is frozen.
    """
    groups = []
    for name, each in model.named_parameters():
        block = re.match(r"blocks\.(\d+)", name)
        layer = int(block[1]) + 1 if block else {"norm": 12, "head": 13}.get(name.split(".")[0], 0)
        scale = layer_decay ** (13 - layer)
        if no_opt_scale and scale < no_opt_scale:
            each.requires_grad_(False)
        if each.requires_grad:
            plain = each.ndim <= 1 or any(fnmatch.fnmatch(name, x) for x in no_weight_decay_list)
            decay = 0.0 if plain else weight_decay
            groups.append({"params": [each], "lr_scale": scale, "weight_decay": decay})
    return groups


def _timm_weight_decay(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Makes a group per parameter, by `param_groups_weight_decay`: biases and rank 1 have none."""
    return [
        {"params": [each], "weight_decay": 0.0 if plain else weight_decay}
        for name, each in model.named_parameters()
        if each.requires_grad
        for plain in [each.ndim <= 1 or name.endswith(".bias")]
    ]


TIMM = SimpleNamespace(
    utils=SimpleNamespace(freeze=_timm_freeze),
    optim=SimpleNamespace(
        param_groups_layer_decay=_timm_layer_decay, param_groups_weight_decay=_timm_weight_decay
    ),
)


# --------------------------------------------------------------- skorch


def skorch(text: str, model: nn.Module, epochs: int) -> list[Outcome]:
    """Reads the arguments of a net.

    From the documentation of `Freezer`, `Unfreezer` and `optimizer__param_groups`: a pattern is
    compared with whole parameter names by `fnmatch`, in which a star crosses dots and brackets hold
    single characters; `at` is an epoch, of which the first is 1; of several patterns for groups the
    first one that matches a parameter has it, and one that matches none makes no group.
    """

    def acts(trainable: bool) -> Callable[..., tuple[int, str, bool]]:
        return lambda pattern, at=1: (at - 1, pattern, trainable)

    scope = {"Freezer": acts(False), "Unfreezer": acts(True)}
    options = eval(f"dict({text})", scope)
    groups = options.get("optimizer__param_groups", [])
    found = []
    for epoch in range(epochs):
        for at, pattern, trainable in options.get("callbacks", []):
            for name, each in model.named_parameters():
                if at == epoch and fnmatch.fnmatch(name, pattern):
                    each.requires_grad_(trainable)
        found.append({
            name: Trained(next((group["lr"] for pattern, group in groups
                                if fnmatch.fnmatch(name, pattern)), LR))
            for name in flagged(model)
        })  # fmt: skip
    return found


# --------------------------------------------------------------- Keras


class Layer:
    """A layer or model of Keras, around a module of torch.

    From its guide to transfer learning and the reference of `Layer.trainable`: the flag is set for
    a layer and all layers in it, and what a model trains is what has it when the model is compiled.
    `layers` of a model are its parts, those of an application all its layers.
    """

    def __init__(self, module: nn.Module, *, top: bool = True) -> None:
        self._module, self.epochs = module, list[Outcome]()
        for name, child in module.named_children():
            setattr(self, name, _layer(child))
        leaves = [each for each in module.modules() if not list(each.children())]
        parts = list(module.children()) if top else [each for each in leaves if each is not module]
        self.layers = [_layer(each) for each in parts]

    @property
    def trainable(self) -> bool:
        return any(each.requires_grad for each in self._module.parameters())

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._module.requires_grad_(value)

    def compile(self, lr: float) -> None:
        self._compiled = dict.fromkeys(flagged(self._module), Trained(lr))

    def fit(self, data: object, epochs: int) -> None:
        self.epochs += [self._compiled] * epochs


class BatchNormalization(Layer):
    """A layer that `isinstance` recognizes."""


def _layer(module: nn.Module) -> Layer:
    norm = isinstance(module, nn.BatchNorm2d)
    return (BatchNormalization if norm else Layer)(module, top=False)


def keras(text: str, model: nn.Module, epochs: int) -> list[Outcome]:
    """Runs the lines of a script; without one that fits, the flags after it count."""
    wrapped = Layer(model)
    scope = {"BatchNormalization": BatchNormalization, "AdamW": float, "data": None}
    exec(text, scope | {"model": wrapped})
    return wrapped.epochs or [flagged(model)] * epochs
