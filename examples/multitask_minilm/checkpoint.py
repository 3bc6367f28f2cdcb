"""Saves a trained model with all that is needed to use it again, and loads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data import SENTIMENTS
from model import MultiTaskMiniLM
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase


@dataclass
class Checkpoint:
    """A trained model, its tokenizer, and the settings and the plan it was trained under."""

    model: MultiTaskMiniLM
    tokenizer: PreTrainedTokenizerBase
    topics: list[str]
    plan: dict[str, Any]
    config: dict[str, Any]

    @torch.no_grad()
    def predict(self, texts: list[str]) -> list[tuple[str, str]]:
        """Returns the topic and the sentiment of each text."""
        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.config["training"]["max_length"],
            return_tensors="pt",
        )
        topic, sentiment = self.model(tokens["input_ids"], tokens["attention_mask"])
        pairs = zip(topic.argmax(dim=1).tolist(), sentiment.argmax(dim=1).tolist(), strict=True)
        return [(self.topics[t], SENTIMENTS[s]) for t, s in pairs]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `model.pt` and the tokenizer's files to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.tokenizer.save_pretrained(folder)
    content = {
        "state": checkpoint.model.state_dict(),
        "backbone": checkpoint.model.backbone.config.to_dict(),
        "topics": checkpoint.topics,
        "plan": checkpoint.plan,
        "config": checkpoint.config,
    }
    torch.save(content, folder / "model.pt")


def load_checkpoint(folder: Path) -> Checkpoint:
    """Returns what `save_checkpoint` wrote, the model in evaluation mode.

    Which parameters were frozen is not part of a state dict: apply
    `FreezePlan.from_dict(checkpoint.plan)` to train on.
    """
    content = torch.load(folder / "model.pt", weights_only=True)
    config = content["config"]
    model = MultiTaskMiniLM(
        BertModel(BertConfig.from_dict(content["backbone"])),
        len(content["topics"]),
        config["model"]["pooling"],
        config["model"]["normalize"],
    )
    model.load_state_dict(content["state"])
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Checkpoint(model.eval(), tokenizer, content["topics"], content["plan"], config)
