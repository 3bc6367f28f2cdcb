"""The layers of timm's models: parameter by parameter as its own groups have them."""

import itertools
import re
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from timm_models import DIFFERENT, NAMED, OTHERS
from vision import load_torchvision

from freezekit import FreezePlan, infer_layers

for needed in ("timm", "torchvision"):
    if find_spec(needed) is None:
        reason = f"{needed} is not installed here, as it changes what transformers imports"
        pytest.skip(f"{reason}: .ci/run has an environment with it", allow_module_level=True)
load_torchvision()
timm: Any = import_module("timm")
optim: Any = import_module("timm.optim")

VITS = ("vit_tiny_patch16_224", "vit_base_patch16_224", "vit_small_patch32_384")


def build(model: str, **options: Any) -> torch.nn.Module:  # noqa: ANN401
    """A model of timm on the meta device."""
    with torch.device("meta"):
        return timm.create_model(model, **options)


def places(model: torch.nn.Module, **options: Any) -> dict[str, int]:  # noqa: ANN401
    """The index of the layer of each parameter."""
    layers = infer_layers(model, **options)
    return {name: layer.index for layer in layers for name in layer.parameter_names}


def groups(model: Any) -> dict[str, int]:  # noqa: ANN401
    """The same by timm's matcher."""
    group = timm.models._manipulate.group_parameters
    return group(model, model.group_matcher(coarse=False), reverse=True)


def beit_table(name: str, layers: int) -> int:
    """The rule of BEiT and MAE for the parameter of a ViT."""
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return layers - 1


def expanded(text: str) -> list[str]:
    """The names that a text of words with `{0..3}` in them stands for."""
    names = []
    for word in text.split():
        ends = re.findall(r"\{(\d+)\.\.(\d+)\}", word)
        form = re.sub(r"\{\d+\.\.\d+\}", "{}", word)
        numbers = itertools.product(*(range(int(low), int(high) + 1) for low, high in ends))
        names += [form.format(*each) for each in numbers]
    return names


HEADLESS = {"num_classes": 0}


@pytest.mark.parametrize("model", NAMED + OTHERS)
def test_layers_are_the_groups_of_timm(model: str) -> None:
    """With its convention for the last norm, each parameter is where timm has it."""
    built = build(model)
    assert places(built, final_norm="last_block") == groups(built)


@pytest.mark.parametrize("model", NAMED)
def test_layers_without_a_head_are_the_groups_of_timm(model: str) -> None:
    """So they are where the model ends in its features."""
    built = build(model, **HEADLESS)
    assert places(built, final_norm="last_block") == groups(built)


@pytest.mark.parametrize("model", DIFFERENT)
def test_layers_that_differ_from_timm_on_purpose(model: str) -> None:
    """The layers are those that were decided on, and timm's groups are others still."""
    built = build(model)
    names, reason = DIFFERENT[model]
    layers = infer_layers(built, final_norm="last_block")
    assert [layer.name for layer in layers] == expanded(names), reason
    assert places(built, final_norm="last_block") != groups(built)


@pytest.mark.parametrize("options", [{}, HEADLESS], ids=["whole", "headless"])
@pytest.mark.parametrize("model", VITS)
def test_vit_follows_the_table_of_beit(model: str, options: dict[str, int]) -> None:
    """By default the last norm is the head's, as in the code of BEiT and MAE."""
    built = build(model, **options)
    found = places(built)
    layers = len(built.blocks) + 2
    assert found == {name: beit_table(name, layers) for name in found}


@pytest.mark.parametrize("model", ["beit_base_patch16_224", "beitv2_large_patch16_224"])
def test_beit_follows_its_own_table(model: str) -> None:
    """BEiT's own models have the layers of the code that came with them."""
    built = build(model)
    found = places(built)
    layers = len(built.blocks) + 2
    assert found == {name: beit_table(name, layers) for name in found}


def test_position_biases_that_all_blocks_share_are_in_the_stem() -> None:
    """They stand before the blocks, as timm has it; BEiT's code has them in the head."""
    with torch.device("meta"):
        model = timm.models.beit.Beit(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
    shared = "rel_pos_bias.relative_position_bias_table"
    assert places(model)[shared] == groups(model)[shared] == 0
    assert places(model, final_norm="last_block") == groups(model)


def test_layer_decay_of_vit_tiny_is_that_of_timm() -> None:
    """With its convention, a plan's rule gives each parameter the scale that timm's groups have."""
    model = build("vit_tiny_patch16_224")
    plan = FreezePlan(layers={"final_norm": "last_block"}).layer_decay(decay=0.75)
    phase = plan.resolve(model).at()
    expected = lr_scales(model)
    ours = {name: phase.lr(name, base=1.0) for name in expected}
    assert ours == pytest.approx(expected)
    assert ours["patch_embed.proj.bias"] == pytest.approx(0.023757264, abs=5e-10)
    assert ours["blocks.0.norm1.bias"] == pytest.approx(0.031676352, abs=5e-10)
    assert ours["blocks.11.norm1.bias"] == ours["norm.bias"] == 0.75
    assert ours["head.bias"] == 1.0


def test_layer_decay_of_vit_tiny_differs_from_timm_in_the_last_norm_only() -> None:
    """By default a plan has the last norm with the head, as BEiT has."""
    model = build("vit_tiny_patch16_224")
    phase = FreezePlan().layer_decay(decay=0.75).resolve(model).at()
    expected = lr_scales(model) | {"norm.weight": 1.0, "norm.bias": 1.0}
    ours = {name: phase.lr(name, base=1.0) for name in expected}
    assert ours == pytest.approx(expected)


def lr_scales(model: torch.nn.Module) -> dict[str, float]:
    """The factors that timm's optimizer groups carry, by the names of the parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    made = optim.param_groups_layer_decay(model, layer_decay=0.75)
    return {names[each]: group["lr_scale"] for group in made for each in group["params"]}
