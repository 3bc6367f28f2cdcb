"""Reads config.yaml: strict keys, typed values, paths relative to the file."""

import contextlib
import dataclasses
import difflib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
CHOICES = {
    "pooling": ("mean", "cls", "max"),
    "freeze_mode": ("all", "backbone", "cls_head", "sent_head"),
}
MINIMUM = {
    **{"epochs": 1, "batch_size": 1, "max_length": 3, "seed": 0},
    **{"lr": 0, "head_lr": 0, "weight_decay": 0},
}
EXPECTED = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


class UserError(ValueError):
    """A mistake in what the user gave; train.py prints it without a traceback."""


@dataclass(frozen=True)
class ModelConfig:
    """Which encoder, and how a sentence becomes one vector."""

    name: str = "sentence-transformers/all-MiniLM-L6-v2"
    pooling: str = "mean"
    normalize: bool = True


@dataclass(frozen=True)
class TrainingConfig:
    """What is frozen, and how long and on what batches is trained."""

    freeze_mode: str = "backbone"
    epochs: int = 5
    batch_size: int = 32
    max_length: int = 64
    seed: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW: the first learning rate of the backbone, that of the heads, the weight decay."""

    lr: float = 5e-5
    head_lr: float = 2e-2
    weight_decay: float = 0.01


@dataclass(frozen=True)
class DataConfig:
    """The files of sentences, as absolute paths."""

    train: str = str(HERE / "data" / "train.jsonl")
    test: str = str(HERE / "data" / "test.jsonl")


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)


def load_config(path: Path) -> Config:
    """Returns the settings in the YAML file `path`, its relative paths made absolute.

    Raises:
        UserError: If the file is missing or not YAML, or a key or a value is not as expected.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the config {path}: {error}") from error
    sections = {section.name: section.type for section in dataclasses.fields(Config)}
    content = check_keys(content, list(sections), f"{path}")
    read = {
        name: section(**read_section(section, content.get(name, {}), f"{path}: {name}"))
        for name, section in sections.items()
    }
    return absolute_paths(Config(**read), path.parent)


def absolute_paths(config: Config, folder: Path) -> Config:
    """Returns the settings with every relative path seen from `folder`."""

    def absolute(path: str) -> str:
        return str((folder / Path(path).expanduser()).resolve())

    model, data = config.model, config.data
    if model.name.startswith((".", "/", "~")) or (folder / model.name).is_dir():
        model = replace(model, name=absolute(model.name))
    data = replace(data, train=absolute(data.train), test=absolute(data.test))
    return replace(config, model=model, data=data)


def read_section(section: type, content: object, place: str) -> dict[str, object]:
    """Returns the values that one section of the file sets, checked against its dataclass."""
    kinds = {field.name: field.type for field in dataclasses.fields(section)}
    values = check_keys(content, list(kinds), place)
    return {key: read_value(values[key], kinds[key], f"{place}.{key}") for key in values}


def read_value(value: object, kind: type, place: str) -> object:
    """Returns one value, checked; a number that YAML took for text, such as 1e-5, is a number."""
    key = place.rpartition(".")[2]
    if kind is float and type(value) in (int, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if type(value) is not kind:
        raise UserError(f"{place} is {value!r}; expected {EXPECTED[kind]}")
    if key in CHOICES and value not in CHOICES[key]:
        raise UserError(f"{place} is {value!r}; expected one of {', '.join(CHOICES[key])}")
    if key in MINIMUM and not MINIMUM[key] <= value < math.inf:
        raise UserError(f"{place} is {value}; expected a number from {MINIMUM[key]} up")
    return value


def check_keys(content: object, known: list[str], place: str) -> dict[str, object]:
    """Returns `content` if it is a mapping whose keys are all known, else raises."""
    if not isinstance(content, dict):
        raise UserError(f"{place}: found {content!r}; expected the keys {', '.join(known)}")
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UserError(f"{place}: unknown key {key!r}{hint} The keys are {', '.join(known)}")
    return content
