"""What a cache is made with is checked before a folder is made or a forward replaced."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from freezekit import FreezekitError, FreezePlan
from freezekit.cache import ActivationCache


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ""}, {"key": 5}, {"mask": 5}, {"mask": ""}, {"dtype": torch.int8},
        {"dtype": "fp16"}, {"memory": "x"}, {"memory": -1}, {"memory": True}, {"audit": True},
        {"audit": -1}, {"tag": 3}, {"folder": 5}, {"folder": ""}, {"entry": "no"},
        {"boundary": "no"}, {"key": "input"},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_option_is_quoted_and_nothing_is_written(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    """The error names the option and what it got; there is no folder, and no stand-in."""
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    applied = FreezePlan().freeze("[0]").apply(model)
    (name, value), *_ = wrong.items()
    with pytest.raises(FreezekitError) as caught:
        ActivationCache(applied, **{"folder": tmp_path / "made", **wrong})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)
    assert not (tmp_path / "made").exists()
    assert "forward" not in vars(model)


def test_what_smaller_rows_lose_is_told() -> None:
    """`stats` has the largest relative error, and rows that found no place."""
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    applied = FreezePlan().freeze("[0]").apply(model)
    with ActivationCache(applied) as cache:
        model(torch.randn(8, 4))
        plain = cache.stats()
    with ActivationCache(applied, dtype=torch.bfloat16, memory=64 * 2 * 5) as cache:
        model(torch.randn(8, 4))
        small = cache.stats()
    assert (plain.unstored, plain.rounding) == (0, 0.0)
    assert "off by" not in str(plain)
    assert small.unstored == 3
    assert 0 < small.rounding <= 2**-8
    assert "3 could not be stored" in str(small)
    assert "off by" in str(small)
