"""Reads labelled sentences from .jsonl or .csv files and turns them into tensors."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from config import UserError
from torch.utils.data import TensorDataset
from transformers import PreTrainedTokenizerBase

SENTIMENTS = ("negative", "positive")


class Row(NamedTuple):
    """One sentence and its two labels."""

    text: str
    topic: str
    sentiment: str


def load_rows(path: Path, topics: Sequence[str] = ()) -> list[Row]:
    """Returns the sentences of a .jsonl or .csv file; other columns than Row's are ignored.

    Args:
        path: The file.
        topics: The topics a row may have; empty: any.

    Raises:
        UserError: If the file or a row is not as expected, naming the file, line and column.
    """
    readers = {".jsonl": read_jsonl, ".csv": read_csv}
    if path.suffix not in readers:
        raise UserError(f"{path}: the suffix is {path.suffix!r}; expected .jsonl or .csv")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(readers[path.suffix](file, path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the data {path}: {error}") from error
    if not lines:
        raise UserError(f"{path}: no rows found; expected rows of text, topic and sentiment")
    allowed = {"text": (), "topic": topics, "sentiment": SENTIMENTS}
    return [
        Row(*(check(row, column, allowed[column], f"{path}, line {line}") for column in allowed))
        for line, row in lines
    ]


def check(row: dict[str, Any], column: str, allowed: Sequence[str], place: str) -> str:
    """Returns the text in one column of a row, or raises with what was expected there."""
    expected = f"one of {', '.join(map(repr, allowed))}" if allowed else "a text that is not empty"
    if column not in row:
        raise UserError(f"{place}, column {column!r}: missing; expected {expected}")
    value = row[column]
    if not isinstance(value, str) or not value.strip() or (allowed and value not in allowed):
        raise UserError(f"{place}, column {column!r}: found {value!r}; expected {expected}")
    return value


def read_jsonl(file: Iterator[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and row of a file with one JSON object per line."""
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            place = f"{path}, line {line}, character {error.colno}"
            raise UserError(f"{place}: {error.msg}; expected one JSON object per line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line}: found {row!r}; expected a JSON object")
        yield line, row


def read_csv(file: Iterator[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and row of a file whose first line names the columns."""
    reader = csv.reader(file)
    header = next(reader, [])
    line = reader.line_num + 1
    for fields in reader:
        if fields and len(fields) != len(header):
            found = f"found {len(fields)} columns; expected {len(header)}: {', '.join(header)}"
            raise UserError(f"{path}, line {line}: {found} (quote a text that holds a comma)")
        if fields:
            yield line, dict(zip(header, fields, strict=True))
        line = reader.line_num + 1


def topics_of(rows: list[Row], path: str) -> list[str]:
    """Returns the sorted topics of the training rows."""
    topics = sorted({row.topic for row in rows})
    if len(topics) < 2:
        raise UserError(f"{path}, column 'topic': only {topics[0]!r} found; expected two or more")
    return topics


def encode(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, topics: list[str], max_length: int
) -> TensorDataset:
    """Returns token ids and mask (N, length), topic and sentiment (N,) of the rows."""
    tokens = tokenizer(
        [row.text for row in rows],
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    return TensorDataset(
        tokens["input_ids"],
        tokens["attention_mask"],
        torch.tensor([topics.index(row.topic) for row in rows]),
        torch.tensor([SENTIMENTS.index(row.sentiment) for row in rows]),
    )
