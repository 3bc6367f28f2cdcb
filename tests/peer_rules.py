"""What each peer's spelling selects, by the peer's own documented rule.

`outcomes(peer, text, model, epochs)` takes a spelling as it stands on the page and returns what
trains in each epoch. Lightning is run itself. The others have stand-ins here, in words of our own:
functions and classes that follow what the peer documents, each of which says where.
`test_migrating_peers.py` runs the same rows by the real timm, skorch and finetuning-scheduler.
"""

import fnmatch
import re
import shlex
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import yaml
from torch import nn

LR, DECAY = 1e-3, 0.05
"""What the optimizer is built with where a spelling does not say."""


class Trained(NamedTuple):
    """How a parameter trains; None where the spelling has no say.

    Attributes:
        lr: learning rate.
        decay: weight decay.
        rows: the rows that train, for a spelling that names rows.
    """

    lr: float | None = None
    decay: float | None = None
    rows: range | None = None


Outcome = dict[str, Trained]
"""The parameters that train in an epoch."""


def flagged(model: nn.Module) -> Outcome:
    """The parameters that require gradients."""
    return {name: Trained() for name, each in model.named_parameters() if each.requires_grad}


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> Outcome:
    """Of these, those that the optimizer holds at a learning rate above 0."""
    names = {id(each): name for name, each in model.named_parameters() if each.requires_grad}
    return {
        names[id(each)]: Trained(group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for each in group["params"]
        if id(each) in names and group["lr"]
    }


def only(model: nn.Module, selects: Callable[[str], object]) -> None:
    """Trains what is selected and freezes the rest."""
    for name, each in model.named_parameters():
        each.requires_grad_(bool(selects(name)))


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


# --------------------------------------------------------------- finetuning-scheduler


def finetuning_scheduler(text: str, model: nn.Module, epochs: int) -> list[Outcome]:
    """Reads an explicit schedule.

    From its documentation and `fts_supporters.py`: all is frozen before phase 0; an entry of
    `params` is the name of a parameter or else a regular expression that must match the beginning
    of names; a phase begins when the one before it reaches its `max_transition_epoch`, and what has
    begun to train stays trainable; phases must not overlap; the rate of a phase is its `lr`,
    `base_max_lr` (1e-5) by default, and in phase 0 the optimizer's own.
    Without a schedule it makes one, and each phase ends when the metric stalls: here, in one epoch.
    """
    schedule = yaml.safe_load(text) if text[0].isdigit() else implicit_schedule(model)
    phases: list[tuple[int, Outcome]] = []
    start = 0
    for index, phase in sorted(schedule.items()):
        names = [name for entry in phase["params"] for name in fts_names(model, entry)]
        lr = LR if index == 0 else phase.get("lr", 1e-5)
        phases.append((start, {name: Trained(lr) for name in names}))
        start = phase.get("max_transition_epoch", epochs)
    assert sum(len(each) for _, each in phases) == len(
        {name for _, each in phases for name in each}
    )
    return [
        {name: rate for start, each in phases if start <= epoch for name, rate in each.items()}
        for epoch in range(epochs)
    ]


def implicit_schedule(model: nn.Module) -> dict[int, dict[str, Any]]:
    """Returns the schedule that it makes: two parameters in a phase, the last ones first."""
    names = [name for name, _ in model.named_parameters()][::-1]
    return {
        index: {"params": names[2 * index : 2 * index + 2], "max_transition_epoch": index + 1}
        for index in range((len(names) + 1) // 2)
    }


def fts_names(model: nn.Module, entry: str) -> list[str]:
    """Returns the parameters that an entry of a schedule names; it is an error if there is none."""
    names = dict(model.named_parameters())
    found = [entry] if entry in names else [name for name in names if re.match(entry, name)]
    if not found:
        raise ValueError(f"{entry!r} did not match any parameter")
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


# --------------------------------------------------------------- MMEngine


def mmengine(text: str, model: nn.Module, epochs: int) -> list[Outcome]:
    """Reads `paramwise_cfg` and `frozen_stages` of a config.

    From the documentation of `DefaultOptimWrapperConstructor`: of the `custom_keys` that are a part
    of a parameter's name the longest counts, then the alphabet; it sets the factors on learning
    rate and weight decay, and `norm_decay_mult`, `bias_decay_mult` and `bias_lr_mult` then say
    nothing; norms are recognized by class. `frozen_stages` of the ResNet of mmdetection and
    mmpretrain: 0 freezes the stem, 1 the first stage too, and so on; what is frozen is in eval.
    """
    config = eval(f"dict({text})")
    for stage in range(config.get("model", {}).get("backbone", {}).get("frozen_stages", -1) + 1):
        for path in [f"layer{stage}"] if stage else ["conv1", "bn1"]:
            model.get_submodule(f"backbone.{path}").requires_grad_(False)
    options = config.get("paramwise_cfg", {})
    found = {}
    for path, module in model.named_modules():
        norm = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm))
        for own, each in module.named_parameters(recurse=False):
            name = f"{path}.{own}"
            lr_mult, decay_mult = _mmengine_factors(options, name, norm=norm)
            if each.requires_grad and lr_mult:
                found[name.lstrip(".")] = Trained(LR * lr_mult, DECAY * decay_mult)
    return [found] * epochs


def _mmengine_factors(options: Mapping[str, Any], name: str, *, norm: bool) -> tuple[float, float]:
    keys = options.get("custom_keys", {})
    matching = [key for key in sorted(sorted(keys), key=len, reverse=True) if key in name]
    if matching:
        return keys[matching[0]].get("lr_mult", 1.0), keys[matching[0]].get("decay_mult", 1.0)
    if norm:
        return 1.0, options.get("norm_decay_mult", 1.0)
    if name.endswith(".bias"):
        return options.get("bias_lr_mult", 1.0), options.get("bias_decay_mult", 1.0)
    return 1.0, 1.0


# --------------------------------------------------------------- axolotl


def axolotl(text: str, model: nn.Module, epochs: int) -> list[Outcome]:
    """Reads `unfrozen_parameters`.

    From the docstring of `freeze_layers_except` and its pattern class: all else is frozen; a dot is
    a dot, unless a plus follows; the pattern must match the beginning of a name (`re.match`); a
    range in brackets at its end, `[:32000]`, lets only these rows of the tensor train.
    """
    patterns = [_axolotl_pattern(each) for each in yaml.safe_load(text)["unfrozen_parameters"]]
    found = {}
    for name, each in model.named_parameters():
        matching = [rows for expression, rows in patterns if expression.match(name)]
        ranges = [range(len(each))[rows] for rows in matching if rows is not None]
        if matching:
            found[name] = Trained(rows=ranges[0] if ranges else None)
    return [found] * epochs


def _axolotl_pattern(text: str) -> tuple[re.Pattern[str], slice | None]:
    ranged = re.fullmatch(r"(.+)\[(\d*):(\d*)\]", text)
    rows = slice(*(int(end) if end else None for end in ranged.groups()[1:])) if ranged else None
    expression = ranged[1] if ranged else text
    return re.compile(re.sub(r"\.(?!\+)", r"\\.", expression)), rows


# --------------------------------------------------------------- LLaMA-Factory


def llama_factory(text: str, model: nn.Module, epochs: int) -> list[Outcome]:
    """Reads the arguments of freeze tuning.

    From its documented arguments and `adapter.py`: `freeze_trainable_layers` (2) is the number of
    last layers that train, of first ones if it is negative; `freeze_trainable_modules` (all) are
    parts of them and `freeze_extra_modules` others; a layer is recognized by `.number.` in a name,
    followed by the part; what is unknown is an error that lists what there is.
    """
    options = yaml.safe_load(text)
    assert options.get("finetuning_type") == "freeze"
    total, many = model.config.num_hidden_layers, options.get("freeze_trainable_layers", 2)
    numbers = range(total - many, total) if many > 0 else range(-many)
    inside, extra = set(), set()
    for name, _ in model.named_parameters():
        if ".0." in name:
            inside.add(name.split(".0.")[-1].split(".")[0])
        if not re.search(r"\.\d+\.", name):
            extra.add(name.split(".")[-2])
    marks = []
    for part in _listed(options.get("freeze_trainable_modules", "all"), {*inside, "all"}):
        marks += [f".{number}.{'' if part == 'all' else part}" for number in numbers]
    marks += _listed(options.get("freeze_extra_modules", ""), extra)
    only(model, lambda name: any(mark in name for mark in marks))
    return [flagged(model)] * epochs


def _listed(names: str, known: set[str]) -> list[str]:
    found = [name.strip() for name in names.split(",") if name.strip()]
    for name in found:
        if name not in known:
            raise ValueError(f"Module {name} is not found, please choose from {sorted(known)}")
    return found


# --------------------------------------------------------------- ms-swift


def ms_swift(text: str, model: nn.Module, epochs: int) -> list[Outcome]:
    """Reads options of the command line.

    From its table of arguments and `transformers_utils.py`: first the ratio freezes whole tensors
    in their order while their sum is at most that part of all elements, then what begins with
    `freeze_parameters`, then what `freeze_parameters_regex` is found in; after that what begins
    with `trainable_parameters` and what `trainable_parameters_regex` is found in trains; a regular
    expression that does not compile is a warning.
    """
    options: dict[str, list[str]] = {}
    for word in shlex.split(text):
        if word.startswith("--"):
            options[word] = values = []
        else:
            values.append(word)
    parameters = dict(model.named_parameters())
    sums = list(accumulate(each.numel() for each in parameters.values()))
    budget = int(float(options.get("--freeze_parameters_ratio", ["0"])[0]) * sums[-1])
    for each in list(parameters.values())[: bisect_right(sums, budget)]:
        each.requires_grad_(False)
    for verb, trainable in (("freeze", False), ("trainable", True)):
        for prefix in options.get(f"--{verb}_parameters", []):
            _switch(model, lambda name, text=prefix: name.startswith(text), trainable=trainable)
        for expression in options.get(f"--{verb}_parameters_regex", []):
            with suppress(re.error):
                _switch(model, re.compile(expression).search, trainable=trainable)
    return [flagged(model)] * epochs


def _switch(model: nn.Module, selects: Callable[[str], object], *, trainable: bool) -> None:
    for name, each in model.named_parameters():
        if selects(name):
            each.requires_grad_(trainable)


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


PEERS: dict[str, Callable[[str, nn.Module, int], list[Outcome]]] = {
    "PyTorch": torch_loop,
    "finetuning-scheduler": finetuning_scheduler,
    "Lightning": lightning,
    "fastai": fastai,
    "timm": timm,
    "skorch": skorch,
    "MMEngine": mmengine,
    "axolotl": axolotl,
    "LLaMA-Factory": llama_factory,
    "ms-swift": ms_swift,
    "Keras": keras,
}


def outcomes(peer: str, text: str, model: nn.Module, epochs: int = 1) -> list[Outcome]:
    """Returns what trains in each epoch under a peer's spelling; it is written into the model."""
    return PEERS[peer](text, model, epochs)
