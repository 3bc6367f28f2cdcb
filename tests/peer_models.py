"""The models that the page "Coming from ..." speaks of, small and mostly on the meta device."""

from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import torch
from torch import nn


class Block(nn.Module):
    """A block of a ResNet; where the width changes, a convolution and a norm are on its side."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        if inside != outside:
            conv = nn.Conv2d(inside, outside, 1, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = self.downsample(x) if hasattr(self, "downsample") else x
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + side)


class ConvNet(nn.Module):
    """A ResNet as `backbone`, with the names of torchvision, and a `head`."""

    def __init__(self) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(3, 4, 3, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(4),
        }
        for index, (inside, outside) in enumerate([(4, 4), (4, 8), (8, 12), (12, 16)], start=1):
            parts[f"layer{index}"] = nn.Sequential(Block(inside, outside), Block(outside, outside))
        self.backbone = nn.Sequential(OrderedDict(parts))
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x).mean((2, 3)))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)


class _VitBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width)


class _PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 4, 4)


class ViT(nn.Module):
    """The parameters of timm's `vit_tiny_patch16_224`, by name and rank."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, width))
        self.patch_embed = _PatchEmbed(width)
        self.blocks = nn.Sequential(*(_VitBlock(width) for _ in range(12)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)


class _Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(4, 8), nn.Linear(8, 4)


class _Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.experts = nn.ModuleList(_Expert() for _ in range(4))


class _MoeLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "o_proj": nn.Linear(4, 4)})
        self.mlp = _Experts()


class Moe(nn.Module):
    """A language model of four layers with four experts each, every expert a module."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=4)
        layers = nn.ModuleList(_MoeLayer() for _ in range(4))
        self.model = nn.ModuleDict({"embed_tokens": nn.Embedding(8, 4), "layers": layers})
        self.lm_head = nn.Linear(4, 8, bias=False)


def bert() -> nn.Module:
    """A BERT-base classifier: 12 layers, 201 tensors."""
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig())


def llama() -> nn.Module:
    """A Llama of 12 layers, 111 tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(num_hidden_layers=12, hidden_size=64, intermediate_size=128,
                         num_attention_heads=4, vocab_size=32100)  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "BERT": bert, "Llama": llama, "ViT": ViT, "ResNet": ConvNet, "MoE": Moe,
}  # fmt: skip


@cache
def shared(name: str) -> nn.Module:
    """A model for what only reads it."""
    return MODELS[name]()
