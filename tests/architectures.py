"""Every architecture of transformers on the meta device: its layers, and what is wrong with them.

What is right is taken from elsewhere than from the inference: counts from the configuration,
embeddings and heads from the interface of transformers, rows from the modules themselves.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
import transformers
from architecture_notes import FIXES, NEEDS, SAYS
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from freezekit import infer_layers
from freezekit._layers import Layer

transformers.logging.set_verbosity_error()

LISTS = ("stage_num_blocks", "depths", "block_sizes")
ENDS = (
    "encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers",
    "encoder_num_hidden_layers", "decoder_num_hidden_layers",
)  # fmt: skip
SCALARS = ("num_hidden_layers", "depth")
FEW = 3
"""Blocks of each row in a model with a head."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one class.

    Attributes:
        name: the class.
        error: why it was not built; "" if it was.
        rows: for each row of blocks its path, with `#` for numbers, and the blocks of each stage.
        layers: how many layers there are.
        ends: which of "stem" and "head" are among them.
        problems: the invariants that they break.
        corrected: the counts of the configuration that are of something else.
    """

    name: str
    error: str = ""
    rows: tuple[tuple[str, tuple[int, ...]], ...] = ()
    layers: int = 0
    ends: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()


def classes(*mappings: str) -> dict[str, str]:
    """Returns the classes of some mappings of transformers, each with its first model type."""
    found: dict[str, str] = {}
    for mapping in mappings:
        for kind, names in getattr(modeling_auto, f"{mapping}_NAMES").items():
            for name in (names,) if isinstance(names, str) else names:
                found.setdefault(name, kind)
    return found


@cache
def report(kind: str, name: str, few: bool = False) -> Report:
    """Returns what became of a class, with `FEW` blocks in each row or as many as by default."""
    for library, kinds in NEEDS.items():
        if kind in kinds:
            return Report(name, error=f"needs {library}")
    try:
        model = build(kind, name, FIXES.get(kind, {}), few=few)
    except Exception as error:
        if few:
            return report(kind, name)
        return Report(name, error=f"{type(error).__name__}: {error}".split("\n")[0])
    layers = infer_layers(model)
    found = tuple(problems(model, layers))
    if few and found:  # Perhaps the configuration could not be cut.
        return report(kind, name)
    return Report(
        name,
        rows=tuple((path, tuple(row.values())) for path, row in rows(layers).items()),
        layers=len(layers),
        ends=tuple(layer.name for layer in layers if layer.name in ("stem", "head")),
        problems=found,
        corrected=tuple(dict.fromkeys(corrected(model))),
    )


def build(
    kind: str, name: str, settings: Mapping[str, object], *, few: bool = False
) -> PreTrainedModel:
    """Returns a model on the meta device."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
        config = CONFIG_MAPPING[kind](**settings)
        if few:
            _cut(config)
        cls = modeling_auto.MODEL_MAPPING._load_attr_from_module(kind, name)
        with torch.device("meta"), no_init_weights():
            model = cls(config)
    model.tie_weights()
    return model


def _cut(config: PretrainedConfig) -> None:
    """Makes the rows of a model short."""
    for key in (*ENDS, *SCALARS):
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, min(getattr(config, key), FEW))
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            _cut(part)


def problems(model: PreTrainedModel, layers: Sequence[Layer]) -> Iterator[str]:
    """Yields each invariant that the layers of a model break."""
    names = [name for name, _ in model.named_parameters()]
    if Counter(name for layer in layers for name in layer.parameter_names) != Counter(names):
        yield "not every parameter is in exactly one layer"
        return
    if len(layers) > max(4, len(names) // 2):
        yield f"{len(layers)} layers for {len(names)} parameters"
    place = {name: layer.index for layer in layers for name in layer.parameter_names}
    yield from _block_problems(model, layers, place)
    yield from _end_problems(model, layers, place)
    yield from _count_problems(model, layers)


def blocks(layers: Sequence[Layer]) -> list[Layer]:
    """Returns the layers that are members of rows."""
    return [layer for layer in layers if re.search(r"\d", layer.name)]


def rows(layers: Sequence[Layer]) -> dict[str, dict[str, int]]:
    """Returns for each row of blocks, and each list that it is in, how many blocks there are."""
    found: dict[str, dict[str, int]] = {}
    for layer in blocks(layers):
        key = re.sub(r"\d+(?=\.|$)", "#", layer.name)
        holder = layer.name.rpartition(".")[0]
        row = found.setdefault(key, {})
        row[holder] = row.get(holder, 0) + 1
    return found


def _block_problems(
    model: PreTrainedModel, layers: Sequence[Layer], place: dict[str, int]
) -> Iterator[str]:
    """Yields blocks that are split, left out, parts of others or not in the order of numbers."""
    at = {layer.name: layer.index for layer in blocks(layers)}
    inside: dict[str, set[int]] = {name: set() for name in at}
    for name, index in place.items():
        path = name
        while path := path.rpartition(".")[0]:
            if path in at:
                inside[path].add(index)
    yield from (f"{name} is split" for name, index in at.items() if inside[name] != {index})
    yield from (f"{name} is no member of a row" for name in at if not name[-1].isdigit())
    last: dict[str, tuple[int, ...]] = {}
    for name in at:
        numbers = tuple(map(int, re.findall(r"\d+", name)))
        key = re.sub(r"\d+", "#", name)
        if numbers <= last.get(key, ()):
            yield f"{name} is out of order"
        last[key] = numbers
    holders: dict[str, list[str]] = {}
    for name in at:
        holders.setdefault(name.rpartition(".")[0], []).append(name)
    for holder, members in holders.items():
        known = {type(model.get_submodule(member)) for member in members}
        for name, child in model.get_submodule(holder).named_children():
            path = f"{holder}.{name}".lstrip(".")
            whole = not any(f"{each}.".startswith(f"{path}.") for each in at)
            if whole and type(child) in known and re.search(r"\d$", name):
                yield f"{path} is left out"


def _end_problems(
    model: PreTrainedModel, layers: Sequence[Layer], place: dict[str, int]
) -> Iterator[str]:
    """Yields input embeddings that do not come first, and heads that do not come last."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    looked_up = {names[id(e.weight)] for e in model.modules() if isinstance(e, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            looked_up.update(_embeddings(module, "get_input_embeddings", names))
    at = {layer.name: layer.index for layer in blocks(layers)}
    for path, module in model.named_modules():
        if not isinstance(module, PreTrainedModel):
            continue
        prefix = f"{path}." if path else ""
        inside = [index for name, index in at.items() if name.startswith(prefix)]
        if not inside:
            continue
        for name in _embeddings(module, "get_input_embeddings", names):
            if place[name] >= min(inside):
                yield f"{name} comes after the first block of {path or 'the model'}"
        for name in _embeddings(module, "get_output_embeddings", names):
            if place[name] < max(inside) and name not in looked_up:
                yield f"{name} comes before the last block of {path or 'the model'}"
    base = f"{model.base_model_prefix}."
    if at:
        body = [name for name in names.values() if name.startswith(base)]
        first, last = (body or [*names.values()])[0], [*names.values()][-1]
        owner = type(model.get_submodule(last.rpartition(".")[0])).__name__
        if place[first] > min(at.values()):
            yield f"{first} comes after the first block"
        if place[last] < max(at.values()) and "Embedding" not in owner:
            yield f"{last} comes before the last block"
    inside = [index for name, index in at.items() if name.startswith(base)]
    towers = tuple(f"{name.partition('.')[0]}." for name in at)
    if "For" in type(model).__name__ and inside:
        for name, index in place.items():
            if not name.startswith((base, *towers, *looked_up)) and index < max(inside):
                yield f"{name} comes before the last block of {base[:-1]}"


def _embeddings(module: PreTrainedModel, which: str, names: dict[int, str]) -> list[str]:
    """Returns the names of a model's embeddings, where it has any."""
    try:
        found = getattr(module, which)()
    except (AttributeError, NotImplementedError):
        return []
    return [names[id(each)] for each in found.parameters()] if isinstance(found, nn.Module) else []


def _count_problems(model: PreTrainedModel, layers: Sequence[Layer]) -> Iterator[str]:
    """Yields counts of the configuration without blocks, and rows that are parts of others."""
    found = {path: sum(row.values()) for path, row in rows(layers).items()}
    sizes = list(found.values())
    left = [*sizes, *(each.num_layers for each in model.modules() if isinstance(each, nn.RNNBase))]
    for key, count in sorted(stated(model).items(), key=lambda each: each[1] not in left):
        spans = combinations(range(len(left) + 1), 2)
        spans = [span for span in spans if sum(left[slice(*span)]) == count]
        if not spans:
            yield f"{key} is {count}, and the rows have {sizes}"
        else:  # What counts for one part of the model does not count for another.
            del left[slice(*min(spans, key=lambda span: span[1] - span[0]))]
    for one, two in combinations(found, 2):
        alike = one.rpartition(".")[0] == two.rpartition(".")[0] and found[one] == found[two]
        if alike and not all(_has_norm(model, path) for path in (one, two)):
            yield f"{one} and {two} are parts of the same blocks"


def _has_norm(model: PreTrainedModel, row: str) -> bool:
    """Returns whether the first block of a row holds a normalisation layer."""
    first = re.escape(row).replace(r"\#", r"\d+")
    path = next(path for path, _ in model.named_modules() if re.fullmatch(first, path))
    return any(
        "norm" in type(each).__name__.lower() for each in model.get_submodule(path).modules()
    )


def stated(model: PreTrainedModel) -> dict[str, int]:
    """Returns how many blocks the configurations of a model and of its parts say there are.

    What a module and one inside of it both say is said once.
    """
    found: dict[str, tuple[str, int]] = {}
    for path, key, count, config in _own_counts(model):
        count = SAYS[key][0](config) if key in SAYS else count
        end = re.search("encoder|decoder", key.partition(".")[2])
        below = [path, *(name for name, _ in model.get_submodule(path).named_modules())]
        names = {part for name in below for part in name.split(".")}
        if count and (not end or any(name.endswith(end[0]) for name in names)):
            found.setdefault(key, (path, count))
    return {
        key: count
        for key, (path, count) in found.items()
        if not any(
            count == other and inner != path and f"{inner}.".startswith(f"{path}.".lstrip("."))
            for inner, other in found.values()
        )
    }


def corrected(model: PreTrainedModel) -> Iterator[str]:
    """Yields the keys that count something else than blocks."""
    for _, key, count, config in _own_counts(model):
        if key in SAYS and SAYS[key][0](config) != count:
            yield key


def _own_counts(model: PreTrainedModel) -> Iterator[tuple[str, str, int, PretrainedConfig]]:
    """Yields the path of a module, a key of its configuration, its value and the configuration."""
    seen = set()
    for path, module in model.named_modules():
        config = getattr(module, "config", None)
        if not isinstance(config, PretrainedConfig) or id(config) in seen:
            continue
        seen.add(id(config))
        lists = [key for key in LISTS if _is_counts(getattr(config, key, None))]
        coders = [key for key in ENDS if isinstance(getattr(config, key, None), int)]
        scalars = [key for key in SCALARS if isinstance(getattr(config, key, None), int)]
        named = any("encoder" in key for key in coders)
        if not named and config.attribute_map.get("num_hidden_layers") not in coders:
            coders = scalars[:1] + coders  # T5 says `num_layers` of its encoder.
        for key in lists[:1] or coders:
            value = getattr(config, key)
            yield path, f"{type(config).__name__}.{key}", sum(value) if lists else value, config


def _is_counts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, int) for each in value)
