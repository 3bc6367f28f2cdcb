"""The layers of a model: which there are, in what order, and what belongs to each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from strategies import Tree, trees
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from freezekit import PlanError
from freezekit._automaton import Automaton
from freezekit._layering import Layering
from freezekit._layers import infer_layers, place_layers
from freezekit._names import walk

WIDTH = 8


class Net(nn.Module):
    """Modules as attributes, with a token of its own where asked for."""

    def __init__(self, *, token: bool = False, **children: nn.Module) -> None:
        """Registers the children in the order in which they are given."""
        super().__init__()
        if token:
            self.cls_token = nn.Parameter(torch.zeros(WIDTH))
        for name, child in children.items():
            self.add_module(name, child)


class Block(Net):
    """A class of its own for what is repeated."""


class Stage(Net):
    """A class of its own for what holds blocks."""


class Wrap(Net):
    """A class of its own for what stands around a part of a block."""


class PatchEmbedding(Net):
    """A class that embeds the input, by its name."""


class EmbedNetLayer(Net):
    """A block of a model that has embeddings in its name."""


class ConvNorm(Net):
    """A class that ends in a norm, by its name."""


class NormHead(Net):
    """A head that begins with a norm."""


def linear(inner: int = WIDTH, outer: int = WIDTH) -> nn.Linear:
    return nn.Linear(inner, outer)


def several(build: Callable[[], nn.Module], count: int = 3) -> list[nn.Module]:
    return [build() for _ in range(count)]


def block(width: int = WIDTH) -> nn.Module:
    return Block(mix=linear(width, width), norm=nn.LayerNorm(width))


def stage(width: int) -> nn.Module:
    """Two blocks in a container, between layers that change the width."""
    blocks = nn.ModuleList([Block(mix=block(width), out=linear(width, width)) for _ in range(2)])
    return Stage(enter=linear(WIDTH, width), blocks=blocks, leave=linear(width, WIDTH))


def transformer_block(width: int = WIDTH) -> nn.Module:
    """A block with parts that have parts, as the layers of a transformer."""
    attention = Wrap(query=linear(width, width), out=linear(width, width))
    return Block(norm=nn.LayerNorm(width), attention=attention, mlp=feed_forward())


def feed_forward(width: int = 4 * WIDTH) -> nn.Module:
    return nn.Sequential(linear(WIDTH, width), nn.ReLU(), linear(width, WIDTH))


def attention() -> nn.Module:
    return Wrap(norm=nn.LayerNorm(WIDTH), qkv=linear(), out=nn.Sequential(linear(), nn.Dropout()))


def mlp() -> nn.Module:
    return Net(norm=nn.LayerNorm(WIDTH), net=feed_forward())


def wrapped_layer() -> nn.Module:
    """An attention and a feed-forward, each behind a norm that a wrapper holds."""
    parts = [Net(query=linear(), out=linear()), Net(net=feed_forward())]
    return nn.ModuleList([Wrap(norm=nn.LayerNorm(WIDTH), fn=part) for part in parts])


def residual(inner: int, outer: int) -> nn.Module:
    """A residual block with a projection where the width changes."""
    made = Block(
        conv1=nn.Conv2d(inner, outer, 3, bias=False),
        bn1=nn.BatchNorm2d(outer),
        conv2=nn.Conv2d(outer, outer, 3, bias=False),
        bn2=nn.BatchNorm2d(outer),
    )
    if inner != outer:
        made.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1), nn.BatchNorm2d(outer))
    return made


def resnet(widths: tuple[int, ...], blocks: tuple[int, ...]) -> nn.Module:
    """A ResNet as torchvision builds it."""
    model = Net(conv1=nn.Conv2d(3, widths[0], 7), bn1=nn.BatchNorm2d(widths[0]), relu=nn.ReLU())
    inner = widths[0]
    for number, (outer, count) in enumerate(zip(widths, blocks, strict=True), 1):
        made = [residual(outer if at else inner, outer) for at in range(count)]
        model.add_module(f"layer{number}", nn.Sequential(*made))
        inner = outer
    model.fc = linear(inner, 10)
    return model


def encoder(layers: int = 3) -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True), layers, nn.LayerNorm(WIDTH)
    )


def densenet() -> nn.Module:
    """A DenseNet with two blocks of two layers and what connects them."""

    def layer(inner: int) -> nn.Module:
        return Block(norm1=nn.BatchNorm2d(inner), conv1=nn.Conv2d(inner, 16, 1),
                     norm2=nn.BatchNorm2d(16), conv2=nn.Conv2d(16, 8, 3))  # fmt: skip

    features = Net(
        conv0=nn.Conv2d(3, 8, 7),
        denseblock1=Stage(denselayer1=layer(8), denselayer2=layer(16)),
        transition1=Wrap(norm=nn.BatchNorm2d(24), conv=nn.Conv2d(24, 12, 1)),
        denseblock2=Stage(denselayer1=layer(12), denselayer2=layer(20)),
        transition2=Wrap(norm=nn.BatchNorm2d(28), conv=nn.Conv2d(28, 16, 1)),
        denseblock3=Stage(denselayer1=layer(16)),
        norm5=nn.BatchNorm2d(24),
    )
    return Net(features=features, pool=nn.AdaptiveAvgPool2d(1), classifier=linear(24, 2))


def hub(model: type[PreTrainedModel], config: Any) -> Callable[[], nn.Module]:  # noqa: ANN401
    return lambda: model(config)


def conv_norm(inner: int = WIDTH, outer: int = WIDTH) -> nn.Module:
    return Wrap(conv=nn.Conv2d(inner, outer, 1, bias=False), norm=nn.BatchNorm2d(outer))


def inception(width: int = WIDTH) -> nn.Module:
    """A block of branches, two of which are rows of convolutions."""
    rows = [nn.Sequential(conv_norm(), conv_norm(WIDTH, width)) for _ in range(2)]
    return Block(branch1=conv_norm(), branch2=rows[0], branch3=rows[1])


def unet_stage(count: int) -> nn.Module:
    """A list of attentions, and one of the residual blocks before them."""
    return Stage(
        attentions=nn.ModuleList(several(transformer_block, count)),
        resnets=nn.ModuleList(several(lambda: residual(8, 8), count)),
    )


def mixer(width: int) -> nn.Module:
    """A block of one width with parts that have parts."""
    mix = Wrap(one=linear(width, width), two=linear(width, width))
    return Block(norm=nn.LayerNorm(width), mix=mix)


def unit(*parts: nn.Module) -> nn.Module:
    """A block that runs its parts in order."""
    return Block(**{str(number): part for number, part in enumerate(parts)})


def double(inner: int, outer: int) -> nn.Module:
    """Two convolutions with their norms, in one container."""
    convs = [nn.Conv2d(inner, outer, 3), nn.Conv2d(outer, outer, 3)]
    return nn.Sequential(convs[0], nn.BatchNorm2d(outer), convs[1], nn.BatchNorm2d(outer))


def pair(inner: int, outer: int) -> nn.Module:
    return Net(conv_0=conv_norm(inner, outer), conv_1=conv_norm(outer, outer))


def csp_stage(width: int, count: int) -> nn.Module:
    """A convolution, and a module with blocks between layers of its own."""
    blocks = nn.ModuleList([residual(width, width) for _ in range(count)])
    return nn.Sequential(conv_norm(), Stage(enter=conv_norm(), blocks=blocks, leave=conv_norm()))


def detector() -> nn.Module:
    """A ResNet of two stages, with a pyramid, and a head that is a row of convolutions."""
    body = resnet((16, 16), (2, 2))
    del body.fc
    pyramid = nn.ModuleList(several(lambda: conv_norm(16, 16), 4))
    boxes = Net(layers=nn.Sequential(*several(lambda: residual(16, 16), 2)), out=linear())
    return Net(body=body, pyramid=pyramid, box_head=boxes)


def text(layers: int) -> dict[str, int]:
    return {
        "hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2,
        "intermediate_size": 32, "vocab_size": 40,
    }  # fmt: skip


def bert_with_heads() -> nn.Module:
    heads = nn.ModuleDict({"topic": linear(16, 4), "mood": feed_forward()})
    return Net(backbone=BertModel(BertConfig(**text(2))), dropout=nn.Dropout(), heads=heads)


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, ...]]]] = {
    "one linear": (linear, {"": ("",)}),
    "sequential mlp": (
        lambda: nn.Sequential(linear(), nn.ReLU(), linear(), nn.Dropout(), linear()),
        {"0": ("0",), "2": ("2",), "4": ("4",)},
    ),
    "mlp by hand": (
        lambda: Net(fc1=linear(), norm1=nn.LayerNorm(WIDTH), act=nn.ReLU(), fc2=linear(),
                    out=linear()),
        {"fc1": ("fc1",), "norm1": ("norm1",), "fc2": ("fc2",), "out": ("out",)},
    ),
    "recurrent": (
        lambda: Net(embed=nn.Embedding(9, WIDTH), rnn=nn.LSTM(WIDTH, WIDTH, 2), out=linear()),
        {"embed": ("embed",), "rnn": ("rnn",), "out": ("out",)},
    ),
    "in a single child": (
        lambda: Net(net=Net(fc=linear(), out=linear())),
        {"net.fc": ("net.fc",), "net.out": ("net.out",)},
    ),
    "two containers": (
        lambda: Net(features=nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)),
                    classifier=nn.Sequential(nn.Dropout(), linear())),
        {"features.0": ("features.0",), "features.2": ("features.2",),
         "classifier.1": ("classifier",)},
    ),
    "weight norm": (
        lambda: nn.Sequential(linear(), *several(lambda: weight_norm(linear()), 2), linear()),
        {"0": ("0",), "1": ("1",), "2": ("2",), "3": ("3",)},
    ),
    "convolutions before a transformer": (
        lambda: Net(cnn=nn.Sequential(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.Conv2d(64, 64, 5)),
                    body=encoder(2), out=linear()),
        {"stem": ("cnn",), "body.layers.0": ("body.layers.0",),
         "body.layers.1": ("body.layers.1",), "head": ("body.norm", "out")},
    ),
    "encoder": (
        encoder,
        {"layers.0": ("layers.0",), "layers.1": ("layers.1",), "layers.2": ("layers.2",),
         "head": ("norm",)},
    ),
    "encoder and decoder": (
        lambda: nn.Transformer(WIDTH, 2, 2, 2, 16, batch_first=True),
        {"encoder.layers.0": ("encoder.layers.0",),
         "encoder.layers.1": ("encoder.layers.1", "encoder.norm"),
         "decoder.layers.0": ("decoder.layers.0",), "decoder.layers.1": ("decoder.layers.1",),
         "head": ("decoder.norm",)},
    ),
    "blocks of one sequence": (
        lambda: nn.Sequential(nn.Embedding(9, WIDTH), *several(block), nn.LayerNorm(WIDTH),
                              linear()),
        {"stem": ("0",), "1": ("1",), "2": ("2",), "3": ("3",), "head": ("4", "5")},
    ),
    "up and down": (
        lambda: Net(stem=nn.Conv2d(3, 8, 3), down1=residual(8, 16), down2=residual(16, 32),
                    up1=residual(32, 16), up2=residual(16, 8), out=nn.Conv2d(8, 2, 1)),
        {"stem": ("stem",), "down1": ("down1",), "down2": ("down2",), "up1": ("up1",),
         "up2": ("up2",), "head": ("out",)},
    ),
    "rows at two depths": (
        lambda: Net(front=Net(layers=nn.ModuleList(several(block, 2))), layer1=block(),
                    layer2=block()),
        {"front.layers.0": ("front.layers.0",), "front.layers.1": ("front.layers.1",),
         "layer1": ("layer1",), "layer2": ("layer2",)},
    ),
    "an encoder in a sequence": (
        lambda: nn.Sequential(nn.Embedding(9, WIDTH), encoder(2), linear(), linear()),
        {"stem": ("0",), "1.layers.0": ("1.layers.0",), "1.layers.1": ("1.layers.1",),
         "head": ("1.norm", "2", "3")},
    ),
    "an encoder before a module with parts": (
        lambda: nn.Sequential(encoder(2), Wrap(out=linear())),
        {"0.layers.0": ("0.layers.0",), "0.layers.1": ("0.layers.1",), "head": ("0.norm", "1")},
    ),
    "blocks with a layer between": (
        lambda: nn.Sequential(block(), linear(), block()),
        {"0": ("0", "1"), "2": ("2",)},
    ),
    "two classes of blocks": (
        lambda: Net(embed=linear(), layers=nn.ModuleList(
            [block(), Net(att=linear(), norm=nn.LayerNorm(WIDTH)), block(),
             Net(att=linear(), norm=nn.LayerNorm(WIDTH))]), out=linear()),
        {"stem": ("embed",), "layers.0": ("layers.0",), "layers.1": ("layers.1",),
         "layers.2": ("layers.2",), "layers.3": ("layers.3",), "head": ("out",)},
    ),
    "resnet": (
        lambda: resnet((8, 16, 32, 64), (2, 1, 2, 1)),
        {"stem": ("conv1", "bn1"), "layer1.0": ("layer1.0",), "layer1.1": ("layer1.1",),
         "layer2.0": ("layer2",), "layer3.0": ("layer3.0",), "layer3.1": ("layer3.1",),
         "layer4.0": ("layer4",), "head": ("fc",)},
    ),
    "resnet of one width": (
        lambda: resnet((8, 8), (2, 2)),
        {"stem": ("conv1", "bn1"), "layer1.0": ("layer1.0",), "layer1.1": ("layer1.1",),
         "layer2.0": ("layer2.0",), "layer2.1": ("layer2.1",), "head": ("fc",)},
    ),
    "convolution blocks": (
        lambda: nn.Sequential(*[nn.Sequential(nn.Conv2d(3 * n, 3 * n, 3), nn.BatchNorm2d(3 * n))
                                for n in (1, 2, 3)], nn.Flatten(), linear()),
        {"0": ("0",), "1": ("1",), "2": ("2",), "head": ("4",)},
    ),
    "convolution blocks under a heavier mlp": (
        lambda: Net(features=nn.Sequential(*several(lambda: nn.Sequential(
            nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), 2)),
            classifier=feed_forward()),
        {name: (name,) for name in ("features.0", "features.1", "classifier.0", "classifier.2")},
    ),
    "plain blocks with one part of parts": (
        lambda: nn.Sequential(*several(lambda: nn.Sequential(nn.LayerNorm(WIDTH), block()))),
        {"0": ("0",), "1": ("1",), "2": ("2",)},
    ),
    "inverted residuals": (
        lambda: Net(features=nn.Sequential(*[Block(conv=nn.Sequential(
            Wrap(conv=linear(WIDTH, wide)), Wrap(conv=linear(wide, wide)), linear(wide, WIDTH)))
            for wide in (8, 16, 24)])),
        {"features.0": ("features.0",), "features.1": ("features.1",),
         "features.2": ("features.2",)},
    ),
    "inverted residuals with squeezing": (
        lambda: Net(features=nn.Sequential(*[Block(conv=nn.Sequential(
            Wrap(conv=linear(WIDTH, wide)), Net(squeeze=linear(wide, 2)),
            Wrap(conv=linear(wide, WIDTH)))) for wide in (8, 16, 24)])),
        {"features.0": ("features.0",), "features.1": ("features.1",),
         "features.2": ("features.2",)},
    ),
    "stages of a class": (
        lambda: Net(embed=linear(), stages=nn.ModuleList([stage(16), stage(32)])),
        {"stem": ("embed",), "stages.0.blocks.0": ("stages.0.enter", "stages.0.blocks.0"),
         "stages.0.blocks.1": ("stages.0.blocks.1", "stages.0.leave"),
         "stages.1.blocks.0": ("stages.1.enter", "stages.1.blocks.0"),
         "stages.1.blocks.1": ("stages.1.blocks.1", "stages.1.leave")},
    ),
    "blocks in two wrapped parts": (
        lambda: nn.Sequential(linear(), *several(lambda: nn.Sequential(
            Wrap(norm=nn.LayerNorm(WIDTH), part=linear()),
            Wrap(norm=nn.LayerNorm(WIDTH), part=feed_forward())), 2), linear()),
        {"stem": ("0",), "1": ("1",), "2": ("2",), "head": ("3",)},
    ),
    "attention heads in a list": (
        lambda: Net(embed=linear(), blocks=nn.Sequential(*several(lambda: Block(
            heads=nn.ModuleList(several(lambda: Wrap(key=linear(), query=linear()), 2)),
            feed_forward=feed_forward()))), out=linear()),
        {"stem": ("embed",), "blocks.0": ("blocks.0",), "blocks.1": ("blocks.1",),
         "blocks.2": ("blocks.2",), "head": ("out",)},
    ),
    "attention heads in blocks of several widths": (
        lambda: nn.Sequential(*[Block(
            heads=nn.ModuleList(several(lambda: Wrap(key=linear(), query=linear()), 2)),
            feed_forward=feed_forward(wide)) for wide in (64, 96)]),
        {"0": ("0",), "1": ("1",)},
    ),
    "experts in a list": (
        lambda: nn.Sequential(*several(lambda: Block(mix=linear(), experts=nn.ModuleList(
            several(lambda: Wrap(up=linear(), down=linear()), 4))))),
        {"0": ("0",), "1": ("1",), "2": ("2",)},
    ),
    "experts, and one block without": (
        lambda: Net(blocks=nn.Sequential(
            Block(mix=linear(), feed_forward=Wrap(one=feed_forward())),
            *several(lambda: Block(mix=linear(), feed_forward=Wrap(
                experts=nn.ModuleList(several(lambda: Wrap(up=linear(), down=linear()), 4)))),
                2)), out=linear()),
        {"blocks.0": ("blocks.0",), "blocks.1": ("blocks.1",), "blocks.2": ("blocks.2",),
         "head": ("out",)},
    ),
    "small rows beside the blocks": (
        lambda: Net(front=nn.ModuleList(several(lambda: block(2), 2)), body=nn.ModuleList(
            several(lambda: Block(ff=feed_forward(), norm=nn.LayerNorm(WIDTH)), 2)),
            heads=nn.ModuleList(several(lambda: Wrap(out=linear(WIDTH, 2)), 2))),
        {"stem": ("front",), "body.0": ("body.0",), "body.1": ("body.1",), "head": ("heads",)},
    ),
    "a small tower beside a large one": (
        lambda: Net(eye=Net(patches=linear(), blocks=nn.ModuleList(several(
            lambda: transformer_block(), 2))), body=Net(embed=nn.Embedding(9, 64),
            blocks=nn.ModuleList([transformer_block(256) for _ in range(2)]))),
        {"stem": ("eye.patches", "body.embed"), "eye.blocks.0": ("eye.blocks.0",),
         "eye.blocks.1": ("eye.blocks.1",), "body.blocks.0": ("body.blocks.0",),
         "body.blocks.1": ("body.blocks.1",)},
    ),
    "blocks without numbers": (
        lambda: Net(embed=linear(), body=nn.ModuleDict(
            {"lower": block(), "middle": block(), "upper": block()}), out=linear()),
        {"stem": ("embed",), "body.lower": ("body.lower",), "body.middle": ("body.middle",),
         "body.upper": ("body.upper",), "head": ("out",)},
    ),
    "embeddings registered last": (
        lambda: Net(blocks=nn.ModuleList(several(block, 2)), embed=nn.Embedding(9, WIDTH),
                    out=linear()),
        {"stem": ("embed",), "blocks.0": ("blocks.0",), "blocks.1": ("blocks.1",),
         "head": ("out",)},
    ),
    "embeddings in a sequence registered last": (
        lambda: Net(blocks=nn.ModuleList(several(block, 2)), src_embed=nn.Sequential(
            nn.Embedding(9, WIDTH), Wrap(scale=linear())), out=linear()),
        {"stem": ("src_embed",), "blocks.0": ("blocks.0",), "blocks.1": ("blocks.1",),
         "head": ("out",)},
    ),
    "a head registered before its backbone": (
        lambda: Net(classifier=Net(dense=linear(), out=linear(WIDTH, 2)), body=Net(
            embed=nn.Embedding(9, WIDTH), blocks=nn.ModuleList(several(block, 2)))),
        {"stem": ("body.embed",), "body.blocks.0": ("body.blocks.0",),
         "body.blocks.1": ("body.blocks.1",), "head": ("classifier",)},
    ),
    "a projection before positions and blocks": (
        lambda: Net(project=linear(3, WIDTH), body=Net(
            positions=nn.Embedding(9, WIDTH), blocks=nn.ModuleList(several(block, 2)))),
        {"stem": ("project", "body.positions"), "body.blocks.0": ("body.blocks.0",),
         "body.blocks.1": ("body.blocks.1",)},
    ),
    "convolution blocks in a stem": (
        lambda: Net(stem=nn.Sequential(*several(lambda: Block(one=block(), two=block()), 2)),
                    blocks=nn.Sequential(*several(transformer_block, 2)), out=linear()),
        {"stem": ("stem",), "blocks.0": ("blocks.0",), "blocks.1": ("blocks.1",),
         "head": ("out",)},
    ),
    "a densenet": (
        lambda: densenet(),
        {"stem": ("features.conv0",), "features.denseblock1.denselayer1":
            ("features.denseblock1.denselayer1",), "features.denseblock1.denselayer2":
            ("features.denseblock1.denselayer2", "features.transition1"),
         "features.denseblock2.denselayer1": ("features.denseblock2.denselayer1",),
         "features.denseblock2.denselayer2": ("features.denseblock2.denselayer2",
                                              "features.transition2"),
         "features.denseblock3.denselayer1": ("features.denseblock3",),
         "head": ("features.norm5", "classifier")},
    ),
    "stages of several classes of blocks": (
        lambda: Net(stem=linear(), stages=nn.ModuleList([Stage(blocks=nn.Sequential(
            transformer_block(width), transformer_block(width),
            Net(norm=nn.LayerNorm(width), mix=Wrap(one=linear(width, width)))))
            for width in (8, 16)]), out=linear()),
        {"stem": ("stem",)}
        | {f"stages.{s}.blocks.{b}": (f"stages.{s}.blocks.{b}",) for s in (0, 1) for b in range(3)}
        | {"head": ("out",)},
    ),
    "blocks of two sizes with a row of like parts": (
        lambda: nn.Sequential(*[Block(stack=nn.Sequential(residual(width, width),
            residual(width, width))) for width in (8, 16, 16, 16)]),
        {str(number): (str(number),) for number in range(4)},
    ),
    "blocks with two numbered parts": (
        lambda: nn.Sequential(*[Block(part1=transformer_block(width), mix=linear(),
            part2=transformer_block(width)) for width in (8, 16, 32)]),
        {str(number): (str(number),) for number in range(3)},
    ),
    "blocks of convolutions with norms": (
        lambda: nn.Sequential(*[Block(body=nn.Sequential(
            Wrap(conv=nn.Conv2d(wide, 8, 3), norm=nn.BatchNorm2d(8)),
            Wrap(conv=nn.Conv2d(8, wide, 3), norm=nn.BatchNorm2d(wide))))
            for wide in (8, 16, 24)]),
        {str(number): (str(number),) for number in range(3)},
    ),
    "blocks with several numbers of experts": (
        lambda: nn.Sequential(*[Block(mix=linear(), experts=nn.ModuleList(
            several(lambda: Wrap(up=linear(), down=linear()), count))) for count in (2, 4)]),
        {"0": ("0",), "1": ("1",)},
    ),
    "blocks of two branches": (
        lambda: nn.Sequential(*several(lambda: Block(branches=nn.ModuleList(several(
            lambda: nn.Sequential(transformer_block(), nn.Dropout()), 2)), mix=linear()))),
        {str(number): (str(number),) for number in range(3)},
    ),
    "embeddings of each stage in a list": (
        lambda: Net(embeddings=nn.ModuleList(several(lambda: PatchEmbedding(
            project=linear(), norm=nn.LayerNorm(WIDTH)))), blocks=nn.ModuleList(several(block))),
        {"stem": ("embeddings",), "blocks.0": ("blocks.0",), "blocks.1": ("blocks.1",),
         "blocks.2": ("blocks.2",)},
    ),
    "a stack in a container of one": (
        lambda: Net(towers=nn.ModuleList([Net(embed=nn.Embedding(999, WIDTH),
            blocks=nn.ModuleList(several(transformer_block, 2)))]), out=linear()),
        {"stem": ("towers.0.embed",), "towers.0.blocks.0": ("towers.0.blocks.0",),
         "towers.0.blocks.1": ("towers.0.blocks.1",), "head": ("out",)},
    ),
    "stages of one size": (
        lambda: Net(stem=linear(), stages=nn.ModuleList(several(lambda: Stage(
            layers=nn.ModuleList(several(transformer_block, 2)), conv=linear()), 2))),
        {"stem": ("stem",), "stages.0.layers.0": ("stages.0.layers.0",),
         "stages.0.layers.1": ("stages.0.layers.1", "stages.0.conv"),
         "stages.1.layers.0": ("stages.1.layers.0",),
         "stages.1.layers.1": ("stages.1.layers.1", "stages.1.conv")},
    ),
    "blocks of a model of embeddings": (
        lambda: Net(embed=nn.Embedding(9, WIDTH), layers=nn.ModuleList(several(
            lambda: EmbedNetLayer(norm=nn.LayerNorm(WIDTH), mlp=feed_forward()), 2)),
            pooler=EmbedNetLayer(dense=linear())),
        {"stem": ("embed",), "layers.0": ("layers.0",), "layers.1": ("layers.1",),
         "head": ("pooler",)},
    ),
    "residual blocks of convolutions with weight norm": (
        lambda: Net(layers=nn.ModuleList([Block(body=nn.ModuleList([Wrap(
            conv=weight_norm(linear(wide, wide))) for _ in range(2)]), skip=linear())
            for wide in (8, 16, 24)])),
        {f"layers.{number}": (f"layers.{number}",) for number in range(3)},
    ),
    "stages of shallow blocks that end in a deep one": (
        lambda: Net(network=nn.ModuleList([
            Stage(blocks=nn.ModuleList([residual(8, 8), transformer_block()])),
            PatchEmbedding(project=linear(8, 16), norm=nn.LayerNorm(16)),
            Stage(blocks=nn.ModuleList([residual(16, 16), transformer_block(16)]))])),
        {"network.0.blocks.0": ("network.0.blocks.0",),
         "network.0.blocks.1": ("network.0.blocks.1", "network.1"),
         "network.2.blocks.0": ("network.2.blocks.0",),
         "network.2.blocks.1": ("network.2.blocks.1",)},
    ),
    "a stage that its first layer outweighs": (
        lambda: nn.ModuleList([Stage(enter=linear(wide, WIDTH), blocks=nn.ModuleList(
            several(transformer_block, 2))) for wide in (999, 16, 8)]),
        {"stem": ("0.enter",), "0.blocks.0": ("0.blocks.0",),
         "0.blocks.1": ("0.blocks.1",), "1.blocks.0": ("1.enter", "1.blocks.0"),
         "1.blocks.1": ("1.blocks.1",), "2.blocks.0": ("2.enter", "2.blocks.0"),
         "2.blocks.1": ("2.blocks.1",)},
    ),
    "the first blocks in a stem": (
        lambda: Net(stem=Net(conv=linear(), blocks=nn.ModuleList(several(transformer_block, 2))),
                    blocks=nn.ModuleList(several(lambda: transformer_block(64), 2))),
        {"stem": ("stem.conv",), "stem.blocks.0": ("stem.blocks.0",),
         "stem.blocks.1": ("stem.blocks.1",), "blocks.0": ("blocks.0",),
         "blocks.1": ("blocks.1",)},
    ),
    "layers in several lists": (
        lambda: Net(embed=nn.Embedding(9, WIDTH),
            attentions=nn.ModuleList(several(lambda: Wrap(query=linear(), out=linear()), 2)),
            norms1=nn.ModuleList(several(lambda: nn.LayerNorm(WIDTH), 2)),
            ffns=nn.ModuleList(several(lambda: Block(one=linear(), two=linear()), 2)),
            norms2=nn.ModuleList(several(lambda: nn.LayerNorm(WIDTH), 2)), out=linear()),
        {"stem": ("embed",)}
        | {f"attentions.{n}": tuple(f"{name}.{n}" for name in
            ("attentions", "norms1", "ffns", "norms2")) for n in (0, 1)} | {"head": ("out",)},
    ),
    "blocks with a list of further parts": (
        lambda: Net(layers=nn.ModuleList(several(transformer_block)), scores=nn.ModuleList(
            several(lambda: Wrap(out=Block(one=linear(), two=linear())))), out=linear()),
        {f"layers.{number}": (f"layers.{number}", f"scores.{number}") for number in range(3)}
        | {"head": ("out",)},
    ),
    "blocks of branches without numbers": (
        lambda: Net(conv1=conv_norm(), conv2=conv_norm(), mixed_a=inception(),
                    mixed_b=inception(), reduce=Wrap(branch=nn.Sequential(
                        conv_norm(), conv_norm())), mixed_c=inception(16), fc=linear()),
        {"stem": ("conv1", "conv2"), "mixed_a": ("mixed_a",), "mixed_b": ("mixed_b",),
         "reduce": ("reduce",), "mixed_c": ("mixed_c",), "head": ("fc",)},
    ),
    "stages of a layer and a module with blocks": (
        lambda: Net(conv=conv_norm(), stages=nn.Sequential(
            csp_stage(8, 1), csp_stage(16, 2), csp_stage(32, 2)), fc=linear()),
        {"stem": ("conv",), "stages.0": ("stages.0",),
         "stages.1.1.blocks.0": ("stages.1.0", "stages.1.1.enter", "stages.1.1.blocks.0"),
         "stages.1.1.blocks.1": ("stages.1.1.blocks.1", "stages.1.1.leave"),
         "stages.2.1.blocks.0": ("stages.2.0", "stages.2.1.enter", "stages.2.1.blocks.0"),
         "stages.2.1.blocks.1": ("stages.2.1.blocks.1", "stages.2.1.leave"), "head": ("fc",)},
    ),
    "stages of a block and a block that holds blocks": (
        lambda: Net(conv=conv_norm(), stages=nn.Sequential(
            nn.Sequential(residual(8, 8), residual(8, 8)), nn.Sequential(residual(8, 16),
            Stage(enter=linear(), blocks=nn.Sequential(*several(transformer_block, 2))))),
            fc=linear()),
        {"stem": ("conv",), "stages.0.0": ("stages.0.0",), "stages.0.1": ("stages.0.1",),
         "stages.1.0": ("stages.1.0",), "stages.1.1": ("stages.1.1",), "head": ("fc",)},
    ),
    "a pyramid and a head behind the blocks": (
        detector,
        {"stem": ("body.conv1", "body.bn1"), "body.layer1.0": ("body.layer1.0",),
         "body.layer1.1": ("body.layer1.1",), "body.layer2.0": ("body.layer2.0",),
         "body.layer2.1": ("body.layer2.1",), "head": ("pyramid", "box_head")},
    ),
    "layers of an attention and a feed-forward in like wrappers": (
        lambda: Net(patches=linear(), layers=nn.ModuleList(several(wrapped_layer)), out=linear()),
        {"stem": ("patches",), "layers.0": ("layers.0",), "layers.1": ("layers.1",),
         "layers.2": ("layers.2",), "head": ("out",)},
    ),
    "one layer of an attention and a feed-forward in like wrappers": (
        lambda: Net(patches=nn.Sequential(nn.LayerNorm(WIDTH), linear()),
                    layers=nn.ModuleList([wrapped_layer()]), out=linear()),
        {"stem": ("patches",), "layers.0": ("layers",), "head": ("out",)},
    ),
    "one layer of an attention and a feed-forward": (
        lambda: Net(patches=nn.Sequential(nn.LayerNorm(WIDTH), linear()),
                    layers=nn.ModuleList([nn.ModuleList([attention(), mlp()])]), out=linear()),
        {"stem": ("patches",), "layers.0": ("layers",), "head": ("out",)},
    ),
    "one stage of residual blocks": (
        lambda: Net(conv=conv_norm(), stages=nn.ModuleList([nn.Sequential(
            residual(8, 16), residual(16, 16))]), fc=linear()),
        {"stem": ("conv",), "stages.0.0": ("stages.0.0",), "stages.0.1": ("stages.0.1",),
         "head": ("fc",)},
    ),
    "a resnet behind what has no parameters": (
        lambda: nn.Sequential(nn.Identity(), resnet((8, 8), (2, 1))),
        {"stem": ("1.conv1", "1.bn1"), "1.layer1.0": ("1.layer1.0",),
         "1.layer1.1": ("1.layer1.1",), "1.layer2.0": ("1.layer2",), "head": ("1.fc",)},
    ),
    "one block with two parts of one name": (
        lambda: Net(embed=linear(), layers=nn.ModuleList([Block(
            ff1=mlp(), attention=attention(), ff2=mlp(), norm=nn.LayerNorm(WIDTH))]),
            out=linear()),
        {"stem": ("embed",), "layers.0": ("layers",), "head": ("out",)},
    ),
    "a bottleneck built as the blocks are": (
        lambda: Net(encoder1=double(3, 16), encoder2=double(16, 16), bottleneck=double(16, 32),
                    up2=nn.ConvTranspose2d(32, 16, 2), decoder2=double(32, 16),
                    up1=nn.ConvTranspose2d(16, 8, 2), decoder1=double(16, 8),
                    out=nn.Conv2d(8, 1, 1)),
        {"encoder1": ("encoder1",), "encoder2": ("encoder2",),
         "bottleneck": ("bottleneck", "up2"), "decoder2": ("decoder2", "up1"),
         "decoder1": ("decoder1",), "head": ("out",)},
    ),
    "what the blocks hold, before them": (
        lambda: Net(enter=pair(3, 8), down1=Stage(convs=pair(8, 16)),
                    down2=Stage(convs=pair(16, 32)), out=nn.Conv2d(32, 1, 1)),
        {"stem": ("enter",), "down1": ("down1",), "down2": ("down2",), "head": ("out",)},
    ),
    "residual blocks of two convolutions between convolutions": (
        lambda: Net(conv1=conv_norm(3, 8), conv2=conv_norm(8, 16),
                    res1=nn.Sequential(conv_norm(16, 16), conv_norm(16, 16)),
                    conv3=conv_norm(16, 32), conv4=conv_norm(32, 64),
                    res2=nn.Sequential(conv_norm(64, 64), conv_norm(64, 64)), fc=linear(64)),
        {name: (name,) for name in ("conv1", "conv2", "res1", "conv3", "conv4", "res2")}
        | {"head": ("fc",)},
    ),
    "a row behind the stages": (
        lambda: Net(enter=linear(), encoder1=Stage(blocks=nn.Sequential(
            *several(lambda: residual(8, 8), 2))), encoder2=Stage(blocks=nn.Sequential(
            *several(lambda: residual(8, 8)))), decoder2=Wrap(up=linear(), block=residual(8, 8)),
            decoder1=Wrap(up=linear(), block=residual(8, 8))),
        {"stem": ("enter",)}
        | {f"encoder1.blocks.{n}": (f"encoder1.blocks.{n}",) for n in range(2)}
        | {f"encoder2.blocks.{n}": (f"encoder2.blocks.{n}",) for n in range(3)}
        | {"decoder2": ("decoder2",), "decoder1": ("decoder1",)},
    ),
    "layers beside numbered heads": (
        lambda: Net(conv1=nn.Conv2d(3, 32, 5), conv2=nn.Conv2d(32, 32, 5),
                    head1=feed_forward(), head2=feed_forward()),
        {name: (name,) for name in ("conv1", "conv2", "head1", "head2")},
    ),
    "stages that are lists in a list": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ModuleList([nn.ModuleList(
            [transformer_block(width), transformer_block(width)]) for width in (8, 16, 24)]),
            linear()),
        {"stem": ("0",)}
        | {f"1.{stage}.{n}": (f"1.{stage}.{n}",) for stage in range(3) for n in range(2)}
        | {"head": ("2",)},
    ),
    "layers around the blocks in one sequence": (
        lambda: Net(features=nn.Sequential(conv_norm(), *several(lambda: residual(8, 8)),
                    conv_norm()), out=linear()),
        {"stem": ("features.0",)} | {f"features.{n}": (f"features.{n}",) for n in (1, 2, 3)}
        | {"head": ("features.4", "out")},
    ),
    "layers before and between the stages of one sequence": (
        lambda: Net(features=nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 4), nn.LayerNorm(8)),
            nn.Sequential(*several(transformer_block, 2)), Wrap(norm=nn.LayerNorm(8),
            reduce=linear()), nn.Sequential(transformer_block(16), transformer_block(16))),
            out=linear()),
        {"stem": ("features.0",), "features.1.0": ("features.1.0",),
         "features.1.1": ("features.1.1",), "features.2": ("features.2",),
         "features.3.0": ("features.3.0",), "features.3.1": ("features.3.1",), "head": ("out",)},
    ),
    "heads for what each block gives": (
        lambda: Net(layers=nn.ModuleList(several(transformer_block)), boxes=nn.ModuleList(
            several(lambda: Wrap(one=linear(WIDTH, 1), two=linear(WIDTH, 1))))),
        {f"layers.{number}": (f"layers.{number}",) for number in range(3)}
        | {"head": ("boxes",)},
    ),
    "blocks of which only one has a norm": (
        lambda: Net(layers=nn.ModuleList([block(), Block(one=linear(), two=linear())])),
        {"layers.0": ("layers.0",), "layers.1": ("layers.1",)},
    ),
    "stages of residual blocks and attentions in two lists": (
        lambda: Net(enter=linear(), down=nn.ModuleList([unet_stage(2), unet_stage(2)]),
                    up=nn.ModuleList([unet_stage(3), unet_stage(3)]),
                    mid=Stage(attentions=nn.ModuleList([transformer_block()]),
                              resnets=nn.ModuleList(several(lambda: residual(8, 8), 2))),
                    out=linear()),
        {"stem": ("enter",)}
        | {f"{name}.{s}.attentions.{n}": (f"{name}.{s}.attentions.{n}", f"{name}.{s}.resnets.{n}")
           for name, count in (("down", 2), ("up", 3)) for s in (0, 1) for n in range(count)}
        | {"mid.attentions.0": ("mid.attentions",)}
        | {f"mid.resnets.{n}": (f"mid.resnets.{n}",) for n in (0, 1)} | {"head": ("out",)},
    ),
    "blocks in a group in a stage": (
        lambda: Net(enter=linear(), layers=nn.ModuleList(several(lambda: Stage(
            group=Net(blocks=nn.ModuleList(several(transformer_block, 2))), conv=linear()), 2)),
            out=linear()),
        {"stem": ("enter",), "layers.0.group.blocks.0": ("layers.0.group.blocks.0",),
         "layers.0.group.blocks.1": ("layers.0.group.blocks.1", "layers.0.conv"),
         "layers.1.group.blocks.0": ("layers.1.group.blocks.0",),
         "layers.1.group.blocks.1": ("layers.1.group.blocks.1", "layers.1.conv"),
         "head": ("out",)},
    ),
    "stages each in a container of one": (
        lambda: Net(enter=linear(), **{f"layers{n}": nn.ModuleList([Stage(
            blocks=nn.ModuleList([mixer(width), mixer(width)]), reduce=linear(width, width))])
            for n, width in enumerate((16, 24, 32), 1)}),
        {"stem": ("enter",)}
        | {f"layers{n}.0.blocks.{at}": (f"layers{n}.0.blocks.{at}",)
           + ((f"layers{n}.0.reduce",) if at else ()) for n in (1, 2, 3) for at in (0, 1)},
    ),
    "several towers in a list": (
        lambda: nn.ModuleList(several(lambda: Net(embed=nn.Embedding(9, WIDTH), body=encoder(2)))),
        {str(number): (str(number),) for number in range(3)},
    ),
    "a middle of the class of the blocks": (
        lambda: Net(enter=linear(), down=nn.ModuleList(several(lambda: unit(mixer(8)), 2)),
                    middle=unit(mixer(8), transformer_block(), mixer(8)),
                    up=nn.ModuleList(several(lambda: unit(mixer(8), linear()), 2)), out=linear()),
        {"stem": ("enter",), "down.0": ("down.0",), "down.1": ("down.1",), "middle": ("middle",),
         "up.0": ("up.0",), "up.1": ("up.1",), "head": ("out",)},
    ),
    "bert with heads": (
        bert_with_heads,
        {"stem": ("backbone.embeddings",),
         "backbone.encoder.layer.0": ("backbone.encoder.layer.0",),
         "backbone.encoder.layer.1": ("backbone.encoder.layer.1",),
         "head": ("backbone.pooler", "heads")},
    ),
    "bert of one layer": (
        hub(BertModel, BertConfig(**text(1))),
        {"stem": ("embeddings",), "encoder.layer.0": ("encoder",), "head": ("pooler",)},
    ),
    "distilbert": (
        hub(DistilBertForSequenceClassification,
            DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=40)),
        {"stem": ("distilbert.embeddings",),
         "distilbert.transformer.layer.0": ("distilbert.transformer.layer.0",),
         "distilbert.transformer.layer.1": ("distilbert.transformer.layer.1",),
         "head": ("pre_classifier", "classifier")},
    ),
    "gpt-2, tied": (
        hub(GPT2LMHeadModel, GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40)),
        {"stem": ("transformer.wte", "transformer.wpe"), "transformer.h.0": ("transformer.h.0",),
         "transformer.h.1": ("transformer.h.1",), "head": ("transformer.ln_f",)},
    ),
    "llama": (
        hub(LlamaForCausalLM, LlamaConfig(**text(2), num_key_value_heads=1)),
        {"stem": ("model.embed_tokens",), "model.layers.0": ("model.layers.0",),
         "model.layers.1": ("model.layers.1",), "head": ("model.norm", "lm_head")},
    ),
    "vit": (
        hub(ViTForImageClassification, ViTConfig(**{**text(2), "image_size": 8, "patch_size": 4})),
        {"stem": ("vit.embeddings",), "vit.layers.0": ("vit.layers.0",),
         "vit.layers.1": ("vit.layers.1",), "head": ("vit.layernorm", "classifier")},
    ),
    "t5": (
        hub(T5ForConditionalGeneration,
            T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=40)),
        {"stem": ("shared",), "encoder.block.0": ("encoder.block.0",),
         "encoder.block.1": ("encoder.block.1", "encoder.final_layer_norm"),
         "decoder.block.0": ("decoder.block.0",), "decoder.block.1": ("decoder.block.1",),
         "head": ("decoder.final_layer_norm",)},
    ),
    "swin": (
        hub(SwinModel, SwinConfig(embed_dim=8, depths=[1, 2], num_heads=[1, 2], image_size=16)),
        {"stem": ("embeddings",),
         "encoder.layers.0.blocks.0": ("encoder.layers.0",),
         "encoder.layers.1.blocks.0": ("encoder.layers.1.blocks.0",),
         "encoder.layers.1.blocks.1": ("encoder.layers.1.blocks.1",),
         "head": ("layernorm",)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "expected"), MODELS.values(), ids=MODELS.keys())
def test_layers_of_common_models(
    build: Callable[[], nn.Module], expected: dict[str, tuple[str, ...]]
) -> None:
    """Each model has the layers that a person would name, with the modules that belong to them."""
    with torch.device("meta"):
        layers = infer_layers(build())
    assert {layer.name: layer.modules for layer in layers} == expected
    assert [layer.name for layer in layers] == list(expected)


@given(trees())
def test_every_parameter_is_in_one_layer(tree: Tree) -> None:
    """Layers share out the parameters: each once, indices from 0, names and modules unique."""
    model = tree.build()
    tensors = dict(model.named_parameters())
    layers = infer_layers(model)
    shared_out = [name for layer in layers for name in layer.parameter_names]
    assert sorted(shared_out) == sorted(tensors)
    assert [layer.index for layer in layers] == list(range(len(layers)))
    assert len({layer.name for layer in layers}) == len(layers)
    for layer in layers:
        assert layer.numel == sum(tensors[name].numel() for name in layer.parameter_names)
        assert layer.parameter_names == tuple(n for n in tensors if n in layer.parameter_names)
    modules = [path for layer in layers for path in layer.modules]
    assert len(set(modules)) == len(modules)


@given(trees())
def test_modules_are_the_largest_that_lie_in_the_layer(tree: Tree) -> None:
    """A layer's modules are those whose parameters are all in it and whose parent's are not."""
    model = tree.build()
    names = list(dict(model.named_parameters()))
    for layer in infer_layers(model):
        below = {
            path: {name for name in names if name.startswith(f"{path}.".lstrip("."))}
            for path, _ in model.named_modules()
        }
        whole = {path for path, inside in below.items() if inside} & {
            path for path, inside in below.items() if inside <= set(layer.parameter_names)
        }
        largest = {path for path in whole if not path or path.rpartition(".")[0] not in whole}
        assert set(layer.modules) == largest


@given(trees())
def test_layer_ids_are_those_of_the_layers(tree: Tree) -> None:
    """The resolver's view, an index per parameter, is the same division."""
    model = tree.build()
    walked = walk(model, Automaton([], []))
    found = dict(zip(walked.tree.names, place_layers(walked, Layering())[0].places, strict=True))
    layers = infer_layers(model)
    assert found == {name: layer.index for layer in layers for name in layer.parameter_names}


CLOSINGS = {
    "vit": (lambda: {"norm": nn.LayerNorm(WIDTH), "head": linear()}, {"norm"}),
    "vit that pools": (
        lambda: {"norm": nn.Identity(), "fc_norm": nn.LayerNorm(WIDTH), "head": linear()},
        set(),
    ),
    "efficientnet": (
        lambda: {
            "conv_head": nn.Conv2d(8, 8, 1), "bn2": nn.BatchNorm2d(8),
            "global_pool": nn.AdaptiveAvgPool2d(1), "classifier": linear(),
        },
        {"conv_head", "bn2"},
    ),
    "mobilenet": (
        lambda: {
            "global_pool": nn.AdaptiveAvgPool2d(1), "conv_head": nn.Conv2d(8, 8, 1),
            "norm_head": nn.BatchNorm2d(8), "classifier": linear(),
        },
        set(),
    ),
    "convnext": (
        lambda: {"head": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.LayerNorm(8), linear())},
        set(),
    ),
    "a norm behind the pooling": (
        lambda: {"pool": nn.AdaptiveAvgPool1d(1), "norm": nn.LayerNorm(8), "out": linear()},
        set(),
    ),
    "a head that begins with a norm": (
        lambda: {"out": NormHead(norm=nn.LayerNorm(8), fc=linear())},
        set(),
    ),
    "a head before the norm": (
        lambda: {"aux_head": linear(WIDTH, 3), "norm": nn.LayerNorm(WIDTH), "head": linear()},
        {"norm"},
    ),
    "a norm over more than the last block": (
        lambda: {"norm": nn.LayerNorm(3 * WIDTH), "head": linear(3 * WIDTH)},
        set(),
    ),
    "a module that ends in a norm": (
        lambda: {
            "last": ConvNorm(conv=nn.Conv2d(8, 12, 1), norm=nn.BatchNorm2d(12)),
            "fc": linear(12),
        },
        {"last"},
    ),
    "no norm": (lambda: {"pool": nn.Identity(), "head": linear()}, set()),
}  # fmt: skip


@pytest.mark.parametrize(("build", "expected"), CLOSINGS.values(), ids=CLOSINGS.keys())
def test_what_ends_the_last_block(
    build: Callable[[], dict[str, nn.Module]], expected: set[str]
) -> None:
    """The norm behind the blocks, and what leads to it, is theirs where timm has it so."""
    after = build()
    blocks = nn.Sequential(*several(transformer_block))
    model = Net(patches=linear(), blocks=blocks, **after)
    with_parameters = {name for name, module in after.items() if list(module.parameters())}
    head = infer_layers(model)[-1]
    assert {path.partition(".")[0] for path in head.modules} == with_parameters
    layers = {layer.name: layer.modules for layer in infer_layers(model, final_norm="last_block")}
    assert set(layers["blocks.2"]) == {"blocks.2"} | expected
    found = {path.partition(".")[0] for path in layers.get("head", ())}
    assert found == with_parameters - expected


def test_a_norm_over_more_than_the_last_layer_is_the_heads() -> None:
    """A DenseNet's last norm takes in more than the last layer."""
    assert infer_layers(densenet(), final_norm="last_block") == infer_layers(densenet())


def test_stages_beside_their_norm_have_it_in_the_last_block() -> None:
    """A norm of the width of the last block ends it, also where it stands in a row with stages."""
    stages = {f"stage{n}": nn.Sequential(*several(transformer_block, 2)) for n in (1, 2)}
    model = Net(patches=linear(), **stages, norm=nn.LayerNorm(WIDTH), head=linear())
    layers = {layer.name: layer.modules for layer in infer_layers(model, final_norm="last_block")}
    assert layers["stage2.1"] == ("stage2.1", "norm")
    assert layers["head"] == ("head",)


def test_layers_by_stage() -> None:
    """A stage is a layer; a model without stages keeps its blocks."""
    model = resnet((8, 16, 32), (2, 1, 2))
    assert [layer.name for layer in infer_layers(model, by="stage")] == [
        "stem", "layer1", "layer2", "layer3", "head",
    ]  # fmt: skip
    assert infer_layers(encoder(), by="stage") == infer_layers(encoder())


@pytest.mark.parametrize("given", [{"by": "depth"}, {"final_norm": "stem"}])
def test_unknown_values_are_refused(given: dict[str, Any]) -> None:
    """The error quotes the value and says which there are."""
    with pytest.raises(PlanError, match=next(iter(given.values()))):
        infer_layers(encoder(), **given)


def test_a_block_may_have_the_name_of_another_layer() -> None:
    """Names stay unique where a block is called "head"."""
    model = Net(embed=linear(), body=block(), head=block(), out=linear())
    names = [layer.name for layer in infer_layers(model)]
    assert names == ["stem", "body", "head", "head (rest)"]


def test_own_parameters_above_the_blocks_are_in_the_stem() -> None:
    """A class token of the model stands before its first block."""
    blocks = nn.ModuleList(several(block))
    layers = infer_layers(Net(token=True, patch=linear(), blocks=blocks, out=linear()))
    assert [layer.name for layer in layers] == ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert layers[0].parameter_names == ("cls_token", "patch.weight", "patch.bias")
    assert layers[0].modules == ("patch",)
    assert layers[0].numel == WIDTH + WIDTH * WIDTH + WIDTH


def test_own_parameters_above_layers_without_blocks_are_in_the_first() -> None:
    """Where there is no stem, what stands before the first layer belongs to it."""
    layers = infer_layers(Net(net=Net(token=True, fc=linear(), out=linear())))
    assert [layer.name for layer in layers] == ["net.fc", "net.out"]
    assert layers[0].parameter_names == ("net.cls_token", "net.fc.weight", "net.fc.bias")


def test_what_stands_between_two_towers_joins_its_own() -> None:
    """A norm joins the block with which it shares more of its path; embeddings are stem."""
    config = CLIPConfig(
        text_config=text(2), vision_config={**text(2), "image_size": 8, "patch_size": 4}
    )
    with torch.device("meta"):
        layers = {layer.name: layer for layer in infer_layers(CLIPModel(config))}
    last_text = layers["text_model.encoder.layers.1"]
    assert "text_model.final_layer_norm" in last_text.modules
    first_seen = layers["vision_model.encoder.layers.0"]
    assert first_seen.modules[0] == "vision_model.pre_layrnorm"
    assert "vision_model.embeddings" in layers["stem"].modules
    assert "logit_scale" in layers["stem"].parameter_names


def test_what_stands_between_equals_joins_the_block_before() -> None:
    """A module between two stacks of the same depth belongs to what came before it."""
    model = Net(
        one=nn.ModuleList(several(block, 2)), bridge=linear(), two=nn.ModuleList(several(block, 2))
    )
    layers = {layer.name: layer.modules for layer in infer_layers(model)}
    assert layers["one.1"] == ("one.1", "bridge")
    assert layers["two.0"] == ("two.0",)


def test_a_tied_parameter_is_in_the_layer_of_its_first_name() -> None:
    """The weight that the output shares with the embedding is the embedding's."""
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40))
    layers = infer_layers(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "transformer.wte.weight" in layers[0].parameter_names
    assert not any("lm_head.weight" in layer.parameter_names for layer in layers)
    assert sum(layer.numel for layer in layers) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
    ],
    ids=["DataParallel", "AveragedModel", "compile"],
)
def test_wrappers_change_nothing(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """A wrapped model has the layers, and the names, of the model inside."""
    model = resnet((8, 16), (2, 2))
    assert infer_layers(wrap(model)) == infer_layers(model)


def test_wrapped_blocks_are_blocks() -> None:
    """A checkpoint wrapper around each block changes no name."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    plain = nn.Sequential(linear(), *several(block), linear())
    expected = infer_layers(plain)
    for number in range(1, 4):
        plain[number] = checkpoint_wrapper(plain[number])
    assert infer_layers(plain) == expected


def test_a_lazy_parameter_counts_nothing_yet() -> None:
    """A parameter without a shape is in its layer, with no elements."""
    layers = infer_layers(nn.Sequential(nn.LazyLinear(3), nn.ReLU(), linear(3, 2)))
    assert [(layer.name, layer.numel) for layer in layers] == [("0", 0), ("2", 8)]


def test_a_model_without_parameters_has_no_layers() -> None:
    """Where there is nothing to freeze there is no layer."""
    assert infer_layers(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3, affine=False))) == ()


def test_infer_layers_reads_only() -> None:
    """Flags, modes and tensors are left as they are."""
    model = resnet((8, 16), (2, 2)).eval()
    model.conv1.requires_grad_(False)
    before = [(id(p), p.requires_grad, p._version) for p in model.parameters()]
    infer_layers(model)
    assert [(id(p), p.requires_grad, p._version) for p in model.parameters()] == before
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("given", [{"a": linear()}, nn.Linear, None])
def test_what_is_no_module_is_refused(given: object) -> None:
    """The error names the type it got."""
    with pytest.raises(PlanError) as caught:
        infer_layers(given)
    assert str(caught.value) == f"expected a torch.nn.Module, got {type(given).__name__}"
