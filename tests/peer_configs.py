"""Peers whose spelling is a configuration: what it trains, by their own documented rules."""

import re
import shlex
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Any

import yaml
from peer_outcomes import DECAY, LR, Outcome, Trained, flagged, only
from torch import nn

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
