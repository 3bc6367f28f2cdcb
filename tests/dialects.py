"""What one text selects in the languages of the peers, on a Llama of 12 layers."""

import re
from collections.abc import Callable
from fnmatch import fnmatch

import torch
from peer_configs import fts_names
from peer_models import shared
from peer_rules import outcomes

from freezekit import FreezePlan, PatternError

PATTERNS = (
    "model.layers.1",
    "model.layers.1.",
    "model.layers.1.*",
    "model.layers.1*",
    "model.layers.[0-11].*",
    "q_proj",
    ".*q_proj",
    "**.q_proj",
    "norm",
)


def freezekit(model: torch.nn.Module, text: str) -> int:
    return len(FreezePlan().freeze(text).resolve(model).at().frozen)


def skorch(model: torch.nn.Module, text: str) -> int:
    return sum(fnmatch(name, text) for name, _ in model.named_parameters())


def timm(model: torch.nn.Module, text: str) -> int:
    return len(list(model.get_submodule(text).parameters()))


def mmengine(model: torch.nn.Module, text: str) -> int:
    return sum(text in f".{name}" for name, _ in model.named_parameters())


def scheduler(model: torch.nn.Module, text: str) -> int:
    return len(fts_names(model, text))


def axolotl(model: torch.nn.Module, text: str) -> int:
    return len(outcomes("axolotl", f"unfrozen_parameters: ['{text}']", model)[0])


def swift(model: torch.nn.Module, text: str) -> int:
    before = outcomes("ms-swift", f"--freeze_parameters {text}", model)[0]
    return len(list(model.parameters())) - len(before)


def swift_regex(model: torch.nn.Module, text: str) -> int:
    return sum(bool(re.search(text, name)) for name, _ in model.named_parameters())


LANGUAGES: dict[str, tuple[Callable[[torch.nn.Module, str], int], type[Exception]]] = {
    "freeze-<br>kit": (freezekit, PatternError),
    "skorch": (skorch, ValueError),
    "timm": (timm, AttributeError),
    "MM-<br>Engine": (mmengine, ValueError),
    "finetuning-<br>scheduler": (scheduler, Exception),
    "axolotl": (axolotl, re.error),
    "ms-swift": (swift, ValueError),
    "ms-swift<br>`_regex`": (swift_regex, re.error),
}


def counts() -> dict[str, dict[str, str]]:
    """How many tensors each text selects in each language, or that it is an error."""
    return {
        text: {language: _count(*how, text) for language, how in LANGUAGES.items()}
        for text in PATTERNS
    }


def _count(
    select: Callable[[torch.nn.Module, str], int], refused: type[Exception], text: str
) -> str:
    try:
        return str(select(shared("Llama").requires_grad_(True), text))
    except refused:
        return "error"
    finally:
        shared("Llama").requires_grad_(True)  # the same for who reads it next
