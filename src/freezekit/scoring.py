"""Scores of the layers of a model, and the plan that trains the best of them under a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from torch.nn.parameter import is_lazy

from ._automaton import Automaton
from ._glob import literal
from ._gradients import LossFn, gradient_norms, joint_norm, norm, undisturbed
from ._layering import Layering
from ._layers import Layers, read_layers
from ._names import Tree, unwrap, walk
from ._parts import cover
from ._plan import FreezePlan
from ._verbs import LayerProperties
from .errors import FreezekitError, PlanError

__all__ = ["Score", "Scores", "score_layers", "to_plan"]

Method = Literal["relative_gradient_norm", "snr", "fisher"]

_IQR_OF_NORMAL = 1.349  # interquartile range of a normal distribution in standard deviations
_ROWS_AT_ONCE = 8192  # an embedding need not be in memory twice
_LEAST = 1e-6  # of the largest singular value; less is the rounding of the Gram matrix


@dataclass(frozen=True, slots=True)
class Score:
    """What one part of a model scored.

    Attributes:
        name: name of the layer, path of the module, or name of the parameter.
        kind: what it is compared with, for "snr": the module's path inside its block, e.g.
            `"self_attn.q_proj"`, the same in every block. None where all rows are compared.
        patterns: patterns that select its parameters and no others.
        numel: elements of these parameters.
        value: the score, higher is better; `inf` where the method has nothing to divide by.

    Example:
        >>> Score("head", None, ("classifier",), 1538, 0.25).value
        0.25
    """

    name: str
    kind: str | None
    patterns: tuple[str, ...]
    numel: int
    value: float


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a model, as plain data; `str` is a table.

    Attributes:
        method: how they were computed.
        rows: the scores, from input to output.
        numel: elements of all parameters of the model, those without a score too.

    Example:
        >>> import torch
        >>> scores = score_layers(torch.nn.Linear(8, 4), method="snr")
        >>> scores.method, len(scores.rows), scores.numel
        ('snr', 1, 36)
    """

    method: str
    rows: tuple[Score, ...]
    numel: int

    def __str__(self) -> str:
        """Returns a line for each row: its name, its elements, its score."""
        lines = [(row.name or "model", f"{row.numel:,}", f"{row.value:.3g}") for row in self.rows]
        heading = ("", "elements", self.method)
        widths = [max(map(len, column)) for column in zip(heading, *lines, strict=True)]
        return "\n".join(
            f"{name:<{widths[0]}}  {numel:>{widths[1]}}  {value:>{widths[2]}}"
            for name, numel, value in (heading, *lines)
        )


def score_layers(
    model: torch.nn.Module,
    batches: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    *,
    method: Method = "relative_gradient_norm",
    layers: LayerProperties | None = None,
) -> Scores:
    """Scores the parts of a model by how much there is to gain from training them.

    - `"relative_gradient_norm"`: for each layer of `infer_layers`, the norm of its gradient over
      the norm of its weights, both of all its parameters together; the mean of it over the
      batches. Auto-RGN of surgical fine-tuning, Lee et al. (2023),
      https://arxiv.org/abs/2210.11466.
    - `"fisher"`: for each layer, the mean over its elements of the squared gradient, and the mean
      of that over the batches: the diagonal of the empirical Fisher information where a batch is
      one example. Kirkpatrick et al. (2017), https://arxiv.org/abs/1612.00796; Sung et al.
      (2021), https://arxiv.org/abs/2111.09839.
    - `"snr"`: for each weight matrix, the sum of its singular values above the Marchenko-Pastur
      threshold over the sum of the others, divided by the largest. No data needed. Spectrum,
      Hartford et al. (2024), https://arxiv.org/abs/2406.06623.

    Nothing of the model changes: the loss is computed with stand-ins for its tensors, which share
    memory with the parameters and all require a gradient, so what is frozen is scored too. Modes
    stay as they are; with dropout at work, call `model.eval()` first for scores without noise.

    Args:
        model: any module with its weights loaded; torch's wrappers are looked through.
        batches: a few batches of the data to train on, not for "snr".
        loss_fn: called as `loss_fn(model, batch)`, returns a scalar, not for "snr".
        method: how to score.
        layers: what `infer_layers` should know of the model, e.g. `{"by": "stage"}`.

    Returns:
        A row for each layer, for "snr" for each weight matrix with the vectors of its module.

    Raises:
        PlanError: the arguments do not fit together, or there is nothing in the model to score.
        FreezekitError: a loss or a gradient cannot be scored; the message names the batch.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> batches = [torch.ones(4, 2), torch.zeros(4, 2)]
        >>> scores = score_layers(model, batches, lambda model, batch: model(batch).pow(2).mean())
        >>> [(row.name, row.patterns, row.numel) for row in scores.rows]
        [('0', ('0',), 6), ('1', ('1',), 3)]
    """
    if method not in get_args(Method):
        known = ", ".join(map(repr, get_args(Method)))
        raise PlanError(f"method={method!r} is unknown; there are {known}")
    found = read_layers(model, Layering.read(layers or {}))
    tree, modules = walk(model, Automaton([], []))
    parameters = [
        modules[owner]._parameters[name[len(tree.prefixes[owner]) :]]
        for name, owner in zip(tree.names, tree.owners, strict=True)
    ]
    named = {name: p for name, p in zip(tree.names, parameters, strict=True) if p is not None}
    _check_values(model, named)
    parts: Sequence[_Part]
    if method == "snr":
        if batches is not None or loss_fn is not None:
            raise PlanError("method='snr' reads the weights alone; leave out batches and loss_fn")
        parts = _weight_matrices(tree, found, named)
        values = [_snr(name, named[name]) for name in (part.scored for part in parts)]
    else:
        if batches is None or loss_fn is None:
            raise PlanError(
                f"method={method!r} needs data: score_layers(model, batches, loss_fn, ...); "
                "only method='snr' does without"
            )
        parts = [_Part(layer.name, None, layer.parameter_names, "") for layer in found]
        values = _gradient_values(unwrap(model), parts, named, batches, loss_fn, method)
    patterns = [tuple(map(literal, cover(tree, part.names))) for part in parts]
    rows = tuple(
        Score(part.name, part.kind, pattern, sum(named[n].numel() for n in part.names), value)
        for part, pattern, value in zip(parts, patterns, values, strict=True)
    )
    return Scores(method, rows, sum(parameter.numel() for parameter in named.values()))


def to_plan(scores: Scores, *, train_at_most: float = 0.05) -> FreezePlan:
    """Returns the plan that trains the best of what was scored, and freezes the rest.

    Rows are taken from the best down, each if it still fits into the budget and passed over if
    not. Rows with a kind are ranked among their kind: first the best of every kind, then the
    second best, and so on, each round from the highest value down. Of equal values the one nearer
    to the input comes first.

    Args:
        scores: from `score_layers`.
        train_at_most: the budget, as a share of all elements of the model; never exceeded.

    Raises:
        PlanError: the budget is not in (0, 1], nothing fits into it, or a value is not a number.

    Example:
        >>> rows = (Score("a", None, ("a",), 40, 0.1), Score("b", None, ("b",), 60, 0.3))
        >>> to_plan(Scores("fisher", rows, 100), train_at_most=0.5)
        FreezePlan().freeze('**').unfreeze('a')
    """
    budget = _budget(train_at_most) * scores.numel
    if not scores.rows:
        raise PlanError("the scores have no rows, so there is nothing to train")
    for row in scores.rows:
        if math.isnan(row.value):
            raise PlanError(f"the score of {row.name!r} is not a number, so it has no rank")
    taken, left = set[int](), budget
    for place in _ranking(scores.rows):
        if scores.rows[place].numel <= left:
            taken.add(place)
            left -= scores.rows[place].numel
    if not taken:
        least = min(scores.rows, key=lambda row: row.numel)
        raise PlanError(
            f"train_at_most={train_at_most} is {int(budget):,} of {scores.numel:,} elements, and "
            f"the smallest row, {least.name!r}, has {least.numel:,}; allow at least "
            f"{math.ceil(1e4 * least.numel / scores.numel) / 1e4}"
        )
    patterns = [text for place in sorted(taken) for text in scores.rows[place].patterns]
    return FreezePlan().freeze("**").unfreeze(*patterns)


def _budget(train_at_most: float) -> Fraction:
    """Returns the share as it was written: 0.29 of 100 is 29, not a little less."""
    try:
        share = Fraction(str(train_at_most))
    except ValueError:
        share = Fraction(0)
    if not 0 < share <= 1:
        raise PlanError(
            f"train_at_most={train_at_most!r} is not a share in (0, 1] of the model's elements, "
            "e.g. 0.05"
        )
    return share


def _ranking(rows: Sequence[Score]) -> list[int]:
    """Returns the places of the rows from the best down."""
    by_value = sorted(range(len(rows)), key=lambda place: -rows[place].value)
    ranks, counts = dict[int, int](), dict[str, int]()
    for place in by_value:
        kind = rows[place].kind
        ranks[place] = counts.get(kind, 0) if kind is not None else 0
        if kind is not None:
            counts[kind] = ranks[place] + 1
    return sorted(by_value, key=lambda place: ranks[place])


@dataclass(frozen=True, slots=True)
class _Part:
    """What gets one score.

    Attributes:
        name: see `Score`.
        kind: see `Score`.
        names: the parameters it stands for.
        scored: the one of them that is scored; "" for all.
    """

    name: str
    kind: str | None
    names: tuple[str, ...]
    scored: str


def _check_values(model: torch.nn.Module, named: dict[str, torch.nn.Parameter]) -> None:
    """Raises where there are no values to score."""
    if not named:
        raise PlanError(f"{type(model).__name__} has no parameters, so there is nothing to score")
    for name, parameter in named.items():
        if is_lazy(parameter):
            raise PlanError(f"{name!r} has no shape yet; run one batch through the model first")
        if parameter.is_meta:
            raise PlanError(
                f"{name!r} is on the meta device, without values to score; load the weights first"
            )


def _weight_matrices(
    tree: Tree, layers: Layers, named: dict[str, torch.nn.Parameter]
) -> list[_Part]:
    """Returns a part for each parameter that has several rows and columns.

    The only matrix of a module stands for the module, with its vectors.
    """
    owner_of = dict(zip(tree.names, tree.owners, strict=True))
    own: dict[int, list[str]] = {}
    for name, owner in owner_of.items():
        own.setdefault(owner, []).append(name)
    parts = []
    for layer in layers:
        for name in filter(lambda name: _is_matrix(named[name]), layer.parameter_names):
            owner = owner_of[name]
            others = [other for other in own[owner] if other != name]
            alone = not any(named[other].dim() > 1 for other in others)
            path = tree.prefixes[owner][:-1] if alone else name
            inside = path.removeprefix(f"{layer.name}.") if layer in layers.blocks else path
            names = tuple(own[owner]) if alone else (name,)
            parts.append(_Part(path, inside, names, name))
    if not parts:
        raise PlanError(
            "method='snr' scores weight matrices, and no parameter has several rows and columns; "
            f"the first is {layers[0].parameter_names[0]!r}"
        )
    return parts


def _is_matrix(weight: torch.nn.Parameter) -> bool:
    return (
        weight.dim() > 1
        and weight.is_floating_point()
        and min(weight.shape[0], math.prod(weight.shape[1:])) > 1
    )


def _snr(name: str, weight: torch.nn.Parameter) -> float:
    """Returns Spectrum's score of a weight, its dimensions after the first taken as one."""
    matrix = weight.detach().flatten(1)
    if not matrix.isfinite().all():
        raise FreezekitError(f"the weights of {name!r} are not all finite")
    singular = _singular_values(matrix)
    low, high = torch.quantile(singular, singular.new_tensor([0.25, 0.75])).tolist()
    short, long = sorted(matrix.shape)
    threshold = (high - low) / _IQR_OF_NORMAL * (1 + math.sqrt(short / long))
    below = singular <= threshold
    signal = singular[~below].sum().item()
    if signal == 0:
        return 0.0
    noise = singular[below].sum().item() if below.any() else 1.0
    return signal / noise / singular.max().item() if noise else math.inf


def _singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """Returns the singular values, those too small to be told from zero as zero.

    From the eigenvalues of the Gram matrix in double precision: as exact for what is stored in
    single precision, and faster where the sides differ, as in an MLP or an embedding.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    tall = tall.cpu() if tall.device.type == "mps" else tall  # which has no double precision
    gram = tall.new_zeros((tall.shape[1], tall.shape[1]), dtype=torch.float64)
    for rows in torch.split(tall, _ROWS_AT_ONCE):
        wide = rows.double()
        gram.addmm_(wide.T, wide)
    singular: torch.Tensor = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return singular.where(singular > _LEAST * singular.max(), 0.0)


def _gradient_values(
    model: torch.nn.Module,
    parts: Sequence[_Part],
    named: dict[str, torch.nn.Parameter],
    batches: Iterable[Any],
    loss_fn: LossFn,
    method: str,
) -> list[float]:
    """Returns, for each part, the mean over the batches."""
    weights = [joint_norm([norm(named[name]) for name in part.names]) for part in parts]
    totals, count = [0.0] * len(parts), 0
    with undisturbed(model):
        for norms in gradient_norms(model, named, batches, loss_fn):
            count += 1
            for place, part in enumerate(parts):
                gradient = joint_norm([norms[name] for name in part.names if name in norms])
                if method == "fisher":
                    elements = sum(named[name].numel() for name in part.names)
                    totals[place] += gradient**2 / max(elements, 1)
                elif gradient:
                    totals[place] += gradient / weights[place] if weights[place] else math.inf
    if not count:
        raise PlanError("batches is empty; what has been gone through once may give nothing more")
    return [total / count for total in totals]
