"""Names for samples: from a data set that numbers them, checked against what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Sized
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset

from ..errors import FreezekitError

Id: TypeAlias = int | str
"""What tells a sample from all others."""

_SHIFT = 40
"""Bits of the number of a sample; the others of a 63 bit number are the split's."""


class WithIds(Dataset[dict[str, Any]]):
    """A data set whose samples, dicts, also say which one they are.

    For `ActivationCache(key=...)`: the model is called with the ids of a batch beside its inputs,
    and the cache takes them out.

    Example:
        >>> from freezekit.cache import WithIds
        >>> data = WithIds([{"pixels": 0.5}, {"pixels": 0.25}], split="train")
        >>> data[1]["pixels"], data[1]["sample_id"] == data[0]["sample_id"] + 1
        (0.25, True)
    """

    def __init__(self, samples: Any, *, split: str, key: str = "sample_id") -> None:  # noqa: ANN401
        """Numbers the samples of a split.

        Args:
            samples: a data set or a sequence of dicts.
            split: what distinguishes them from those of others, such as "train"; the same number
                in another split is another sample.
            key: the name of the id in a sample.
        """
        self._samples = samples
        self._key = key
        low = hashlib.blake2b(split.encode(), digest_size=8).digest()
        self._first = int.from_bytes(low, "little") >> (_SHIFT + 1) << _SHIFT

    def __len__(self) -> int:
        """Returns how many samples there are."""
        samples: Sized = self._samples
        return len(samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a sample with its id.

        Raises:
            FreezekitError: it is no dict, or has such a key already.
        """
        sample = self._samples[index]
        if not isinstance(sample, Mapping) or self._key in sample:
            raise FreezekitError(
                f"WithIds: sample {index} is a {type(sample).__name__}"
                + (f" with a key {self._key!r}" if isinstance(sample, Mapping) else "")
                + f"; expected a dict without a key {self._key!r}"
            )
        number = index + len(self) if index < 0 else index
        return {**sample, self._key: self._first + number}


class Identities:
    """What the row of each id held the first time."""

    def __init__(self) -> None:
        """Knows no sample yet."""
        self._contents: dict[Id, int] = {}

    def check(self, ids: Sequence[Id], contents: Sequence[int]) -> None:
        """Raises if an id names other data than before.

        Args:
            ids: of the rows of a batch.
            contents: keys of what the rows hold.
        """
        for value, content in zip(ids, contents, strict=True):
            if self._contents.setdefault(value, content) != content:
                raise FreezekitError(
                    f"id {value!r} names other data than before: ids must tell samples apart, "
                    "those of other splits too (WithIds(..., split=...)); inputs that change each "
                    "time, as with augmentation, cannot have one"
                )


def read_ids(ids: object, size: int) -> tuple[Id, ...]:
    """Returns the ids of a batch.

    Raises:
        FreezekitError: they are not one for each row.
    """
    values = ids.tolist() if isinstance(ids, torch.Tensor) else ids
    if not isinstance(values, list | tuple) or len(values) != size:
        raise FreezekitError(f"the ids of {size} samples are {ids!r}; expected one for each")
    return tuple(values)


def key_of(value: Id) -> int:
    """Returns a number below 2**128 for an id."""
    text = f"{type(value).__name__} {value}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
