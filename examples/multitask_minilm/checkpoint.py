"""Saves a trained model to be used again, and a run half done to be gone on with; loads both."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from config import UserError
from data import SENTIMENTS
from model import MultiTaskMiniLM
from processes import Processes
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
    content = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
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


class Stateful(Protocol):
    """A model, an optimizer, an LR scheduler, an applied plan."""

    def state_dict(self) -> dict[str, Any]:
        """Returns its state."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Takes the state back."""


@dataclass
class Progress:
    """A run half done: what a later process needs to go on exactly as this one would.

    Attributes:
        file: where it is saved.
        settings: what both processes must have in common, by section and key.
        parts: what training changes. The applied plan is the first: it refuses another plan.
        generators: what training draws from, in this process.
        epochs: the metrics of each epoch that is done.
        processes: the processes of the run; each calls `save` and `load`, the first one writes.
    """

    file: Path
    settings: dict[str, dict[str, Any]]
    parts: dict[str, Stateful]
    generators: dict[str, torch.Generator]
    epochs: list[dict[str, Any]] = field(default_factory=list)
    processes: Processes = field(default_factory=Processes)

    def save(self) -> None:
        """Writes the file; killed on the way, it leaves the one that stood there."""
        states = {name: each.get_state() for name, each in self.generators.items()}
        drawn_from = self.processes.gather(states)
        if self.processes.rank:
            return
        content = {
            "settings": self.settings,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "generators": drawn_from,
            "epochs": self.epochs,
        }
        unfinished = self.file.with_suffix(".unfinished")
        torch.save(content, unfinished)
        unfinished.replace(self.file)

    def load(self) -> None:
        """Puts everything into the state that the file holds.

        Raises:
            UserError: If there is no file, or it was saved under other settings.
        """
        if not self.file.is_file():
            raise UserError(
                f"nothing to resume: {self.file} does not exist; a run leaves it from the end of "
                "its first epoch until it is complete"
            )
        content = torch.load(self.file, map_location="cpu", weights_only=True)
        differences = [
            f"{section}.{key} was {content['settings'][section][key]!r} and is {value!r}"
            for section, values in self.settings.items()
            for key, value in values.items()
            if content["settings"][section][key] != value
        ]
        if differences:
            raise UserError(
                f"cannot resume from {self.file}, it was saved with other settings: "
                f"{', '.join(differences)}. Run with those, or without --resume to start anew"
            )
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        for name, generator in self.generators.items():
            generator.set_state(content["generators"][self.processes.rank][name])
        self.epochs += content["epochs"]
