"""Small models of nineteen architectures, with what freezes the lower part of each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from freezekit import AppliedPlan

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
BERT = SIZES | {"max_position_embeddings": 64}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DECODER = SIZES | {
    "num_key_value_heads": 2,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PICTURE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}

Inputs = Callable[[int], dict[str, torch.Tensor]]


class Architecture(NamedTuple):
    """A model without a head, what is frozen in it, and batches for it."""

    kind: str
    config: Mapping[str, Any]
    frozen: tuple[str, ...]
    inputs: Inputs


def text(rows: int) -> dict[str, torch.Tensor]:
    """Returns token ids of rows that are 3 to 12 long, with their mask."""
    lengths = torch.randint(3, 13, (rows,))
    lengths[0] = 12
    mask = (torch.arange(12) < lengths.unsqueeze(1)).long()
    return {"input_ids": torch.randint(3, 120, (rows, 12)) * mask, "attention_mask": mask}


def both(rows: int) -> dict[str, torch.Tensor]:
    """Returns inputs for an encoder with a decoder."""
    return text(rows) | {"decoder_input_ids": torch.randint(3, 120, (rows, 5))}


def picture(rows: int) -> dict[str, torch.Tensor]:
    """Returns images of 32 x 32."""
    return {"pixel_values": torch.randn(rows, 3, 32, 32)}


def lower(stem: str, blocks: str) -> tuple[str, ...]:
    return (stem, f"{blocks}[:2]")


ARCHITECTURES = {
    "bert": Architecture("Bert", BERT | QUIET, lower("embeddings", "encoder.layer"), text),
    "roberta": Architecture("Roberta", BERT | QUIET, lower("embeddings", "encoder.layer"), text),
    "distilbert": Architecture(
        "DistilBert",
        {"vocab_size": 120, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
        | {"dropout": 0.0, "attention_dropout": 0.0},
        lower("embeddings", "transformer.layer"),
        text,
    ),
    "albert": Architecture(
        "Albert",
        BERT | QUIET | {"embedding_size": 16, "num_hidden_groups": 1},
        ("embeddings", "encoder.embedding_hidden_mapping_in"),
        text,
    ),
    "deberta-v2": Architecture(
        "DebertaV2",
        BERT | QUIET | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        ("embeddings", "encoder.rel_embeddings", "encoder.layer[:2]"),
        text,
    ),
    "modernbert": Architecture(
        "ModernBert",
        BERT | {"pad_token_id": 0, "global_attn_every_n_layers": 2, "local_attention": 8},
        lower("embeddings", "layers"),
        text,
    ),
    "llama": Architecture("Llama", DECODER, lower("embed_tokens", "layers"), text),
    "qwen2": Architecture("Qwen2", DECODER, lower("embed_tokens", "layers"), text),
    "mixtral": Architecture(
        "Mixtral",
        DECODER | {"num_local_experts": 2, "num_experts_per_tok": 1},
        lower("embed_tokens", "layers"),
        text,
    ),
    "gpt2": Architecture(
        "GPT2",
        {"vocab_size": 120, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
        | {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False},
        ("wte", "wpe", "h[:2]"),
        text,
    ),
    "t5": Architecture(
        "T5",
        {"vocab_size": 120, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
        | {"dropout_rate": 0.0, "use_cache": False, "decoder_start_token_id": 0},
        ("shared", "encoder.block[:2]"),
        both,
    ),
    "bart": Architecture(
        "Bart",
        {"vocab_size": 120, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48}
        | {"decoder_ffn_dim": 48, "dropout": 0.0, "max_position_embeddings": 64}
        | {"use_cache": False, "pad_token_id": 0},
        ("encoder",),
        both,
    ),
    "vit": Architecture("ViT", PICTURE | QUIET, lower("embeddings", "layers"), picture),
    "dinov2": Architecture(
        "Dinov2",
        PICTURE | QUIET,
        lower("embeddings", "encoder.layer"),
        picture,
    ),
    "beit": Architecture(
        "Beit", PICTURE | QUIET | {"drop_path_rate": 0.0}, lower("embeddings", "layers"), picture
    ),
    "swin": Architecture(
        "Swin",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
        | {"window_size": 4, "drop_path_rate": 0.0},
        ("embeddings", "encoder.layers.0"),
        picture,
    ),
    "resnet": Architecture(
        "ResNet",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
        ("embedder", "encoder.stages.0"),
        picture,
    ),
    "convnext": Architecture(
        "ConvNext",
        {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
        ("embeddings", "encoder.stages.0"),
        picture,
    ),
    "mamba": Architecture(
        "Mamba",
        {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}
        | {"use_cache": False},
        lower("embeddings", "layers"),
        text,
    ),
}


def build(name: str) -> torch.nn.Module:
    """Returns a model with random weights, in train mode."""
    kind, config = ARCHITECTURES[name][:2]
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(**config)
    model: torch.nn.Module = getattr(transformers, f"{kind}Model")(made)
    return model.train()


SPARED = nn.Embedding | nn.Identity | nn.Dropout
"""What may run in a pass that is answered: it costs nothing."""


class Watch:
    """Stands in for the forward of a module and notes its calls."""

    def __init__(self, path: str, forward: Callable[..., object], ran: list[str]) -> None:
        self._path, self._forward, self._ran = path, forward, ran

    def __call__(self, *args: object, **kwargs: object) -> object:
        self._ran.append(self._path)
        return self._forward(*args, **kwargs)


def watched(applied: AppliedPlan, model: nn.Module) -> list[str]:
    """Returns a list of the frozen modules that run, but for those that cost nothing."""
    ran: list[str] = []
    for path, module in model.named_modules():
        parameters = [*module.parameters()]
        frozen = parameters and not any(each.requires_grad for each in parameters)
        if frozen and not isinstance(module, SPARED):
            module.__dict__["forward"] = Watch(path, module.forward, ran)
    return ran
