"""Strategies from the literature, as plans: each function looks at a model and writes rules.

What comes back is an ordinary `FreezePlan`, in paths and builders. It can be printed, saved to a
file, extended, and used without the recipe. It has been resolved against the model already.

What freezing saves is decided by the frontier, the trainable parameter next to the input: backward
stops there, and what is below it needs no activations kept. An optimizer has state for what
trains, and for nothing else.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import Literal, TypeAlias

import torch

from ._builders import BUILDERS
from ._glob import literal
from ._layering import Layering
from ._layers import Layer
from ._names import is_bias
from ._parts import Parts, block_patterns, find_head, no_head, parts_of, patterns_for
from ._plan import FreezePlan
from ._rules import Rule, is_real, whole_number
from ._verbs import LayerProperties, counted, did_you_mean
from .errors import PlanError

__all__ = [
    "bitfit",
    "discriminative",
    "feature_extraction",
    "first_n_layers",
    "first_n_layers_frozen",
    "gradual_unfreezing",
    "last_n_layers",
    "layer_decay_finetuning",
    "linear_probe_then_finetune",
    "norm_only",
    "progressive_freezing",
    "surgical",
]

Patterns: TypeAlias = str | Sequence[str]

_TRIAL = {"steps_per_epoch": 1, "total_epochs": 1_000_000}
"""The training for which a plan is tried out: longer than any moment in it."""
_FREEZE_ALL = Rule("freeze", ("**",))


def feature_extraction(
    model: torch.nn.Module, *, head: Patterns | None = None, lr: float | None = None
) -> FreezePlan:
    """Returns the plan that trains the head on the features of a frozen backbone.

    Also known as linear probing, where the head is one linear layer. To be used with little data
    close to what the backbone has seen, as a first baseline, or where one backbone serves several
    tasks. Fine-tuning usually ends with a better accuracy on data like that of the training, and
    often with a worse one on other data, see Kumar et al. (2022), https://arxiv.org/abs/2202.10054.

    Costs: the cheapest of all. The frontier is the head, so there is no backward pass through the
    backbone, which keeps no activations; the optimizer has state for the head alone. The backbone
    is held in eval.

    Args:
        model: any module.
        head: patterns of what trains; without them the head is found, see
            the page on recipes.
        lr: the learning rate of the head.

    Raises:
        PlanError: no head is found; `PatternError` for a pattern that selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> backbone = torch.nn.TransformerEncoderLayer(8, 2, 16)
        >>> model = torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Linear(8, 2)})
        >>> recipes.feature_extraction(model, lr=1e-3)
        FreezePlan().freeze('**').unfreeze('head', lr=0.001)
    """
    parts = parts_of(model)
    return _plan(parts, _FREEZE_ALL, Rule("unfreeze", _head(parts, head), lr=lr))


def linear_probe_then_finetune(
    model: torch.nn.Module,
    *,
    head: Patterns | None = None,
    probe_epochs: int | None = None,
    probe_fraction: float | None = None,
    probe_lr: float | None = None,
    finetune_lr: float | None = None,
) -> FreezePlan:
    """Returns the plan that trains the head alone first, and then everything: LP-FT.

    Kumar et al. (2022), https://arxiv.org/abs/2202.10054: while a new head is still random, its
    gradients distort the features below it. To be used where the model must also do well on other
    data than that of the training, and whenever a new head meets a good backbone.

    Costs: while probing, what `feature_extraction` costs; from then on a full fine-tuning. The
    optimizer has state for the backbone only once that trains.

    Args:
        model: any module.
        head: patterns of what is probed; without them the head is found, see
            the page on recipes.
        probe_epochs: how long the head trains alone, by default for one epoch.
        probe_fraction: the same as a fraction of all training.
        probe_lr: the learning rate of the head until then.
        finetune_lr: that of everything from then on, as a rule well below the other.

    Raises:
        PlanError: no head is found, both lengths are given, or all but the head was frozen before;
            `PatternError` for a pattern that selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> backbone = torch.nn.TransformerEncoderLayer(8, 2, 16)
        >>> model = torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Linear(8, 2)})
        >>> plan = recipes.linear_probe_then_finetune(
        ...     model, probe_epochs=3, probe_lr=1e-3, finetune_lr=1e-5
        ... )
        >>> for rule in plan.rules:
        ...     print(rule.call)
        freeze('**', until_epoch=3)
        unfreeze('head', lr=0.001)
        group('**', lr=1e-05, at_epoch=3)
    """
    if probe_epochs is not None and probe_fraction is not None:
        raise PlanError("probe_epochs and probe_fraction exclude each other; give one of them")
    if probe_epochs is None and probe_fraction is None:
        probe_epochs = 1
    parts = parts_of(model)
    rules = [
        Rule("freeze", ("**",), until_epoch=probe_epochs, until_fraction=probe_fraction),
        Rule("unfreeze", _head(parts, head), lr=probe_lr),
    ]
    if finetune_lr is not None:
        rules.append(
            Rule(
                "group",
                ("**",),
                lr=finetune_lr,
                at_epoch=probe_epochs,
                at_fraction=probe_fraction,
            )
        )
    plan = _plan(parts, *rules)
    phases = plan.resolve(model, **_TRIAL).phases
    if phases[0].trainable == phases[-1].trainable:
        raise PlanError(
            f"there is nothing of {parts.title} to fine-tune after probing: all but the head has "
            "requires_grad=False already, or there is nothing else; call requires_grad_(True) "
            "before the recipe, or probe less, e.g. head='classifier'"
        )
    return plan


def gradual_unfreezing(
    model: torch.nn.Module,
    *,
    head: Patterns | None = None,
    every_epochs: int | None = None,
    every_steps: int | None = None,
    layers_per_phase: int | None = None,
    layers: LayerProperties | None = None,
) -> FreezePlan:
    """Returns the plan that opens one layer after another, from the output to the input.

    Howard and Ruder (2018), ULMFiT, https://arxiv.org/abs/1801.06146, section 3.3: the last layer,
    with the least general knowledge, trains first; each epoch the next lower one joins. To be used
    with little data, against forgetting what the backbone knows. The paper adds `discriminative`
    learning rates and an LR schedule of slanted triangles.

    Costs: the first phase what `feature_extraction` costs, each further one a layer more, the last
    one a full fine-tuning. `torch.compile` compiles once more for each phase.

    Args:
        model: any module.
        head: patterns of what trains from the start, the layers below it following from the next
            opening on; without them the model's last layer opens first.
        every_epochs: epochs from one opening to the next, by default one.
        every_steps: the same in optimizer steps.
        layers_per_phase: layers that open together, by default one.
        layers: what `infer_layers` should know of the model, see the page on recipes.

    Raises:
        PlanError: a number is out of its range; `PatternError` for a pattern that selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(3)])
        >>> plan = recipes.gradual_unfreezing(model, every_epochs=2)
        >>> plan
        FreezePlan().freeze('**').unfreeze_layerwise('**', every_epochs=2)
        >>> [str(phase) for phase in plan.resolve(model).phases]
        ['epochs 0 to 1', 'epochs 2 to 3', 'from epoch 4']
    """
    parts, named = parts_of(model, layers), _named(head)
    layerwise = Rule(
        "unfreeze_layerwise",
        ("**", *(f"!{pattern}" for pattern in named)),
        start_epoch=(every_epochs or 1) if named and every_steps is None else None,
        every_epochs=every_epochs,
        start_step=every_steps if named else None,
        every_steps=every_steps,
        layers_per_phase=layers_per_phase,
    )
    return _plan(parts, _FREEZE_ALL, *_also("unfreeze", named), layerwise)


def discriminative(
    model: torch.nn.Module,
    *,
    head: Patterns | None = None,
    decay: float = 1 / 2.6,
    lr: float | None = None,
    layers: LayerProperties | None = None,
) -> FreezePlan:
    """Returns the plan in which each layer learns more slowly than the one above it.

    Howard and Ruder (2018), ULMFiT, https://arxiv.org/abs/1801.06146, section 3.2: lower layers
    know what is general and should change less; the learning rate falls by 2.6 from each layer to
    the next below. That is for a language model of three LSTM layers: among 12 blocks the lowest
    would hardly move, so use a decay nearer to 1 there, or `layer_decay_finetuning`.

    Costs: a full fine-tuning. Nothing is frozen, the optimizer has a param group for each layer.

    Args:
        model: any module.
        head: patterns of what has the full learning rate as well, beside the model's last layer.
        decay: factor from one layer to the next below.
        lr: the learning rate of the last layer; without it the factors are on the optimizer's.
        layers: what `infer_layers` should know of the model, see the page on recipes.

    Raises:
        PlanError: a number is out of its range; `PatternError` for a pattern that selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(3)])
        >>> phase = recipes.discriminative(model, lr=1e-2).resolve(model).at()
        >>> [round(phase.lr(f"{number}.weight"), 6) for number in range(3)]
        [0.001479, 0.003846, 0.01]
    """
    parts = parts_of(model, layers)
    return _plan(parts, *_decayed(_named(head), Rule("layer_decay", ("**",), decay=decay, lr=lr)))


def layer_decay_finetuning(
    model: torch.nn.Module,
    *,
    head: Patterns | None = None,
    decay: float = 0.8,
    min_mult: float | None = None,
    lr: float | None = None,
    layers: LayerProperties | None = None,
) -> FreezePlan:
    """Returns the plan for fine-tuning with layer-wise learning rate decay.

    Clark et al. (2020), ELECTRA, https://arxiv.org/abs/2003.10555, with 0.8 for small and base
    models and 0.9 for large ones; Bao et al. (2022), BEiT, https://arxiv.org/abs/2106.08254, for
    images. As these do, norms and biases have no weight decay. The standard way to fine-tune a
    pre-trained transformer in full. BEiT's code spares the position embedding and the class token
    too: add `.group("**.{pos_embed,cls_token}", weight_decay=0)`. In ELECTRA's code the last block
    is two factors below the head; here, as in BEiT's, it is one.

    Costs: a full fine-tuning. Nothing is frozen, the optimizer has two param groups for each layer.

    Args:
        model: any module.
        head: patterns of what has the full learning rate as well, beside the model's last layer.
        decay: factor from one layer to the next below.
        min_mult: the least factor, by default 0.
        lr: the learning rate of the last layer; without it the factors are on the optimizer's.
        layers: what `infer_layers` should know of the model, see the page on recipes.

    Raises:
        PlanError: a number is out of its range; `PatternError` for a pattern that selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(3)])
        >>> recipes.layer_decay_finetuning(model, decay=0.75, lr=1e-3)
        FreezePlan().layer_decay('**', lr=0.001, decay=0.75).no_decay('**')
    """
    parts = parts_of(model, layers)
    ladder = Rule("layer_decay", ("**",), decay=decay, min_mult=min_mult, lr=lr)
    return _plan(parts, *_decayed(_named(head), ladder), Rule("no_decay", ("**",)))


def last_n_layers(
    model: torch.nn.Module,
    n: int,
    *,
    within: Patterns | None = None,
    train_head: bool = False,
    head: Patterns | None = None,
    lr: float | None = None,
    layers: LayerProperties | None = None,
) -> FreezePlan:
    """Returns the plan that trains the last `n` repeated blocks, and nothing else unless asked.

    Lee et al. (2019), https://arxiv.org/abs/1911.03090: in BERT and RoBERTa a fourth of the layers
    is enough for nine tenths of the quality. To be used where a full fine-tuning does not fit. A
    new head is random: train it too.

    Costs: the frontier is the first of these blocks, so backward goes through `n` blocks and what
    stands above; the optimizer has state for what trains.

    Args:
        model: any module; in one without repeated blocks every layer counts as one.
        n: how many blocks.
        within: patterns below each block, e.g. `"self_attn"`; without them all of it.
        train_head: whether the head trains too.
        head: patterns of the head; without them it is found, see
            the page on recipes.
        lr: the learning rate of all that trains.
        layers: what `infer_layers` should know of the model, see the page on recipes.

    Raises:
        PlanError: the model has fewer blocks, or no head is found; `PatternError` for a pattern
            that selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> block = torch.nn.TransformerEncoderLayer(8, 2, 16)
        >>> model = torch.nn.ModuleDict(
        ...     {"encoder": torch.nn.TransformerEncoder(block, 3, enable_nested_tensor=False)}
        ... )
        >>> recipes.last_n_layers(model, 2, within="self_attn")
        FreezePlan().freeze('**').unfreeze('encoder.layers.{1..2}.self_attn')
    """
    parts = parts_of(model, layers)
    blocks = parts.blocks[len(parts.blocks) - _count("n", n, parts, least=1) :]
    extra = _asked_head(parts, head, train_head)
    return _by_blocks(parts, *_only(parts, blocks, within, extra, lr))


def first_n_layers(
    model: torch.nn.Module,
    n: int,
    *,
    within: Patterns | None = None,
    train_head: bool = False,
    head: Patterns | None = None,
    lr: float | None = None,
    layers: LayerProperties | None = None,
) -> FreezePlan:
    """Returns the plan that trains the first `n` repeated blocks, and nothing else unless asked.

    The mirror of `last_n_layers`, in some training tools a negative number of layers. To be used
    where inputs differ from those of the pre-training and the task does not; see `surgical`.

    Costs: the frontier is the first block, so backward goes through nearly all of the model; the
    optimizer has state for what trains.

    Args:
        model: any module; in one without repeated blocks every layer counts as one.
        n: how many blocks.
        within: patterns below each block, e.g. `"self_attn"`; without them all of it.
        train_head: whether the head trains too.
        head: patterns of the head; without them it is found, see
            the page on recipes.
        lr: the learning rate of all that trains.
        layers: what `infer_layers` should know of the model, see the page on recipes.

    Raises:
        PlanError: the model has fewer blocks, or no head is found; `PatternError` for a pattern
            that selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(4)])
        >>> recipes.first_n_layers(model, 2, train_head=True)
        FreezePlan().freeze('**').unfreeze('{0..1}', '3')
    """
    parts = parts_of(model, layers)
    blocks = parts.blocks[: _count("n", n, parts, least=1)]
    extra = _asked_head(parts, head, train_head)
    return _by_blocks(parts, *_only(parts, blocks, within, extra, lr))


def first_n_layers_frozen(
    model: torch.nn.Module,
    n: int,
    *,
    freeze_stem: bool = True,
    head: Patterns | None = None,
    layers: LayerProperties | None = None,
) -> FreezePlan:
    """Returns the plan that freezes the stem and the first `n` repeated blocks.

    All above stays as it is. Lee et al. (2019), https://arxiv.org/abs/1911.03090, compare how many
    layers of BERT and RoBERTa to freeze. To be used instead of a full fine-tuning where that is
    too slow or too large.

    Costs: the frontier is the first block that trains, so backward and activations are saved for
    all below. With `freeze_stem=False` backward goes down to the embeddings, through frozen blocks.

    Args:
        model: any module; in one without repeated blocks every layer counts as one.
        n: how many blocks; 0 for the stem alone.
        freeze_stem: whether what stands before the first block is frozen too.
        head: patterns of what trains in any case.
        layers: what `infer_layers` should know of the model, see the page on recipes.

    Raises:
        PlanError: the model has fewer blocks, or nothing is left to train or to freeze;
            `PatternError` for a pattern that selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(4)])
        >>> recipes.first_n_layers_frozen(model, 2)
        FreezePlan().freeze('{0..1}')
    """
    parts = parts_of(model, layers)
    with_stem = parts.has_stem and freeze_stem
    count = _count("n", n, parts, least=0 if with_stem else 1)
    start = 0 if with_stem else int(parts.has_stem)
    names = [
        name
        for layer in parts.layers[start : parts.has_stem + count]
        for name in layer.parameter_names
    ]
    frozen = Rule("freeze", patterns_for(parts, names))
    return _by_blocks(parts, frozen, *_also("unfreeze", _named(head)))


def bitfit(
    model: torch.nn.Module,
    *,
    train_head: bool = True,
    head: Patterns | None = None,
    lr: float | None = None,
) -> FreezePlan:
    """Returns the plan that trains the biases, those of norms included, and the head.

    Ben Zaken et al. (2022), BitFit, https://arxiv.org/abs/2106.10199: on small to medium data about
    as good as fine-tuning BERT in full, with less than a thousandth of its parameters, and with
    higher learning rates. To be used where each task should cost next to nothing to keep. Models
    without biases, as most large language models, have nothing to train: see `norm_only`.

    Costs: the optimizer has state for next to nothing, and no gradients of weights are computed.
    But the frontier is next to the input, so backward goes through the whole model.

    Args:
        model: any module.
        train_head: whether the head trains too.
        head: patterns of the head; without them it is found, see
            the page on recipes.
        lr: the learning rate of all that trains.

    Raises:
        PlanError: the model has no biases, or no head is found; `PatternError` for a pattern that
            selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> recipes.bitfit(model, lr=1e-3)
        FreezePlan().freeze('**').unfreeze('**.bias', '1', lr=0.001)
    """
    parts = parts_of(model)
    leaves = [name.rpartition(".")[2] for name in parts.tree.names]
    biases = tuple(dict.fromkeys(leaf for leaf in leaves if is_bias(leaf)))
    if not biases:
        raise PlanError(
            f"bitfit trains biases and {parts.title} has none among its {len(leaves)} parameters; "
            "recipes.norm_only trains the norms"
        )
    extra = _asked_head(parts, head, train_head)
    patterns = (*(_anywhere(parts, leaf) for leaf in biases), *extra)
    return _plan(parts, _FREEZE_ALL, Rule("unfreeze", patterns, lr=lr))


def norm_only(
    model: torch.nn.Module,
    *,
    train_head: bool = True,
    head: Patterns | None = None,
    lr: float | None = None,
) -> FreezePlan:
    """Returns the plan that trains the scales and shifts of the norms, and the head.

    Frankle et al. (2021), https://arxiv.org/abs/2003.00152, for BatchNorm in networks of random
    features; Zhao et al. (2024), https://arxiv.org/abs/2312.11420, for the norms of language
    models that learn to see. To be used as `bitfit` is, and where a model has no biases. A norm is
    a module with "norm" in the name of its class and parameters of its own.

    Costs: as `bitfit`: next to no optimizer state, and a backward pass through the whole model.
    The norms train, so a BatchNorm goes on to follow the statistics of the data.

    Args:
        model: any module.
        train_head: whether the head trains too.
        head: patterns of the head; without them it is found, see
            the page on recipes.
        lr: the learning rate of all that trains.

    Raises:
        PlanError: the model has no norms, or no head is found; `PatternError` for a pattern that
            selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2)
        ... )
        >>> recipes.norm_only(model)
        FreezePlan().freeze('**').unfreeze('**@BatchNorm1d', '2')
    """
    parts = parts_of(model)
    owners = dict.fromkeys(parts.tree.class_names[row] for row in parts.tree.owners)
    norms = [name for name in owners if "norm" in name.lower()]
    if not norms:
        raise PlanError(
            f"norm_only trains norms and {parts.title} has none; the classes with parameters are "
            f"{', '.join(owners)}"
        )
    extra = _asked_head(parts, head, train_head)
    patterns = (*(f"**@{name}" for name in norms), *extra)
    return _plan(parts, _FREEZE_ALL, Rule("unfreeze", patterns, lr=lr))


def progressive_freezing(
    model: torch.nn.Module,
    *,
    t_0: float = 0.8,
    schedule: Literal["cubic", "linear"] = "cubic",
    total_epochs: int | None = None,
    head: Patterns | None = None,
    layers: LayerProperties | None = None,
) -> FreezePlan:
    """Returns the plan that freezes one layer after another, from the input to the output.

    Brock et al. (2017), FreezeOut, https://arxiv.org/abs/1706.04983: layer `i` of `L` (0 next to
    the input) freezes when the fraction `t = t_0 + (1 - t_0) * i / (L - 1)` of the training is
    over, or `t ** 3` with the cubic schedule; the last layer never does. To be used to save time in
    a long training, also from scratch: the paper reports up to a fifth.

    FreezeOut also lets each layer's learning rate fall to 0 along a cosine until it freezes. That
    is not part of the plan: learning rates over time are the LR scheduler's, which knows nothing
    of layers, so here a layer freezes from whatever rate it has then.

    Costs: a full training at first; the frontier then moves up, so that each phase is cheaper than
    the one before. `apply(..., on_freeze="drop")` frees the optimizer state of what has frozen.

    Args:
        model: any module.
        t_0: the fraction at which the first layer freezes, before it is cubed.
        schedule: "cubic" or "linear".
        total_epochs: length of the training; with it the moments are whole epochs, rounded up.
            Without it they are fractions, and `apply` is told the length.
        head: patterns of what never freezes, beside the last layer.
        layers: what `infer_layers` should know of the model, see the page on recipes.

    Raises:
        PlanError: a value is out of its range, or no layer would freeze; `PatternError` for a
            pattern that selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(3)])
        >>> recipes.progressive_freezing(model, t_0=0.5)
        FreezePlan().freeze('0', at_fraction=0.125).freeze('1', at_fraction=0.421875)
        >>> recipes.progressive_freezing(model, t_0=0.5, total_epochs=40)
        FreezePlan().freeze('0', at_epoch=5).freeze('1', at_epoch=17)
    """
    if not (is_real(t_0) and 0 <= t_0 < 1):
        raise PlanError(f"t_0 must be at least 0 and less than 1, got {t_0!r}")
    _choice("schedule", schedule, ("cubic", "linear"))
    if total_epochs is not None:
        total_epochs = whole_number("total_epochs", total_epochs, 1)
    parts = parts_of(model, layers)
    *lower, _ = parts.layers
    rules = []
    for layer in lower:
        linear = t_0 + (1 - t_0) * layer.index / len(lower)
        fraction = round(linear**3 if schedule == "cubic" else linear, 6)
        patterns = patterns_for(parts, layer.parameter_names)
        if total_epochs is None:
            rules.append(Rule("freeze", patterns, at_fraction=fraction))
        elif (epoch := ceil(Fraction(str(fraction)) * total_epochs)) < total_epochs:
            rules.append(Rule("freeze", patterns, at_epoch=epoch))
    if not rules:
        within = f" in {total_epochs} epochs" if lower else ""
        raise PlanError(
            f"no layer of {parts.title} would freeze{within}: it has {len(parts.layers)} and the "
            "last one never does"
        )
    return _by_blocks(parts, *rules, *_also("unfreeze", _named(head)))


def surgical(
    model: torch.nn.Module,
    shift: Literal["input", "feature", "output"],
    *,
    head: Patterns | None = None,
    lr: float | None = None,
    layers: LayerProperties | None = None,
) -> FreezePlan:
    """Returns the plan that trains one part of a model, chosen by how the data has changed.

    Lee et al. (2023), https://arxiv.org/abs/2210.11466: with a small data set, training only some
    neighbouring layers is as good as training all or better, and which ones depends on the shift.
    "input" (the images are corrupted): the first layers. "feature" (the classes have other
    subgroups): those in the middle. "output" (labels follow another rule): the last one. Where the
    kind of shift is not known, score the layers instead.

    Here the first layers are the stem and the first third of the blocks, those in the middle the
    second third, and the last one the head.

    Costs: the frontier is the first layer that trains: for "output" what `feature_extraction`
    costs, for "input" a backward pass through the whole model, with little optimizer state.

    Args:
        model: any module; in one without repeated blocks every layer counts as one.
        shift: what has changed.
        head: patterns of the head: for "output" all that trains, otherwise what trains as well;
            without them, for "output", it is found.
        lr: the learning rate of all that trains.
        layers: what `infer_layers` should know of the model, see the page on recipes.

    Raises:
        PlanError: the kind of shift is unknown, the model has no middle, or no head is found;
            `PatternError` for a pattern that selects nothing.

    Example:
        >>> import torch
        >>> from freezekit import recipes
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(6)])
        >>> recipes.surgical(model, "input")
        FreezePlan().freeze('**').unfreeze('{0..1}')
        >>> recipes.surgical(model, "feature", lr=1e-4)
        FreezePlan().freeze('**').unfreeze('{2..3}', lr=0.0001)
        >>> recipes.surgical(model, "output")
        FreezePlan().freeze('**').unfreeze('5')
    """
    _choice("shift", shift, ("input", "feature", "output"))
    parts = parts_of(model, layers)
    if shift == "output":
        patterns = _head(parts, head)
    else:
        count, stem = len(parts.blocks), int(parts.has_stem)
        third = max(1, round(count / 3))
        ends = (0, stem + third) if shift == "input" else (stem + third, stem + count - third)
        names = [n for layer in parts.layers[slice(*ends)] for n in layer.parameter_names]
        if not names:
            raise PlanError(
                f"{parts.title} has {count} blocks, too few for a middle between the first and the "
                "last; say shift='input' or shift='output'"
            )
        patterns = (*patterns_for(parts, names), *_named(head))
    return _by_blocks(parts, _FREEZE_ALL, Rule("unfreeze", patterns, lr=lr))


def _only(
    parts: Parts,
    blocks: Sequence[Layer],
    within: Patterns | None,
    extra: tuple[str, ...],
    lr: float | None,
) -> tuple[Rule, Rule]:
    """Returns rules that train some blocks, or what is named within them, and what is extra."""
    inner = None if within is None else _named(within, "within")
    patterns = (*block_patterns(parts, blocks, inner), *extra)
    return _FREEZE_ALL, Rule("unfreeze", patterns, lr=lr)


def _by_blocks(parts: Parts, *rules: Rule) -> FreezePlan:
    """Returns a plan that names blocks; what is not known of their order is a warning."""
    for note in parts.layers.notes:
        warnings.warn(f"{parts.title}: {note}", stacklevel=3)
    return _plan(parts, *rules)


def _plan(parts: Parts, *rules: Rule) -> FreezePlan:
    """Returns the plan with these rules once it is known to work on the model."""
    along = any(rule.verb in BUILDERS for rule in rules)
    plan = FreezePlan(rules, layers=parts.layering if along else Layering())
    resolved = plan.resolve(parts.model, **_TRIAL)
    for phase in resolved.phases:
        if not phase.trainable:
            raise PlanError(
                f"{plan!r} would leave nothing of {parts.title} to train; freeze less, or name "
                "what trains, e.g. head='classifier'"
            )
    return plan


def _named(given: Patterns | None, keyword: str = "head") -> tuple[str, ...]:
    """Returns the patterns of an argument, none where it is not given."""
    if given is None:
        return ()
    patterns = (given,) if isinstance(given, str) else tuple(given)
    if not patterns:
        raise PlanError(f"{keyword} names nothing; give a pattern, or leave it out")
    return patterns


def _head(parts: Parts, given: Patterns | None, way_out: str = "") -> tuple[str, ...]:
    """Returns the patterns of the head: those given, or those of the one that is found."""
    if given is not None:
        return _named(given)
    if parts.layering.head:
        return parts.layering.head
    names = find_head(parts)
    if not names:
        raise no_head(parts, way_out)
    return patterns_for(parts, names)


def _asked_head(parts: Parts, given: Patterns | None, train_head: bool) -> tuple[str, ...]:
    """Returns the patterns of the head where it trains too."""
    if train_head:
        return _head(parts, given, ", or leave it out with train_head=False")
    if given is not None:
        raise PlanError(f"head={given!r} names what train_head=False leaves out; drop one of them")
    return ()


def _also(verb: str, patterns: tuple[str, ...]) -> tuple[Rule, ...]:
    """Returns a rule about the patterns, none where there are none."""
    return (Rule(verb, patterns),) if patterns else ()


def _decayed(head: tuple[str, ...], ladder: Rule) -> list[Rule]:
    """Returns the rule that lowers learning rates, with the head at the full one."""
    if not head:
        return [ladder]
    mult = 1.0 if ladder.lr is None else None
    return [ladder, Rule("group", head, lr=ladder.lr, lr_mult=mult)]


def _count(name: str, value: int, parts: Parts, *, least: int) -> int:
    """Returns a number of blocks once the model is known to have as many."""
    count, blocks = whole_number(name, value, least), parts.blocks
    if count > len(blocks):
        names = [block.name or "the model itself" for block in blocks]
        raise PlanError(f"{name} is {count}, and {parts.title} has {counted(names, 'block')}")
    return count


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises where a value is none of the known ones."""
    if value not in known:
        raise PlanError(f"{name} is {value!r}{did_you_mean(str(value), known)}")


def _anywhere(parts: Parts, leaf: str) -> str:
    """Returns a pattern for the parameters of that name, and not for modules of that name."""
    modules = {prefix[:-1].rpartition(".")[2] for prefix in parts.tree.prefixes}
    if leaf not in modules and literal(leaf) == leaf:
        return f"**.{leaf}"
    return rf"re:(.*\.)?{re.escape(leaf)}"
