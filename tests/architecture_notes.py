"""What is known of single architectures of transformers: settings, counts, weaknesses."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

NEEDS = {
    "timm": (
        "edgetam", "edgetam_vision_model", "fast_vlm", "gemma3n", "pe_audio_video",
        "pe_audio_video_encoder", "pe_video", "pe_video_encoder", "perception_lm",
        "timm_backbone", "timm_wrapper", "gemma3n_vision",
    ),
    "torchaudio": ("higgs_audio_v2_tokenizer",),
    "natten": ("dinat",),
    "detectron2": ("layoutlmv2",),
}  # fmt: skip
"""Model types that only build with a library that is not among the test dependencies."""

_RESNET = {
    "use_timm_backbone": False,
    "backbone": None,
    "backbone_config": {
        "model_type": "resnet",
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}
_SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_attention_heads": 16}

_LENGTH = {"prediction_length": 24}
_IMAGE = {"vocabulary_map": {"<image>": 4}}
_WIDTH = {"head_dim": 128}

FIXES: dict[str, dict[str, Any]] = {
    "autoformer": _LENGTH,
    "aya_vision": {"vision_config": _SIGLIP},
    "chameleon": _IMAGE,
    "conditional_detr": _RESNET,
    "dab-detr": _RESNET,
    "deformable_detr": _RESNET,
    "detr": _RESNET,
    "emu3": _IMAGE,
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "hunyuan_v1_dense": _WIDTH,
    "hunyuan_v1_moe": _WIDTH,
    "hunyuan_vl": {"text_config": _WIDTH},
    "hunyuan_vl_text": _WIDTH,
    "informer": _LENGTH,
    "lfm2_moe": {"layer_types": ["conv"] * 32},
    "ministral": _WIDTH,
    "nemotron": {"num_key_value_heads": 8},
    "omdet-turbo": _RESNET,
    "table-transformer": _RESNET,
    "time_series_transformer": _LENGTH,
}
"""What the default configuration of a model type lacks."""

_PASSES = "counts passes; the blocks are shared"
_RECOGNITION = "counts blocks of the recognition head, which the base model has not"

SAYS: dict[str, tuple[Callable[[Any], int], str]] = {
    "AlbertConfig.num_hidden_layers": (lambda config: config.num_hidden_groups, _PASSES),
    "ClapConfig.num_hidden_layers": (lambda _: 0, "adds the stages of one tower to the other"),
    "EfficientNetConfig.num_hidden_layers": (
        lambda config: sum(ceil(config.depth_coefficient * n) for n in config.num_block_repeats),
        "does not count as the model builds: each number of repeats is scaled and rounded up",
    ),
    "HrmTextConfig.num_hidden_layers": (lambda config: config.num_layers_per_stack, _PASSES),
    "JanusVQVAEConfig.num_hidden_layers": (lambda _: 0, "is not used by the model"),
    "LongcatFlashConfig.num_hidden_layers": (
        lambda config: config.num_layers, "counts the two attentions of each block"
    ),
    "Mask2FormerConfig.decoder_layers": (
        lambda config: config.decoder_layers - 1, "counts the prediction before the first block"
    ),
    "OneFormerConfig.decoder_layers": (
        lambda config: config.decoder_layers - 1, "counts the prediction before the first block"
    ),
    "PPOCRV5MobileRecConfig.num_hidden_layers": (lambda _: 0, _RECOGNITION),
    "PPOCRV5ServerRecConfig.num_hidden_layers": (lambda _: 0, _RECOGNITION),
    "PPOCRV6SmallRecConfig.num_hidden_layers": (lambda _: 0, _RECOGNITION),
    "UVDocBackboneConfig.depths": (lambda _: 0, "is not used by the model"),
}  # fmt: skip
"""Numbers that count something else than blocks: how many blocks there are, and what is counted."""

_HALVES = "attention and feed-forward are members of one row: each is a block of its own"
_LATE = "the first convolution of the audio tower is registered after its blocks"
EXCEPTIONS = {
    "CsmForConditionalGeneration": "the head of the backbone is registered before the other towers",
    "InklingModel": "the layers of the vision tower are projections, each one weight with a norm",
    "LevitForImageClassification": _HALVES,
    "LevitForImageClassificationWithTeacher": _HALVES,
    "LevitModel": _HALVES,
    "Lfm3VlModel": "the patch embedding of the second tower, a plain linear layer, joins a block",
    "OmniASRForCTC": "the head is registered before the backbone and lies in the stem",
    "Qwen3ASREncoder": _LATE,
    "Qwen3ASRForConditionalGeneration": _LATE,
    "Qwen3ASRForTokenClassification": _LATE,
    "Qwen3ASRModel": _LATE,
    "Qwen3OmniMoeThinkerModel": _LATE,
}
"""Classes whose layers break an invariant, and why."""
