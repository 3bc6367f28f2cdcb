"""Runs the code on the page about engines, as each rank of a training finds it."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from freezekit import FreezePlan

PAGE = Path(__file__).resolve().parent.parent / "docs" / "engines.md"


class Model(nn.Module):
    """What the page calls `model`, and `build_model()`: some blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            inputs = block(inputs).relu()
        return self.head(inputs)


def blocks() -> dict[str, str]:
    """Returns the Python code of the page, by the heading that it stands below."""
    text = PAGE.read_text(encoding="utf-8")
    parts = re.split(r"^#{2,3} (.*)\n", text, flags=re.MULTILINE)
    code = {
        heading: re.findall(r"^```python\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        for heading, part in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {heading: "\n".join(found) for heading, found in code.items() if found}


def given(folder: str) -> dict[str, Any]:
    """Returns what the page takes as given: a model, a plan for it, data, and a folder."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(32, 8), torch.randint(2, (32,))
    return {
        "torch": torch,
        "nn": nn,
        "build_model": Model,
        "model": Model(),
        "plan": FreezePlan().freeze("blocks").unfreeze("blocks", lr_mult=0.1, at_epoch=1),
        "loader": DataLoader(TensorDataset(inputs, labels), batch_size=8),
        "folder": folder,
    }


def given_to_trainer(folder: str) -> dict[str, Any]:
    """Returns a model of transformers, and samples for it."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    layer = "bert.encoder.layer[-1]"
    return given(folder) | {
        "Trainer": transformers.Trainer,
        "TrainingArguments": transformers.TrainingArguments,
        "model": transformers.BertForSequenceClassification(config),
        "plan": FreezePlan().freeze("bert").unfreeze(layer, lr_mult=0.5, at_epoch=1),
        "data": [
            {"input_ids": torch.arange(6), "labels": torch.tensor(number % 2)}
            for number in range(16)
        ],
    }


def run(folder: str) -> list[str]:
    """Runs all but DeepSpeed's in a folder that the ranks share, and returns the headings."""
    warnings.simplefilter("ignore")  # of the engines, about their own settings
    os.chdir(folder)
    code = blocks()
    code.pop("DeepSpeed")
    code["Sharded models"] += code.pop("Checkpoints")
    for heading, text in code.items():
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        names = (given_to_trainer if heading.startswith("Trainer") else given)(folder)
        exec(compile(text, f"engines.md, {heading}", "exec"), names)
    return list(code)
