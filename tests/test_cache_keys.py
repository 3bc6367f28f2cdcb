"""What rows are stored under: what they hold, without their padding."""

import pytest
import torch
from torch import nn

from freezekit import FreezePlan
from freezekit.cache import ActivationCache
from freezekit.cache._batch import layout_of, read_batch, row_keys


def keys(ids: torch.Tensor, mask: torch.Tensor, roots: tuple[int, ...] = (0, 1)) -> list[int]:
    """Returns the keys of the rows of a batch of ids (0) with a mask (1)."""

    def forward(ids: torch.Tensor, attention_mask: torch.Tensor) -> None: ...

    layout = layout_of(forward, (ids, mask), {}, "attention_mask")
    return row_keys(read_batch([ids, mask], layout), roots)


def masked(*lengths: int, most: int) -> torch.Tensor:
    return (torch.arange(most) < torch.tensor(lengths)[:, None]).long()


IDS = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 0]])
MASK = masked(3, 4, most=5)


@pytest.mark.parametrize("value", [0, 9])
def test_padding_is_no_part_of_a_key(value: int) -> None:
    """Longer padding, and another id in all of it, leave keys as they are."""
    wider = torch.full((2, 8), value)
    wider[:, :5] = torch.where(MASK.bool(), IDS, value)
    assert keys(wider, masked(3, 4, most=8)) == keys(IDS, MASK)


def test_what_differs_within_padding_counts() -> None:
    """Padding that is not the same in all of a row may mean something."""
    odd = IDS.clone()
    odd[0, 4] = 1
    found, plain = keys(odd, MASK), keys(IDS, MASK)
    assert found[0] != plain[0]
    assert found[1] == plain[1]


def test_a_row_and_its_beginning_differ() -> None:
    """Where a row ends is part of its key, since no more of it is stored."""
    for row in ([5, 6, 0, 0, 0], [5, 6, 7, 8, 9]):
        same = torch.tensor([row] * 3)
        assert len({*keys(same, masked(2, 3, 5, most=5), (0,))}) == 3


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.bfloat16])
def test_a_dtype_is_part_of_a_key(dtype: torch.dtype) -> None:
    """Zeros of one type are no zeros of another: what is computed from them may differ."""
    zeros = torch.zeros_like(IDS)
    assert not {*keys(zeros, MASK)} & {*keys(zeros.to(dtype), MASK)}


@pytest.mark.parametrize("value", [2, 257, -1])
def test_a_mask_of_other_numbers_says_nothing_about_padding(value: int) -> None:
    """Then a row is all that it holds."""
    assert not {*keys(IDS, MASK * value)} & {*keys(IDS, MASK)}


def test_what_one_input_ends_with_is_not_what_the_next_begins_with() -> None:
    """Rows are kept with other padding than zeros in one of two inputs, and differ in where."""

    def forward(one: object, other: object, attention_mask: object) -> None: ...

    def key(one: list[int], other: list[int]) -> int:
        leaves = [torch.tensor([each]) for each in (one, other, [1, 1, 0, 0])]
        layout = layout_of(forward, tuple(leaves), {}, "attention_mask")
        return row_keys(read_batch(leaves, layout), (0, 1, 2))[0]

    assert key([5, 6, 0, 0], [7, 2, 8, 9]) != key([5, 6, 2, 7], [8, 9, 0, 0])


def test_a_hook_that_comes_later_is_called() -> None:
    """A hook on a frozen module after the first passes: it sees every pass from then on."""
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    with ActivationCache(FreezePlan().freeze("[0]").apply(model)):
        batch = torch.randn(8, 4)
        first = model(batch)
        model(batch)
        handle = model[0].register_forward_hook(lambda module, args, output: output + 1)
        with pytest.warns(UserWarning, match="hook"):
            changed = model(batch)
        handle.remove()
        plain = model[2](torch.relu(model[0](batch) + 1))
    assert torch.allclose(changed, plain)
    assert not torch.allclose(changed, first)
