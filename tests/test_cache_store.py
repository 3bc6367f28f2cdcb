"""Rows by key: what is put in comes out again, or is missing."""

import gc
import os
import random
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freezekit import FreezekitError
from freezekit.cache._rows import predicted_bytes
from freezekit.cache._store import Store

DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
    torch.complex64, torch.complex128,
)  # fmt: skip
SHAPES: tuple[tuple[int | None, ...], ...] = (
    (), (3,), (2, 3), (0,), (None,), (None, 3), (None, 2, 2), (None, 0), (3, None), (None, None),
)  # fmt: skip


def bits(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Returns a tensor of random bits, infinities and NaN included."""
    if dtype is torch.bool:
        return torch.randint(2, shape).bool()
    count = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(256, (count,), dtype=torch.uint8).view(dtype).reshape(shape)


def same(found: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    """Returns whether two tensors agree in every bit, shape and type."""
    if found is None or (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        return False
    pair = [each.reshape(-1).contiguous().view(torch.uint8) for each in (found, wanted)]
    return torch.equal(*pair)


def stores(folder: Path) -> dict[str, Store]:
    """Returns one store for each place rows can be in."""
    return {
        "memory": Store(memory=1 << 30),
        "files": Store(memory=0, folder=folder / "files"),
        "both": Store(memory=1 << 30, folder=folder / "both"),
        "some": Store(memory=200, folder=folder / "some"),
    }


def padded(rows: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """Returns rows stacked, with zeros beyond the end of each."""
    out = torch.zeros((len(rows), *shape), dtype=rows[0].dtype)
    for place, row in zip(out, rows, strict=True):
        place[tuple(slice(size) for size in row.shape)] = row
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_every_type_and_shape_come_back_bit_for_bit(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """Wherever a row lies, it comes back with the same bits, also after opening again."""
    opened = stores(tmp_path)
    wanted = {}
    for number, shape in enumerate(SHAPES):
        batches = [[2 if size is None else size for size in shape], [size or 4 for size in shape]]
        if 0 in shape:
            batches = [[size or 0 for size in shape], [size or 0 for size in shape]]
        rows = [bits(3, *each, dtype=dtype) for each in batches]
        wanted[f"{number:x}"] = shape, rows
        for store in opened.values():
            tap = store.tap(f"{number:x}", shape, dtype)
            assert tap.put([0, 1, 2], rows[0]) == 3
            assert tap.put([1, 2, 2**128 - 1, 2**64], rows[1][[0, 0, 1, 2]]) == 2
    for place, store in opened.items():
        for turn in range(2):
            for name, (shape, rows) in wanted.items():
                tap = store.tap(name, shape, dtype)
                slots = tap.find([2, 2**128 - 1, 0, 0])
                assert slots is not None
                parts = [rows[0][2], rows[1][1], rows[0][0], rows[0][0]]
                largest = [
                    max(sizes) for sizes in zip(*(each.shape for each in parts), strict=True)
                ]
                assert same(tap.gather(slots), padded(parts, largest)), (place, shape, turn)
            if place != "memory" and not turn:
                store.close()
                store = Store(memory=200, folder=tmp_path / place)
        store.close()


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, list[int], list[int]]]:
    """Draws batches of keys and lengths, to be put or asked for."""
    key, size = st.integers(0, 6), st.integers(0, 5)
    step = st.lists(st.tuples(key, size), min_size=1, max_size=5)
    verbs = draw(st.lists(st.sampled_from(("put", "get", "flush", "open")), max_size=12))
    return [(verb, *map(list, zip(*draw(step), strict=True))) for verb in verbs]  # type: ignore[misc]


@settings(max_examples=60)
@given(histories(), st.sampled_from((0, 60, 1 << 20)), st.booleans())
def test_a_store_is_a_dict_of_rows(
    history: list[tuple[str, list[int], list[int]]], memory: int, on_disk: bool
) -> None:
    """Whatever is put, asked for, flushed and opened again: the first row of a key is its row."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) if on_disk else None
        store = Store(memory=memory, folder=place)
        rows: dict[int, torch.Tensor] = {}
        for verb, keys, lengths in history:
            tap = store.tap("a", (None, 2), torch.float32)
            if verb == "put":
                batch = torch.randn(len(keys), 5, 2)
                before = set(rows)
                for key, row, length in zip(keys, batch, lengths, strict=True):
                    rows.setdefault(key, row[:length].clone())
                stored = tap.put(keys, batch, lengths)
                if on_disk or memory > 60:
                    assert stored == len(set(rows) - before)
                rows = {key: row for key, row in rows.items() if key in tap}
                batch.zero_()
            elif verb == "get":
                slots = tap.find(keys)
                assert (slots is None) == bool(set(keys) - set(rows)) == bool(tap.missing(keys))
                assert (tap.get(keys) is None) == (slots is None)
                if slots is not None:
                    assert tap.lengths(slots) == [len(rows[key]) for key in keys]
                    wanted = padded([rows[key] for key in keys], (5, 2))
                    assert same(tap.gather(slots, 5), wanted)
            elif verb == "flush":
                store.flush()
            elif on_disk:
                store.close()
                store = Store(memory=memory, folder=place)
        tap = store.tap("a", (None, 2), torch.float32)
        assert all(same(tap.get([key]), row[None]) for key, row in rows.items())
        assert len(tap) == store.rows == len(rows)
        assert store.nbytes <= memory
        store.close()


def test_what_is_given_and_returned_are_copies(tmp_path: Path) -> None:
    """Writing into the source, or into what was returned, changes no row."""
    for store in stores(tmp_path).values():
        for name, shape in (("1", (3,)), ("2", (None, 3)), ("3", (None, None))):
            tap = store.tap(name, shape, torch.float32)
            source = torch.randn(4, *([5, 3][-len(shape) :]))
            wanted = source.clone()
            tap.put(range(4), source)
            source.fill_(7)
            for _ in range(2):
                found = tap.gather([2, 0])
                assert same(found, wanted[[2, 0]])
                assert found is not None
                found.fill_(9)
        store.close()


def test_the_first_row_of_a_key_stays(tmp_path: Path) -> None:
    """A key that comes twice, in one batch or in two, keeps its first row."""
    for store in stores(tmp_path).values():
        for name, shape in (("1", (3,)), ("2", (None,)), ("3", (None, None))):
            rows = torch.randn(4, *([2, 3][-len(shape) :]))
            tap = store.tap(name, shape, torch.float32)
            assert tap.put([7, 8, 7], rows[:3]) == 2
            assert tap.put([8, 7], rows[2:]) == 0
            assert same(tap.get([7, 8]), rows[:2])
        store.close()


def test_rows_stay_right_while_memory_grows() -> None:
    """Rows of one size are right between the batches that make their memory grow and move."""
    tap = Store(memory=1 << 30).tap("a", (1 << 15,), torch.float32)
    rows = torch.randn(64, 1 << 15)
    for start in range(0, 64, 4):
        tap.put(range(start, start + 4), rows[start : start + 4])
        order = random.sample(range(start + 4), 4)
        assert same(tap.get(order), rows[order])


def test_rows_are_read_as_they_were_whatever_the_strides() -> None:
    """Expanded, transposed, conjugated and differentiable tensors are stored by value."""
    tap = Store(memory=1 << 20).tap("a", (2, 3), torch.complex64)
    plain = torch.randn(4, 3, 2, dtype=torch.complex64, requires_grad=True)
    views = [plain.transpose(1, 2).conj(), plain[:1].transpose(1, 2).expand(4, 2, 3)]
    for number, view in enumerate(views):
        tap.put(range(4 * number, 4 * number + 4), view)
        slots = tap.find(range(4 * number, 4 * number + 4))
        assert slots is not None
        found = tap.gather(slots)
        assert found is not None
        assert not found.requires_grad
        assert torch.equal(found, view.detach().resolve_conj())


def test_modes_of_torch_leave_rows_alone(tmp_path: Path) -> None:
    """Another default device or type, autocast and inference mode change nothing that is stored."""
    rows = torch.randn(3, 4, 2)
    modes = (torch.device("meta"), torch.autocast("cpu"), torch.inference_mode(), torch.no_grad())
    for number, mode in enumerate(modes):
        with mode:
            for store in stores(tmp_path / str(number)).values():
                for name, shape, batch in (("1", (None, 2), rows), ("2", (4, 2), rows)):
                    tap = store.tap(name, shape, torch.float32)
                    assert tap.put([1, 2, 3], batch) == 3
                    assert same(tap.gather([2, 0]), rows[[2, 0]])
                store.close()


def test_a_row_longer_than_asked_for_is_refused() -> None:
    """A key whose row has more positions than the batch has belongs to two samples."""
    tap = Store(memory=1 << 20).tap("a", (None, 2), torch.float32)
    tap.put([1], torch.ones(1, 4, 2))
    with pytest.raises(
        FreezekitError, match=r"row of tap a has 4 positions, 3 were .* two samples"
    ):
        tap.gather([0], 3)


def test_rows_that_do_not_fit_the_tap_are_refused() -> None:
    """The message says what was expected and what came; nothing is stored."""
    store = Store(memory=1 << 20)
    tap = store.tap("a", (None, 2), torch.float32)
    fixed = store.tap("b", (2,), torch.float32)
    rows = torch.ones(2, 4, 2)
    cases = (
        (tap, [1, 2], rows.double(), None, r"\(None, 2\) and torch.float32 .* torch.float64 came"),
        (tap, [1, 2], rows[..., :1], None, r"a batch of shape \(2, 4, 1\)"),
        (tap, [1, 2], rows[0], None, r"a batch of shape \(4, 2\)"),
        (tap, [1], rows, None, "1 keys came with 2 rows"),
        (tap, [1, -1], rows, None, r"less than 2\*\*128"),
        (tap, [1, 2**128], rows, None, r"less than 2\*\*128"),
        (tap, [1, 2], rows, [1], "1 lengths came with 2 rows"),
        (tap, [1, 2], rows, [1, 5], r"\[1, 5\] do not fit into 4"),
        (tap, [1, 2], rows, [1, -1], r"\[1, -1\] do not fit"),
        (fixed, [1, 2], rows[0, :2], [1, 1], r"\(2,\) all have one length"),
    )
    for each, keys, batch, lengths, message in cases:
        with pytest.raises(FreezekitError, match=message):
            each.put(keys, batch, lengths)
    assert store.rows == store.nbytes == 0
    with pytest.raises(FreezekitError, match=r"tap a has rows .* not of \(3,\) and torch.float32"):
        store.tap("a", (3,), torch.float32)
    with pytest.raises(FreezekitError, match=r"'../x' cannot name a tap"):
        store.tap("../x", (3,), torch.float32)


def test_memory_stays_within_its_budget() -> None:
    """Rows beyond the budget are not stored but counted; dropping a tap makes room again."""
    store = Store(memory=10_000)
    first, second = (store.tap(name, (None, 25), torch.float32) for name in "ab")
    assert first.put(range(6), torch.ones(6, 10, 25)) == 6
    assert second.put(range(6), torch.ones(6, 10, 25)) == 4
    assert (store.nbytes, first.nbytes, second.nbytes) == (10_000, 6000, 4000)
    assert (store.counts.refused, store.rows, second.missing(range(6))) == (2, 10, [4, 5])
    store.drop("a")
    assert (store.nbytes, second.put([4, 5], torch.ones(2, 10, 25)), store.nbytes) == (
        4000,
        2,
        6000,
    )
    assert first.find([0]) is None
    for tap in (first, store.tap("c", (3,), torch.float32), second):
        with pytest.raises(IndexError):
            tap.gather([len(tap)])
    store.clear()
    assert (store.nbytes, store.rows) == (0, 0)


def resident() -> int:
    """Returns how many bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_is_taken_row_by_row_and_given_back() -> None:
    """96 MB of rows take as much from the system, at no time twice that; dropping gives it back."""
    store = Store(memory=1 << 30)
    tap = store.tap("a", (None, 384), torch.float32)
    batch = torch.ones(16, 32, 384)
    tap.put([1 << 100], batch[:1])
    gc.collect()
    before, most = resident(), 0
    for start in range(0, 2000, 16):
        tap.put(range(start, start + 16), batch)
        most = max(most, resident() - before)
    assert abs(resident() - before - 2000 * 49152) < 12e6
    assert most < 2000 * 49152 + 12e6
    store.drop("a")
    assert resident() - before < 12e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_rows_in_files_take_no_memory(tmp_path: Path) -> None:
    """Of 96 MB in files that are all read, nothing stays in memory."""
    store = Store(memory=0, folder=tmp_path)
    tap = store.tap("a", (None, 384), torch.float32)
    batch = torch.ones(16, 32, 384)
    tap.put([1 << 100], batch[:1])
    before, most = resident(), 0
    for start in range(0, 2000, 16):
        tap.put(range(start, start + 16), batch)
        found = tap.get(range(start, start + 16))
        most = max(most, resident() - before)
    assert same(found, batch)
    assert (store.nbytes, store.file_bytes) == (0, 2001 * 49152)
    assert most < 12e6
    store.close()


def test_memory_that_the_machine_refuses_is_memory_that_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the arena cannot grow, what it has stays and the rest is refused."""
    store = Store(memory=1 << 30)
    tap = store.tap("a", (1 << 17,), torch.float32)
    rows = torch.randn(3, 1 << 17)
    assert tap.put([1, 2], rows[:2]) == 2

    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("freezekit.cache._arena._resized", refuse)
    assert tap.put([3], rows[2:]) == 0
    assert store.counts.refused == 1
    assert same(tap.gather([0, 1]), rows[:2])


@pytest.mark.parametrize("shape", [(None, 384), (48, 384), (None, None)], ids=str)
def test_what_is_read_from_files_moves_into_memory(
    shape: tuple[int | None, ...], tmp_path: Path
) -> None:
    """Rows read once lie in memory from then on, also when memory grows amid a batch."""
    rows = torch.randn(60, 48, 384)
    with_folder = Store(memory=0, folder=tmp_path)
    with_folder.tap("a", shape, torch.float32).put(range(60), rows)
    with_folder.close()
    store = Store(memory=40 * 48 * 384 * 4, folder=tmp_path)
    tap = store.tap("a", shape, torch.float32)
    order = list(range(60))
    for count in range(1, 60, 6):
        random.shuffle(order)
        slots = tap.find(order[:count])
        assert slots is not None
        assert same(tap.gather(slots), rows[order[:count]])
    assert store.nbytes == 40 * 48 * 384 * 4
    for path in tmp_path.glob("tap-*"):
        os.truncate(path, 0)
    with pytest.warns(UserWarning, match="are not what was written"):
        left = [key for key in range(60) if tap.get([key]) is not None]
    assert (len(left), store.counts.lost) == (40, 20)
    assert all(same(tap.get([key]), rows[key : key + 1]) for key in left)
    store.close()


@pytest.mark.parametrize(("smaller", "most"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_a_smaller_type_halves_the_bytes_and_says_what_it_changes(
    smaller: torch.dtype, most: float, tmp_path: Path
) -> None:
    """Rows come back in their own type, as far off as the tap says; what overflows is missing."""
    rows = torch.randn(4, 6, 8)
    rows[3, 2, 1] = 3e38 if smaller is torch.float16 else 3.4e38
    rows[2, 0, 0] = float("inf")
    rows[2, 0, 1] = float("nan")
    store = Store(memory=1 << 20, folder=tmp_path, dtype=smaller)
    tap = store.tap("a", (None, 8), torch.float32)
    assert tap.put(range(4), rows, [6, 5, 4, 6]) == 3
    assert (tap.missing(range(4)), tap.loss.overflowed, store.counts.refused) == ([3], 1, 1)
    found = tap.gather([0, 1, 2])
    assert found is not None
    wanted = padded([rows[0], rows[1][:5], rows[2][:4]], (6, 8))
    assert torch.equal(found, wanted.to(smaller).float()) or found.isnan().sum() == 1
    change = (found - wanted).nan_to_num(0, 0, 0).abs()
    assert tap.loss.absolute == change.max() > 0
    scale = wanted.nan_to_num(0, 0, 0).abs().amax((1, 2))
    assert tap.loss.relative == pytest.approx(float((change.amax((1, 2)) / scale).max()), rel=1e-6)
    assert tap.loss.relative <= most
    assert store.nbytes == store.file_bytes == 15 * 8 * 2
    for name, dtype in (("b", torch.int64), ("c", torch.bfloat16), ("d", torch.complex64)):
        assert store.tap(name, (2,), dtype).stored_dtype is dtype
    store.close()
    with pytest.raises(FreezekitError, match=r"cannot be stored as torch.int8"):
        Store(memory=1, dtype=torch.int8)


def test_bytes_are_known_before_there_are_any() -> None:
    """The prediction is what the store then holds."""
    lengths = [random.randint(1, 30) for _ in range(40)]
    store = Store(memory=1 << 20)
    tap = store.tap("a", (None, 8), torch.bfloat16)
    tap.put(range(40), torch.ones(40, 30, 8, dtype=torch.bfloat16), lengths)
    mean = sum(lengths) / 40
    assert store.nbytes == predicted_bytes((None, 8), torch.bfloat16, rows=40, mean_length=mean)
    assert predicted_bytes((3, 4), torch.float64, rows=5) == 480


def test_a_tap_that_was_dropped_writes_nowhere(tmp_path: Path) -> None:
    """Whoever still holds a dropped tap cannot bring its files back."""
    store = Store(memory=0, folder=tmp_path)
    tap = store.tap("a", (2,), torch.float32)
    store.drop("a")
    assert tap.put([1], torch.ones(1, 2)) == 0
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "manifest.json"]
