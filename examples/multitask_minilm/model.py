"""MultiTaskMiniLM: one sentence encoder, two linear heads."""

import json
from pathlib import Path

import torch
from config import UserError
from torch import Tensor, nn
from transformers import BertModel


class MultiTaskMiniLM(nn.Module):
    """Classifies a sentence twice: `cls_head` names its topic, `sent_head` its sentiment."""

    def __init__(
        self, backbone: BertModel, topics: int, pooling: str = "mean", normalize: bool = True
    ) -> None:
        """Puts two new heads on an encoder.

        Args:
            backbone: The pre-trained encoder. Its pooler is never used.
            topics: Number of topics.
            pooling: How the token states become one vector: "mean", "cls" or "max".
            normalize: Whether that vector is scaled to length 1.
        """
        super().__init__()
        self.backbone = backbone
        self.cls_head = nn.Linear(backbone.config.hidden_size, topics)
        self.sent_head = nn.Linear(backbone.config.hidden_size, 2)
        self.pooling = pooling
        self.normalize = normalize

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns the sentence embeddings (B, hidden) of token ids and their mask (B, length)."""
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        embedding = pool(output.last_hidden_state, attention_mask, self.pooling)
        return nn.functional.normalize(embedding, dim=1) if self.normalize else embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits of the topics (B, topics) and of the two sentiments (B, 2)."""
        embedding = self.embed(input_ids, attention_mask)
        return self.cls_head(embedding), self.sent_head(embedding)


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Returns one vector per sentence (B, hidden) from its token states (B, length, hidden)."""
    if pooling == "cls":
        return states[:, 0]
    kept = mask.unsqueeze(-1).bool()
    if pooling == "max":
        return states.masked_fill(~kept, -torch.inf).amax(dim=1)
    return states.masked_fill(~kept, 0).sum(dim=1) / kept.sum(dim=1)


def load_backbone(folder: Path) -> BertModel:
    """Returns the encoder in `folder`.

    Raises:
        UserError: If it is not a BERT, or a tensor that the model uses is missing from the weights.
    """
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "bert":
        raise UserError(f"{folder / 'config.json'}: model_type is {kind!r}; expected 'bert'")
    backbone, info = BertModel.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(
            f"{folder / 'model.safetensors'} lacks {len(missing)} tensors of the model, among them "
            f"{missing[0]!r}; they would be random numbers"
        )
    return backbone
