"""The guard: what the digest sees, what a block proves, and what is said of a change."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from freezekit import FreezekitError, FreezePlan, FrozenChangedError, _digest
from freezekit._digest import NO_CONTENT, digest
from freezekit._guard import Guard, likely_cause

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
LARGE = 1 << 18  # bytes; twice what is hashed as it is
ROW = _digest._COLUMNS
WEIGHTS = [*memoryview(_digest._weights()).cast("I")]


def drawn(dtype: torch.dtype, size: int, seed: int = 0) -> torch.Tensor:
    """Returns a vector of random bits, of about that many bytes."""
    generator = torch.Generator().manual_seed(seed)
    count = size // dtype.itemsize * dtype.itemsize
    raw = torch.randint(256, (count,), dtype=torch.uint8, generator=generator)
    return raw.bitwise_and_(1).bool() if dtype is torch.bool else raw.view(dtype)


def bits(tensor: torch.Tensor) -> bytes:
    """Returns the bits of a vector."""
    return tensor.view(torch.uint8).numpy().tobytes()


def sees(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Returns whether the digest sees a difference, and asserts that there is one."""
    assert bits(tensor) != bits(other)
    return digest(tensor) != digest(other)


def columns_of(words: torch.Tensor) -> tuple[bytes, ...]:
    """Returns the sums over columns of a grid of words."""
    return tuple(bits(sums) for sums in [*_digest._sums(words)][::2])


values = st.sampled_from(DTYPES[1:])
sizes = st.sampled_from([16, 1_000, LARGE, LARGE + 2_000, LARGE + 16])
seeds = st.integers(0, 2**20)


@given(values, sizes, seeds, st.data())
def test_any_flipped_bit_is_seen(
    dtype: torch.dtype, size: int, seed: int, data: st.DataObject
) -> None:
    """One bit of difference, anywhere, gives another digest; put back, the same again."""
    tensor = drawn(dtype, size, seed)
    before, raw = digest(tensor), tensor.view(torch.uint8)
    place = data.draw(st.integers(0, len(raw) - 1))
    mask = 1 << data.draw(st.integers(0, 7))
    raw[place] ^= mask
    assert digest(tensor) != before
    raw[place] ^= mask
    assert digest(tensor) == before


@given(values, sizes, seeds, st.data())
def test_any_two_flipped_bits_are_seen(
    dtype: torch.dtype, size: int, seed: int, data: st.DataObject
) -> None:
    """Two bits of difference never cancel out, also not in two rows of one column."""
    tensor = drawn(dtype, size, seed)
    changed = tensor.clone()
    raw = changed.view(torch.uint8)
    first = data.draw(st.integers(0, len(raw) - 1))
    apart = st.one_of(st.integers(0, len(raw)), st.integers(0, 128).map(lambda n: 4 * ROW * n))
    second = (first + data.draw(apart)) % len(raw)
    assume(first != second)
    for place in (first, second):
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
    assert sees(tensor, changed)


@given(values, sizes, seeds, st.data())
def test_any_swap_of_two_elements_is_seen(
    dtype: torch.dtype, size: int, seed: int, data: st.DataObject
) -> None:
    """Two different elements that change places give another digest."""
    tensor = drawn(dtype, size, seed)
    first = data.draw(st.integers(0, len(tensor) - 1))
    line = 4 * ROW // dtype.itemsize
    apart = st.one_of(st.integers(1, len(tensor)), st.integers(1, 128).map(lambda n: line * n))
    second = (first + data.draw(apart)) % len(tensor)
    order = torch.arange(len(tensor))
    order[[first, second]] = order[[second, first]]
    changed = tensor.view(torch.uint8).view(len(tensor), -1)[order].flatten().view(dtype)
    assume(bits(changed) != bits(tensor))
    assert sees(tensor, changed)


@given(values, sizes, seeds, st.data())
def test_any_rotation_is_seen(
    dtype: torch.dtype, size: int, seed: int, data: st.DataObject
) -> None:
    """Values that all move on by some places give another digest."""
    tensor = drawn(dtype, size, seed)
    raw = tensor.view(torch.uint8)
    by = data.draw(st.integers(1, len(tensor)))
    changed = raw.roll(by * dtype.itemsize).view(dtype)
    assume(bits(changed) != bits(tensor))
    assert sees(tensor, changed)


@given(st.sampled_from([torch.bfloat16, torch.float32, torch.float64]), seeds, st.data())
def test_the_columns_alone_see_a_swap_within_a_column(
    dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    """Weights tell rows apart whatever the two elements are, without help from the other sums."""
    tensor = drawn(dtype, LARGE, seed).view(128, -1)
    first, second = data.draw(st.permutations(range(128)))[:2]
    column = data.draw(st.integers(0, tensor.shape[1] - 1))
    changed = tensor.clone()
    changed[first, column], changed[second, column] = tensor[second, column], tensor[first, column]
    assume(bits(changed.flatten()) != bits(tensor.flatten()))
    words = [each.flatten().view(torch.int32).view(128, ROW) for each in (tensor, changed)]
    assert columns_of(words[0]) != columns_of(words[1])


@pytest.mark.parametrize("distance", [1 << power for power in range(14)])
def test_the_columns_alone_see_a_swap_of_signs_at_any_distance(distance: int) -> None:
    """1 and -1 change places in one column: the top bit of two words, the hardest to tell."""
    tensor = torch.zeros(distance + 1, ROW)
    tensor[0, 7], tensor[distance, 7] = 1, -1
    changed = tensor.clone()
    changed[0, 7], changed[distance, 7] = -1, 1
    assert columns_of(tensor.view(torch.int32)) != columns_of(changed.view(torch.int32))


def test_no_two_rows_of_a_block_weigh_the_same() -> None:
    """Weights are odd and differ in their lower half, so that a swap of any two rows shows."""
    assert len(WEIGHTS) == _digest._BLOCK_ROWS == len({weight % (1 << 16) for weight in WEIGHTS})
    assert all(weight % 2 for weight in WEIGHTS)
    assert len({weight >> 16 for weight in WEIGHTS}) > 0.8 * len(WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [(0, 1), (3, 64), (0, 100), (2, 3, 50, 51)])
def test_signs_that_flip_in_a_rectangle_are_seen(dtype: torch.dtype, rows: tuple[int, ...]) -> None:
    """Negated pairs in rows and columns leave no sum of top bits odd, and are seen even so."""
    tensor = torch.ones(128, 4 * ROW // dtype.itemsize, dtype=dtype)
    changed = tensor.clone()
    for row in rows:
        changed[row, 11:19:2] *= -1
    assert sees(tensor.flatten(), changed.flatten())


def test_four_values_that_trade_places_in_a_rectangle_are_seen() -> None:
    """Two swaps in opposite directions keep the plain sum of every row and column."""
    tensor = drawn(torch.int32, LARGE).view(128, ROW)
    tensor[3, 5] = tensor[90, 400]
    tensor[90, 5] = tensor[3, 400]
    changed = tensor.clone()
    changed[3, [5, 400]], changed[90, [5, 400]] = tensor[90, [5, 400]], tensor[3, [5, 400]]
    for axis in (0, 1):
        assert torch.equal(tensor.sum(axis), changed.sum(axis))
    assert sees(tensor.flatten(), changed.flatten())


@pytest.mark.parametrize("rows", [1 << power for power in range(6, 15)])
def test_a_negated_pattern_of_signs_is_seen(rows: int) -> None:
    """Signs alone flip everywhere: all of one sign, in stripes, and in Thue and Morse's order."""
    parity = torch.tensor([number.bit_count() % 2 for number in range(rows)])
    across = parity.repeat(ROW // min(rows, ROW))[:ROW]
    for lines in (parity * 0, torch.arange(rows) % 2, parity):
        tensor = 1.0 - 2 * (lines.unsqueeze(1) ^ across)
        assert columns_of(tensor.view(torch.int32)) != columns_of((-tensor).view(torch.int32))


def vanishing(first: int, second: int) -> tuple[int, int]:
    """Returns small factors with which two weights add up to 0 modulo 2**32."""
    ratio = second * pow(first, -1, 1 << 32)
    long, short = (1 << 32, 0), (-ratio % (1 << 32), 1)
    while short[0] > 1 << 15:
        times = long[0] // short[0]
        long, short = short, (long[0] - times * short[0], long[1] - times * short[1])
    return short


def test_rows_see_what_columns_miss() -> None:
    """Two changes whose weighted sum is 0 modulo 2**32 show in the sums over rows."""
    words = torch.full((128, ROW), 1 << 15, dtype=torch.int32)
    changed = words.clone()
    pairs = ((row, vanishing(WEIGHTS[0], WEIGHTS[row])) for row in range(1, 128))
    row, changes = next((row, pair) for row, pair in pairs if abs(pair[1]) < 1 << 15)
    changed[[0, row], 5] += torch.tensor(changes, dtype=torch.int32)
    assert torch.equal(words >> 16, changed >> 16)
    assert columns_of(words) == columns_of(changed)
    assert sees(words.flatten(), changed.flatten())


def test_exchanged_blocks_and_permuted_rows_are_seen() -> None:
    """Large parts that change places are seen, in one block of the digest and across."""
    block = _digest._BLOCK_ROWS * ROW
    tensor = torch.arange(2 * block, dtype=torch.int32)
    assert sees(tensor, tensor.roll(block))
    rows = drawn(torch.float32, 1 << 20).view(256, -1)
    for order in (torch.arange(256).roll(1), torch.randperm(256), torch.arange(256).flip(0)):
        assert sees(rows.flatten(), rows[order].flatten())


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 1_000])
def test_the_sums_are_those_of_the_definition(rows: int) -> None:
    """Columns are summed by weight, whole words and their upper halves, and rows as they are."""
    words = drawn(torch.int32, 4 * ROW * rows).view(rows, ROW)
    columns, across = _digest._sums(words)
    grid = words.tolist()
    for column in (0, 1, 300, ROW - 1):
        whole = sum(w * line[column] for w, line in zip(WEIGHTS, grid, strict=False))
        upper = sum(w * (line[column] >> 16) for w, line in zip(WEIGHTS, grid, strict=False))
        assert [each % (1 << 32) for each in columns[:, column].tolist()] == [
            whole % (1 << 32),
            upper % (1 << 32),
        ]
    assert [each % (1 << 32) for each in across.tolist()] == [sum(r) % (1 << 32) for r in grid]


@pytest.mark.parametrize("rows", [1_000, _digest._BLOCK_ROWS + 1_000])
@pytest.mark.parametrize("size", [16, 320, 512, 4_096])
def test_the_size_of_the_pieces_makes_no_difference(
    rows: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that takes more rows at a time comes to the same digest, in each block."""
    tensor = drawn(torch.float32, 4 * ROW * rows + 12)
    before = digest(tensor)
    monkeypatch.setattr(_digest, "_piece_rows", lambda words: size)
    assert digest(tensor) == before


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_makes_no_difference(threads: int) -> None:
    """With any number of threads the digest is the same."""
    tensor = drawn(torch.float32, 1 << 24)
    before = digest(tensor)
    torch.set_num_threads(threads)
    try:
        assert digest(tensor) == before
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, LARGE])
def test_every_dtype_has_a_digest_of_its_own(dtype: torch.dtype, size: int) -> None:
    """The digest works for each dtype, depends on it, and on the last element."""
    tensor = drawn(dtype, size)
    changed = tensor.clone()
    changed.view(torch.uint8)[-1] ^= 1
    assert digest(tensor) == digest(tensor.clone()) != digest(changed)
    assert digest(tensor) != digest(tensor.view(torch.uint8)) or dtype is torch.uint8


def test_every_bit_counts() -> None:
    """Zeros of either sign and two NaNs compare as one or not at all; their digests differ."""
    assert digest(torch.tensor(0.0)) != digest(torch.tensor(-0.0))
    quiet, payload = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert digest(quiet) == digest(quiet.clone()) != digest(payload)


def test_the_shape_counts() -> None:
    """The same values in another shape are another tensor; empty and scalar ones have a digest."""
    shapes = [(6,), (2, 3), (3, 2), (6, 1), (0,), (0, 3), ()]
    assert len({digest(torch.zeros(shape)) for shape in shapes}) == len(shapes)
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(2.0))
    assert digest(torch.empty(0)) == digest(torch.empty(0)) != NO_CONTENT


@pytest.mark.parametrize("size", [16, 512])
def test_the_way_it_lies_in_memory_makes_no_difference(size: int) -> None:
    """Strides, offset, a lazy conjugate or sign, and requires_grad are no content."""
    tensor = drawn(torch.float32, 4 * size * size).view(size, size)
    same = [
        tensor.t().contiguous().t(),
        torch.cat([torch.zeros(1), tensor.flatten()])[1:].view(size, size),
        tensor.view(1, 1, size, size).contiguous(memory_format=torch.channels_last)[0, 0],
        nn.Parameter(tensor),
        torch.complex(torch.zeros_like(tensor), -tensor).conj().imag,
    ]
    assert [digest(each) == digest(tensor) for each in same] == [True] * len(same)
    z = torch.view_as_complex(drawn(torch.float32, 8 * size * size).view(-1, 2))
    assert digest(z.conj()) == digest(z.conj().resolve_conj()) != digest(z)
    half = drawn(torch.bfloat16, LARGE)
    assert digest(half[1:]) == digest(half[1:].clone())


def test_a_sparse_tensor_counts_as_the_dense_one() -> None:
    """A layout of its own has the digest of the values it stands for."""
    dense = torch.eye(300)
    assert digest(dense.to_sparse()) == digest(dense)


def test_a_subclass_counts_as_what_it_holds() -> None:
    """A plain subclass has the digest of its values, whatever it does to operations."""

    class Refusing(torch.Tensor):
        @classmethod
        def __torch_function__(
            cls,
            func: Callable[..., object],
            types: tuple[type, ...],
            args: tuple[object, ...] = (),
            kwargs: dict[str, object] | None = None,
        ) -> object:
            assert func not in (torch.Tensor.reshape, torch.Tensor.view, torch.Tensor.to_dense)
            return super().__torch_function__(func, types, args, kwargs or {})

    tensor = torch.randn(300, 300)
    assert digest(tensor.as_subclass(Refusing)) == digest(tensor)


def test_without_content_the_digest_is_constant() -> None:
    """A tensor on meta, an uninitialized one, and one whose storage was freed hold nothing."""
    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    for empty in (torch.ones(3, device="meta"), nn.LazyLinear(2).weight, freed):
        assert digest(empty) == NO_CONTENT


@pytest.fixture
def one_process() -> Iterator[None]:
    """Forms a process group of one, without a port or a file."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_of_a_dtensor_the_local_shard_counts() -> None:
    """A change of the local shard is seen; the same shard has the same digest."""
    mesh = init_device_mesh("cpu", (1,))
    tensor = torch.randn(300, 300)
    sharded = nn.Parameter(distribute_tensor(tensor, mesh, [Shard(0)]))
    before = digest(sharded)
    assert before == digest(distribute_tensor(tensor, mesh, [Shard(0)]))
    sharded.to_local().data[299, 299] += 1
    assert digest(sharded) != before


class Allocations(TorchDispatchMode):
    """Notes the size of every storage that operations return, by address."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: tuple[type, ...],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Runs an operation and looks at what it returns."""
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                self.sizes[storage.data_ptr()] = storage.nbytes()
        return result


def test_scratch_memory_is_bounded() -> None:
    """The digest of 256 MiB takes a few MiB of its own, all in all."""
    tensor = torch.zeros(1 << 26)
    with Allocations() as allocations:
        digest(tensor)
    assert allocations.sizes.pop(tensor.data_ptr()) == 256 << 20
    assert 0 < sum(allocations.sizes.values()) <= 4 << 20


def guard_of(frozen: dict[str, torch.Tensor]) -> Guard:
    """Returns a guard of what a dictionary holds at the time."""
    return Guard(lambda: frozen, lambda name: f"why {name}")


def broken(guard: Guard, write: Callable[[], object]) -> FrozenChangedError:
    """Returns what a guard raises if something is written within its block."""
    with pytest.raises(FrozenChangedError) as caught, guard:
        write()
    return caught.value


def test_a_guard_is_silent_while_nothing_changes() -> None:
    """A block returns the guard, and lets writes of the same bits pass."""
    frozen = {"a": torch.randn(3)}
    guard = guard_of(frozen)
    with guard as entered:
        assert entered is guard
        frozen["a"].mul_(1)


def test_a_guard_names_what_changed_and_why() -> None:
    """The error spells out five with their cause, counts the others, and has all their names."""
    frozen = {f"p{n}": torch.zeros(2) for n in range(9)}
    error = broken(guard_of(frozen), frozen["p4"].cos_)
    assert error.names == ("p4",)
    assert str(error) == "1 frozen tensor changed:\n  'p4': why p4"
    error = broken(guard_of(frozen), lambda: [each.add_(1) for each in [*frozen.values()][1:]])
    assert error.names == tuple(f"p{n}" for n in range(1, 9))
    lines = str(error).splitlines()
    assert lines[0] == "8 frozen tensors changed:"
    assert lines[1:6] == [f"  'p{n}': why p{n}" for n in range(1, 6)]
    assert lines[6] == "  and 3 more, all in `names` of this error"
    assert len(lines) == 7


def test_the_error_is_one_of_freezekit_and_travels() -> None:
    """It is a FreezekitError, and keeps text and names through pickle and copy."""
    error = FrozenChangedError("1 frozen tensor changed", ("a.b",))
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert isinstance(other, FreezekitError)
        assert (str(other), other.names) == ("1 frozen tensor changed", ("a.b",))


def test_what_is_gone_has_changed() -> None:
    """A tensor that was taken out of the model is named, as gone."""
    frozen = {"a": torch.zeros(2), "b": torch.zeros(2)}
    error = broken(guard_of(frozen), lambda: frozen.pop("a"))
    assert error.names == ("a",)
    assert "'a': it is gone from the model" in str(error)


def test_what_is_replaced_is_compared_by_content() -> None:
    """Another object with the same bits passes; with other bits it is named, as replaced."""
    frozen: dict[str, torch.Tensor] = {"a": nn.Parameter(torch.zeros(2)), "b": torch.zeros(2)}
    with guard_of(frozen):
        frozen["a"] = nn.Parameter(torch.zeros(2))
    others = {"a": nn.Parameter(torch.ones(2)), "b": torch.ones(2)}
    parameter, buffer = str(broken(guard_of(frozen), lambda: frozen.update(others))).splitlines()[
        1:
    ]
    assert "not the object that was frozen: the parameter was replaced" in parameter
    assert "release the plan and apply it again" in parameter
    assert buffer == "  'b': why b"


def test_what_opens_is_forgotten_for_good() -> None:
    """After a transition only what is frozen on both sides counts, also if it closes again."""
    frozen = {"a": torch.zeros(2), "b": torch.zeros(2)}
    guard = guard_of(frozen)

    def open_and_close() -> None:
        opened = frozen.pop("a")
        guard.narrow()
        frozen["a"] = opened + 1
        frozen["c"] = torch.zeros(2)
        guard.narrow()
        frozen["c"] += 1

    with guard, guard:
        open_and_close()
    error = broken(guard, lambda: (open_and_close(), frozen["b"].add_(1)))
    assert error.names == ("b",)


def test_a_guard_that_is_not_open_costs_a_transition_nothing() -> None:
    """Outside of a block nobody asks what is frozen."""
    asked: list[bool] = []
    guard = Guard(lambda: asked.append(True) or {}, str)
    guard.narrow()
    guard.check()
    assert asked == []


def test_an_error_on_its_way_goes_on() -> None:
    """A block that fails raises its own error, and the guard is closed."""
    frozen = {"a": torch.zeros(2)}
    guard = guard_of(frozen)

    def fail() -> None:
        frozen["a"] += 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), guard:
        fail()
    guard.check()
    with guard:
        guard.check()


def test_guards_nest_and_open_again() -> None:
    """Each block compares with its own beginning, of one guard or of several."""
    frozen = {"a": torch.zeros(2)}
    outer, inner = guard_of(frozen), guard_of(frozen)

    def change_and_enter(guard: Guard) -> None:
        frozen["a"] += 1
        with guard:
            pass

    for second in (inner, outer):
        error = broken(outer, lambda second=second: change_and_enter(second))  # type: ignore[misc]
        assert error.names == ("a",)
    error = broken(outer, lambda: broken(outer, frozen["a"].cos_))
    assert error.names == ("a",)
    outer.check()


def test_a_check_midway_compares_with_the_outermost_beginning() -> None:
    """`check` raises as soon as something changed, is silent before, and outside of any block."""
    frozen = {"a": torch.zeros(2)}
    guard = guard_of(frozen)
    guard.check()
    with guard:
        guard.check()
        frozen["a"] += 1
        with guard, pytest.raises(FrozenChangedError, match="'a': why a"):
            guard.check()
        frozen["a"] -= 1
    frozen["a"] += 1
    guard.check()


def test_what_had_no_content_is_not_held_to_it() -> None:
    """A lazy or meta tensor may come to its values within a block; nothing else may lose them."""
    lazy = nn.LazyLinear(2)
    frozen = {"lazy": lazy.weight, "meta": torch.ones(2, device="meta"), "full": torch.ones(2)}
    with guard_of(frozen):
        lazy(torch.ones(1, 3))
        frozen["meta"] = torch.ones(2)
    lost = {"full": torch.ones(2, device="meta")}
    assert broken(guard_of(frozen), lambda: frozen.update(lost)).names == ("full",)


def test_a_guard_keeps_nothing_alive() -> None:
    """A tensor that is replaced within a block is freed at once."""
    frozen: dict[str, torch.Tensor] = {"a": nn.Parameter(torch.zeros(1 << 16))}
    freed: list[bool] = []

    class Sentinel:
        def __del__(self) -> None:
            freed.append(True)

    frozen["a"].sentinel = Sentinel()  # type: ignore[attr-defined]
    with guard_of(frozen):
        frozen["a"] = nn.Parameter(torch.zeros(1 << 16))
        assert freed == [True]


def test_the_likely_cause_says_what_to_do() -> None:
    """Flag, grad, mode and the rest each have a text with the way out, in this order."""
    live = nn.Parameter(torch.zeros(2))
    still = nn.Parameter(torch.zeros(2), requires_grad=False)
    graded = nn.Parameter(torch.zeros(2), requires_grad=False)
    graded.grad = torch.ones(2)
    optimizers = [torch.optim.SGD([still], lr=0.1), torch.optim.SGD([live, graded], lr=0.1)]
    outside = "written outside an optimizer (load_state_dict, an in-place operation, weight"
    for name, tensor, held_by, training, text in [
        ("a.b", live, optimizers, False, "requires_grad was switched back on; say unfreeze('a.b')"),
        ("a.b", graded, optimizers, False, "an optimizer stepped it: it has a grad"),
        ("a.b", graded, optimizers[:1], True, outside),
        ("a.b", still, optimizers, True, outside),
        ("a.b", torch.zeros(2), optimizers, True, "in train mode, where running statistics move"),
        ("a.b", torch.zeros(2), optimizers, False, outside),
        ("a.b", None, optimizers, False, "gone from the model"),
    ]:
        assert text in likely_cause(name, tensor, held_by, training)


class Net(nn.Module):
    """A backbone of two blocks with norms, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(2)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns two features."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    """Takes a few steps."""
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def opening_plan() -> FreezePlan:
    """Returns a plan that opens one block after the other, and closes the first again."""
    return (
        FreezePlan()
        .freeze("blocks")
        .unfreeze("blocks[1]", at_epoch=1)
        .unfreeze("blocks[0]", at_epoch=2, until_epoch=3)
    )


OPTIMIZERS = [(torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}), (torch.optim.AdamW, {})]


@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS)
def test_training_under_a_guard_is_silent(
    cls: type[torch.optim.Optimizer], options: dict[str, float]
) -> None:
    """Through all phases what is frozen throughout stays, and what opens may change."""
    model = Net()
    applied = opening_plan().apply(model)
    optimizer = applied.optimizer(cls, lr=0.1, **options)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with applied.guard() as guard:
        for epoch in range(4):
            applied.advance(epoch=epoch)
            with applied.guard():
                train(model, optimizer)
            guard.check()
    moved = {
        name for name, each in model.state_dict().items() if not torch.equal(each, before[name])
    }
    assert moved == set(before)


def test_what_stays_frozen_across_phases_is_still_guarded() -> None:
    """A write to what no phase on the way opens is named, after any number of transitions."""
    model = Net()
    applied = opening_plan().apply(model)

    def write() -> None:
        applied.advance(epoch=1)
        for block in model.blocks:
            block[0].weight.data.add_(1)

    assert broken(applied.guard(), write).names == ("blocks.0.0.weight",)


def test_what_opened_and_closed_again_is_not_reported() -> None:
    """Trained in between, it may differ; a write after it closed is another block's matter."""
    model = Net()
    applied = opening_plan().apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    with applied.guard():
        for epoch in range(4):
            applied.advance(epoch=epoch)
            train(model, optimizer)
        assert not model.blocks[0][0].weight.requires_grad
    error = broken(applied.guard(), lambda: model.blocks[0][0].weight.data.add_(1))
    assert error.names == ("blocks.0.0.weight",)


def test_a_guard_made_before_another_still_follows_the_phases() -> None:
    """Guards may be made first and entered later, in any order."""
    model = Net()
    applied = opening_plan().apply(model)
    first, second = applied.guard(), applied.guard()
    with first, second:
        applied.advance(epoch=1)
        model.blocks[1][0].weight.data.add_(1)


def test_a_norm_forced_into_train_mode_is_named() -> None:
    """Running statistics that move in a held module are reported with the mode as the cause."""
    model = Net()
    applied = FreezePlan().freeze("blocks").apply(model)

    def force() -> None:
        model.blocks[0][1].training = True
        model(torch.randn(8, 4))

    error = broken(applied.guard(), force)
    moved = ("running_mean", "running_var", "num_batches_tracked")
    assert error.names == tuple(f"blocks.0.1.{name}" for name in moved)
    assert str(error).count("its module is in train mode") == 3


@pytest.mark.parametrize("data", [True, False])
def test_an_in_place_write_is_named(data: bool) -> None:
    """A write through `.data` or under no_grad is reported as one outside an optimizer."""
    model = Net()
    applied = FreezePlan().freeze("blocks").apply(model)
    weight = model.blocks[0][0].weight
    with torch.no_grad():
        error = broken(applied.guard(), lambda: (weight.data if data else weight).add_(1e-6))
    assert error.names == ("blocks.0.0.weight",)
    assert "written outside an optimizer" in str(error)


@pytest.mark.parametrize("assign", [True, False])
def test_a_loaded_state_is_named_where_it_differs(assign: bool) -> None:
    """`load_state_dict` passes where it brings the same bits, and is reported where it does not."""
    model = Net()
    applied = FreezePlan().freeze("blocks").apply(model)
    state = copy.deepcopy(model.state_dict())
    with applied.guard():
        model.load_state_dict(state, assign=assign)
    state["blocks.1.0.bias"] = state["blocks.1.0.bias"] + 1
    state["head.bias"] = state["head.bias"] + 1
    error = broken(applied.guard(), lambda: model.load_state_dict(state, assign=assign))
    assert error.names == ("blocks.1.0.bias",)
    assert ("the parameter was replaced" if assign else "load_state_dict") in str(error)


def test_a_stale_grad_that_is_stepped_is_named() -> None:
    """An optimizer that holds a frozen parameter with a grad is reported as the cause."""
    model = Net()
    applied = FreezePlan().freeze("blocks").unfreeze("blocks", at_epoch=1).apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    bias = model.blocks[0][0].bias

    def step() -> None:
        bias.grad = torch.ones(4)
        optimizer.step()

    error = broken(applied.guard(), step)
    assert error.names == ("blocks.0.0.bias",)
    assert "an optimizer stepped it" in str(error)


def test_a_flag_switched_back_on_is_named() -> None:
    """A frozen parameter that a hand made trainable is reported with the flag as the cause."""
    model = Net()
    applied = FreezePlan().freeze("blocks").apply(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def switch() -> None:
        model.blocks[1][0].weight.requires_grad_(True)
        train(model, optimizer)

    error = broken(applied.guard(), switch)
    assert error.names == ("blocks.1.0.weight",)
    assert "say unfreeze('blocks.1.0.weight') in the plan" in str(error)


def test_a_parameter_taken_out_is_named_as_gone() -> None:
    """What is no longer in the model at the end cannot be proved to be the same."""
    model = Net()
    applied = FreezePlan().freeze("blocks").apply(model)
    error = broken(applied.guard(), lambda: setattr(model.blocks[0][0], "bias", None))
    assert error.names == ("blocks.0.0.bias",)
    assert "gone from the model" in str(error)


def test_release_ends_what_a_guard_proves() -> None:
    """A released model is free: the open guard has nothing left to compare."""
    model = Net()
    applied = FreezePlan().freeze("blocks").apply(model)
    with applied.guard():
        applied.release()
        model.blocks[0][0].weight.data.add_(1)
    with pytest.raises(FreezekitError, match="released"):
        applied.guard()
